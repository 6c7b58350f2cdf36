"""Recorded rounds: where they lie and what a reader makes of whole, missing, cut and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from steelyard.bundle import BundleFile, Manifest, TensorSpec, write_arrays
from steelyard.errors import BadBundleError, UserError
from steelyard.recording import ClosedRound, Recordings, read_events, read_vector


def closed(number: int, *, void: bool = False) -> ClosedRound:
    return ClosedRound(round=number, received=(0, 2), missing=(1,), void=void, reason="deadline")


@pytest.fixture
def recordings(tmp_path: Path) -> Recordings:
    return Recordings(tmp_path)


def test_the_places_of_things(recordings: Recordings, tmp_path: Path) -> None:
    assert recordings.global_file(1) == tmp_path / "recordings/round-0001/global.safetensors"
    assert recordings.update_file(12, 3) == tmp_path / "recordings/round-0012/client-03.safetensors"
    assert recordings.update_file(12, 103).name == "client-103.safetensors"


def test_looking_makes_no_folders(recordings: Recordings, tmp_path: Path) -> None:
    assert recordings.closed(1) is None
    assert recordings.updates(1) == {}
    assert list(tmp_path.iterdir()) == []


def test_updates_are_listed_in_client_order_without_those_still_arriving(recordings: Recordings) -> None:
    for client in (103, 2, 11):
        write_arrays(recordings.update_file(1, client), {"a": np.ones(1, np.float32)})
    write_arrays(recordings.update_file(2, 5), {"a": np.ones(1, np.float32)})
    write_arrays(recordings.global_file(1), {"a": np.ones(1, np.float32)})
    part = recordings.update_file(1, 7).with_suffix(".safetensors.part")
    BundleFile.create(part, Manifest((TensorSpec("a", "F32", (1,)),), "0" * 64)).close()
    assert list(recordings.updates(1)) == [2, 11, 103]
    assert recordings.updates(1)[11] == recordings.update_file(1, 11)


def test_a_closed_round_is_read_back_as_it_was(recordings: Recordings) -> None:
    recordings.close(closed(1))
    recordings.close(closed(2, void=True))
    assert recordings.closed(1) == closed(1)
    assert recordings.closed_rounds() == [closed(1), closed(2, void=True)]
    assert recordings.closed(3) is None


def test_closed_rounds_end_at_the_first_that_is_open(recordings: Recordings) -> None:
    recordings.close(closed(1))
    recordings.close(closed(3))
    assert recordings.closed_rounds() == [closed(1)]
    assert (recordings.lost_rounds(), recordings.last_closed()) == ([2], 3)


def test_a_close_that_was_killed_half_way_is_no_close(recordings: Recordings) -> None:
    recordings.close(closed(1))
    (recordings.round_folder(2) / "closed.json.part").write_text('{"round": 2, "rec')
    assert recordings.closed_rounds() == [closed(1)]


def test_no_recorded_round_is_the_users_to_mend(recordings: Recordings) -> None:
    with pytest.raises(UserError, match="there are none; run the experiment first"):
        recordings.closed_rounds()
    assert (recordings.lost_rounds(), recordings.last_closed()) == ([], 0)


def test_a_vector_is_all_tensors_in_order_read_only(recordings: Recordings) -> None:
    path = recordings.global_file(1)
    write_arrays(path, {"b": np.array([[1, 2], [3, 4]], np.float32), "a": np.array([5], np.float32)})
    vector = read_vector(path, verify=True)
    assert vector.tolist() == [1, 2, 3, 4, 5]
    assert not vector.flags.writeable


def test_a_damaged_vector_is_noticed_when_asked_to_look(recordings: Recordings) -> None:
    path = recordings.global_file(1)
    write_arrays(path, {"a": np.zeros(4, np.float32)})
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    assert len(read_vector(path)) == 4
    with pytest.raises(BadBundleError, match="BAD_DIGEST"):
        read_vector(path, verify=True)


def test_a_vector_of_integers_is_none(recordings: Recordings) -> None:
    write_arrays(recordings.global_file(1), {"a": np.zeros(4, np.int64)})
    with pytest.raises(BadBundleError, match="float32 tensors expected"):
        read_vector(recordings.global_file(1))


def test_events_are_read_while_they_are_written(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    path = tmp_path / "events.jsonl"
    path.write_text("")
    assert read_events(tmp_path) == []
    lines = [json.dumps({"event": name}) for name in ("a", "b")]
    path.write_text(f"{lines[0]}\n{lines[1]}\n")
    assert [event["event"] for event in read_events(tmp_path)] == ["a", "b"]
    path.write_text(f"{lines[0]}\n{lines[1]}")
    assert [event["event"] for event in read_events(tmp_path)] == ["a"], "the second has no line end yet"
    path.write_text(f"{lines[0]}\n{{\n{lines[1]}\n")
    with pytest.raises(UserError, match=r"events\.jsonl, line 2: an event as JSON expected"):
        read_events(tmp_path)
