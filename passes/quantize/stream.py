"""Runs a graph over calibration batches and hands the values that jobs ask for to them, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np

from secateur.ir.graph import Graph, Op, Value
from secateur.ir.interpret import run as interpret_run
from secateur.ir.ops.constant import constant_value
from secateur.passes.dce import DeadCode
from secateur.passes.quantize.batches import EVERY, Batch, Batches, Progress

Execute: TypeAlias = Callable[..., Sequence[np.ndarray]]
Run: TypeAlias = Callable[[Graph], Execute]

LIMIT = 512 << 20  # bytes of watched values at a time; more of them mean more runs over the batches


@dataclass(frozen=True)
class Job:
    """Takes the arrays of `values` for each batch."""

    values: tuple[Value, ...]
    take: Callable[[list[np.ndarray]], None]


def interpreted(graph: Graph) -> Execute:
    """The default executor: op by op, by each one's reference."""

    def execute(*arrays: np.ndarray) -> Sequence[np.ndarray]:
        return interpret_run(graph, arrays)

    return execute


def stream(
    graph: Graph,
    jobs: Sequence[Job],
    batches: Batches,
    run: Run,
    *,
    most: int = 0,
    progress: Progress | None = None,
    stage: str = "",
    judging: bool = False,
    limit: int = LIMIT,
) -> None:
    """Feed jobs with what the graph computes on the batches (the first `most` of them, 0 for all).

    The calibrating batches, or the judging ones, are gone over once, or again for every `limit` bytes of values.
    """
    parts = _parts(jobs, limit)
    for number, part in enumerate(parts):
        values = list(dict.fromkeys(value for job in part for value in job.values))
        execute = watched(graph, values, run)
        some = batches.judging() if judging else batches.calibrating()
        for done, batch in enumerate(islice(some, most or None), 1):
            arrays = execute(batch)
            for job in part:
                job.take([arrays[value] for value in job.values])
            total = min(most, batches.count) or most or batches.count * (EVERY - 1) // EVERY
            if progress:
                share = done / total if total else 1 - 0.9**done  # how many there are is not known before the end
                progress(stage, (number + min(share, 1.0)) / len(parts))


def _parts(jobs: Sequence[Job], limit: int) -> list[list[Job]]:
    """Jobs in runs whose values are of at most `limit` bytes together."""
    parts: list[list[Job]] = []
    held: set[Value] = set()
    for job in jobs:
        if not parts or sum(value.type.bytes for value in held | set(job.values)) > limit:
            parts.append([])
            held = set()
        parts[-1].append(job)
        held |= set(job.values)
    return parts


def watched(graph: Graph, values: Sequence[Value], run: Run) -> Callable[[Batch], dict[Value, np.ndarray]]:
    """A function from a batch to the arrays of the given values of the graph."""
    known = {value: array for value in values if (array := constant_value(value)) is not None}
    inputs = {value: graph.inputs.index(value) for value in values if value.op is None}
    made = [value for value in values if value not in known and value not in inputs]
    copy, mapping = copied(graph)
    copy.outputs = [mapping[value] for value in made]
    DeadCode().run(copy)
    execute = run(copy) if made else None

    def take(batch: Batch) -> dict[Value, np.ndarray]:
        arrays = dict(known)
        arrays.update({value: batch[position] for value, position in inputs.items()})
        if execute is not None:
            arrays.update(zip(made, map(np.asarray, execute(*batch)), strict=True))
        return arrays

    return take


def copied(graph: Graph) -> tuple[Graph, dict[Value, Value]]:
    """A clone, and which of its values stands for which of the graph's."""
    copy = graph.clone()
    mapping = dict(zip(graph.inputs, copy.inputs, strict=True))
    pairs: Iterable[tuple[Op, Op]] = zip(graph.ops, copy.ops, strict=True)
    for old, new in pairs:
        mapping.update(zip(old.results, new.results, strict=True))
    return copy, mapping


def comparable(graph: Graph) -> Graph:
    """The graph with float results: for one of another type, as that of argmax, the floats it is made of."""
    if all(value.type.dtype.is_float for value in graph.outputs):
        return graph
    copy = graph.clone()
    copy.outputs = [_floats_behind(value) for value in copy.outputs]
    DeadCode().run(copy)
    return copy


def _floats_behind(value: Value) -> Value:
    behind = value
    while not behind.type.dtype.is_float:
        if behind.op is None or not behind.op.operands or behind.op.name == "quantize":
            return value
        behind = behind.op.operands[0]
    return behind


def results(graph: Graph, batches: Batches, run: Run, most: int) -> list[list[np.ndarray]]:
    """What a graph gives for the first `most` of the judging batches, as `comparable` has it."""
    execute = run(comparable(graph))
    return [[np.asarray(array) for array in execute(*batch)] for batch in islice(batches.judging(), most)]


def relative_noise(got: Sequence[Sequence[np.ndarray]], want: Sequence[Sequence[np.ndarray]]) -> float:
    """Mean over the float outputs of the squared error over the square of what is wanted, over all batches.

    Where an output is not finite in both alike the error is infinite.
    """
    shares = []
    for number in range(len(want[0])):
        noise = signal = 0.0
        for given, right in zip(got, want, strict=True):
            a, b = np.asarray(given[number]), np.asarray(right[number])
            if b.dtype.kind != "f":
                continue
            a, b = a.astype(np.float64), b.astype(np.float64)
            finite = np.isfinite(b)
            if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
                return np.inf
            noise += float(np.square(a[finite] - b[finite]).sum())
            signal += float(np.square(b[finite]).sum())
        if noise or signal:
            shares.append(noise / signal if signal else np.inf)
    return float(np.mean(shares)) if shares else 0.0
