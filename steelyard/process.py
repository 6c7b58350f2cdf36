"""What every process of a run does first: die with its launcher, settle on one thread, put errors into one line."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from steelyard.errors import RunFailedError, SteelyardError, UserError

LAUNCHER = "STEELYARD_LAUNCHER"
MISTAKE = 2  # the exit code of the user's mistake
READER_GONE = 128 + signal.SIGPIPE  # what a shell says of a command like `git log | head`, which SIGPIPE ends
PREFIX = "steelyard: "
PR_SET_PDEATHSIG = 1  # from Linux's <sys/prctl.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # from glibc's <malloc.h>
KEPT_BYTES = 64 * 2**20  # blocks up to this size live in the heap, and as much of it stays when freed


def is_launched() -> bool:
    """Whether whoever started this process is its launcher, so that the environment is a run's own."""
    return os.environ.get(LAUNCHER) == str(os.getppid())


def exit_with_launcher(by: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel end this process when its launcher ends, however that ends (Linux only).

    The launcher names itself in the environment variable `STEELYARD_LAUNCHER`; without it nothing happens, so that a
    process started by hand on another host lives on its own.

    Args:
        by: the signal; one that stands still, as a fault plan has clients do, takes note of SIGKILL alone.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != int(launcher):  # it ended before the call above took hold
        raise RunFailedError("the launcher that started this process has ended")


def run_main(main: Callable[[], int]) -> int:
    """Run a command; a mistake of the user's or a failed run becomes one line on stderr and an exit code.

    Returns:
        The command's own code; 2 after a `UserError`, 1 after any other error of this project, 130 after Ctrl-C, 141
        when the reader of our output has closed it.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before we began: the next file opened would be taken for it
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open to the end
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would hide how children end
    try:
        with _flushing():
            return main()
    except BrokenPipeError:  # the reader of our output closed it, e.g. `| head`; the signal would end nothing in order
        return READER_GONE
    except (SteelyardError, OSError) as error:
        _complain(error)
        return MISTAKE if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - a bug, ours or a plug-in's: its trace, and still one line at the end
        _complain(error, traceback.format_exc())
        return 1
    finally:
        _let_go(sys.stderr)


@contextlib.contextmanager
def _flushing() -> Iterator[None]:
    """Flush stdout while an error of that can still be told; the interpreter would complain at its end."""
    try:
        yield
        print(end="", flush=True)
    finally:
        _let_go(sys.stdout)  # what an error has left there


def _let_go(stream: TextIO) -> None:
    """Flush a stream; what can't be written goes nowhere, or the interpreter would end with a code of its own, 120."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def settle_down() -> None:
    """Set what must not differ from process to process: one intra-op thread, and freed memory kept for all threads.

    The bits depend on the thread count, and processes are the unit of parallelism. As for memory: glibc gives large
    blocks back after every batch and every streamed chunk, and the next one faults each page in again, which slows
    scoring and the gRPC plane down. Kept by each thread for itself, it would add up to a third of what ten clients
    send at once. Other C libraries have no such call and stay as they are.
    """
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next large block of any thread; see `settle_down`."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_ARENA_MAX, 1)


def in_a_line(error: BaseException) -> str:
    """An error for a person, in one line; one that nobody raised on purpose says where it comes from."""
    said = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:  # a full disk, a file where a folder should be
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif not isinstance(error, SteelyardError | OSError):
        frames = traceback.extract_tb(error.__traceback__)
        theirs = ("site-packages", "<frozen ", str(Path(os.__file__).parent))
        at = next((f for f in reversed(frames) if not any(part in f.filename for part in theirs)), frames[-1])
        where = f"{at.filename}, line {at.lineno}"
        if isinstance(error, SyntaxError) and error.filename:  # no frame is of a file that can't be compiled
            where = f"{error.filename}, line {error.lineno}"
        said = f"a bug: {type(error).__name__}: {error} ({where}); mend it if that file is yours, else please report it"
    return " ".join(said.splitlines())  # a peer's or a library's words may come in several


def _complain(error: Exception, trace: str = "") -> None:
    with contextlib.suppress(OSError):  # nobody reads that either, or it can't be kept: the exit code still tells
        sys.stderr.write(f"{trace}{PREFIX}{in_a_line(error)}\n")


def last_words(said: str, otherwise: str = "it left no word") -> str:
    """What a process that ended said last, without our own prefix; what `run_main` wrote, if it ended in an error."""
    lines = said.strip().splitlines()
    return lines[-1].removeprefix(PREFIX) if lines else otherwise
