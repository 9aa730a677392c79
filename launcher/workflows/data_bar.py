"""How far the preparation of data has come, for people: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TaskID, TextColumn

from launcher.data.telling import listening

# What is over sooner needs no bar.
_PATIENCE_SECONDS = 1.0
_LINE_SECONDS = 30.0


@contextmanager
def data_bar(file: TextIO | None, *, also: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Show on ``file`` how far reading and tokenizing have come meanwhile; None: nowhere.

    ``also`` is called each time that the work has come further; what it raises ends the work.
    """
    shown = _Shown(Console(file=file, highlight=False)) if file is not None else None

    def heard(what: str, done: int, total: int) -> None:
        also()
        if shown is not None:
            shown.update(what, done, total)

    try:
        with listening(heard):
            yield
    finally:
        if shown is not None:
            shown.end()


class _Shown:
    """A bar, or lines, that appear only after a while."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last = time.monotonic()
        self.bar: Bar | None = None
        self.tasks: dict[str, TaskID] = {}

    def update(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` is done; 0 of 0 is told at once, as nothing else is told for a while."""
        now, is_terminal = time.monotonic(), self.console.is_terminal
        if self.bar is None and total and now - self.last < (_PATIENCE_SECONDS if is_terminal else _LINE_SECONDS):
            return
        try:
            if is_terminal:
                self._draw(what, done, total)
            else:
                self.last = now
                self.console.print(f"{what}: {done / total:.0%}" if total else what, markup=False, soft_wrap=True)
        except OSError:
            # The terminal is gone; the work goes on.
            self.console = Console(quiet=True)

    def _draw(self, what: str, done: int, total: int) -> None:
        if self.bar is None:
            columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")]
            # What libraries print belongs elsewhere; rich would by default bring it to the terminal.
            self.bar = Bar(*columns, console=self.console, transient=True, redirect_stdout=False, redirect_stderr=False)
            self.bar.start()
        if what not in self.tasks:
            for task in self.tasks.values():
                self.bar.update(task, visible=False)
            self.tasks[what] = self.bar.add_task(what, total=total or None)
        self.bar.update(self.tasks[what], completed=done)

    def end(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
