"""What each operation of a quantised model costs on this machine in integers, and what it would cost in floats."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from secateur.backends.cpu.compile import Options, compile_to
from secateur.backends.cpu.profile import Profile, profile
from secateur.ir.diagnostics import Span
from secateur.ir.graph import Graph
from secateur.passes.quantize import Quantized
from secateur.passes.quantize.insert import insert
from secateur.tools.console import Tracker

CONVERTED = 5  # bytes that are read and written to bring one element from 8 bits to 32 or back


@dataclass(frozen=True)
class Cost:
    """Seconds of one operation, with whatever is computed in one kernel with it.

    Attributes:
        quantized: as it is in the quantised program.
        floating: in the float program.
        conversions: estimated for bringing operands and results between integers and floats, if it alone were float.
    """

    quantized: float = 0.0
    floating: float = 0.0
    conversions: float = 0.0

    @property
    def lost(self) -> float:
        """What leaving it float costs; negative where that is faster."""
        return self.floating + self.conversions - self.quantized


@dataclass(frozen=True)
class Costs:
    """Of each operation by its label, and of the whole programs."""

    ops: dict[str, Cost]
    quantized: float
    floating: float


def measure_costs(
    made: Quantized, inputs: Sequence[np.ndarray], options: Options, seconds: float, progress: Tracker
) -> Costs:
    """Compile and profile the quantised and the float program, each for about `seconds`.

    Raises:
        CompileError: one of them does not compile.
    """
    attempt = made.attempt
    with _labelled(made):
        graphs = [insert(attempt.graph, attempt.plan, attempt.settings), attempt.graph.clone()]
    profiles = [_profiled(graph, inputs, options, seconds, progress) for graph in graphs]
    quantized, floating = map(_by_label, profiles)
    bandwidth = profiles[0].limits.bandwidth
    ops = {}
    for op, label in attempt.plan.named.items():
        moved = sum(value.type.numel for value in (op.operands[0], *op.results)) * CONVERTED if op.operands else 0
        ops[label] = Cost(quantized[label], floating[label], moved / bandwidth)
    return Costs(ops, profiles[0].plain_seconds, profiles[1].plain_seconds)


@contextmanager
def _labelled(made: Quantized) -> Iterator[None]:
    """While it lasts every operation says that it comes from its label, which is what kernels are found by."""
    named = made.attempt.plan.named
    spans = {op: op.span for op in named}
    for op, label in named.items():
        op.span = Span(module=label)
    try:
        yield
    finally:
        for op, span in spans.items():
            op.span = span


def _profiled(
    graph: Graph, inputs: Sequence[np.ndarray], options: Options, seconds: float, progress: Tracker
) -> Profile:
    with tempfile.TemporaryDirectory(prefix="secateur-times-") as folder:
        compile_to(Path(folder), graph, replace(options, pipeline="none"), progress)
        return profile(Path(folder), inputs, options.threads, seconds, progress)


def _by_label(measured: Profile) -> defaultdict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for row in measured.rows:
        total[row.source] += row.seconds
    return total
