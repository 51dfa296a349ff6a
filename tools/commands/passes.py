"""secateur passes: the passes, their options, and the pipelines."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from secateur.ir.diagnostics import CompileError, nearest
from secateur.passes.base import Pass, all_passes, load_pass
from secateur.passes.pipelines import PIPELINES
from secateur.tools.commands.opt import add_load_option
from secateur.tools.console import Ui, table

HELP = "list the passes with their options, and the pipelines"
EXAMPLE = "secateur passes fold"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a pass")
    add_load_option(parser)


def run(args: argparse.Namespace, ui: Ui) -> None:
    for path in args.load:
        load_pass(path)
    known = all_passes()
    if args.name and args.name not in known:
        raise CompileError(f"unknown pass {args.name!r}", hint=nearest(args.name, known) or "see `secateur passes`")
    if args.name:
        ui.report(describe(args.name, known[args.name]), full_doc(args.name, known[args.name]))
        return
    found = [describe(name, item) for name, item in known.items()]
    rows = [(d["name"], d["doc"], _options(d), "exact" if d["exact"] else f"within {d['tolerance']:g}") for d in found]
    pipelines = [(name, ", ".join(map(str, items)) or "(empty)") for name, items in PIPELINES.items()]
    ui.report(
        {"passes": found, "pipelines": {name: list(map(str, items)) for name, items in PIPELINES.items()}},
        table(f"{len(rows)} passes", ["pass", "what it does", "options", "results"], rows),
        table("pipelines", ["name", "passes, in order"], pipelines),
    )


def describe(name: str, item: type[Pass]) -> dict[str, Any]:
    """A pass as plain data: name, first line of its documentation, options with defaults, exactness."""
    options = {f.name: f.default for f in dataclasses.fields(item)}
    return {
        "name": name,
        "doc": (item.__doc__ or "").strip().partition("\n")[0],
        "options": options,
        "exact": item.exact,
        "tolerance": item.tolerance,
    }


def full_doc(name: str, item: type[Pass]) -> str:
    """Everything a pass says of itself, and how it is written on the command line."""
    lines = [line.removeprefix("    ") for line in (item.__doc__ or "").strip().splitlines()]
    options = _options(describe(name, item))
    return f"{name}{{{options}}}\n\n" + "\n".join(lines) if options else f"{name}\n\n" + "\n".join(lines)


def _options(data: dict[str, Any]) -> str:
    options = data["options"].items()
    return ", ".join(f"{key}={' '.join(value) if isinstance(value, tuple) else value}" for key, value in options)
