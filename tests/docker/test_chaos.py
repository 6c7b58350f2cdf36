"""Containers killed, frozen, unplugged and badly connected: the outcome is the one that the protocol says, every time.

An upload is made to stand still at its link first, so that what happens to its client happens in the middle of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(500)]

SHORT = {"round_deadline_s": 15.0, "lease_s": 60.0, "join_timeout_s": 120.0, "quorum": 1}


def begin(scene: Any, held: int) -> None:
    """Start everything, with one client's first upload standing still half way."""
    scene.up("server", *(f"link-{client}" for client in range(3)))
    scene.hold_upload(held)
    scene.up()
    scene.await_held(held)


def test_an_attacker_killed_in_the_middle_of_its_upload_is_missing_and_the_run_goes_on(
    open_scene: Callable[..., Any],
) -> None:
    scene = open_scene(protocol={**SHORT, "lease_s": 5.0})
    begin(scene, 0)
    scene.project.kill("client-0")
    scene.finish()
    assert scene.missing == [[0], [], []], "missing where it took part, and not waited for once its lease is over"
    assert [event["client"] for event in scene.events("expired")] == [0]
    assert [event["participants"] for event in scene.events("round_opened")] == [[0, 1, 2], [1, 2], [1, 2]]
    assert len(scene.events("received", client=0)) == 0
    assert [row[3] for row in scene.numbers if row[1:2] == ("0",)] == ["0.0", "0.0", "0.0"]
    assert list(scene.run.rglob("*.part")) == [], "half an upload is nothing"


def test_a_client_frozen_past_the_deadline_misses_that_round_alone(open_scene: Callable[..., Any]) -> None:
    scene = open_scene(protocol=SHORT)
    begin(scene, 1)
    scene.project.pause("client-1")
    scene.await_event("round_closed", round=1)
    scene.await_event("round_opened", round=2)
    scene.project.resume("client-1")
    scene.link(1, do="release")
    scene.finish()
    assert scene.missing == [[1], [], []]
    assert scene.events("received", client=1, round=1) == []
    assert len(scene.events("received", client=1)) == 2


def test_a_client_unplugged_and_plugged_in_again_loses_nothing(
    open_scene: Callable[..., Any], undisturbed: list[tuple[str, ...]]
) -> None:
    scene = open_scene()
    begin(scene, 2)
    address = scene.project.address("client-2", "near-2")
    scene.project.disconnect(2)
    scene.await_event("received", client=0, round=1)
    scene.await_event("received", client=1, round=1)
    scene.project.connect(2, address)
    scene.link(2, do="release")
    scene.finish()
    assert scene.missing == [[], [], []]
    assert scene.numbers == undisturbed


def test_a_server_killed_and_started_again_goes_on_with_what_is_durable(
    open_scene: Callable[..., Any], undisturbed: list[tuple[str, ...]]
) -> None:
    scene = open_scene()
    begin(scene, 1)
    scene.await_event("received", client=0, round=1)
    scene.project.kill("server")
    scene.project.start("server")
    scene.await_event("server_started", incarnation=2)
    scene.link(1, do="release")
    scene.finish()
    assert scene.missing == [[], [], []]
    assert len(scene.events("received", client=0, round=1)) == 1, "what was durable is not asked for again"
    assert scene.numbers == undisturbed


def test_a_mobile_line_that_breaks_changes_no_number(
    open_scene: Callable[..., Any], undisturbed: list[tuple[str, ...]]
) -> None:
    scene = open_scene(network={"profile": "4g", "reset_every_mb": 0.08})
    scene.up()
    scene.finish()
    assert scene.missing == [[], [], []]
    assert sum(scene.link(client, do="stats")["resets"] for client in range(3)) > 0
    assert scene.numbers == undisturbed
