"""secateur bisect: which pass, rewrite and operation made the results wrong."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.passes.base import Pass
from secateur.passes.manager import resolve
from secateur.tools.bisect import Finding, Search, bisect
from secateur.tools.cases import read_inputs as case_inputs
from secateur.tools.commands.compile import add_compile_options, settings
from secateur.tools.commands.opt import chosen_passes
from secateur.tools.console import Ui, table
from secateur.tools.models import INPUTS_HELP, MODEL_HELP, input_specs, open_graph, random_inputs, read_inputs

HELP = "find the pass, the rewrite and the operation that make a model's results wrong"
EXAMPLE = (
    "secateur bisect model.onnx --inputs x.npz --tolerance 1e-4\nsecateur bisect m.ir --random 0 --load my.py -p my"
)


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what to run, on what, and what counts as wrong."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--inputs", metavar="FILE.npz", help=INPUTS_HELP)
    group.add_argument("--random", type=int, metavar="SEED", help="random tensors; integers are 0 or 1, masks all ones")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, metavar="T", help="largest relative error allowed (%(default)s)"
    )
    parser.add_argument("--passes-only", action="store_true", help="leave the backend's own passes and its code out")
    add_compile_options(parser)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    add_search_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> None:
    graph = open_graph(args.model, ui)
    search, _ = searched(graph, args, ui)
    rows = [(step.name, step.ops, f"{step.error:.1e}") for step in search.steps]
    found = search.finding
    shown: list[Any] = [table("", ["after", "operations>", "error>"], rows)]
    if found:
        shown.append(explanation(found))
    ui.report({"steps": [vars(step) for step in search.steps], "finding": facts(found) if found else None}, *shown)
    if found:
        raise CompileError(
            f"{found.culprit} {'fails' if found.reason else 'makes the results wrong'}",
            hint="`secateur reduce` with the same options and -o FILE.ir makes a test of it",
        )
    ui.note(f"everything stays within {args.tolerance:g}")


def searched(graph: Graph, args: argparse.Namespace, ui: Ui) -> tuple[Search, list[np.ndarray]]:
    """The search that the options ask for, and the tensors it used."""
    inputs = tensors(graph, args)
    passes: list[Pass] = resolve([*chosen_passes(args), *([] if args.passes_only else resolve("cpu"))])
    compile = None if args.passes_only else settings(args)
    with ui.progress() as progress:
        return bisect(graph, inputs, passes, args.tolerance, compile=compile, progress=progress), inputs


def tensors(graph: Graph, args: argparse.Namespace) -> list[np.ndarray]:
    """The tensors that the options ask for; without one, those that a reduced case carries."""
    specs = input_specs(graph)
    if args.inputs:
        return read_inputs(args.inputs, specs)
    if args.random is not None:
        return random_inputs(specs, args.random)
    carried = case_inputs(Path(args.model).read_text()) if args.model.endswith(".ir") else []
    if len(carried) != len(specs):
        raise CompileError("there are no inputs to run the model on", hint="give --inputs FILE.npz or --random SEED")
    return carried


def facts(found: Finding) -> dict[str, Any]:
    """A finding as plain data."""
    return {key: value for key, value in vars(found).items() if key not in ("graph", "inputs")}


def explanation(found: Finding) -> str:
    """A finding in words."""
    lines = [f"first wrong: {found.culprit}" + (f", which raises {found.reason}" if found.reason else "")]
    if found.rule:
        lines.append(f"  rewrite number {found.number}: rule {found.rule}")
    if found.op:
        lines.append(f"  operation:  {found.op}")
    if found.replacement:
        lines.append(f"  now:        {found.replacement}")
    if found.op_error:
        lines.append(f"  its result is off by {found.op_error:.1e}, the model's results by {found.error:.1e}")
    return "\n".join(lines)
