"""Progress of long work on standard error: a moving bar on a terminal, one line for each stage elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

REFRESHES_PER_S = 10.0
FEW_PER_S = 3.0
"""Where the program's own speed is what people look at: drawing takes time from it."""


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

    def __init__(self, console: Console, refreshes_per_s: float = REFRESHES_PER_S) -> None:
        self._console = console
        self._refreshes_per_s = refreshes_per_s
        self._progress: Progress | None = None
        self._below: Callable[[], str] | None = None

    def __enter__(self) -> Reporter:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._progress = self._bars()
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def moves(self) -> bool:
        """Whether there is a terminal on which bars move."""
        return self._progress is not None

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

    @contextlib.contextmanager
    def live(self, text: str, total: int, below: Callable[[], str]) -> Iterator[Stage]:
        """A bar while the body lasts, with a line of figures under it that ``below`` gives whenever it is drawn. Nothing of it
        stays, and nothing is printed where there is no terminal."""
        if self._progress is None:
            yield Stage(None, None)
            return
        task = self._progress.add_task(text, total=total)
        self._below = below
        try:
            yield Stage(self._progress, task)
        finally:
            self._below = None
            self._progress.remove_task(task)

    def _bars(self) -> Progress:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.text import Text

        reporter = self

        class Bars(Progress):
            def get_renderables(self) -> Iterable[RenderableType]:
                yield from super().get_renderables()
                below = reporter._below
                if below is not None:
                    yield Text("  " + below(), no_wrap=True, overflow="ellipsis")

        return Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=self._refreshes_per_s,
        )
