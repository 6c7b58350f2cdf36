"""What transfers took and what each role could see, from events and folders whose numbers a person can add up."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from steelyard.report.seen import seen
from steelyard.report.traffic import Traffic, account, traffic


def event(time: float, name: str, **fields: Any) -> dict[str, Any]:
    return {"time": time, "event": name, **fields}


EVENTS = [
    event(10.0, "round_opened", round=1, participants=[0, 1, 2]),
    event(10.5, "fetched", round=1, client=0, bytes=100, seconds=0.5),
    event(10.5, "fetch_failed", round=1, client=1, detail="gone", seconds=0.25),
    event(11.0, "fetched", round=1, client=1, bytes=100, seconds=0.25),
    event(12.0, "received", round=1, client=0, bytes=100, seconds=1.0),
    event(12.0, "upload_failed", round=1, client=1, bytes=40, seconds=0.5, refusal="TRUNCATED"),
    event(13.0, "server_started"),
    event(13.0, "round_opened", round=1, participants=[0, 1, 2]),
    event(15.0, "received", round=1, client=1, bytes=100, seconds=2.0),
    event(16.0, "round_closed", round=1),
    event(17.0, "round_opened", round=2, participants=[0]),
    event(17.5, "fetched", round=2, client=0, bytes=100, seconds=0.5),
]


def test_every_client_and_round_adds_up() -> None:
    clean = Traffic(client=0, round=1, bytes_down=100, bytes_up=100, transfer_seconds=1.5, retries=0, idle_seconds=4.0)
    broken = Traffic(client=1, round=1, bytes_down=100, bytes_up=140, transfer_seconds=3.0, retries=2, idle_seconds=1.0)
    silent = Traffic(client=2, round=1, bytes_down=0, bytes_up=0, transfer_seconds=0.0, retries=0, idle_seconds=None)
    assert traffic(EVENTS) == [clean, broken, silent], "round 2 is still open"


def test_totals_count_the_rounds_that_counted() -> None:
    closed = [*EVENTS, event(18.0, "round_closed", round=2)]
    first, _, silent = account(closed)["by_client"]
    assert (first["rounds"], first["bytes_down"], first["transfer_seconds"], first["idle_seconds"]) == (
        1,
        200,
        2.0,
        4.0,
    )
    assert (silent["rounds"], silent["idle_seconds"]) == (0, 0.0)
    assert account([]) == {"by_client": [], "by_round": []}


def test_each_role_saw_its_folder_and_what_came_to_it(tmp_path: Path) -> None:
    for role, name in (("server", "half.json"), ("client-0", "token"), ("client-1", "state/memory"), ("link-0", "x")):
        path = tmp_path / "roles" / role / name
        path.parent.mkdir(parents=True)
        path.write_text(role)
    found = seen(tmp_path, EVENTS)
    assert list(found) == ["client-0", "client-1", "link-0", "server"]
    assert found["client-0"] == {
        "files": [{"name": "token", "bytes": 8, "sha256": None}],
        "arrived": "global models",
        "transfers": 2,
        "bytes": 200,
    }
    digest = hashlib.sha256(b"client-1").hexdigest()
    assert found["client-1"]["files"] == [{"name": "state/memory", "bytes": 8, "sha256": digest}]
    assert (found["server"]["arrived"], found["server"]["bytes"]) == ("updates", 200)
    assert found["link-0"]["bytes"] == 0
    assert seen(tmp_path / "elsewhere", EVENTS) == {}
