"""Tables for the terminal: however narrow it is, no figure is cut and no column left out.

Imported inside functions only: rich is not needed by ``--help``.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column
from rich.table import Table as RichTable

_WORDS = 9
"""Columns of words are not made narrower than this; longer words break."""
_WIDE = 100_000


class Table(RichTable):
    """A table that is as wide as its figures need. Print it with ``crop=False``: where that is too wide, the terminal wraps its lines.

    Columns with ``no_wrap`` hold figures, which stay whole under headings that may fold; all others hold words, which fold.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        free = options.update(max_width=_WIDE)
        natural = Measurement.get(console, free, self).maximum
        if natural <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        wanted = [_widths(console, free, column) for column in self.columns]
        least, widths = [few for few, _ in wanted], [most for _, most in wanted]
        around = natural - sum(widths)
        while sum(widths) + around > options.max_width:
            can = [k for k in range(len(widths)) if widths[k] > least[k]]
            if not can:
                break
            widths[max(can, key=lambda k: widths[k])] -= 1
        narrow = copy.copy(self)
        narrow.columns = [
            dataclasses.replace(column, width=width, min_width=None, max_width=None, no_wrap=False, overflow="fold")
            for column, width in zip(self.columns, widths, strict=True)
        ]
        yield from RichTable.__rich_console__(narrow, console, options.update(max_width=sum(widths) + around))


def plain_table(**options: Any) -> Table:
    """A table in the house's look: a line under the headings and no other."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), **options)


def _widths(console: Console, free: ConsoleOptions, column: Column) -> tuple[int, int]:
    """The least width of a column and the one that it would like to have."""
    heading = Measurement.get(console, free, column.header)
    cells = [Measurement.get(console, free, cell) for cell in column.cells]
    whole = max((cell.maximum for cell in cells), default=0)
    words = min(max((cell.minimum for cell in cells), default=0), _WORDS)
    most = max(heading.maximum, whole, column.min_width or 0)
    if column.max_width is not None:
        most = min(most, column.max_width)
    return min(max(heading.minimum, whole if column.no_wrap else words), most), most
