"""An experiment in, a finished run directory out; the same bits by every way to run it, and once more by replay."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deploy.launch import Options, read_manifest, run_experiment, status
from deploy.prepare import server_folder
from scripts.progress import Silent
from steelyard.bundle import read_arrays
from steelyard.config import Experiment, ServerHalf, load_half
from steelyard.parsing import parse
from steelyard.recording import ROLES, Recordings
from steelyard.scoring import paths
from steelyard.scoring.replay import RoundScorer

pytestmark = pytest.mark.timeout(400)  # several waits, each bounded, on a loaded machine

OTHER_SHELL = {
    "OMP_NUM_THREADS": "7",
    "MKL_NUM_THREADS": "5",
    "OPENBLAS_CORETYPE": "Prescott",
    "PYTHONHASHSEED": "11",
}
GLOO = ("--set", "transport.tensors=gloo", "--set", "transport.trusted_peers=true")


def test_a_run_leaves_all_its_files(undisturbed: Any, shell: Any) -> None:
    run = undisturbed.run
    files = ("scores.csv", "metrics.csv", "events.jsonl", "summary.json", "report.html", "manifest.json")
    assert [name for name in files if not (run / name).stat().st_size] == []
    assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["status"] == "DONE"
    look = shell.look(run)
    assert len(look.models) == 3
    assert len(look.scores) == 3 * 3 * 3, "rounds, clients, evaluators"
    assert [len(event["received"]) for event in look.events("round_closed")] == [3, 3, 3]
    assert "report" in undisturbed.output


def test_every_role_was_a_process_of_its_own(undisturbed: Any) -> None:
    assert set(undisturbed.processes) == {"server", "client-0", "client-1", "client-2"}
    assert len(set(undisturbed.processes.values())) == 4


def test_what_is_done_is_not_run_again_unless_forced(undisturbed: Any, shell: Any) -> None:
    out = shell.folder / "runs"
    shutil.copytree(undisturbed.run.parent, out, symlinks=True)
    before = (shell.the_run() / "events.jsonl").read_bytes()
    summary = shell.the_run() / "summary.json"
    told = json.loads(summary.read_text(encoding="utf-8"))
    for lose in (lambda: None, summary.unlink, lambda: summary.write_text("{", encoding="utf-8")):
        lose()
        code, said, err = shell.finish(shell.start_run())
        assert (code, err) == (0, "")
        assert "is DONE already; --force runs it again" in said
        assert "Client 0" in said
        assert (shell.the_run() / "events.jsonl").read_bytes() == before
        assert json.loads(summary.read_text(encoding="utf-8")) == told, "made anew, it says the same"
    shell.run("--force", "--launcher", "inline", "--order", "2,0,1", "--set", "transport.tensors=memory")
    look = shell.look(shell.the_run())
    assert (shell.the_run() / "events.jsonl").read_bytes() != before
    assert [event["incarnation"] for event in look.events("server_started")] == [1], "nothing old was left"
    check_bits(shell, undisturbed)  # neither the order nor the transport changes one
    received = [event["client"] for event in look.events("received")]
    assert received == [2, 0, 1] * 3


def test_a_force_that_is_cut_short_leaves_nothing_of_the_run_before(
    undisturbed: Any, shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had not thrown away must neither pass for a finished run nor be gone on from."""
    shutil.copytree(undisturbed.run.parent, shell.out, symlinks=True)
    run = shell.the_run()
    experiment = parse(Experiment, read_manifest(run)["experiment"], "the manifest")

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        with pytest.raises(OSError, match="Input/output error"):
            run_experiment(experiment, Options(out=shell.out, force=True, checked=True), Silent())
    honest = (run / "honest").resolve()
    assert (honest / "recordings").exists(), "not all was thrown away"
    assert status(honest) != "DONE"
    shell.run("--launcher", "inline")
    look = shell.look(honest)
    assert [event["incarnation"] for event in look.events("server_started")] == [1]
    assert [event["round"] for event in look.events("round_opened")] == [1, 2, 3]
    check_bits(shell, undisturbed)


def test_a_finished_run_of_other_code_or_data_is_told(undisturbed: Any, shell: Any) -> None:
    """Neither is in the digest that names the directory."""
    shutil.copytree(undisturbed.run.parent, shell.out, symlinks=True)
    run = shell.the_run()
    change(run, revision="5ee1")
    code, said, _ = shell.finish(shell.start_run())
    assert code == 0
    assert "is DONE already, but of other source code (revision 5ee1, here " in said
    code, _, err = shell.finish(shell.start_run("--set", f"data.folder={shell.folder}"))
    assert (code, err.count("\n")) == (2, 1)
    assert f"was made with [data] folder = '', not '{shell.folder}'" in err
    twin = (run / "honest").resolve()
    change(twin, revision="5ee1")
    code, said, _ = shell.finish(shell.start_run("--set", "attack.name=random_noise", "--launcher", "inline"))
    assert code == 0
    assert f"the honest twin is {shell.out / twin.name}, DONE already, but of other source code" in said
    change(twin, data={"sha256": "f" * 64})
    code, _, err = shell.finish(shell.start_run("--set", "attack.name=scaling", "--launcher", "inline"))
    assert (code, err.count("\n")) == (2, 1)
    expected = (
        "digits: the same data behind runs that are compared expected, got SHA-256 ffffffffff of the honest twin, "
    )
    assert f"{expected}{shell.out / twin.name}; " in err
    assert len(list(shell.out.iterdir())) == 3, "nothing is left of it"
    code, _, err = shell.steelyard("run", "--resume", str(twin))
    assert code == 2
    assert "a run's honest twin goes on with that run, so resume the run" in err


def test_what_goes_on_keeps_its_settings_and_that_its_roles_were_once_in_one_process(
    undisturbed: Any, shell: Any
) -> None:
    shutil.copytree(undisturbed.run.parent, shell.out, symlinks=True)
    run = shell.the_run()
    change(run, status="FAILED", compiled={"winograd-default.so": "0" * 64})
    shell.run("--launcher", "inline")
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert "continued" not in manifest, "by the code that began it, and its path scores by nothing compiled"
    change(run, status="FAILED", revision="5ee1")
    code, said, err = shell.finish(shell.start_run("--set", "scoring.workers=2"))
    assert (code, err) == (0, "")
    assert "goes on with scoring.workers as it began; --force begins anew" in said
    (later,) = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["continued"]
    assert later["revision"] == manifest["revision"]
    (run / "summary.json").unlink()
    shell.run()  # makes the summary anew
    assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["boundary"].startswith("none: all roles")


def change(run: Path, **fields: Any) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def test_tensors_by_gloo_and_another_shell_change_no_bit(undisturbed: Any, shell: Any) -> None:
    shell.run(*GLOO, env=OTHER_SHELL)
    check_bits(shell, undisturbed)


def check_bits(shell: Any, undisturbed: Any) -> None:
    """The run and its twin have the bits of those that nobody disturbed."""
    run = shell.the_run()
    for ours, theirs in ((run, undisturbed.run), (run / "honest", undisturbed.run / "honest")):
        assert shell.look(ours).scores == shell.look(theirs).scores
        assert shell.look(ours).models == shell.look(theirs).models
    assert shell.look(run).scores != shell.look(run / "honest").scores, "the attack does something"


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / run.name, ignore=shutil.ignore_patterns("honest"), symlinks=True))


def test_replay_finds_every_score_again(undisturbed: Any, shell: Any) -> None:
    code, said, err = shell.steelyard("replay", str(undisturbed.run), env=OTHER_SHELL)
    assert (code, err) == (0, "")
    assert said.count("27 of 27 scores and 3 of 3 models are bit-equal to the live run") == 2, "and its twin's"


def test_another_evaluation_path_replays_as_exactly(undisturbed: Any, shell: Any) -> None:
    run = shell.run("--launcher", "inline", "--set", "scoring.path=im2col", "--set", "attack.compare_honest=false")
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["experiment"]["scoring"]["path"] == "im2col"
    here = Path(paths.__file__).parent
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in here.glob("winograd-*.so")}
    assert manifest["compiled"] == digests, "a compiler decides bits"
    assert manifest["digest"] not in undisturbed.run.name, "the path is a part of what was asked"
    assert shell.look(run).models == undisturbed.models, "scoring changes no training"
    code, said, err = shell.steelyard("replay", str(run), env=OTHER_SHELL)
    assert (code, err) == (0, "")
    assert "27 of 27 scores and 3 of 3 models are bit-equal to the live run" in said


def test_scoring_tells_how_far_it_is(undisturbed: Any) -> None:
    server = server_folder(undisturbed.run / ROLES)
    recordings = Recordings(undisturbed.run)
    told: list[tuple[int, int]] = []
    with closing(
        RoundScorer(load_half(ServerHalf, server / "half.json"), read_arrays(server / "data.safetensors"), recordings)
    ) as scorer:
        scorer.rows(recordings.closed_rounds()[0], lambda done, total: told.append((done, total)))
    round_, folded = [(i, 8) for i in range(1, 9)], [(i, 16) for i in range(9, 17)]
    assert told == round_ + folded, (
        "all coalitions of three, which leave-one-out shares; then those of one_round's game"
    )


def test_a_replay_ends_with_its_command_and_says_what_ended_it(undisturbed: Any, shell: Any) -> None:
    """The command has a child do the work: killed, neither leaves the other behind or in silence."""
    parent, child = (shell.start("replay", str(undisturbed.run)) for _ in range(2))
    for process in (parent, child):
        (worker,) = shell.wait_until(lambda: shell.children_of(process.pid), "the process that does the work")  # noqa: B023 - called at once
        os.kill(process.pid if process is parent else worker, signal.SIGKILL)
    _, said, _ = shell.finish(parent)  # to the end of the worker's output
    assert "bit-equal" not in said, "it did not go on"
    code, _, err = shell.finish(child)
    assert (code, err) == (1, "steelyard: the process that did the work was ended by SIGKILL\n")


def test_replay_sees_one_digit_of_one_score_and_one_bit_of_one_update(undisturbed: Any, shell: Any) -> None:
    """In a copy each; the replays go on side by side, as below."""
    digit, bit = (copy_of(undisturbed.run, shell.folder / name) for name in ("digit", "bit"))
    scores = digit / "scores.csv"
    lines = scores.read_text(encoding="utf-8").splitlines()
    cells = lines[-1].split(",")
    last = cells[3][-1]
    cells[3] = cells[3][:-1] + ("1" if last != "1" else "2")
    scores.write_text("\n".join([*lines[:-1], ",".join(cells), ""]), encoding="utf-8")
    update = bit / "recordings" / "round-0002" / "client-01.safetensors"
    data = bytearray(update.read_bytes())
    data[-1] ^= 0x40
    update.write_bytes(data)
    replays = [shell.start("replay", str(run)) for run in (digit, bit)]
    code, said, _ = shell.finish(replays[0])
    assert code == 1
    assert "26 of 27 scores and 3 of 3 models" in said
    code, said, err = shell.finish(replays[1])
    assert code == 1
    assert "Traceback" not in err
    assert "3 of 3 models" not in said


def without(path: Path, *starts: str) -> None:
    """Take the lines out of a file that start so."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(starts)), encoding="utf-8")


def test_replay_confirms_no_score_that_is_not_there(undisturbed: Any, shell: Any) -> None:
    """Every loss among a finished run's files is a line, and no loss is a success; the replays go on side by side."""
    whole = undisturbed.run

    def replay_of(name: str, *damage: Any) -> tuple[Path, Any]:
        run = shell.folder / name
        shutil.copytree(whole, run, symlinks=True)
        (run / "honest").unlink()
        (run / "honest").symlink_to(whole / "honest")
        for each in damage:
            each(run)
        return run, shell.start("replay", str(run))

    def said_of(run: Path, replay: Any) -> str:
        code, said, err = shell.finish(replay)
        assert (code, err) == (1, ""), said
        return str(said).replace(str(run), "RUN")

    rows_lost = replay_of(
        "rows",
        lambda run: without(run / "scores.csv", "1,0,loo_loss", "1,2,loo_loss", "3,"),
        lambda run: without(run / "metrics.csv", "2,"),
        lambda run: (run / "honest").unlink(),
    )
    round_lost, last_round_lost = (
        replay_of(name, lambda run, name=name: (run / "recordings" / name / "closed.json").unlink())  # type: ignore[misc]
        for name in ("round-0002", "round-0003")
    )

    said = said_of(*rows_lost)
    assert "RUN: 16 of 27 scores and 3 of 3 models are bit-equal to the live run" in said
    assert "RUN/scores.csv: a row expected, none there: round 1, loo_loss, client 0, 2\n" in said
    assert "RUN/scores.csv: rows of every closed round expected, none of round 3\n" in said
    assert "RUN/metrics.csv: rows of every closed round expected, none of round 2\n" in said
    assert "RUN/honest: a link to the honest twin expected" in said
    assert said.count("RUN/") == 4, "nothing else is missing"

    said = said_of(*round_lost)
    assert "RUN: 9 of 9 scores and 1 of 1 models are bit-equal" in said
    assert "RUN/recordings/round-0002/closed.json: expected, since a later round closed" in said
    assert "so rounds 2 to 3 were not replayed" in said
    assert said.count("RUN/") == 1 + said.count("RUN/honest: 27 of 27")

    said = said_of(*last_round_lost)
    assert "RUN/recordings: 3 closed rounds of a finished run expected, got 2" in said
    assert "RUN/scores.csv: no row expected: round 3, fedsv_accuracy, client 0, 1, 2" in said


def test_replay_of_a_run_that_goes_on_says_so(undisturbed: Any, shell: Any) -> None:
    """Round 3 closed and was not settled when the server was killed: nothing is missing yet; then rows are."""
    replays = []
    for starts in (("3,",), ("3,", "1,")):
        run = copy_of(undisturbed.run, shell.folder / str(len(starts)))
        (run / "honest").symlink_to(undisturbed.run / "honest")
        manifest = run / "manifest.json"
        manifest.write_text(manifest.read_text(encoding="utf-8").replace('"DONE"', '"RUNNING"'), encoding="utf-8")
        without(run / "scores.csv", *starts)
        without(run / "metrics.csv", "3,")
        shutil.rmtree(run / "recordings" / "round-0004")
        replays.append((run, shell.start("replay", str(run))))
    run, replay = replays[0]
    code, said, err = shell.finish(replay)
    assert (code, err) == (0, "")
    assert f"{run}: this run is not finished: 2 of 3 rounds are scored; --resume goes on with it" in said
    assert f"{run}: 18 of 18 scores and 2 of 2 models are bit-equal to the live run" in said
    run, replay = replays[1]
    code, said, err = shell.finish(replay)
    assert (code, err) == (1, "")
    assert f"{run}/scores.csv: rows of every closed round expected, none of round 1" in said


def test_replay_refuses_a_damaged_file_of_an_earlier_one_before_it_computes(undisturbed: Any, shell: Any) -> None:
    run = copy_of(undisturbed.run, shell.folder)
    damaged = run / "scores-replayed.csv"
    damaged.write_text("round,client,evaluator\n1,0\n", encoding="utf-8")
    adding, adding_nothing = shell.start("replay", str(run), "--evaluator", "loo"), shell.start("replay", str(run))
    code, said, err = shell.finish(adding)
    what = f"{damaged}, line 2: 3 cells expected, got 2; is it cut?"
    assert (code, said) == (2, "")
    assert err == f"steelyard: {what} (lines are to be added to it: mend it or move it away)\n"
    _, said, err = shell.finish(adding_nothing)
    assert "bit-equal to the live run" in said, "who adds nothing needs none of it"
    assert str(damaged) not in err


def test_replay_adds_scores_of_other_evaluators(undisturbed: Any, shell: Any) -> None:
    """A kind with its defaults, and a table; the live rows' file is not written, and the twin is scored too."""
    run = copy_of(undisturbed.run, shell.folder)
    shutil.copytree(undisturbed.run / "honest", run / "honest", symlinks=True)
    live = (run / "scores.csv").read_bytes()
    asked = ("--evaluator", "cgsv", "--evaluator", '{kind = "fedsv", utility = "accuracy", name = "again"}')
    code, said, err = shell.steelyard("replay", str(run), *asked, env=OTHER_SHELL)
    assert (code, err) == (0, ""), said
    assert said.count("18 rows of cgsv_accuracy, again") == 2
    assert (run / "scores.csv").read_bytes() == live
    for place in (run, run / "honest"):
        replayed, scored = shell.rows(place / "scores-replayed.csv"), shell.rows(place / "scores.csv")
        assert len(replayed) == 3 * 3 * 2
        assert {row["evaluator"] for row in replayed} == {"cgsv_accuracy", "again"}
        fedsv = [row["value"] for row in scored if row["evaluator"] == "fedsv_accuracy"]
        assert [row["value"] for row in replayed if row["evaluator"] == "again"] == fedsv


def test_replay_names_what_is_wrong_with_an_evaluator(undisturbed: Any, shell: Any) -> None:
    mistakes = [
        ("shaply", "did you mean 'shapley'"),
        ("{kind = 3", "an inline TOML table expected"),
        ('{kind = "fedsv", name = "x", x = 2020-01-01}', "numbers, strings, lists and tables expected as parameters"),
        ('{kind = "fedsv", utility = "accuracy"}', "a name that the run has not scored live"),
    ]
    replays = [shell.start("replay", str(undisturbed.run), "--evaluator", text) for text, _ in mistakes]
    for (_, message), replay in zip(mistakes, replays, strict=True):
        code, _, err = shell.finish(replay)
        assert (code, message in err, "Traceback" in err) == (2, True, False), err
    assert not (undisturbed.run / "scores-replayed.csv").exists()
