"""secateur reduce: a model that goes wrong becomes a few operations that go wrong."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from secateur.ir.diagnostics import CompileError
from secateur.passes.base import make_pass
from secateur.tools.bisect import COMPILED, Finding
from secateur.tools.cases import Check, write_case
from secateur.tools.commands.bisect import add_search_options, explanation, searched
from secateur.tools.commands.compile import settings
from secateur.tools.console import Ui
from secateur.tools.models import MODEL_HELP, open_graph
from secateur.tools.reduce import Case, Reducer

HELP = "shrink a model whose results go wrong to a few operations, as a test file"
EXAMPLE = "secateur reduce model.onnx --inputs inputs.npz -o wrong.ir"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("-o", "--output", required=True, metavar="FILE.ir", help="the test file to write")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="when to stop trying (%(default)s)")
    add_search_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> None:
    graph = open_graph(args.model, ui)
    search, _ = searched(graph, args, ui)
    found = search.finding
    if found is None:
        raise CompileError(f"there is nothing to reduce: everything stays within {args.tolerance:g}")
    check, total = check_of(found, args), len(found.graph)
    with ui.progress() as progress:
        reducer = reducer_of(found, check, args.seconds, lambda left: progress("reducing", 1 - left / total))
        case = reducer.run()
    write_case(args.output, case.graph, case.inputs, check, f"{found.rule} in {found.culprit}".removeprefix(" in "))
    facts = {"ops_before": len(found.graph), "ops": len(case.graph), "trials": reducer.trials, "file": args.output}
    ui.report(
        {**facts, "culprit": found.culprit, "rule": found.rule, "text": str(case.graph)},
        explanation(found),
        f"\n{case.graph}",
        f"{len(found.graph)} operations became {len(case.graph)} in {reducer.trials} trials; wrote {args.output}",
    )


def check_of(found: Finding, args: argparse.Namespace) -> Check:
    """What shows the failure of a finding again."""
    if found.culprit == COMPILED:
        return Check([], args.tolerance, settings(args))
    return Check([make_pass(found.culprit)], args.tolerance)


def reducer_of(found: Finding, check: Check, seconds: float, progress: Callable[[int], None]) -> Reducer:
    """A reducer that keeps what is wrong with a finding.

    Raises:
        CompileError: what the finding points at does not fail by itself.
    """
    kind = check.verdict(found.graph, found.inputs)
    if kind in ("right", "invalid"):
        raise CompileError(
            f"{found.culprit} stays within {check.tolerance:g} by itself: the errors of several passes add up",
            hint="a smaller --tolerance finds the one that adds most",
        )
    case = Case(found.graph, tuple(found.inputs))
    return Reducer(case, lambda graph, inputs: check.verdict(graph, inputs) == kind, seconds, progress)
