"""Progress of long work on standard error: a moving bar on a terminal, one line for each stage elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Stage:
    """Handed to the body of a stage: call it with (done, total), or change its text."""

    def __init__(self, progress: Progress | None, task: Any) -> None:
        self._progress, self._task = progress, task

    def __call__(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total)

    def text(self, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description=text)


class Reporter:
    """Tells of stages and notes while it is entered."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    def __enter__(self) -> Reporter:
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)

    @contextlib.contextmanager
    def stage(self, text: str, total: int | None = None) -> Iterator[Stage]:
        """One stage of the run while the body lasts."""
        if self._progress is None:
            print(text, file=sys.stderr, flush=True)
            yield Stage(None, None)
            return
        task = self._progress.add_task(text, total=total)
        yield Stage(self._progress, task)
        self._progress.update(task, total=1, completed=1)
