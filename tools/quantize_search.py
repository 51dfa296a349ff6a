"""The fastest mix of 8-bit and float operations that keeps a user's metric within a budget.

Operations are first ranked by a dynamic programme over what leaving each of them float costs in time and gains in
error (as SPDY does with sparsity: Frantar and Alistarh, 2022), which gives the best mix for every time. The metric
then decides which of those mixes will do, by bisection, and which of its float operations can return to integers.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.passes.quantize import Quantized
from secateur.passes.quantize.insert import insert_switched
from secateur.passes.quantize.sensitivity import switchable
from secateur.tools.functions import blaming

STEPS = 500  # of time that the programme tells apart
Mix: TypeAlias = frozenset[str]  # labels of the operations that stay float
Run: TypeAlias = Callable[..., Any]
Score: TypeAlias = Callable[[Mix], float]


@dataclass(frozen=True)
class Candidate:
    """An operation that may stay float: the seconds that costs, and the error it causes when quantised."""

    name: str
    lost: float
    error: float


@dataclass
class Found:
    """What a search came to.

    Attributes:
        mix: the operations that stay float.
        baseline: the metric of the float model; `quantized`: with everything in integers; `score`: with the mix.
        evaluations: how often the metric was asked, and for each how many operations were float, and its answer.
    """

    mix: Mix
    baseline: float
    quantized: float
    score: float
    evaluations: list[tuple[int, float]] = field(default_factory=list)


class Board:
    """A quantised model as one program in which every operation can be switched to float and back."""

    def __init__(self, made: Quantized, run: Callable[[Graph], Run]) -> None:
        attempt, switches = made.attempt, switchable(made)
        self.names = [attempt.plan.named[op] for op in switches]
        self.execute = run(insert_switched(attempt.graph, attempt.plan, attempt.settings, switches))

    def program(self, mix: Mix) -> Run:
        """The model with the operations of the mix in float: what a metric calls."""
        return as_program(self.execute, [np.asarray(name not in mix) for name in self.names])


def as_program(execute: Run, more: Sequence[np.ndarray] = ()) -> Run:
    """An executor as the program that a metric calls; `more` are further inputs."""

    def program(*inputs: Any) -> Any:
        results = execute(*(np.asarray(item) for item in inputs), *more)
        return results[0] if len(results) == 1 else tuple(results)

    return program


def checked(metric: Callable[..., Any], name: str, program: Run) -> float:
    """What a metric says of a program.

    Raises:
        CompileError: it raises, or returns something that is no finite number.
    """
    with blaming(f"the metric {name}"):
        value = metric(program)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        what = "nothing" if value is None else f"{type(value).__name__}, not a number"
        raise CompileError(f"the metric {name} returned {what}", hint="it gets the program and returns its accuracy")
    if not math.isfinite(float(value)):
        raise CompileError(f"the metric {name} returned {float(value)}", hint="is there data for it to judge?")
    return float(value)


def frontier(candidates: Sequence[Candidate], steps: int = STEPS) -> list[Mix]:
    """The mixes of least error for their time, from the fastest to all float.

    Where float costs nothing an operation is float in all of them. Errors of operations are taken to add up.
    """
    free = frozenset(item.name for item in candidates if item.lost <= 0)
    dear = [item for item in candidates if item.lost > 0]
    if not dear:
        return [free]
    unit = sum(item.lost for item in dear) / steps
    costs = [max(1, math.ceil(item.lost / unit)) for item in dear]
    most = sum(costs)
    # least[t]: the least error with at most t units of time lost, over the candidates so far
    least = np.zeros(most + 1)
    chosen = np.zeros((len(dear), most + 1), bool)
    for row, (item, cost) in enumerate(zip(dear, costs, strict=True)):
        kept = least + item.error
        freed = np.full(most + 1, np.inf)
        freed[cost:] = least[:-cost]
        chosen[row] = freed < kept
        least = np.where(chosen[row], freed, kept)
    mixes: list[Mix] = []
    for budget in range(most + 1):
        if budget and least[budget] >= least[budget - 1]:
            continue
        left, mix = budget, set(free)
        for row in range(len(dear) - 1, -1, -1):
            if chosen[row, left]:
                mix.add(dear[row].name)
                left -= costs[row]
        mixes.append(frozenset(mix))
    everything = frozenset(item.name for item in candidates)
    return mixes if mixes[-1] == everything else [*mixes, everything]


def search(
    candidates: Sequence[Candidate],
    score: Score,
    delta: float,
    *,
    most: int = 40,
    progress: Callable[[str, float], None] | None = None,
) -> Found:
    """The mix that loses least time and stays within `delta` of the float model's score.

    Args:
        score: the metric of a mix; that of all candidates is the float model's.
        most: so often the metric is asked at most, about.
    """
    lost = {item.name: item.lost for item in candidates}
    asked: dict[Mix, float] = {}

    def ask(mix: Mix) -> float:
        if mix not in asked:
            asked[mix] = score(mix)
            if progress:
                progress("searching", min(len(asked) / most, 1.0))
        return asked[mix]

    mixes = frontier(candidates)
    baseline, quantized = ask(frozenset(lost)), ask(frozenset())
    goal = baseline - delta
    low, high = -1, len(mixes) - 1  # the mix at `high` will do, the one at `low` will not
    if ask(mixes[0]) >= goal:
        high = 0
    while high - low > 1 and high > 0:
        middle = (low + high) // 2
        low, high = (low, middle) if ask(mixes[middle]) >= goal else (middle, high)
    mix = _tightened(mixes[high], lost, lambda tried: ask(tried) >= goal, lambda: len(asked) >= most)
    log = [(len(tried), value) for tried, value in asked.items()]
    return Found(mix, baseline, quantized, ask(mix), log)


def _tightened(mix: Mix, lost: dict[str, float], will_do: Callable[[Mix], bool], enough: Callable[[], bool]) -> Mix:
    """A mix with operations returned to integers, the dearest first, as long as it will do without them."""
    for name in sorted(mix, key=lambda name: -lost[name]):
        if enough():
            break
        if lost[name] > 0 and will_do(mix - {name}):
            mix -= {name}
    return mix


def describe_mix(mix: Collection[str], candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """The float operations of a mix with what each costs, the dearest first."""
    rows = [{"name": item.name, "lost": item.lost, "error": item.error} for item in candidates if item.name in mix]
    return sorted(rows, key=lambda row: -float(str(row["lost"])))
