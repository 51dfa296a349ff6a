"""Culprits: what quantising each operation costs, by itself and among all others, and graphs that leave some out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.ir.diagnostics import CompileError, nearest
from secateur.ir.graph import Graph, Op
from secateur.ir.verify import verify
from secateur.passes.quantize.batches import Batch, Progress, open_batches
from secateur.passes.quantize.calibrate import form_of, plain_choice, seen_of
from secateur.passes.quantize.driver import Quantized
from secateur.passes.quantize.forms import decibels
from secateur.passes.quantize.insert import Settings, insert, insert_switched
from secateur.passes.quantize.plan import make_plan
from secateur.passes.quantize.stream import Run, comparable, interpreted, relative_noise

Results = list[list[np.ndarray]]


@dataclass(frozen=True)
class Culprit:
    """One operation's part in the error of the results. Errors are shares: of squared error in the squared results.

    Attributes:
        name: the label, as in the report.
        op: the operation's name.
        alone: the error when nothing but this operation is quantised.
        without: the error when everything but this operation is.
        total: the error when everything is.
    """

    name: str
    op: str
    alone: float
    without: float
    total: float

    @property
    def gain(self) -> float:
        """dB that the results win if this operation stays float."""
        return decibels(1.0, self.without) - decibels(1.0, self.total)


def sensitivity(
    made: Quantized, batches: Any, *, run: Run | None = None, samples: int = 4, progress: Progress | None = None
) -> list[Culprit]:
    """What each quantised operation does to the results, the greatest error alone first.

    One program is built in which each operation can be switched between float and quantised, so that an
    executor that compiles has to compile once. It runs 2 n + 2 times a batch for n operations.

    Args:
        batches: as for `quantize`; held-out ones say more.
        run: compiles a graph to a function of arrays; by default the interpreter.
        samples: so many batches are used.

    Raises:
        CompileError: batches that are empty or do not fit.
    """
    attempt = made.attempt
    switches = switchable(made)
    graph = comparable(insert_switched(attempt.graph, attempt.plan, attempt.settings, switches))
    execute = (run or interpreted)(graph)
    held = [batch for batch, _ in zip(open_batches(batches, attempt.graph), range(samples))]
    total = 2 * len(switches) + 2
    done = 0

    def results(on: Callable[[int], bool]) -> Results:
        nonlocal done
        flags = [np.asarray(on(i)) for i in range(len(switches))]
        found = [_run(execute, batch, flags) for batch in held]
        done += 1
        if progress:
            progress("sensitivity", done / total)
        return found

    want = results(lambda i: False)
    whole = relative_noise(results(lambda i: True), want)
    culprits = []
    for number, op in enumerate(switches):
        alone = relative_noise(results(lambda i, number=number: i == number), want)  # type: ignore[misc]
        without = relative_noise(results(lambda i, number=number: i != number), want)  # type: ignore[misc]
        culprits.append(Culprit(attempt.plan.named[op], op.name, alone, without, whole))
    return sorted(culprits, key=lambda culprit: -culprit.alone)


def _run(execute: Callable[..., Any], batch: Batch, flags: list[np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(array) for array in execute(*batch, *flags)]


def switchable(made: Quantized) -> list[Op]:
    """The operations with operands or weights that are quantised, in program order."""
    plan = made.attempt.plan
    reading = {op for op, _ in plan.uses if op in plan.named}
    return [op for op in plan.named if op in plan.weights or (op in reading and op in set(plan.whole))]


def without(made: Quantized, names: Collection[str]) -> Graph:
    """The quantised graph with some operations left float, by their labels, from what calibration has found already.

    Raises:
        CompileError: there is no operation of that name, or none left to quantise.
    """
    attempt = made.attempt
    known = {label: op for op, label in attempt.plan.named.items()}
    for name in names:
        if name not in known:
            raise CompileError(f"no operation is called {name!r}", hint=nearest(name, known))
    left_out = {known[name]: "it was left out" for name in names}
    plan = make_plan(attempt.graph, made.recipe, {**left_out, **attempt.plan.reasons})
    if not plan.weights and not plan.whole:
        raise CompileError("nothing is left to quantise")
    old = attempt.settings
    settings = Settings(dict(old.forms), dict(old.ranges), {op: old.packed[op] for op in plan.weights})
    settings.biases = {op: bias for op, bias in old.biases.items() if op in plan.weights}
    for site in plan.readers():
        if site not in settings.forms:
            seen = seen_of(site.source, attempt.seen)
            choice = plain_choice(site, form_of(site, seen, made.recipe), seen)
            settings.forms[site], settings.ranges[site] = choice.form, choice.range
    graph = insert(attempt.graph, plan, settings)
    verify(graph)
    return graph
