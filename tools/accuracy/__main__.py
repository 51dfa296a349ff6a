"""Accuracy of quantised models on real tasks, float beside it.

make accuracy
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from secateur.ir.diagnostics import CompileError
from secateur.tools.accuracy import digits, language, study_digits, study_gpt, study_minilm
from secateur.tools.accuracy.report import COLUMNS, Figures, write
from secateur.tools.accuracy.study import Found, Room
from secateur.tools.console import Ui, duration, table

STUDIES = ("digits", "hostile", "MiniLM", "GPT")


@dataclass(frozen=True)
class Effort:
    """How much each study does."""

    digits: study_digits.Config = field(default_factory=study_digits.Config)
    minilm: study_minilm.Config = field(default_factory=study_minilm.Config)
    gpt: study_gpt.Config = field(default_factory=study_gpt.Config)


# Enough to see that everything works: what comes out says nothing about accuracy.
SMALL = Effort(
    digits=study_digits.Config(digits.Config(seeds=(0,), steps=60), halves=1, calibration=2, steps8=4, steps4=4),
    minilm=study_minilm.Config(per_module=1, calibration=3, held_out=8),
    gpt=study_gpt.Config(
        language.Config(vocabulary=300, context=32, width=32, layers=1, heads=2, steps=20, batch=8, files=12),
        batch=4,
        calibration=8,
        held_out=16,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the studies; the exit code is 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m secateur.tools.accuracy", description=(__doc__ or "").strip())
    parser.add_argument("--only", default=",".join(STUDIES), help="some of the studies (%(default)s)")
    parser.add_argument("--small", action="store_true", help="in miniature: minutes, but figures that mean nothing")
    parser.add_argument("--output", type=Path, default=Path("build/accuracy"), help="for everything (%(default)s)")
    parser.add_argument("--guide", type=Path, help="a Markdown file whose figures are to be replaced")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    chosen = args.only.split(",")
    unknown = [name for name in chosen if name not in STUDIES]
    if unknown:
        parser.error(f"no study is called {unknown[0]!r}; there are {', '.join(STUDIES)}")
    if args.guide and (args.small or set(chosen) != set(STUDIES)):
        parser.error("a guide gets the figures of all studies at their full size")
    if args.guide and not args.guide.exists():
        parser.error(f"there is no file {args.guide}")
    ui = Ui()
    try:
        figures = run(chosen, SMALL if args.small else Effort(), args.output, args.threads, ui)
    except CompileError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    write(figures, args.output, args.guide)
    show(figures, args.output, ui)
    return 0 if figures.held or args.small else 1


def run(chosen: Sequence[str], effort: Effort, output: Path, threads: int, ui: Ui) -> Figures:
    """The chosen studies, one after the other."""
    studies: dict[str, Callable[[Room], Found]] = {
        "digits": lambda room: study_digits.study(room, effort.digits),
        "hostile": lambda room: study_digits.hostile(room, effort.digits),
        "MiniLM": lambda room: study_minilm.study(room, effort.minilm),
        "GPT": lambda room: study_gpt.study(room, effort.gpt),
    }
    figures = Figures()
    torch.set_num_threads(threads)
    for name in chosen:
        start = time.perf_counter()
        with ui.progress() as progress:
            found = studies[name](Room(output / "weights", threads, progress, ui.note))
        figures.rows += found.rows
        figures.facts[name] = {**found.facts, "seconds": round(time.perf_counter() - start, 1)}
    return figures


def show(figures: Figures, output: Path, ui: Ui) -> None:
    seconds = sum(facts["seconds"] for facts in figures.facts.values())
    rows = [row.cells() for row in figures.rows]
    ui.report(None, table(f"accuracy on held-out data, {duration(seconds)}", COLUMNS, rows))
    ui.note(f"written: {output / 'figures.json'}, figures.md and figures.svg")


if __name__ == "__main__":
    sys.exit(main())
