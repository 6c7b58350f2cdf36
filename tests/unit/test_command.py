"""The `steelyard` command as a person meets it: help, mistakes in one line, exit codes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.main import COMMANDS, main
from steelyard.errors import BadBundleError, RunFailedError, SteelyardError, UserError, WaitTimeoutError
from steelyard.process import LAUNCHER, run_main

ROOT = Path(__file__).parents[2]


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def leaves_with(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == code


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    leaves_with(0, "--help")
    out = capsys.readouterr().out
    for command, text in COMMANDS.items():
        assert command in out
        assert text.split()[0] in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    leaves_with(0, command, "--help")
    out = capsys.readouterr().out
    assert out.startswith(f"usage: steelyard {command} ")
    assert COMMANDS[command][:40] in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (
            ["rnu"],
            "invalid choice: 'rnu' (choose from 'run', 'sweep', 'prepare', 'compose', 'replay', 'compare', 'doctor', "
            "'decoder', 'certs', 'bench')",
        ),
        (["rnu", "run"], "invalid choice: 'rnu'"),
        (["run", "x.toml", "--oder", "1"], "unrecognized arguments: --oder 1"),
        (["run", "x.toml", "--launcher", "ship"], "invalid choice: 'ship' (choose from 'local', 'inline', "),
        (["prepare", "x.toml"], "the following arguments are required: --out"),
        (["certs", "folder", "--clients", "many"], "invalid int value: 'many'"),
    ],
)
def test_a_command_line_that_makes_no_sense(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    leaves_with(2, *arguments)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("run", "an experiment file expected, e.g. experiments/quickstart.toml, or --resume RUN"),
        ("run none.toml", "experiment file expected at none.toml, there is none"),
        ("run x.toml --set seed", "--set: key=value expected, got 'seed'"),
        ("run x.toml --set rouns=3", "x.toml: unknown key 'rouns'; did you mean 'rounds'?"),
        ("run x.toml --launcher inline --order 0,0", "--order: every client below 2 once expected, got '0,0'"),
        ("run x.toml --launcher inline --order 0,one", "--order: every client below 2 once expected, got '0,one'"),
        ("run x.toml --order 1,0", "--order is for --launcher inline, got --launcher local; leave it out"),
        ("run x.toml --gpu", "--subnets, --memory and --gpu are for --launcher compose, got --launcher local"),
        ("run x.toml --launcher torchrun --memory 9", "--subnets, --memory and --gpu are for --launcher compose"),
        ("bench evaluation --sizes 1", "--sizes is for bench transport, got bench evaluation; leave it out"),
        ("bench transport --images 9", "--images is for bench evaluation, got bench transport; leave it out"),
        ("bench evaluation --parts paths,growth --batches 9", "--batches is for --parts speed, got --parts paths,"),
        ("bench evaluation --parts paths --out x", "--out is for --parts speed,estimators,growth, got --parts paths; "),
        ("bench transport --ways gloo --peer-rounds 1", "--peer-rounds is for --ways steelyard-round,flower,nvflare, "),
        ("bench evaluation --parts taste --draws 9", "--parts: some of speed, paths, estimators, growth expected, "),
        ("bench transport --ways pigeon", "--ways: some of raw-tcp, "),
        ("bench evaluation --batches 9,", "--batches: whole numbers from 1 on, as in 100,32, expected, got '9,'"),
        ("run --resume none", "an interrupted run directory expected, none has no manifest.json"),
        ("run x.toml --resume none", "--resume goes on with a run as its manifest says"),
        (
            "run --resume none --out elsewhere",
            "--resume goes on with a run as its manifest says, where it is; leave out",
        ),
        ("run x.toml --set transport.tensors=memory", "transport.tensors = 'memory' lives in one process"),
        ("prepare none.toml --out roles", "experiment file expected at none.toml, there is none"),
        ("replay none", "a run directory expected, none has no manifest.json"),
        ("doctor none.toml", "experiment file expected at none.toml, there is none"),
        ("certs certs --clients 0", "certificates: at least 1 client expected, got 0"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.toml").write_text("name = 'x'\n[clients]\ncount = 2\n")
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"steelyard: {line}")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.toml"], "nothing was begun"


@pytest.mark.parametrize(
    "arguments",
    [
        "bench transport --sizes 1 --clients 1 --ways raw-tcp --repetitions 1",
        "bench evaluation --parts estimators --games none",
        "decoder train x.toml --source own --set attack.decoder.kind=none",
    ],
)
def test_a_place_that_can_not_be_had_is_told_before_the_work(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = "[data]\nsamples_per_client = 20\nvalidation = 20\ntest = 20\n"
    (tmp_path / "x.toml").write_text(f"name = 'x'\n{data}[attack]\nname = 'latent'\n")
    (tmp_path / "taken").write_text("")
    assert main([*arguments.split(), "--out", "taken"]) == 1
    assert capfd.readouterr() == ("", "steelyard: taken: File exists\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no such thing"), 2, "steelyard: no such thing\n"),
        (RunFailedError("below the quorum"), 1, "steelyard: below the quorum\n"),
        (WaitTimeoutError("30 s for the server"), 1, "steelyard: 30 s for the server\n"),
        (BadBundleError("BAD_DIGEST", "x"), 1, "steelyard: BAD_DIGEST: x\n"),
        (SteelyardError("two\nlines"), 1, "steelyard: two lines\n"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "steelyard: No space left on device\n"),
        (FileExistsError(errno.EEXIST, "File exists", "runs"), 1, "steelyard: runs: File exists\n"),
    ],
)
def test_exit_codes(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(raising(error)) == code
    assert capsys.readouterr().err == said


def test_a_commands_own_code_is_kept() -> None:
    assert [run_main(lambda: 0), run_main(lambda: 1)] == [0, 1]


def test_a_mistake_of_ours_keeps_its_trace_and_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(raising(ZeroDivisionError("by zero"))) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    here = f"{Path(__file__)}, line {raising.__code__.co_firstlineno + 2}"
    told = f"a bug: ZeroDivisionError: by zero ({here}); mend it if that file is yours, else please report it"
    assert lines[-1] == f"steelyard: {told}"


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


OUTPUT_TO_NOBODY = """
import os, sys
from scripts.console import make_console
from steelyard.errors import UserError
from steelyard.process import run_main
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, sys.stdout.fileno())
def command():
    {}
    return 0
sys.exit(run_main(command))
"""


@pytest.mark.parametrize("way", ["print('x')", "print('x', flush=True)", "make_console().print('x')"])
def test_a_command_without_a_reader_ends_like_any_other(way: str) -> None:
    done = in_a_process(OUTPUT_TO_NOBODY.format(way), PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (141, "")


def test_a_command_without_a_reader_tells_its_error_nevertheless() -> None:
    done = in_a_process(OUTPUT_TO_NOBODY.format("print('x'); raise UserError('no such thing')"), PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (2, "steelyard: no such thing\n")


@pytest.mark.parametrize("output", ["os.pipe()[1]", "os.open('/dev/full', os.O_WRONLY)"])
@pytest.mark.parametrize(("error", "code"), [("UserError('no such thing')", 2), ("ValueError('ours')", 1)])
def test_an_error_that_nobody_can_be_told_keeps_its_exit_code(output: str, error: str, code: int) -> None:
    act = f"os.dup2({output}, 2); os.closerange(3, 9); raise {error}"
    done = in_a_process(OUTPUT_TO_NOBODY.format(act), PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("closed", [1, 2])
def test_a_command_without_an_output_does_its_work(closed: int) -> None:
    code = "import os, sys; from scripts.console import make_console; from steelyard.process import run_main"
    command = f"{code}; sys.exit(run_main(lambda: make_console().print('x') or sys.stderr.write('y') and 7))"
    done = in_a_process(
        f"import os, sys; os.close({closed}); os.execv(sys.executable, [sys.executable, '-c', {command!r}])"
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "x\n" * (closed == 2), "y" * (closed == 1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_that_can_not_be_written_is_an_error() -> None:
    code = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); from steelyard.process import run_main"
    done = in_a_process(f"{code}; sys.exit(run_main(lambda: print('x') or 0))")
    assert (done.returncode, done.stderr) == (1, "steelyard: No space left on device\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("module", ["server.forecast", "steelyard.transport.check"])
def test_what_the_doctor_asks_ends_with_the_doctor(module: str) -> None:
    code = f"import runpy, sys; sys.argv = ['x', 'half.json', '9']; runpy.run_module('{module}', run_name='__main__')"
    gone = in_a_process(code, **{LAUNCHER: "0"})
    assert (gone.returncode, gone.stderr) == (1, "steelyard: the launcher that started this process has ended\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux's")
def test_a_process_whose_launcher_is_gone_does_not_begin() -> None:
    code = """
import sys
from steelyard.process import exit_with_launcher, run_main
sys.exit(run_main(lambda: exit_with_launcher() or 0))
"""
    gone = in_a_process(code, **{LAUNCHER: "0"})
    assert (gone.returncode, gone.stderr) == (1, "steelyard: the launcher that started this process has ended\n")
    assert in_a_process(code, **{LAUNCHER: str(os.getpid())}).returncode == 0
