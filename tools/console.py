"""What commands print: tables for people, JSON for programs, progress for the impatient."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

# Shapes such as [1,64] look like rich's markup, and model names may hold anything: markup stays off.
WIDE = 160


class Ui:
    """Reports go to standard output, as tables or (`as_json`) as one JSON value; progress to standard error."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDE)
        self.err = Console(markup=False, highlight=False, stderr=True, soft_wrap=True)

    def report(self, data: Any, *shown: RenderableType) -> None:
        """One report and its twin: `data` where JSON is wanted, else the renderables."""
        if self.as_json:
            sys.stdout.write(json.dumps(data, indent=2, default=str) + "\n")
            return
        for item in shown:
            self.out.print(item)

    def note(self, text: str) -> None:
        """A remark that is not part of the report."""
        self.err.print(text)

    @contextmanager
    def progress(self) -> Iterator[Tracker]:
        """A progress display that disappears when the work is done."""
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.err, transient=True) as bars:
            yield Tracker(bars)

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Progress of one piece of work whose length is not known."""
        with self.progress() as tracker:
            tracker(what)
            yield


class Tracker:
    """`tracker(what, share)`: one bar for each `what`; `share` is 0 to 1, or None where it cannot be known."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, share: float | None = None) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=None)
        total = None if share is None else 1.0
        self.bars.update(self.tasks[what], completed=share or 0.0, total=total)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Group:
    """A table between two lines of text; columns whose name ends in `>` are aligned to the right."""
    made = Table()
    for name in columns:
        made.add_column(name.removesuffix(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(str, row))
    return Group(*([title] if title else []), made, *([caption] if caption else []))


def size(count: float) -> str:
    """Bytes as people read them: 1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds as people read them: 0.0123 -> 12.3 ms."""
    scales: list[tuple[float, str, Callable[[float], float]]] = [
        (1.0, "s", lambda s: s),
        (1e-3, "ms", lambda s: s * 1e3),
        (0.0, "us", lambda s: s * 1e6),
    ]
    for least, unit, scale in scales:
        if seconds >= least:
            return f"{scale(seconds):.3g} {unit}" if seconds < 100 else f"{seconds:.0f} s"
    return f"{seconds} s"
