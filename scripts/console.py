"""The console that a command prints to: a table's width where there is no terminal, and an end as of any command."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH = 120  # of tables that go to a file or a pipe


def make_console(width: int = WIDTH) -> Console:
    """One that prints lines as they are, without wrapping or markup; `width` is for what goes to a file or a pipe."""
    return _Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else width)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave a reader that is gone to `steelyard.process.run_main`: rich would exit with 1 and no reason."""
        raise  # noqa: PLE0704 - rich calls this while it handles the error
