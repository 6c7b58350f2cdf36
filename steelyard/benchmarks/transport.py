"""How fast models move: ways of transport against raw TCP, real processes and sockets on loopback, turn by turn.

A turn is one round without training: every client takes the model from the server and sends as many bytes back, all at
once. The ways take their turns one after another, so that a busy machine slows all of them down; a ratio is made of
turns of the same repetition. Processor time tells more where others use the processors meanwhile. Peers are timed by
themselves (`transport_peers.py`), in rounds of their own. Torch-free.
"""

from __future__ import annotations

import json
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from steelyard.errors import RunFailedError

TCP = "raw-tcp"
WAYS: dict[str, dict[str, Any]] = {  # name -> kind and options of `transport_ends.py`
    TCP: {"kind": "tcp"},
    "grpc-bare-no-digest": {"kind": "grpc-bare", "digest": False},
    "grpc-bare-sha256": {"kind": "grpc-bare", "digest": True},
    "grpc-no-digest": {"kind": "grpc", "digest": False},
    "grpc-sha256": {"kind": "grpc", "digest": True},
    "gloo": {"kind": "gloo"},
    "gloo-plane-no-digest": {"kind": "gloo-plane", "digest": False},
    "gloo-plane-sha256": {"kind": "gloo-plane", "digest": True},
}
KEPT_BYTES = 2**29  # processes of ways that hold more, all clients together, are started anew for every turn
MOVED_BYTES = 2**27  # a turn repeats small models until about as much has moved
SAMPLE_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is moved: a model's bytes, and between a server and how many clients."""

    megabytes: int
    clients: int

    @property
    def nbytes(self) -> int:
        """Bytes of the model; megabytes are 10^6 bytes, as in the anchors that this is compared with."""
        return self.megabytes * 10**6

    @property
    def repeats(self) -> int:
        """How many times a turn does it."""
        return max(1, MOVED_BYTES // (self.nbytes * self.clients))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way in one case.

    Attributes:
        seconds: median of a round, all clients.
        ratio: median and extremes over repetitions of raw TCP's seconds by this way's: its share of raw TCP's speed.
        processor_s: median of the processor time of both ends, all clients, in a round.
        processor_ratio: raw TCP's by this way's.
        peak_bytes: most private memory of the server's processes in a round.
        idle_bytes: before the round; nan where it is not known.
        reason: why there is nothing else, "" where there is.
    """

    way: str
    case: Case
    seconds: float = float("nan")
    ratio: tuple[float, float, float] = (float("nan"),) * 3
    processor_s: float = float("nan")
    processor_ratio: float = float("nan")
    peak_bytes: float = float("nan")
    idle_bytes: float = float("nan")
    reason: str = ""

    @property
    def memory(self) -> float:
        """What a round adds to the server's memory, per client and byte of the model."""
        return max(self.peak_bytes - self.idle_bytes, 0.0) / (self.case.nbytes * self.case.clients)


class Cast:
    """The processes of one way in one case, started and ready; a context manager that ends them."""

    def __init__(self, way: Mapping[str, Any], case: Case, folder: Path) -> None:
        self._case = case
        self._processes: list[subprocess.Popen[str]] = []
        self._processor: dict[int, float] = {}
        common = {**way, "nbytes": case.nbytes, "clients": case.clients, "repeats": case.repeats}
        common |= {"folder": str(folder), "name": secrets.token_hex(4)}
        try:
            self._start({**common, "role": "server"})
            address = self._answer(0)["address"] if way["kind"] != "gloo" else ""
            for client in range(case.clients):
                self._start({**common, "role": "client", "client": client, "address": address})
            for at in range(len(self._processes)):
                self._answer(at)  # ready
        except BaseException:
            self.close()
            raise

    def turn(self, *, files: bool = False) -> tuple[float, float]:
        """Seconds of a round, all clients, and the processor's of both ends.

        Args:
            files: the server receives into mapped recording files, as a run does.
        """
        self._say(0, {"files": files})
        plan = self._answer(0)["plan"]
        before = sum(self._processor.values())
        started = time.perf_counter()
        for client in range(self._case.clients):
            self._say(1 + client, {"plan": plan[client]})
        for at in (*range(1, len(self._processes)), 0):
            self._answer(at)
        seconds, processor = time.perf_counter() - started, sum(self._processor.values()) - before
        return seconds / self._case.repeats, processor / self._case.repeats

    def memory(self) -> tuple[int, int]:
        """Private bytes of the server: before a turn, and their peak in it."""
        pid = self._processes[0].pid
        before, peak, over = private_bytes(pid), 0, threading.Event()

        def look() -> None:
            nonlocal peak
            while not over.wait(SAMPLE_S):
                peak = max(peak, private_bytes(pid))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            self.turn(files=True)
        finally:
            over.set()
            watcher.join()
        return before, peak

    def close(self) -> None:
        """End every process."""
        for process in self._processes:
            process.kill()
            process.communicate()

    def __enter__(self) -> Cast:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, options: Mapping[str, Any]) -> None:
        command = [sys.executable, "-m", "steelyard.benchmarks.transport_ends", json.dumps(options)]
        self._processes.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        )

    def _say(self, at: int, words: Mapping[str, Any]) -> None:
        stream = self._processes[at].stdin
        assert stream is not None
        stream.write(json.dumps(words) + "\n")
        stream.flush()

    def _answer(self, at: int) -> dict[str, Any]:
        stream = self._processes[at].stdout
        assert stream is not None
        line = stream.readline()
        if not line:
            raise RunFailedError(f"process {at} of a way ended early; its words are above")
        answer: dict[str, Any] = json.loads(line)
        self._processor[at] = answer["processor"]
        return answer


def compare(case: Case, ways: Sequence[str], repetitions: int, folder: Path) -> Iterator[Cell]:
    """Every way's turns in one case, interleaved; raw TCP is always among them."""
    turns: dict[str, list[tuple[float, float]]] = {way: [] for way in dict.fromkeys((TCP, *ways))}
    memory: dict[str, tuple[int, int]] = {}
    broken: dict[str, str] = {}
    with ExitStack() as kept:
        casts = {}
        if case.nbytes * case.clients <= KEPT_BYTES:
            casts = {way: kept.enter_context(Cast(WAYS[way], case, folder)) for way in turns}
        for _ in range(repetitions):
            for way, taken in turns.items():
                if way in broken:
                    continue
                try:
                    with ExitStack() as own:
                        cast = casts.get(way) or own.enter_context(Cast(WAYS[way], case, folder))
                        if way not in memory:  # before anything was allocated, and kept for reuse
                            memory[way] = cast.memory()
                        elif way not in casts:
                            cast.turn()  # the first one finds cold caches and connections
                        taken.append(cast.turn())
                except (RunFailedError, BrokenPipeError) as error:
                    broken[way] = str(error)
    for way, reason in broken.items():
        del turns[way]
        yield Cell(way=way, case=case, reason=reason)
    for way, taken in turns.items():
        wall, processor = ([turn[clock] for turn in taken] for clock in (0, 1))
        ratios = [tcp[0] / mine for tcp, mine in zip(turns[TCP], wall, strict=True)]
        processor_ratios = [tcp[1] / mine for tcp, mine in zip(turns[TCP], processor, strict=True)]
        yield Cell(
            way=way,
            case=case,
            seconds=statistics.median(wall),
            processor_s=statistics.median(processor),
            processor_ratio=statistics.median(processor_ratios),
            ratio=(statistics.median(ratios), min(ratios), max(ratios)),
            idle_bytes=memory[way][0],
            peak_bytes=memory[way][1],
        )


def private_bytes(pid: int) -> int:
    """A process's own memory, as the kernel tells it; pages of mapped files are the page cache's and not counted."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    rows = (line.split() for line in text.splitlines() if line.startswith("RssAnon"))
    return sum(int(row[1]) * 1024 for row in rows)
