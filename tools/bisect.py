"""Finds what made a model's results wrong: the pass, the rewrite in it, the operation; or the compiled code.

The reference is the interpreter on the model as it was imported. The interpreter runs again after
every pass; in a pass that spoils the results, bisection over the number of rewrites allowed (see
`secateur.ir.rewrite.gated`) finds the first that does. Where all passes are fine, the compiled code
is compared, kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from secateur.backends.cpu.compile import Options, compile_graph
from secateur.ir.graph import Graph, Op, Value, copy_ops
from secateur.ir.interpret import check_inputs, run
from secateur.ir.rewrite import Rule, gated
from secateur.passes.base import Pass
from secateur.passes.manager import run_pass, why_failed

Arrays = Sequence[np.ndarray]
COMPILED = "the compiled code"


@dataclass(frozen=True)
class Step:
    """How far the results were from the reference after a pass (or the compiler)."""

    name: str
    ops: int
    error: float


@dataclass(frozen=True)
class Finding:
    """The first thing that spoils the results.

    Attributes:
        culprit: a pass as text, or `COMPILED`.
        error: how far the results are from the reference; infinite where it crashed.
        reason: what it raised, if it crashed.
        rule: the first rule whose application does it, and `number` its number among the pass's applications.
        op: the operation whose result leaves the tolerance, and `replacement` what stands in its place now.
        op_error: how far that one result is off.
        graph, inputs: what the culprit was given, and tensors that show the failure.
    """

    culprit: str
    error: float
    graph: Graph
    inputs: Arrays
    reason: str = ""
    rule: str = ""
    number: int = 0
    op: str = ""
    replacement: str = ""
    op_error: float = 0.0


@dataclass
class Search:
    """What was looked at, in order, and what was found, if anything."""

    steps: list[Step] = field(default_factory=list)
    finding: Finding | None = None


def distance(got: Arrays, want: Arrays) -> float:
    """The largest relative error of any result: the norm of the difference over the norm.

    For integers and booleans it is the share of elements that differ. Infinite where shapes, element
    types, NaN or infinities differ.
    """
    pairs = zip(got, want, strict=True)
    return max((_distance(np.asarray(a), np.asarray(b)) for a, b in pairs), default=0.0)


def _distance(got: np.ndarray, want: np.ndarray) -> float:
    if got.shape != want.shape or got.dtype != want.dtype:
        return np.inf
    if want.dtype.kind in "iub":
        return float(np.mean(got != want)) if want.size else 0.0
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.all(np.isfinite(got[finite])):
        return np.inf
    size = max(float(np.linalg.norm(want[finite])), 1e-6 * finite.size**0.5)
    return float(np.linalg.norm(got[finite] - want[finite])) / size if finite.size else 0.0


def bisect(
    graph: Graph,
    inputs: Arrays,
    passes: Sequence[Pass],
    tolerance: float,
    *,
    compile: Options | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Search:
    """Run passes one by one until the results leave the tolerance, then look closer.

    Args:
        graph: left as it is.
        inputs: tensors that fit it.
        compile: how to compile what the passes leave; None leaves the compiler out.
        progress: called with what is being done, and its share done, 0 to 1.

    Raises:
        CompileError: the inputs do not fit.
    """
    check_inputs(graph, inputs)
    want = run(graph, inputs)
    search = Search()
    current, error = graph.clone(), 0.0
    for number, item in enumerate(passes):
        progress("running passes", number / len(passes))
        before = current.clone()
        trial = _Trial(before, inputs, item, want, tolerance)
        try:
            apply(item, current)
            if not same(before, current):
                error = distance(run(current, inputs), want)
        except Exception as failure:  # whatever a pass raises is what we are looking for
            search.steps.append(Step(str(item), len(current), np.inf))
            search.finding = trial.explain(np.inf, why_failed(item, failure))
            return search
        search.steps.append(Step(str(item), len(current), error))
        if not error <= tolerance:
            search.finding = trial.explain(error, "")
            return search
    if compile is not None:
        progress("compiling", 0.0)
        _check_compiled(search, current, inputs, want, tolerance, compile)
    return search


def apply(item: Pass, graph: Graph) -> None:
    """Run one pass in place; raises `CompileError` where it fails or leaves a broken graph."""
    run_pass(item, graph)


def same(one: Graph, other: Graph) -> bool:
    """Whether two graphs print alike and share their constants' arrays, so that they compute the same."""
    ours, theirs = ([op.attrs["value"] for op in graph.walk() if op.name == "constant"] for graph in (one, other))
    alike = len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs))
    return alike and str(one) == str(other)


def describe(op: Op) -> str:
    """An operation as a person would point at it: `sub(%x: f32[4], relu: f32[4]) : f32[4], from model.py:12`."""
    operands = ", ".join(f"{_name(value)}: {value.type}" for value in op.operands)
    results = ", ".join(str(value.type) for value in op.results)
    place = f", from {op.span}" if op.span else ""
    return f"{op.name}({operands}) : {results}{place}"


def _name(value: Value) -> str:
    hint = value.hint.partition("#")[0]
    return f"%{hint}" if hint else value.op.name if value.op else f"input {value.index}"


@dataclass(frozen=True)
class _Trial:
    """One pass that spoils the results, on the graph it was given."""

    before: Graph
    inputs: Arrays
    item: Pass
    want: Arrays
    tolerance: float

    def explain(self, error: float, reason: str) -> Finding:
        """The rewrite and the operation behind it, as far as they can be told."""
        facts: dict[str, Any] = self.rewrite()
        if not facts and not reason:
            facts = self.first_difference()
        return Finding(str(self.item), error, self.before, self.inputs, reason, **facts)

    def spoils(self, limit: int, notice: Callable[[Rule, Op, Sequence[Value]], None] | None = None) -> bool:
        """Whether the pass still spoils the results when it may apply only so many rules."""
        graph = self.before.clone()
        count = 0

        def allow(rule: Rule, op: Op, values: Sequence[Value]) -> bool:
            nonlocal count
            count += 1
            if count == limit and notice:
                notice(rule, op, values)
            return count <= limit

        try:
            with gated(allow):
                apply(self.item, graph)
            return not distance(run(graph, self.inputs), self.want) <= self.tolerance
        except Exception:  # a crash is a failure like any other
            return True

    def applications(self) -> int:
        """How many rules the pass applies in all (or until it fails)."""
        count = 0

        def allow(rule: Rule, op: Op, values: Sequence[Value]) -> bool:
            nonlocal count
            count += 1
            return True

        try:
            with gated(allow):
                self.item.run(self.before.clone())
        except Exception:
            return count
        return count

    def rewrite(self) -> dict[str, Any]:
        """The first rewrite with which the results are spoilt; nothing where they are without any."""
        good, bad = 0, self.applications()
        if not bad or self.spoils(0) or not self.spoils(bad):
            return {}
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (good, middle) if self.spoils(middle) else (middle, bad)
        facts: dict[str, Any] = {"number": bad}

        def notice(rule: Rule, op: Op, values: Sequence[Value]) -> None:
            assert op.graph is not None
            made = values[0].op
            replacement = describe(made) if made else _name(values[0])
            facts.update(rule=rule.name, op=describe(op), replacement=replacement)
            arrays = evaluate(op.graph, self.inputs)
            facts["op_error"] = distance([arrays[v] for v in values], [arrays[v] for v in op.results])

        self.spoils(bad, notice)
        return facts

    def first_difference(self) -> dict[str, Any]:
        """The first value that the pass has changed: values keep their names, so each gets one of its own."""
        graph = self.before.clone()
        for number, value in enumerate(value for op in graph.ops for value in op.results):
            value.hint = f"{value.hint}#{number}"
        named = {value.hint: (describe(op), op, array) for op, value, array in _values(graph, self.inputs)}
        apply(self.item, graph)
        for op, value, array in _values(graph, self.inputs):
            if value.hint not in named:
                continue
            text, _, old = named[value.hint]
            error = distance([array], [old])
            if array.shape == old.shape and not error <= self.tolerance:
                return {"op": text, "replacement": describe(op), "op_error": error}
        return {}


def evaluate(graph: Graph, inputs: Arrays) -> dict[Value, np.ndarray]:
    """The array of every value of a graph, its inputs included."""
    arrays = dict(zip(graph.inputs, inputs))
    run(graph, inputs, lambda op, results: arrays.update(zip(op.results, results)))
    return arrays


def _values(graph: Graph, inputs: Arrays) -> Iterator[tuple[Op, Value, np.ndarray]]:
    arrays = evaluate(graph, inputs)
    return ((op, value, arrays[value]) for op in graph.ops for value in op.results)


# Compiled code ------------------------------------------------------------------------------------


def run_compiled(graph: Graph, inputs: Arrays, compile: Options) -> list[np.ndarray]:
    """The results of a graph that has been through all passes, compiled."""
    results = compile_graph(graph, replace(compile, pipeline="none"))(*inputs)
    return list(results) if isinstance(results, tuple) else [results]


def _check_compiled(
    search: Search, graph: Graph, inputs: Arrays, want: Arrays, tolerance: float, compile: Options
) -> None:
    try:
        error, reason = distance(run_compiled(graph, inputs, compile), want), ""
    except Exception as failure:
        error, reason = np.inf, f"{type(failure).__name__}: {failure}"
    search.steps.append(Step(COMPILED, len(graph), error))
    if not error <= tolerance:
        facts = {} if reason else _first_wrong_kernel(graph, inputs, tolerance, compile)
        given: dict[str, Any] = {"graph": graph, "inputs": inputs, **facts}
        search.finding = Finding(COMPILED, error, reason=reason, **given)


def _first_wrong_kernel(graph: Graph, inputs: Arrays, tolerance: float, compile: Options) -> dict[str, Any]:
    """Compiles again with every intermediate value as a result, and compares them in order."""
    exposed = graph.clone()
    ops = [op for op in exposed.ops if op.name != "constant"]
    exposed.outputs = [value for op in ops for value in op.results]
    arrays = evaluate(exposed, inputs)
    results = iter(run_compiled(exposed, inputs, compile))
    for op in ops:
        error = distance([next(results) for _ in op.results], [arrays[value] for value in op.results])
        if not error <= tolerance:
            alone, values = cut_out(op)
            return {
                "op": describe(op),
                "op_error": error,
                "graph": alone,
                "inputs": [arrays[value] for value in values],
            }
    return {"replacement": "none: with every intermediate value kept, all kernels are right. Look at the memory plan"}


def cut_out(op: Op) -> tuple[Graph, list[Value]]:
    """A graph of one operation and its constants, and the values that its inputs stand for."""
    values = list(dict.fromkeys(value for value in op.operands if not (value.op and value.op.name == "constant")))
    graph = Graph(op.name, [(value.hint, value.type) for value in values])
    mapping = dict(zip(values, graph.inputs))
    copy_ops(dict.fromkeys(v.op for v in op.operands if v.op and v.op.name == "constant"), graph, mapping)
    copy_ops([op], graph, mapping)
    graph.outputs = [mapping[value] for value in op.results]
    return graph, values
