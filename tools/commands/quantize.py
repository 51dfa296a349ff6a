"""secateur quantize: a float model in, a quantised one out, and the operations that pay for it by name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateur.backends.cpu.compile import Options, compile_graph
from secateur.backends.cpu.quantized import executor, name_operations
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.passes.manager import optimize
from secateur.passes.quantize import RECIPES, Culprit, Quantized, Recipe, quantize, recipe_of, sensitivity, without
from secateur.passes.quantize.batches import open_batches
from secateur.passes.quantize.recipe import ACTIVATIONS, SCHEMES, WEIGHTS
from secateur.tools.calibration import RANDOM, RANDOM_NOTE, add_calibration_option, calibration_source
from secateur.tools.commands.compile import add_compile_options, error_line, positive, settings
from secateur.tools.commands.opt import write_result
from secateur.tools.console import Ui, duration, table
from secateur.tools.functions import load_function
from secateur.tools.models import MODEL_HELP, input_specs, open_graph
from secateur.tools.quantize_search import Board, Candidate, Found, Mix, as_program, checked, describe_mix, search
from secateur.tools.quantize_times import Cost, Costs, measure_costs

HELP = "quantise a float model: write it as IR, rank the operations that lose accuracy, or mix precisions for a metric"
EXAMPLE = """secateur quantize model.onnx --calibration data.npz -o model-int8.ir --report
secateur quantize model.onnx --calibration data.npz --delta 0.01 --metric judge.py:accuracy -o model-mixed.ir
secateur compile model-mixed.ir -o build/model"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("-o", "--output", metavar="OUT.ir", help="write the quantised model here, weights beside it")
    add_calibration_option(parser)
    parser.add_argument("--seed", type=int, default=0, help="of whatever is drawn at random (%(default)s)")
    parser.add_argument("--recipe", default="int8", metavar="RECIPE", help=f"{', '.join(RECIPES)} (%(default)s)")
    parser.add_argument("--weights", choices=WEIGHTS, help="instead of the recipe's")
    parser.add_argument("--activations", choices=ACTIVATIONS, help="instead of the recipe's; none: only weights")
    parser.add_argument("--group", type=int, metavar="N", help="weights alone: a scale for every N inputs of a layer")
    parser.add_argument(
        "--keep-float", action="append", default=[], metavar="PATTERN", help="operations by name, e.g. 'encoder.*'"
    )
    schemes = f"another way for some operations; schemes are {', '.join(SCHEMES)}"
    parser.add_argument("--override", action="append", default=[], metavar="PATTERN=SCHEME", help=schemes)
    parser.add_argument(
        "--report", action="store_true", help="rank operations by the error each causes, and time them in both forms"
    )
    parser.add_argument("--samples", type=positive, default=4, help="batches that errors are measured on (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="how long each of two programs is timed (%(default)s)"
    )
    metric = "FILE.py:FUNCTION(program) -> accuracy, more is better; program(*arrays) runs the model; runs your file"
    parser.add_argument("--metric", metavar="METRIC", help=metric)
    parser.add_argument(
        "--delta",
        type=float,
        metavar="D",
        help="how much of the metric may be lost, e.g. 0.01: find the fastest mix",
    )
    parser.add_argument(
        "--evaluations", type=positive, default=40, metavar="N", help="most calls of the metric (%(default)s)"
    )
    add_compile_options(parser)


@dataclass
class Result:
    """What the command came to: the graph to write, and the parts of the report that were asked for."""

    made: Quantized
    graph: Graph
    culprits: list[Culprit] = field(default_factory=list)
    costs: Costs | None = None
    found: Found | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        costs = self.costs
        culprits = [{**asdict(c), "gain": c.gain, **_cost(costs, c.name)} for c in self.culprits]
        found = self.found
        return {
            "recipe": asdict(self.made.recipe),
            **self.made.report,
            "culprits": culprits,
            "seconds": {"quantized": costs.quantized, "float": costs.floating} if costs else {},
            "search": {**asdict(found), "mix": sorted(found.mix), "kept": self.kept} if found else {},
        }


def _cost(costs: Costs | None, name: str) -> dict[str, float]:
    if costs is None:
        return {}
    cost = costs.ops[name]
    return {"seconds": cost.quantized, "float_seconds": cost.floating, "lost_seconds": cost.lost}


def run(args: argparse.Namespace, ui: Ui) -> None:
    recipe = recipe_for(args)
    metric = load_function(args.metric) if args.metric else None
    graph = optimize(open_graph(args.model, ui), settings(args).pipeline)
    name_operations(graph)
    batches = None
    if args.calibration:
        source = calibration_source(args.calibration, input_specs(graph), args.seed)
        batches = open_batches(source, graph, limit=recipe.batches, seed=recipe.seed)
    if args.calibration == RANDOM:
        ui.note(RANDOM_NOTE.format(seed=args.seed))
    result = quantized(graph, batches, recipe, metric, args, ui)
    data = {"model": args.model, "output": args.output, **result.data()}
    written = _write(result, data, args.output) if args.output else ""
    ui.report(data, *_shown(result, args), written)


def recipe_for(args: argparse.Namespace) -> Recipe:
    """The recipe that the options ask for.

    Raises:
        CompileError: options that do not go together.
    """
    if not (args.output or args.report or args.delta is not None):
        raise CompileError("nothing is asked for", hint="-o OUT.ir writes the model, --report names the culprits")
    if (args.delta is None) != (args.metric is None):
        raise CompileError("--delta and --metric go together: how much may be lost, and of what")
    changes: dict[str, Any] = {"seed": args.seed, "keep_float": tuple(args.keep_float), "delta": args.delta}
    changes |= {key: value for key in ("weights", "activations", "group") if (value := vars(args)[key]) is not None}
    overrides = {}
    for text in args.override:
        pattern, equals, scheme = text.rpartition("=")
        if not equals or not pattern:
            raise CompileError(f"--override {text!r} is not PATTERN=SCHEME", hint="e.g. 'classifier=float'")
        overrides[pattern] = scheme
    recipe = recipe_of(args.recipe, overrides=overrides, **changes)
    if not args.calibration and (recipe.activations != "none" or args.report or args.metric):
        hint = "give --calibration DATA; --calibration random is for trials; --recipe weights-int8 -o needs none"
        raise CompileError("quantisation needs to know what real inputs look like", hint=hint)
    return recipe


def quantized(
    graph: Graph, batches: Any, recipe: Recipe, metric: Callable[..., Any] | None, args: argparse.Namespace, ui: Ui
) -> Result:
    """All that is asked for: quantise, find the culprits, measure times, search."""
    options = replace(settings(args), pipeline="none")
    run = executor(lambda part: compile_graph(part, options))
    if metric is not None:
        with ui.stage("asking the metric about the float model"):  # before all the work: it may not work at all
            checked(metric, args.metric, as_program(run(graph)))
    with ui.progress() as progress:
        made = quantize(graph, batches, recipe, run=run, progress=progress)
        result = Result(made, made.graph)
        if not args.report and metric is None:
            return result
        result.culprits = sensitivity(made, batches, run=run, samples=args.samples, progress=progress)
        first = next(iter(batches))
        result.costs = measure_costs(made, first, options, args.seconds, progress)
    if metric is not None:
        _search(result, metric, run, options, args, ui)
    return result


def _search(
    result: Result,
    metric: Callable[..., Any],
    run: Callable[[Graph], Callable[..., Any]],
    options: Options,
    args: argparse.Namespace,
    ui: Ui,
) -> None:
    """Find the mix; what decides in the end is the metric of the program that is really compiled."""
    costs = result.costs.ops if result.costs else {}
    candidates = [Candidate(c.name, costs.get(c.name, Cost()).lost, c.alone) for c in result.culprits]
    board = Board(result.made, run)

    def score(mix: Mix) -> float:
        return checked(metric, args.metric, board.program(mix))

    delta = args.delta
    for _ in range(3):
        with ui.progress() as progress:
            found = search(candidates, score, delta, most=args.evaluations, progress=progress)
        result.found, result.kept = found, describe_mix(found.mix, candidates)
        if len(found.mix) == len(candidates):
            result.graph = result.made.attempt.graph
            ui.note(
                f"the float model is the fastest within {args.delta:g} of {found.baseline:.6g}: it is left as it is"
            )
            return
        graph = without(result.made, found.mix)
        with ui.stage("checking the compiled mix"):
            found.score = checked(metric, args.metric, compile_graph(graph, options))
        if found.score >= found.baseline - args.delta:
            result.graph = graph
            return
        delta -= found.baseline - args.delta - found.score  # real integers do a little worse than simulated ones
    raise CompileError(
        f"no mix was found that is within {args.delta:g} of {found.baseline:.6g} once it is compiled",
        hint=f"the last one scores {found.score:.6g}; allow more, or train: secateur finetune",
    )


def _write(result: Result, data: dict[str, Any], output: str) -> str:
    """Write the model, and the report beside it for `secateur view --errors`; returns what to say of it."""
    write_result(result.graph, output)
    report = Path(output).with_suffix(".report.json")
    try:
        report.write_text(json.dumps(data, indent=1, default=_plain) + "\n")
    except OSError as error:
        raise CompileError(f"cannot write {report}: {error.strerror or error}") from None
    return f"wrote {output} and {report}; see it: secateur view {output} --errors {report} -o {Path(output).stem}.html"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


# What is shown ------------------------------------------------------------------------------------


def _shown(result: Result, args: argparse.Namespace) -> list[Any]:
    report = result.made.report
    shown: list[Any] = []
    if args.report:
        shown.append(culprits_table(result))
    if result.found:
        shown.append(_mix_table(result))
    floats = [row for row in report["ops"] if row["reason"]]
    repairs = ", ".join(entry["name"] for entry in report["repairs"][1:] if entry["kept"]) or "none"
    shown.append(
        f"{len(report['ops']) - len(floats)} operations quantised, {len(floats)} stay float; repairs that helped: "
        f"{repairs}" + (f"; {error_line(report)}, over {report['batches']} batches" if report["error"] else "")
    )
    return shown


def culprits_table(result: Result) -> Any:
    """Operations by the error of the results that each causes alone, and what leaving it float brings and costs."""
    packed = {row["name"]: row["weights"] for row in result.made.report["ops"]}
    rows = []
    for number, item in enumerate(result.culprits, 1):
        cost = result.costs.ops[item.name] if result.costs else Cost()
        row = (number, item.name, item.op, packed.get(item.name, ""), _percent(item.alone), _percent(item.without))
        rows.append(
            (*row, f"{item.gain:+.1f} dB", duration(cost.quantized), duration(cost.floating), _signed(cost.lost))
        )
    total = result.culprits[0].total if result.culprits else 0.0
    caption = f"error of the results when all are quantised: {_percent(total)} (norm of the difference over norm)"
    if result.costs:
        caption += (
            f"; one run takes {duration(result.costs.quantized)} quantised, {duration(result.costs.floating)} float"
            f"\ntimes are of whole kernels: what is computed in one with another operation has none of its own"
        )
    columns = ["", "operation", "op", "weights", "error alone>", "error without>", "gain>", "time>", "float>", "costs>"]
    return table("What each operation does to the results, the worst first", columns, rows, caption)


def _mix_table(result: Result) -> Any:
    found = result.found
    assert found is not None
    rows = [(row["name"], _percent(row["error"]), _signed(row["lost"])) for row in result.kept]
    caption = (
        f"metric: float {found.baseline:.6g}, all quantised {found.quantized:.6g}, this mix {found.score:.6g}; "
        f"it was asked {len(found.evaluations)} times"
    )
    title = f"The fastest mix found within the budget: {len(rows)} operations stay float"
    return table(title, ["operation", "error alone>", "costs>"], rows, caption)


def _percent(share: float) -> str:
    """A share of squared error as the ratio of norms, in percent."""
    return f"{100 * share**0.5:.3g} %"


def _signed(seconds: float) -> str:
    return f"{'-' if seconds < 0 else '+'}{duration(abs(seconds))}"
