"""Worker processes that evaluate coalitions: starts them, hands out coalitions, takes outcomes, ends them. Torch-free.

Each worker holds the validation data and is told of a round once; after that a request names a few coalitions and the
answer is two rows for each. Workers get this process's environment and settle on one thread as it does, so their bits
are its bits, whoever evaluates what. Every wait is bounded; a worker that ends is an error with its own last words.

Legend: E validation examples, D float values of a state. A key names a coalition: a byte per player, 1 for a member.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steelyard.bundle import hand_over, write_arrays
from steelyard.errors import RunFailedError, WaitTimeoutError
from steelyard.process import last_words
from steelyard.scoring.outcome import Outcome

ANSWER_S = 600.0  # for one coalition; a worker's first one includes its start
MAX_CHUNK = 16
READ_BYTES = 2**20


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    log: Path
    told: int = 0  # of which round
    asked: deque[bytes] = field(default_factory=deque)
    answer: bytearray = field(default_factory=bytearray)
    deadline: float = 0.0


class WorkerPool:
    """Processes that share the coalitions of a round.

    Args:
        setup: what `steelyard.scoring.worker` needs to know beside the data.
        data: images float32 [E, channels, height, width] and labels int64 [E].
        workers: how many processes.
        answer_s: the longest wait for a worker's next outcome.
    """

    def __init__(
        self,
        setup: Mapping[str, Any],
        data: Mapping[str, np.ndarray[Any, Any]],
        workers: int,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._examples = len(data["labels"])
        self._answer_s = answer_s
        self._round: object = None
        self._rounds = 0
        self._request: dict[str, Any] = {}
        self._temporary = tempfile.TemporaryDirectory(prefix="steelyard-scoring-")
        self._folder = Path(self._temporary.name)
        write_arrays(self._folder / "data.safetensors", data)
        self._workers = [self._start(i, {**setup, "worker": i}) for i in range(workers)]

    def open(
        self,
        token: object,
        states: Sequence[np.ndarray[Any, Any] | Path],
        samples: Sequence[int],
        defence: tuple[Mapping[str, Any], Mapping[str, np.ndarray[Any, Any]]] | None = None,
    ) -> None:
        """The next coalitions are of this round; a worker is told with the first that it is asked for.

        So whoever was told has answered when the next round comes, and no longer needs what was written for this one.

        Args:
            token: the round, by identity.
            states: the global state and each update, float32 [D], or the recorded file that holds it.
            samples: n_k of each update.
            defence: what `JoinedRound.packed` gives, if it makes the coalitions' models.
        """
        if self._round is token:
            return
        self._rounds += 1
        folder = self._folder / f"round-{self._rounds}"
        with self._all_or_none():
            folder.mkdir()
            files = [
                state if isinstance(state, Path) else hand_over(folder / f"state-{i}", {"state": state})
                for i, state in enumerate(states)
            ]
            self._request = {"round": [str(file.absolute()) for file in files], "samples": list(samples)}
            if defence is not None:
                self._request["defence"] = [defence[0], str(hand_over(folder / "defence", defence[1]))]
        if self._rounds > 1:
            shutil.rmtree(self._folder / f"round-{self._rounds - 1}")
        self._round = token

    def outcomes(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, Outcome]]:
        """Evaluate coalitions of the open round; each comes when it is done, in no certain order.

        Raises:
            RunFailedError: a worker ended; its reason is in the message.
            WaitTimeoutError: a worker did not answer in time.
        """
        with self._all_or_none():
            size = max(
                1, min(MAX_CHUNK, len(keys) // (4 * len(self._workers)))
            )  # so that all end at about the same time
            todo = deque(keys[at : at + size] for at in range(0, len(keys), size))
            for worker in self._workers * 2:  # a second request waits with the worker, so that it never idles
                self._hand_out(worker, todo)
            with selectors.DefaultSelector() as selector:
                for worker in self._workers:
                    assert worker.process.stdout is not None
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                while any(worker.asked for worker in self._workers):
                    for ready, _ in selector.select(self._patience()):
                        yield from self._take(ready.data)
                        if len(ready.data.asked) <= size:
                            self._hand_out(ready.data, todo)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.communicate()
        self._workers = []
        self._temporary.cleanup()

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """End every worker when anything goes wrong: answers that are under way belong to nobody any more."""
        if not self._workers:
            raise RunFailedError("the scoring workers were ended before; start anew")
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _start(self, number: int, setup: Mapping[str, Any]) -> _Worker:
        log = self._folder / f"worker-{number}.log"
        command = [sys.executable, "-m", "steelyard.scoring.worker", str(self._folder), json.dumps(setup)]
        with log.open("wb") as words:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, bufsize=0)
        return _Worker(process, log)

    def _hand_out(self, worker: _Worker, todo: deque[Sequence[bytes]]) -> None:
        if todo:
            keys = todo.popleft()
            if not worker.asked:
                worker.deadline = time.monotonic() + self._answer_s
            if worker.told != self._rounds:
                self._ask(worker, self._request)
                worker.told = self._rounds
            worker.asked.extend(keys)
            self._ask(worker, {"keys": [key.hex() for key in keys]})

    def _ask(self, worker: _Worker, request: Mapping[str, Any]) -> None:
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise self._ended(worker) from None

    def _take(self, worker: _Worker) -> Iterator[tuple[bytes, Outcome]]:
        assert worker.process.stdout is not None
        data = os.read(worker.process.stdout.fileno(), READ_BYTES)
        if not data:
            raise self._ended(worker)
        worker.answer += data
        size = 5 * self._examples  # a byte and a float32 per example
        while len(worker.answer) >= size:
            row, worker.answer = bytes(worker.answer[:size]), worker.answer[size:]
            worker.deadline = time.monotonic() + self._answer_s
            correct_E = np.frombuffer(row, np.uint8, self._examples)
            loss_E = np.frombuffer(row, np.float32, offset=self._examples)
            yield worker.asked.popleft(), Outcome.of(correct_E, loss_E)

    def _patience(self) -> float:
        """Seconds until the first worker is overdue."""
        busy = [worker for worker in self._workers if worker.asked]
        slowest = min(busy, key=lambda worker: worker.deadline)
        left = slowest.deadline - time.monotonic()
        if left <= 0:
            number = self._workers.index(slowest)
            raise WaitTimeoutError(
                f"scoring worker {number} gave no outcome for {self._answer_s:g} s, {len(slowest.asked)} are due"
            )
        return left

    def _ended(self, worker: _Worker) -> RunFailedError:
        number, code = self._workers.index(worker), worker.process.wait(self._answer_s)
        words = last_words(worker.log.read_text(encoding="utf-8", errors="replace"))
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return RunFailedError(f"scoring worker {number} ended by {how}: {words}")
