"""The fault plan in whole runs: what befalls whom, read from the logs alone, and what it changes of the scores."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from deploy.faults import RECORD
from deploy.link.control import SOCKET

pytestmark = pytest.mark.timeout(300)
ALONE = ("--set", "attack.compare_honest=false")


def plan(*faults: str) -> tuple[str, str]:
    return "--set", f"network.faults=[{', '.join(f'{{{fault}}}' for fault in faults)}]"


def record(run: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / RECORD).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == name]


def happened(run: Path, name: str) -> set[tuple[int, int, str]]:
    return {(event["client"], event["round"], event["kind"]) for event in record(run, name)}


def test_who_comes_through_in_time_changes_no_score(undisturbed: Any, shell: Any) -> None:
    faults = plan(
        "client=2, round=1, kind='reset'",
        "client=1, round=2, kind='restart', seconds=0.1",
        "client=0, round=2, kind='partition', seconds=0.6, at='fetch'",
        "client=2, round=3, kind='pause', seconds=0.4",
        "client=1, round=3, kind='slow_compute', factor=4",
    )
    run = shell.run(*ALONE, *faults)
    look = shell.look(run)
    assert (look.scores, look.models) == (undisturbed.scores, undisturbed.models)
    assert happened(run, "fault") == {(2, 1, "reset"), (1, 2, "restart"), (0, 2, "partition"), (2, 3, "pause")}
    assert happened(run, "fault_over") == {(1, 2, "restart"), (0, 2, "partition"), (2, 3, "pause")}
    assert not record(run, "fault_missed") + record(run, "fault_failed")
    assert [len(look.events("joined", client=client)) for client in range(3)] == [1, 2, 2]
    for client in (1, 2):
        (refused,) = look.events("refused", client=client, request="Submit")
        # Caught in its middle: its call ended first, or the same update was announced anew before that was noticed.
        assert refused["refusal"] in ("TRUNCATED", "LATE")
        (caught,) = look.events("upload_failed", client=client)
        assert caught["bytes"] < 39_720, "the whole update had not come"
    links = {event["client"]: event for event in record(run, "link")}
    assert [links[client]["resets"] for client in range(3)] == [0, 1, 1]
    assert all(event["up"] > 3 * 39_720 for event in links.values()), "every update went through its link"
    work, took = look.pace(client=1, number=3)
    assert took > 3.9 * work - 0.01, "the slow update took four times as long as its work"
    check_summary(run)


def check_summary(run: Path) -> None:
    """The upload that broke is counted, and nobody saw more than its folder and the models."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    rows = {(row["client"], row["round"]): row for row in summary["traffic"]["by_round"]}
    assert [rows[place]["retries"] > 0 for place in ((2, 1), (1, 2), (0, 1), (2, 2))] == [True, True, False, False]
    assert rows[1, 2]["bytes_up"] >= rows[0, 1]["bytes_up"] == 39_720
    assert rows[1, 2]["bytes_down"] == 2 * 39_720, "started again, it fetched the model again"
    assert summary["seen"]["client-0"]["bytes"] >= 3 * 39_720
    assert {file["name"] for file in summary["seen"]["link-0"]["files"]} == {"link.json", "log.txt"}


@pytest.mark.slow
def test_who_crashes_or_sleeps_is_missing_and_the_run_goes_on(shell: Any) -> None:
    """The attacker's process dies in the middle of its upload for good; client 1 sleeps past round 2's deadline."""
    faults = plan("client=1, round=2, kind='pause', seconds=14", "client=0, round=3, kind='crash'")
    short = ("--set", "protocol.round_deadline_s=12", "--set", "protocol.lease_s=30")
    run = shell.run(*ALONE, *faults, *short)
    look = shell.look(run)
    closed = look.events("round_closed")
    assert [event["received"] for event in closed] == [[0, 1, 2], [0, 2], [1, 2]]
    assert [event["missing"] for event in closed] == [[], [1], [0]]
    assert closed[1]["reason"] == "deadline after 12 s: client 1 missing"
    assert happened(run, "fault") == {(1, 2, "pause"), (0, 3, "crash")}
    assert happened(run, "fault_over") == {(1, 2, "pause")}
    absent = {(round_, client): float(value) for round_, client, name, value in look.scores if name != "one_round"}
    assert absent["2", "1"] == absent["3", "0"] == 0.0
    assert not list((run / "recordings").glob("round-*/*.part"))
    assert len(look.models) == 3, "no recorded round is lost"
    assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["caveats"] == [
        "Updates were missing in rounds of the attacked run that counted: client 0 (attacker, whose fault plan may "
        "be why) in 1 of 3; client 1 (whose fault plan may be why) in 1 of 3."
    ]


@pytest.mark.slow
def test_a_plan_goes_on_where_the_run_was_interrupted(undisturbed: Any, shell: Any) -> None:
    """The fault of round 1 has happened and does not happen again; the one of round 3 still does."""
    faults = plan(
        "client=1, round=1, kind='reset'",
        "client=2, round=2, kind='partition', seconds=100",
        "client=1, round=3, kind='reset'",
    )
    launcher = shell.start_run(*ALONE, *faults)
    run = shell.the_run()
    shell.wait_until(lambda: (run / RECORD).exists() and (2, 2, "partition") in happened(run, "fault"), "the partition")
    launcher.send_signal(signal.SIGINT)
    assert shell.finish(launcher)[0] == 130
    assert happened(run, "fault") == {(1, 1, "reset"), (2, 2, "partition")}
    code, _, err = shell.steelyard("run", "--resume", str(run))
    assert (code, err) == (0, "")
    look = shell.look(run)
    assert (look.scores, look.models) == (undisturbed.scores, undisturbed.models)
    assert len(record(run, "fault")) == 3
    assert happened(run, "fault") == {(1, 1, "reset"), (2, 2, "partition"), (1, 3, "reset")}
    assert (run / "roles" / "link-1" / SOCKET).exists()


def test_lines_need_processes_of_their_own(shell: Any) -> None:
    code, _, err = shell.steelyard(
        "run", shell.experiment, "--launcher", "inline", "--set", "network.profile=4g", "--out", str(shell.out)
    )
    assert code == 2
    assert "[network] needs a launcher that puts lines between roles" in err
