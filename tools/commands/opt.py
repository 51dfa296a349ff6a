"""secateur opt: text -> passes -> text."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from secateur.ir.diagnostics import CompileError, nearest
from secateur.ir.graph import Graph
from secateur.ir.rewrite import Explanation, RewriteStats, explaining
from secateur.ir.text import print_graph, write_ir
from secateur.passes.base import load_pass
from secateur.passes.manager import PassManager, resolve
from secateur.tools.console import Ui, duration, table
from secateur.tools.models import MODEL_HELP, open_graph

HELP = "run passes over a model and print the result as IR text"
EXAMPLE = "secateur opt model.onnx -p 'fold{limit=1000} cse dce' --time-passes -o model.ir\ncat f.ir | secateur opt -"


def add_pass_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose passes, the same for every command."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-p", "--passes", action="append", metavar="PASSES", help="passes in order, e.g. 'fold{limit=1000} cse'"
    )
    group.add_argument(
        "--pipeline", default="default", help="named lists of passes, with commas (default: %(default)s)"
    )
    add_load_option(parser)


def add_load_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--load", action="append", default=[], metavar="FILE", help="a pass of your own: .py or .rules")


def chosen_passes(args: argparse.Namespace) -> list[str]:
    """What `add_pass_options` gathered: passes as text; loads those of files.

    Raises:
        CompileError: an unknown pipeline, or a file that holds no pass.
    """
    for path in args.load:
        load_pass(path)
    if not args.passes:
        return [str(item) for name in args.pipeline.split(",") for item in resolve(name.strip())]
    return [word for text in args.passes for word in re.findall(r"[^\s,{]+(?:\{[^}]*\}?)?", text)]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    add_pass_options(parser)
    parser.add_argument(
        "-o", "--output", metavar="OUT.ir", help="write here (large constants beside it as .safetensors)"
    )
    parser.add_argument("--print-after", action="store_true", help="print the graph after every pass to standard error")
    parser.add_argument("--dump", metavar="DIR", help="write the graph after every pass here, for `opt` to read")
    parser.add_argument("--stop-after", default="", metavar="PASS", help="stop after this pass")
    parser.add_argument("--explain", metavar="RULE", help="say where a rule nearly fired, and why it did not")
    parser.add_argument("--time-passes", action="store_true", help="show the time of each pass and rule, and counts")


def run(args: argparse.Namespace, ui: Ui) -> None:
    graph = open_graph(args.model, ui)
    manager = PassManager(
        resolve(chosen_passes(args)),
        stop_after=args.stop_after,
        print_after=_print_after if args.print_after else None,
        dump=Path(args.dump) if args.dump else None,
    )
    with ui.stage("running passes"), explaining(args.explain or "") as explanation:
        manager.run(graph)
    if args.explain:
        _explain(explanation, ui)
        return
    if args.output:
        write_result(graph, args.output)
        ui.note(f"wrote {args.output}")
    elif not ui.as_json:
        sys.stdout.write(print_graph(graph))
    if args.time_passes or ui.as_json:
        _show_times(manager, graph, ui, args.output)


def write_result(graph: Graph, path: str) -> None:
    """Write a graph as IR text; raises `CompileError` where that is not possible."""
    try:
        write_ir(graph, path)
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror or error}") from None


def _explain(explanation: Explanation, ui: Ui) -> None:
    """Print the near misses of a rule; raises `CompileError` where no pass has tried a rule of this name."""
    name = explanation.rule
    if not any(map(explanation.covers, explanation.tried)):
        if any(map(explanation.covers, explanation.known)):
            hint = "a rule is tried where its root, the last operation of its pattern, occurs in the model"
            raise CompileError(f"rule {name!r} was never tried", hint=hint)
        hint = nearest(name, explanation.known) or "the passes that ran hold no such rule"
        raise CompileError(f"there is no rule {name!r}", hint=hint)
    misses = [
        {"op": op.name, "type": str(op.results[0].type), "at": str(op.span or "<unknown>"), "why": why}
        for op, why in explanation.misses.items()
    ]
    rows = [(item["op"], item["type"], item["at"], item["why"]) for item in misses]
    shown = table(
        f"rule {name} fired {explanation.fired} times, and nearly so at", ["op", "type", "where", "why not"], rows
    )
    ui.report({"rule": name, "fired": explanation.fired, "misses": misses}, shown)


def _print_after(name: str, text: str) -> None:
    sys.stderr.write(f"// after {name}\n{text}")


def _show_times(manager: PassManager, graph: Graph, ui: Ui, output: str | None) -> None:
    records = [
        {
            "pass": record.name,
            "seconds": record.seconds,
            "ops_before": record.ops_before,
            "ops_after": record.ops_after,
            "rules": dict(record.rules.fired) if record.rules else {},
            "rule_seconds": dict(record.rules.seconds) if record.rules else {},
        }
        for record in manager.records
    ]
    rows = [
        (r.name, duration(r.seconds), r.ops_before, r.ops_after, r.rules.fired.total() if r.rules else "")
        for r in manager.records
    ]
    if ui.as_json:
        text = {} if output else {"text": print_graph(graph)}
        ui.report({"passes": records, "ops": len(graph), **text})
        return
    ui.err.print(table("", ["pass", "time>", "ops before>", "after>", "rewrites>"], rows))
    ui.err.print(_rule_table(manager))


def _rule_table(manager: PassManager) -> Any:
    """What the rules did in all passes together: those that matched anything, slowest first."""
    total = RewriteStats()
    for record in manager.records:
        if record.rules:
            total.add(record.rules)
    refused: Counter[str] = Counter()
    for (name, _), count in total.refused.items():
        refused[name] += count
    slowest = sorted(total.seconds, key=total.seconds.__getitem__, reverse=True)
    rows = [(name, total.fired[name], refused[name], duration(total.seconds[name])) for name in slowest]
    return table("", ["rule", "fired>", "refused>", "time>"], rows, "a rule that matched nothing is not shown")
