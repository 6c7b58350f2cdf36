"""`steelyard bench transport` with small models: real processes and sockets, and numbers that mean what they say."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.bench_transport import OWN, against_peers, hopeless, own_rounds, own_seconds
from steelyard.benchmarks.transport import TCP, WAYS, Case, Cast, Cell, compare
from steelyard.benchmarks.transport_ends import Unhashed
from steelyard.benchmarks.transport_peers import measure, tree
from steelyard.bundle import Manifest, TensorSpec, digest
from steelyard.data.fashion_mnist import DEBIAN_FOLDER
from steelyard.errors import BadBundleError
from steelyard.recording import read_events
from steelyard.transport.base import Sink

pytestmark = pytest.mark.timeout(400)  # several waits, each bounded, on a loaded machine
ONE = Case(megabytes=1, clients=2)


@pytest.mark.slow
def test_every_way_takes_its_turns_beside_raw_tcp(tmp_path: Path) -> None:
    cells = {cell.way: cell for cell in compare(ONE, list(WAYS), 2, tmp_path)}
    assert set(cells) == set(WAYS)
    assert cells[TCP].ratio == (1.0, 1.0, 1.0)
    for cell in cells.values():
        low, high = cell.ratio[1:]
        assert 0 < low <= cell.ratio[0] <= high
        assert cell.idle_bytes > 0
        assert cell.seconds > 0
    assert not list(tmp_path.glob("*.part")), "recording files go with their turn"


def test_a_round_of_a_way_ends_with_its_processes(tmp_path: Path) -> None:
    with Cast(WAYS["grpc-sha256"], ONE, tmp_path) as cast:
        seconds, processor_s = cast.turn()
        assert seconds > 0
        assert processor_s > 0
        processes = list(cast._processes)
        assert len(processes) == 1 + ONE.clients
        assert tree(processes[0].pid) == [processes[0].pid]
    assert all(process.returncode is not None for process in processes)


def test_only_the_sink_of_the_benchmark_leaves_the_digest_out() -> None:
    manifest = Manifest((TensorSpec("x", "U8", (4,)),), digest(b"true"))
    for kind, refuses in ((Sink, True), (Unhashed, False)):
        with kind(memoryview(bytearray(4)), manifest) as sink:
            sink.write(b"fals")
            if refuses:
                with pytest.raises(BadBundleError, match="BAD_DIGEST"):
                    sink.finish()
            else:
                sink.finish()


def test_a_hopeless_case_is_told_from_the_largest_one_that_was_timed() -> None:
    small, large = Case(megabytes=47, clients=1), Case(megabytes=350, clients=10)
    known = [Cell(way="flower", case=ONE, seconds=6.0), Cell(way="flower", case=small, seconds=8.0)]
    words = hopeless("flower", large, known, 60.0)
    assert words == "about 596 s a round expected (8.0 s at 47 MB, 1 clients), patience 60 s"
    assert hopeless("flower", large, known, 600.0) == ""
    assert hopeless("nvflare", large, known, 60.0) == "", "nothing is known of it"
    assert hopeless("flower", large, known[:1], 60.0) == "", "a round of 1 MB is all waiting"


def test_a_peer_that_is_not_there_says_how_it_comes(tmp_path: Path) -> None:
    for environment in (None, tmp_path):
        cell = measure("flower", environment, ONE, 1, 1.0, tmp_path)
        assert cell.reason == "not installed: make peers, then --peers VENV"


def test_peers_are_compared_with_ours_in_the_same_case() -> None:
    ours, theirs = Cell(way=OWN, case=ONE, seconds=0.02), Cell(way="flower", case=ONE, seconds=6.0)
    elsewhere = replace(theirs, case=Case(megabytes=47, clients=2))
    (line,) = against_peers([ours, theirs, elsewhere])
    assert line == "flower, 1 MB, 2 clients: 300 x the seconds of steelyard-round (6.00 to 0.020)"


@pytest.mark.slow
def test_rounds_of_ours_are_those_of_a_real_run(tmp_path: Path) -> None:
    cell = own_rounds(ONE, 1, tmp_path)
    if not DEBIAN_FOLDER.exists():
        assert "fashion" in cell.reason
        return
    (run,) = tmp_path.glob("own-1-2/bench-*")
    events = {(event["event"], event.get("round")): event for event in read_events(run)}
    opened, closed = (events[name, 2] for name in ("round_opened", "round_closed"))
    assert closed["received"] == [0, 1]
    making = own_seconds(run)[2]
    assert len(making) == 2
    assert cell.seconds == closed["time"] - opened["time"] - min(making) > 0


def test_the_command_prints_writes_and_draws(shell: Any) -> None:
    out = shell.folder / "bench"
    options = ("--sizes", "1", "--clients", "1", "--repetitions", "1", "--ways", "grpc-sha256,nvflare")
    code, said, err = shell.steelyard("bench", "transport", *options, "--peer-rounds", "1", "--out", str(out))
    assert (code, err) == (0, "")
    assert "not installed: make peers" in said
    record = json.loads((out / "transport.json").read_text(encoding="utf-8"))
    assert [cell["way"] for cell in record["cells"]] == [TCP, "grpc-sha256", "nvflare"]
    assert record["cells"][1]["seconds"] > 0
    assert record["cells"][2]["seconds"] is None
    assert ET.parse(out / "transport.svg").getroot().tag.endswith("svg")  # noqa: S314 - our own figure
