"""The studies' figures: rows with their goals, as a table, Markdown, JSON and a picture."""

from __future__ import annotations

import html
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

COLUMNS = ("study", "variant", "measure", "fp32", "quantised", "lost", "goal", "held")
START, END = "<!-- figures -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Row:
    """One figure on held-out data.

    Attributes:
        study, variant: what was measured.
        measure: of `fp32` and `value`, e.g. "accuracy, %".
        lost: what quantisation costs, in `unit`: more is worse.
        limit: what may be lost at most; or, with `ruin`, what must be lost at least. None without a goal.
        detail: what the figure rests on.
    """

    study: str
    variant: str
    measure: str
    fp32: float
    value: float
    lost: float
    unit: str
    limit: float | None
    ruin: bool = False
    detail: str = ""

    @property
    def held(self) -> bool:
        """Whether the goal is reached; NaN reaches none."""
        if self.limit is None:
            return True
        return self.lost >= self.limit if self.ruin else self.lost <= self.limit

    @property
    def goal(self) -> str:
        if self.limit is None:
            return ""
        return f"at {'least' if self.ruin else 'most'} {self.limit:g} {self.unit}"

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of COLUMNS."""
        held = "" if self.limit is None else "yes" if self.held else "NO"
        numbers = f"{self.fp32:.4g}", f"{self.value:.4g}", f"{self.lost:.2g} {self.unit}"
        return (self.study, self.variant, self.measure, *numbers, self.goal, held)


@dataclass
class Figures:
    """Everything that a run found out.

    Attributes:
        facts: of each study: seeds, sizes, seconds.
    """

    rows: list[Row] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        return bool(self.rows) and all(row.held for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        versions = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
        rows = [{**asdict(row), "goal": row.goal, "held": row.held} for row in self.rows]
        return {"machine": platform.machine(), "versions": versions, "studies": self.facts, "rows": rows}


def markdown(figures: Figures) -> str:
    """The table, then what each study rests on."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row.cells())} |" for row in figures.rows]
    lines += [""]
    for name, facts in figures.facts.items():
        shown = ", ".join(f"{key} {_shown(value)}" for key, value in facts.items())
        lines.append(f"- {name}: {shown}")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(_shown, value)) if isinstance(value, (list, tuple)) else str(value)


def write(figures: Figures, folder: Path, guide: Path | None) -> None:
    """`figures.json`, `figures.md` and `figures.svg` in a folder, and, with `guide`, all three where the guide is."""
    folder.mkdir(parents=True, exist_ok=True)
    data = json.dumps(figures.as_json(), indent=2) + "\n"
    (folder / "figures.json").write_text(data)
    (folder / "figures.md").write_text(markdown(figures))
    (folder / "figures.svg").write_text(picture(figures.rows))
    if guide is None:
        return
    text = guide.read_text()
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    image = f"![what is lost, as a share of what may be lost]({guide.with_suffix('.svg').name})"
    guide.write_text(f"{before}{START}\n\n{image}\n\n{markdown(figures)}\n{END}{after}")
    guide.with_suffix(".json").write_text(data)
    guide.with_suffix(".svg").write_text(picture(figures.rows))


# Picture ------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, LINE = 860, 330, 150, 26
HELD, MISSED = "#5b9f6d", "#c8553d"


def picture(rows: Sequence[Row]) -> str:
    """Bars as SVG: what is lost as a share of what may be lost; a line stands where the limit is.

    A bar ends at twice the limit; one of a network that has to be ruined is not drawn against a limit.
    """
    drawn = [row for row in rows if row.limit and not row.ruin]
    height = LINE * (len(drawn) + 2)
    room = WIDTH - LEFT - RIGHT
    at_limit = LEFT + room // 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{at_limit}" y="16" text-anchor="middle" fill="#444444">the most that may be lost</text>',
    ]
    for number, row in enumerate(drawn):
        parts += _bar(row, LINE * (number + 1), room)
    parts.append(
        f'<line x1="{at_limit}" y1="22" x2="{at_limit}" y2="{height - 16}" stroke="#444444" stroke-dasharray="4 3"/>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(row: Row, top: int, room: int) -> list[str]:
    limit = row.limit or 1.0
    share = 2.0 if math.isnan(row.lost) else min(2.0, max(0.0, row.lost / limit))
    length = max(2.0, share * room / 2)
    label = html.escape(f"{row.study}: {row.variant}, {row.measure.partition(',')[0]}")
    colour = HELD if row.held else MISSED
    return [
        f'<text x="{LEFT - 8}" y="{top + 17}" text-anchor="end" fill="#222222">{label}</text>',
        f'<rect x="{LEFT}" y="{top + 5}" width="{room}" height="16" fill="#f0f0f0"/>',
        f'<rect x="{LEFT}" y="{top + 5}" width="{length:.1f}" height="16" fill="{colour}"/>',
        f'<text x="{LEFT + room + 8}" y="{top + 17}" fill="#222222">{html.escape(f"{row.lost:.2g} {row.unit}")}</text>',
    ]
