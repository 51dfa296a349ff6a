"""Quantisation from beginning to end: calibrate, repair as long as that helps, insert, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.ir.verify import verify
from secateur.passes.quantize.batches import Progress, open_batches
from secateur.passes.quantize.calibrate import Choice, Context, Seen, choose_ranges, observe, settings_of, unusable
from secateur.passes.quantize.equalize import equalized, smoothed
from secateur.passes.quantize.forms import decibels
from secateur.passes.quantize.insert import Settings, insert
from secateur.passes.quantize.plan import Plan, make_plan
from secateur.passes.quantize.prepare import split_linears
from secateur.passes.quantize.products import (
    audit,
    corrected_biases,
    errors_of_weights,
    pack_nearest,
    round_second_order,
)
from secateur.passes.quantize.recipe import Recipe, recipe_of
from secateur.passes.quantize.report import make_report
from secateur.passes.quantize.stream import Run, interpreted, relative_noise, results


@dataclass
class Attempt:
    """One way of quantising a graph: all that is needed to insert it, and the error it makes of the results."""

    graph: Graph
    plan: Plan
    seen: Seen
    choices: list[Choice]
    settings: Settings
    noise: float = np.inf
    note: str = ""


@dataclass(frozen=True)
class Quantized:
    """A quantised graph and how it came about.

    Attributes:
        graph: with quantize and dequantize operations, ready to be lowered.
        report: plain data: `error` (signal to noise of the results in dB), `repairs`, `tensors`, `ops`.
        attempt: the float graph behind it with plan, ranges, weights: what `without` and `sensitivity` need.
        recipe: that was followed.
    """

    graph: Graph
    report: dict[str, Any]
    attempt: Attempt = field(repr=False)
    recipe: Recipe = field(repr=False)


def quantize(
    graph: Graph,
    batches: Any,
    recipe: str | Recipe = "int8",
    *,
    run: Run | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Quantise a graph after training, by a recipe and calibration batches.

    The graph should have gone through the pipeline `default`; it stays as it is. A repair (equalisation,
    smoothing, bias correction, second-order rounding) is kept only if it lowers the error of the results.

    Args:
        batches: see `Batches.source`. None will do where the recipe quantises nothing but weights; they are then
            rounded to the nearest, without repairs.
        recipe: or the name of one: int8, int4, weights-int8, weights-int4.
        run: compiles a graph to a function of arrays; by default the interpreter.
        progress: called with a stage and its share done, 0 to 1.

    Raises:
        CompileError: batches that are empty, do not fit or hold NaN; a recipe that fits nothing of the graph.
    """
    recipe = recipe_of(recipe)
    if any(op.name == "quantize" for op in graph.walk()):
        raise CompileError(f"graph @{graph.name} is quantised already")
    if batches is None:
        return _weights_alone(graph.clone(), recipe)
    opened = open_batches(batches, graph, limit=recipe.batches, seed=recipe.seed)
    context = Context(opened, run or interpreted, recipe, progress)
    graph = graph.clone()
    if recipe.activations == "int8":
        split_linears(graph)
    best, repairs = _repaired(graph, context)
    audits = audit(best.graph, best.plan, best.settings, context)
    made = insert(best.graph, best.plan, best.settings)
    verify(made)
    report = make_report(best.plan, best.choices, best.seen, best.settings, audits, repairs, opened.count)
    return Quantized(made, report, best, recipe)


def _weights_alone(graph: Graph, recipe: Recipe) -> Quantized:
    """Weights by what can be known of them without data; the report's errors are those of the weights themselves."""
    plan = make_plan(graph, recipe)
    if plan.whole:
        raise CompileError(
            "quantised activations need calibration data: a few batches of real inputs",
            hint="or quantise weights alone: the recipes weights-int8 and weights-int4",
        )
    attempt = _with_weights(Attempt(graph, plan, {}, [], Settings()))
    made = insert(graph, plan, attempt.settings)
    verify(made)
    report = make_report(plan, [], {}, attempt.settings, errors_of_weights(attempt.settings), [], 0)
    return Quantized(made, report, attempt, recipe)


def _with_weights(attempt: Attempt) -> Attempt:
    """The attempt with nearest weights. Raises `CompileError` where there is nothing to quantise at all."""
    plan, name = attempt.plan, attempt.graph.name
    if not plan.weights and not plan.whole:
        reasons = sorted(set(plan.reasons.values()))
        raise CompileError(f"graph @{name} has nothing to quantise", hint="; ".join(reasons[:3]))
    attempt.settings.packed = pack_nearest(plan, attempt.seen, attempt.settings)
    return attempt


def _repaired(graph: Graph, context: Context) -> tuple[Attempt, list[dict[str, Any]]]:
    """The best attempt, and what was tried on the way."""
    recipe = context.recipe
    first = calibrated(graph, _simple(context))
    want = results(graph, context.batches, context.run, recipe.samples)

    def measure(attempt: Attempt) -> float:
        attempt.noise = relative_noise(
            results(
                insert(attempt.graph, attempt.plan, attempt.settings), context.batches, context.run, recipe.samples
            ),
            want,
        )
        return attempt.noise

    measure(first)
    best, history = first, [_entry("minmax", first, first, True)]
    for name, repair in REPAIRS.items():
        tried = repair(best, context)
        if tried is None:
            continue
        better = measure(tried) < best.noise
        history.append(_entry(name, best, tried, better))
        best = tried if better else best
    return best, history


def _simple(context: Context) -> Context:
    """Ranges by what was seen alone: quick, and equal terms for what is compared before ranges are chosen."""
    return replace(context, recipe=replace(context.recipe, observers=("minmax",)))


def _entry(name: str, before: Attempt, after: Attempt, kept: bool) -> dict[str, Any]:
    return {
        "name": name,
        "kept": kept,
        "before": round(decibels(1.0, before.noise), 2),
        "after": round(decibels(1.0, after.noise), 2),
        "note": after.note,
    }


def calibrated(graph: Graph, context: Context, seen: Seen | None = None) -> Attempt:
    """Ranges and nearest weights for a graph; `seen` if the batches have been looked at already.

    Raises:
        CompileError: the recipe leaves nothing to quantise.
    """
    plan = make_plan(graph, context.recipe)
    if seen is None:
        seen = observe(graph, context)
    bad = unusable(plan, seen)
    if bad:
        plan = make_plan(graph, context.recipe, bad)
    choices = choose_ranges(graph, plan, seen, context)
    return _with_weights(Attempt(graph, plan, seen, choices, settings_of(choices)))


# Repairs ------------------------------------------------------------------------------------------


def _equalisation(best: Attempt, context: Context) -> Attempt | None:
    made = equalized(best.graph, best.plan, best.seen) if context.recipe.equalize else None
    return None if made is None else replace(calibrated(made[0], _simple(context)), note=made[1])


def _smoothing(best: Attempt, context: Context) -> Attempt | None:
    made = smoothed(best.graph, best.plan, best.seen, context) if context.recipe.smooth else None
    return None if made is None else replace(calibrated(made[0], _simple(context)), note=made[1])


def _ranges(best: Attempt, context: Context) -> Attempt | None:
    """Ranges chosen by the error of the operations that read the tensors."""
    if len(context.recipe.observers) == 1 and context.recipe.observers[0] == "minmax":
        return None
    return calibrated(best.graph, context, best.seen)


def _bias_correction(best: Attempt, context: Context) -> Attempt | None:
    if not context.recipe.correct_bias:
        return None
    audits = audit(best.graph, best.plan, best.settings, context, "correcting biases")
    biases = corrected_biases(audits, best.settings)
    settings = replace(best.settings, biases=biases)
    return replace(best, settings=settings, note=f"{len(biases)} biases")


def _second_order(best: Attempt, context: Context) -> Attempt | None:
    """Second-order rounding, and the biases corrected for the new weights."""
    packed = round_second_order(best.graph, best.plan, best.settings, context)
    if not packed:
        return None
    settings = replace(best.settings, packed={**best.settings.packed, **packed}, biases={})
    if best.settings.biases:
        audits = audit(best.graph, best.plan, settings, context, "correcting biases")
        settings = replace(settings, biases=corrected_biases(audits, settings))
    return replace(best, settings=settings, note=f"{len(packed)} products")


# In the order in which they are tried: each starts from what the ones before it have reached.
REPAIRS: dict[str, Callable[[Attempt, Context], Attempt | None]] = {
    "equalisation": _equalisation,
    "smoothing": _smoothing,
    "ranges": _ranges,
    "bias correction": _bias_correction,
    "second-order rounding": _second_order,
}
