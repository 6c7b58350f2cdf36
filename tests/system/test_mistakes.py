"""A person's mistakes, through the real command: one line that helps, exit code 2, no trace, nothing left running."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(400)  # several waits, each bounded, on a loaded machine

QUICK = ("--set", "attack.compare_honest=false", "--set", "clients.count=2", "--set", "rounds=1")


def complaint(result: tuple[int, str, str]) -> str:
    """The one line of a mistake."""
    code, _, err = result
    assert code == 2
    assert err.startswith("steelyard: ")
    assert err.count("\n") == 1
    return err.removeprefix("steelyard: ")


def test_wrong_settings(shell: Any) -> None:
    """Side by side, a few at a time."""
    mistakes = [
        ("rouns=3", "unknown key 'rouns'; did you mean 'rounds'?"),
        (
            'attack={name="random_noise", scael=2}',
            "client: [attack] random_noise: unknown key 'scael'; did you mean 'scale'?",
        ),
        ("attack.scale=2", "client: [attack] label_flip: unknown key 'scale'; there is none to set"),
        ("attack.name=lable_flip", "unknown attack 'lable_flip'; did you mean 'label_flip'?"),
        ('evaluators=[{name="x", kind="fedsw", utility="loss"}]', "'fedsw'; did you mean 'fedsv'?"),
        ("data.dataset=digist", "'digist'; did you mean 'digits'?"),
        ("transport.certificates=nowhere", "certificates expected, there is no nowhere/ca.pem"),
        ("transport.tensors=memory", "add --launcher inline"),
        ("data.samples_per_client=4000", "samples"),
        ("scoring.examples=12", "[scoring] examples: 0 (all) or 20 to 30 expected"),
    ]
    for some in (mistakes[:5], mistakes[5:]):
        commands = [shell.start_run(*QUICK, "--set", override) for override, _ in some]
        for (override, words), command in zip(some, commands, strict=True):
            assert words in complaint(shell.finish(command)), override
    runs = list(shell.out.iterdir()) if shell.out.exists() else []
    assert all((run / "manifest.json").exists() for run in runs), "a run that never began leaves no directory"


def test_a_setting_that_was_refused_can_be_mended(shell: Any) -> None:
    """It decides no result, so the directory is the same; what was prepared with it must not stay."""
    said = complaint(shell.finish(shell.start_run(*QUICK, "--set", "transport.address=0.0.0.0:0")))
    assert "address 0.0.0.0:0: beyond loopback only with mutual TLS" in said
    (refused,) = shell.out.iterdir()
    assert (refused / "manifest.json").exists()
    assert shell.run(*QUICK, "--launcher", "inline") == refused


def test_a_folder_that_is_a_file(shell: Any) -> None:
    taken = shell.folder / "taken"
    taken.touch()
    commands = (("run", *QUICK), ("doctor",))
    run, doctor = (shell.start(name, shell.experiment, *more, "--out", str(taken)) for name, *more in commands)
    code, _, err = shell.finish(run)
    assert (code, err.count("\n")) == (1, 1)
    assert "Not a directory" in err
    code, said, err = shell.finish(doctor)
    assert code == 2
    assert f"--out: a folder expected, {taken} is a file" in said + err
    assert "scoring:" not in said, "nobody waits for what can't run"


def test_tf32_in_the_process_of_clients_that_train_on_a_gpu(shell: Any) -> None:
    gpu = ("scoring.path=folded_tf32", "scoring.device=cuda", 'placement.clients=["cuda:0"]')
    settings = [word for setting in gpu for word in ("--set", setting)]
    said = complaint(shell.finish(shell.start_run(*QUICK, "--launcher", "inline", *settings)))
    assert "clients on a GPU share here: processes of their own expected; leave out --launcher inline" in said


def test_a_mistake_that_ends_every_client_ends_the_run_at_once(shell: Any) -> None:
    """Well before the server would give up waiting for them."""
    elsewhere = ("--set", 'placement.clients=["cuda:99"]', "--set", "protocol.join_timeout_s=3000")
    code, said, err = shell.finish(shell.start_run(*QUICK, *elsewhere))
    assert "[placement] clients = 'cuda:99': a CUDA device expected" in complaint((code, said, err))
    assert said.count("ended early (exit code 2: [placement] clients") == 2


def test_files_that_are_not_there_or_no_toml(shell: Any) -> None:
    nowhere = shell.folder / "nowhere.toml"
    assert f"experiment file expected at {nowhere}" in complaint(shell.steelyard("run", str(nowhere)))
    nowhere.write_text("name = 'x\nrounds 3", encoding="utf-8")
    assert f"{nowhere}: a TOML file expected" in complaint(shell.steelyard("run", str(nowhere)))


def test_a_busy_port(shell: Any) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        address = "{}:{}".format(*held.getsockname())
        said = complaint(shell.finish(shell.start_run(*QUICK, "--set", f"transport.address={address}")))
    assert said.startswith(f"address {address}: a free port on this host expected, it is busy")


def test_a_damaged_data_set(shell: Any) -> None:
    for half in ("train", "t10k"):
        for part in ("images-idx3", "labels-idx1"):
            (shell.folder / f"{half}-{part}-ubyte").write_bytes(b"no IDX file")
    data = ("--set", "data.dataset=fashion_mnist", "--set", f"data.folder={shell.folder}")
    assert "train-images-idx3-ubyte" in complaint(shell.finish(shell.start_run(*QUICK, *data)))


@pytest.mark.parametrize("content", ["{", '{"status": "DONE"}', "\x00\xff"])
def test_a_damaged_manifest(content: str, shell: Any) -> None:
    run = shell.folder / "run"
    run.mkdir()
    (run / "manifest.json").write_text(content, encoding="latin-1")
    for command in (("replay", str(run)), ("run", "--resume", str(run))):
        said = complaint(shell.steelyard(*command))
        assert said.startswith(f"{run}/manifest.json: a run's manifest")


def test_a_damaged_run_in_replay(undisturbed: Any, shell: Any) -> None:
    """Each kind of damage in a copy of its own; the replays go on side by side."""
    text = (undisturbed.run / "scores.csv").read_text(encoding="utf-8")
    damages = [
        ("scores.csv", text[: text.index("\n2,1,") + 8]),
        ("roles/server/data.safetensors", None),
        ("recordings/round-0002/closed.json", "{"),
        ("recordings/round-0002/client-01.safetensors", "short"),
        ("recordings/round-0002/client-01.safetensors", None),
    ]
    replays = []
    for number, (name, content) in enumerate(damages):
        run = shell.folder / f"run-{number}"
        shutil.copytree(undisturbed.run, run, ignore=shutil.ignore_patterns("honest"))
        (run / name).unlink()
        if content is not None:
            (run / name).write_text(content, encoding="utf-8")
        replays.append(shell.start("replay", str(run)))
    for (name, _), replay in zip(damages, replays, strict=True):
        code, _, err = shell.finish(replay)
        assert code in (1, 2), name
        assert "Traceback" not in err
        assert err.startswith("steelyard: ")
        assert err.count("\n") == 1
        assert Path(name).name in err, "the line names the file"
        if name == "scores.csv":
            assert (code, err.partition("scores.csv")[2]) == (2, ", line 12: 13 cells expected, got 3; is it cut?\n")
