"""Shrinks a graph that shows a failure to a few operations that still show it.

Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002)
on graphs: a value may become an input that holds what the interpreter computed for it, so that any
part of a program can be cut out and still be run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op, Value, copy_ops
from secateur.tools.bisect import evaluate
from secateur.tools.resize import shrunk

Fails = Callable[[Graph, Sequence[np.ndarray]], bool]


@dataclass(frozen=True)
class Case:
    """A graph and tensors for its inputs."""

    graph: Graph
    inputs: tuple[np.ndarray, ...]

    @property
    def weight(self) -> tuple[int, int, int]:
        """What is to become smaller: operations, elements of inputs and constants, inputs."""
        ops = list(self.graph.walk())
        constants = [op.attrs["value"] for op in ops if op.name == "constant"]
        return len(ops), sum(array.size for array in (*self.inputs, *constants)), len(self.inputs)


@dataclass
class Reducer:
    """The smallest failing case so far, and how it gets smaller.

    Attributes:
        fails: whether a case shows the failure; must not raise.
        seconds: when to stop trying.
        progress: called with the number of operations left.
    """

    case: Case
    fails: Fails
    seconds: float = 60.0
    progress: Callable[[int], None] = lambda left: None
    trials: int = 0
    _end: float = field(default=0.0, init=False)

    def run(self) -> Case:
        """Shrink until nothing helps, or the time is over."""
        self._end = time.monotonic() + self.seconds
        size = None
        while size != self.case.weight and not self.over:
            size = self.case.weight
            for step in (self.outputs, self.back, self.outputs, self.front, self.middle, self.unpack, self.shapes):
                step()
                self.progress(len(self.case.graph))
        self.values()
        return self.case

    @property
    def over(self) -> bool:
        return time.monotonic() > self._end

    def attempt(self, case: Case | None) -> bool:
        """Keep a case if it is smaller and still fails."""
        if case is None or self.over or case.weight >= self.case.weight:
            return False
        return self.keep(case)

    def keep(self, case: Case) -> bool:
        self.trials += 1
        if not self.fails(case.graph, case.inputs):
            return False
        self.case = case
        return True

    # Steps, in the order they are tried ---------------------------------------------------------

    def outputs(self) -> None:
        """One output is enough, if it can be found; and it needs only what it depends on."""
        for value in self.case.graph.outputs:
            if self.attempt(cut(self.case, [value], {})):
                return

    def back(self) -> None:
        """Cut the program behind the first operation that matters: every value needed later becomes an output."""
        ops = list(self.case.graph.ops)

        def front(count: int) -> Case | None:
            inside = {value for op in ops[:count] if op.name != "constant" for value in op.results}
            outputs = [*self.case.graph.outputs, *(v for op in ops[count:] for v in op.operands)]
            kept = [value for value in dict.fromkeys(outputs) if value in inside]
            return cut(self.case, kept, {}) if kept else None

        self.search(range(1, len(ops)), front)

    def front(self) -> None:
        """Cut the program in front of the last operation that matters: every value it needs becomes an input."""
        ops = list(self.case.graph.ops)
        known = self.inputs_for(op for op in ops if op.name != "constant")

        def back(count: int) -> Case | None:
            kept = {value: known[value] for op in ops[:count] for value in op.results if value in known}
            return cut(self.case, self.case.graph.outputs, kept)

        self.search(range(len(ops), 0, -1), back)

    def search(self, counts: range, make: Callable[[int], Case | None]) -> None:
        """The first case that fails, where those behind it do too; found by halving."""
        good, bad = -1, len(counts)
        best = None
        while bad - good > 1 and not self.over:
            middle = (good + bad) // 2
            case = make(counts[middle])
            self.trials += 1
            if case and self.fails(case.graph, case.inputs):
                bad, best = middle, case
            else:
                good = middle
        if best and best.weight < self.case.weight:
            self.case = best

    def middle(self) -> None:
        """Whole stretches, then single operations, become inputs, one of their operands, or a constant."""
        length = max(1, len(self.case.graph) // 2)
        while length:
            start = 0
            while start < len(self.case.graph) and not self.over:
                chunk = list(self.case.graph.ops)[start : start + length]
                if not any(self.attempt(case) for case in self.without(chunk)):
                    start += length
            length //= 2

    def without(self, ops: Sequence[Op]) -> Iterator[Case | None]:
        outputs = self.case.graph.outputs
        known = self.inputs_for(ops)
        yield cut(self.case, outputs, known)
        if len(ops) > 1:
            return
        (op,) = ops
        for operand in op.operands if len(op.results) == 1 else ():
            if operand.type == op.result.type:
                yield cut(self.case, outputs, {op.result: operand})
        if op.name != "constant":
            yield cut(self.case, outputs, known, constant=True)

    def inputs_for(self, ops: Iterable[Op]) -> dict[Value, np.ndarray | Value]:
        """The tensors that the interpreter computes for the results of operations."""
        arrays = evaluate(self.case.graph, self.case.inputs)
        return {value: arrays[value] for op in ops for value in op.results}

    def unpack(self) -> None:
        """Fusions become the operations they hold, where that does not hide the failure."""
        for op in self.case.graph.find("fusion"):
            case = unpacked(self.case, op)
            if len(case.graph) <= len(list(self.case.graph.walk())):
                self.keep(case)
                return

    def shapes(self) -> None:
        """Dimensions become smaller, everywhere where they have one size, with their multiples or alone."""
        progress = True
        while progress and not self.over:
            progress = any(self.attempt(Case(*made)) for made in shrunk(self.case.graph, self.case.inputs))

    def values(self) -> None:
        """Numbers become ones that are easy to read."""
        for index, array in enumerate(self.case.inputs):
            if array.dtype.kind in "iub":
                continue
            wide = array.astype(np.float64)
            for simple in (np.round(wide), np.round(wide, 1), np.round(wide, 3)):
                inputs = list(self.case.inputs)
                inputs[index] = simple.astype(array.dtype)
                if not self.over and self.keep(Case(self.case.graph, tuple(inputs))):
                    break


def cut(
    case: Case, outputs: Sequence[Value], known: Mapping[Value, np.ndarray | Value], *, constant: bool = False
) -> Case | None:
    """The part of a program that some outputs need.

    Args:
        known: values that are not computed: an array makes an input of them (or a constant), a value takes
            their place. It must stand in front of them.

    Returns None where nothing is left to compute.
    """
    needed, ops = _needed(outputs, known)
    graph, arrays = Graph(case.graph.name), []
    mapping: dict[Value, Value] = {}
    for value, array in zip(case.graph.inputs, case.inputs):
        if value in needed:
            mapping[value] = graph.add_input(value.type, value.hint)
            arrays.append(array)
    for op in case.graph.ops:
        if op in ops:
            copy_ops([op], graph, mapping)
        for value in op.results:
            if value not in known or value not in needed:
                continue
            replacement = known[value]
            if isinstance(replacement, Value):
                mapping[value] = mapping[replacement]
            elif constant:
                mapping[value] = Builder(graph).constant(np.asarray(replacement))
            else:
                mapping[value] = graph.add_input(value.type, value.hint)
                arrays.append(replacement)
    graph.outputs = [mapping[value] for value in outputs]
    return Case(graph, tuple(arrays)) if any(op.name != "constant" for op in graph.ops) else None


def _needed(outputs: Sequence[Value], known: Mapping[Value, np.ndarray | Value]) -> tuple[set[Value], set[Op]]:
    """The values that outputs depend on, and the operations that have to run for them."""
    needed: set[Value] = set()
    ops: set[Op] = set()
    stack = list(outputs)
    while stack:
        value = stack.pop()
        if value in needed:
            continue
        needed.add(value)
        replacement = known.get(value)
        if isinstance(replacement, Value):
            stack.append(replacement)
        elif replacement is None and value.op is not None and value.op not in ops:
            ops.add(value.op)
            stack += value.op.operands
    return needed, ops


def unpacked(case: Case, op: Op) -> Case:
    """A case with one fusion replaced by the operations of its body."""
    graph = Graph(case.graph.name)
    mapping = {value: graph.add_input(value.type, value.hint) for value in case.graph.inputs}
    for each in case.graph.ops:
        if each is not op:
            copy_ops([each], graph, mapping)
            continue
        body: Graph = op.attrs["body"]
        inner = dict(zip(body.inputs, (mapping[value] for value in op.operands)))
        copy_ops(body.ops, graph, inner)
        mapping.update(zip(op.results, (inner[value] for value in body.outputs)))
    graph.outputs = [mapping[value] for value in case.graph.outputs]
    return Case(graph, case.inputs)
