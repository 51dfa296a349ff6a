"""Calibration: what values a graph sees, and the ranges that serve the operations behind them best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.opdef import lookup
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType
from secateur.passes.quantize.batches import Batches, Progress
from secateur.passes.quantize.forms import P8, S8, S16, U8, Form, parameters, rounded
from secateur.passes.quantize.histogram import Histogram
from secateur.passes.quantize.insert import Settings
from secateur.passes.quantize.observers import Range, candidates
from secateur.passes.quantize.plan import Plan, Site, Use
from secateur.passes.quantize.recipe import Recipe
from secateur.passes.quantize.sample import by_channel, compute, interpolated, part, relative
from secateur.passes.quantize.stream import Job, Run, stream
from secateur.passes.quantize.table import TABLE

Seen = dict[Value, Histogram]
ROOM = 2.0  # 16-bit tensors that no table reads cover twice of what was seen: they have precision to spare
TRIALS = 8  # batches on which ranges are tried


@dataclass(frozen=True)
class Context:
    """What all stages share: the batches, the executor, the recipe, and who is told of progress."""

    batches: Batches
    run: Run
    recipe: Recipe
    progress: Progress | None = None

    def stream(self, graph: Graph, jobs: list[Job], stage: str, most: int = 0, judging: bool = False) -> None:
        progress = self.progress
        stream(graph, jobs, self.batches, self.run, most=most, progress=progress, stage=stage, judging=judging)


# What is seen -------------------------------------------------------------------------------------


def channel_axis(value: Value) -> int:
    """The dimension of a value that holds features: 1 around convolutions, else the last."""
    around = [user for user, position in value.uses if position == 0] + ([value.op] if value.op else [])
    return 1 if any(op.name == "conv" for op in around) else max(value.type.rank - 1, 0)


def observe(graph: Graph, context: Context, stage: str = "observing") -> Seen:
    """A histogram of every f32 value that an operation of the table reads or makes, over all batches."""
    seen: Seen = {}
    jobs = []
    for op in graph.ops:
        for value in (*op.operands, *op.results) if op.name in TABLE else ():
            if value in seen or value.type.dtype is not DType.F32 or constant_value(value) is not None:
                continue
            axis = channel_axis(value)
            seen[value] = Histogram(value.shape[axis] if value.type.rank else 1)
            jobs.append(Job((value,), _adding(seen[value], axis)))
    context.stream(graph, jobs, stage)
    return seen


def _adding(histogram: Histogram, axis: int) -> Callable[[list[np.ndarray]], None]:
    return lambda arrays: histogram.add(arrays[0], axis)


def seen_of(value: Value, seen: Seen) -> Histogram:
    """The histogram of a value, that of its array where it is a constant."""
    if value not in seen:
        array = constant_value(value)
        if array is None:
            raise CompileError(f"nothing is known of {value!r}", span=value.op.span if value.op else None)
        seen[value] = Histogram()
        seen[value].add(array)
    return seen[value]


# Ranges -------------------------------------------------------------------------------------------


@dataclass
class Choice:
    """The range of a site, which observer it is of, and the relative error of the readers with each candidate."""

    site: Site
    form: Form
    offers: dict[str, Range]
    errors: dict[str, float] = field(default_factory=dict)
    observer: str = ""

    @property
    def range(self) -> Range:
        return self.offers[self.observer]


def form_of(site: Site, seen: Histogram, recipe: Recipe) -> Form:
    """The number format that a word of the table stands for."""
    if site.word == "s16":
        return S16
    if site.word == "m8":
        return P8 if seen.range()[0] >= 0 else S8
    if site.word == "a8":
        return S8 if recipe.symmetric else U8
    return S8


def plain_choice(site: Site, form: Form, known: Histogram) -> Choice:
    """The range that was seen, with room above it for 16-bit integers."""
    low, high = known.range()
    room = ROOM if form is S16 else 1.0
    return Choice(site, form, {"minmax": (low * room, high * room)}, observer="minmax")


def choose_ranges(
    graph: Graph, plan: Plan, seen: Seen, context: Context, stage: str = "choosing ranges"
) -> list[Choice]:
    """For each site the range with the least error of the operations that read it.

    An operation is computed with the values as they are and with those of each candidate, everything else
    as it is. The error is relative to its result, and added up over the readers.
    """
    recipe, choices, jobs = context.recipe, [], []
    rng = np.random.default_rng(recipe.seed)
    for site, readers in plan.readers().items():
        known = seen_of(site.source, seen)
        form = form_of(site, known, recipe)
        tabled = form is S16 and any(TABLE[op.name].kind == "function" for op, _ in readers)
        if form is S16 and not tabled:
            choices.append(plain_choice(site, form, known))
            continue
        choice = Choice(site, form, candidates(known, form, recipe.observers))
        choice.observer = next(iter(choice.offers))
        choices.append(choice)
        if len(choice.offers) > 1:
            jobs += [_trial(choice, use, rng) for use in readers]
    context.stream(graph, [job for job, _ in jobs], stage, min(TRIALS, recipe.samples))
    for choice in choices:
        _decide(choice, [sums for job, sums in jobs if sums.choice is choice])
    return choices


@dataclass
class _Sums:
    choice: Choice
    noise: dict[str, np.ndarray]
    signal: np.ndarray


def _trial(choice: Choice, use: Use, rng: np.random.Generator) -> tuple[Job, _Sums]:
    """A job that adds up the error of one reader for each candidate."""
    op, position = use
    nothing = np.zeros(1)
    sums = _Sums(choice, dict.fromkeys(choice.offers, nothing), nothing)

    def take(arrays: list[np.ndarray]) -> None:
        operands = part(op, arrays, rng)
        want = compute(op, operands)
        sums.signal = sums.signal + by_channel(op, want)
        for name, (low, high) in choice.offers.items():
            scale, zero = parameters(choice.form, low, high)
            tried = rounded(operands[position], choice.form, scale, zero)
            if choice.form is S16 and lookup(op.name).elementwise and TABLE[op.name].kind == "function":
                got = interpolated(op, tried, float(scale))
            else:
                got = compute(op, [*operands[:position], tried, *operands[position + 1 :]])
            sums.noise[name] = sums.noise[name] + by_channel(op, got - want)

    return Job(op.operands, take), sums


def _decide(choice: Choice, tried: list[_Sums]) -> None:
    if not tried:
        return
    for name in choice.offers:
        choice.errors[name] = sum(relative(sums.noise[name], sums.signal) for sums in tried)
    choice.observer = min(choice.errors, key=lambda name: choice.errors[name])


def settings_of(choices: list[Choice]) -> Settings:
    """The forms and ranges of sites; weights and biases are still to come."""
    return Settings({choice.site: choice.form for choice in choices}, {choice.site: choice.range for choice in choices})


def unusable(plan: Plan, seen: Seen) -> dict[Op, str]:
    """Operations that read or make values which are not finite on the batches: integers cannot hold them."""
    found: dict[Op, str] = {}
    for op in plan.whole:
        for value in (*op.operands, *op.results):
            if value in seen and seen[value].unusual:
                found[op] = "values that are NaN or infinite pass through it"
    return found
