"""Integers only where they pay: products whose 8-bit form would cost more, with its conversions, stay float.

Every product that could work in integers is costed in both forms by the kernels' own estimates. Between products
that decide differently values are converted, which costs too; the cheapest division of all products into the two
kinds is a minimum cut of the graph that these costs make (Stone 1977, assigning modules to two processors).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from secateur.backends.cpu.adapt import needs_no_kernel
from secateur.backends.cpu.kernel import Job
from secateur.backends.cpu.legalize import legalize
from secateur.backends.cpu.lower import choose, is_free
from secateur.backends.cpu.target import Target
from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.rewrite import erase_dead
from secateur.ir.types import DType, TensorType
from secateur.passes.integer.leaves import known
from secateur.passes.manager import PassManager, resolve

PRODUCTS = ("conv", "linear", "matmul", "attention")
MOVEMENTS = ("reshape", "transpose", "slice", "flip", "broadcast_to")
MARGIN = 1.2  # estimates are rough: floats must look this much cheaper
INTEGER, FLOAT = "integer", "float"  # the two ends of the cut
UNIT = np.float32(1 / 64)  # any scale: costs do not depend on it


@dataclass(frozen=True)
class Kept:
    """A product that stays float, and the estimates that say so."""

    op: Op
    integer_cycles: float
    float_cycles: float

    @property
    def reason(self) -> str:
        return f"about {self.integer_cycles:.0f} cycles in integers, {self.float_cycles:.0f} in floats"


def keep_float(graph: Graph, target: Target) -> list[Kept]:
    """Turn products back to floats, in place, where that is estimated to be faster on a target.

    The graph has quantize and dequantize as inserted or imported. A value that only float products make
    and read loses its quantisation; where integers are on one side, the conversion stays.
    """
    costs = _Costs(target)
    forms = {op: costs.of(op) for op in graph.ops if op.name in PRODUCTS and _is_quantized(op)}
    chosen = _cut(graph, forms, costs)
    kept = [Kept(op, *forms[op]) for op in forms if op in chosen]
    for item in kept:
        _to_float_weights(graph, item.op)
    if kept:
        _without_conversions(graph, chosen, forms)
    return kept


def _is_quantized(op: Op) -> bool:
    """Whether all operands that are multiplied are dequantised, so that integers are possible at all."""
    count = 3 if op.name == "attention" else 2
    return all(_stored(value) is not None for value in op.operands[:count])


# Costs --------------------------------------------------------------------------------------------


class _Costs:
    """Estimated cycles of small programs, once for each kind."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.products: dict[Any, tuple[float, float]] = {}
        self.converted: dict[tuple[int, ...], tuple[float, float]] = {}

    def of(self, op: Op) -> tuple[float, float]:
        """(in integers, in floats) for one product, its result quantised by what computes it."""
        stored = tuple((value.type, _stored(value), known(value) is None) for value in op.operands)
        key = (op.name, stored, str(sorted(op.attrs.items())))
        if key not in self.products:
            self.products[key] = self.cycles(_alone(op, quantized=True)), self.cycles(_alone(op, quantized=False))
        return self.products[key]

    def conversions(self, shape: tuple[int, ...]) -> tuple[float, float]:
        """(to floats, to integers) of a tensor."""
        if shape not in self.converted:
            b = Builder.graph("dequantize", x=TensorType(DType.U8, shape))
            out = self.cycles(b.returns(_real(b, b["x"])))
            b = Builder.graph("quantize", x=TensorType(DType.F32, shape))
            self.converted[shape] = out, self.cycles(b.returns(_small(b, b["x"])))
        return self.converted[shape]

    def cycles(self, graph: Graph) -> float:
        PassManager(resolve("cpu")).run(graph)
        legalize(graph, self.target)
        total = 0.0
        for op in graph.ops:
            if is_free(op) or needs_no_kernel(op):
                continue
            job = Job(op, self.target)
            family, _ = choose(job)
            total += family.cost(job) if family else 0.0
        return total


def _stored(value: Value) -> TensorType | None:
    """The type of the integers behind a dequantised value that is at most moved; None for any other."""
    source = value.op
    while source is not None and source.name in MOVEMENTS:
        source = source.operands[0].op
    if source is None or source.name != "dequantize":
        return None
    return TensorType(source.operands[0].type.dtype, value.shape)


def _real(b: Builder, x: Value) -> Value:
    return b.dequantize(x, b.constant(np.asarray(UNIT)), b.constant(np.zeros((), x.type.dtype.numpy)))


def _small(b: Builder, x: Value) -> Value:
    return b.quantize(x, b.constant(np.asarray(UNIT)), b.constant(np.zeros((), np.uint8)))


def _alone(op: Op, *, quantized: bool) -> Graph:
    """A program of one product, channels last as it will be."""
    b = Builder.graph(op.name)
    attrs = dict(op.attrs)
    turned = op.name == "conv" and not attrs["channels_last"] and op.operands[0].type.rank == 4
    if turned:
        attrs["channels_last"] = True
    values = []
    for position, value in enumerate(op.operands):
        constant, stored = known(value), _stored(value)
        if constant is not None:
            values.append(_weights(b, value) if quantized and stored else b.constant(constant))
            continue
        shape = tuple(value.shape[axis] for axis in (0, 2, 3, 1)) if turned and position == 0 else value.shape
        dtype = stored.dtype if quantized and stored else value.type.dtype
        x = b.into.add_input(TensorType(dtype, shape))
        values.append(_real(b, x) if quantized and stored else x)
    result = b.op(op.name, values, attrs).result
    return b.returns(_small(b, result) if quantized else result)


def _weights(b: Builder, value: Value) -> Value:
    """Quantised constants as they are; through movements any of their shape will do, the costs are the same."""
    source = value.op
    while source is not None and source.name != "dequantize":
        source = source.operands[0].op
    assert source is not None
    if source.result is not value:
        return _real(b, b.constant(np.ones(value.shape, np.int8)))
    return b.dequantize(*(b.constant(array) for array in map(known, source.operands) if array is not None))


# The division -------------------------------------------------------------------------------------


def _cut(graph: Graph, forms: dict[Op, tuple[float, float]], costs: _Costs) -> set[Op]:
    """The products that are cheaper as floats, conversions counted."""
    network = nx.DiGraph()
    network.add_nodes_from([INTEGER, FLOAT])
    for op, (integer, real) in forms.items():
        _add(network, INTEGER, op, real * MARGIN)  # is cut where the product is float
        _add(network, op, FLOAT, integer)
        for value in op.operands[:3]:
            for source in _sources(value, forms):
                to_float, to_integer = costs.conversions(value.shape) if known(value) is None else (0.0, 0.0)
                _add(network, source or FLOAT, op, to_integer if source is None else to_float)
                _add(network, op, source or FLOAT, to_integer)
    _, (_, floats) = nx.minimum_cut(network, INTEGER, FLOAT)
    return {op for op in floats if isinstance(op, Op)}


def _add(network: nx.DiGraph, a: Any, c: Any, cost: float) -> None:
    before = network.edges[a, c]["capacity"] if network.has_edge(a, c) else 0.0
    network.add_edge(a, c, capacity=before + cost)


def _sources(value: Value, forms: Iterable[Op]) -> list[Op | None]:
    """The products that a value is made from through other operations; None for an input of the graph."""
    found: dict[Op | None, None] = {}
    seen: set[Value] = set()
    stack = [value]
    while stack:
        at = stack.pop()
        if at in seen or (at.op is not None and at.op.name == "constant"):
            continue
        seen.add(at)
        if at.op is None or at.op in forms:
            found[at.op] = None
        else:
            stack += at.op.operands
    return list(found)


# What is changed ----------------------------------------------------------------------------------


def _to_float_weights(graph: Graph, op: Op) -> None:
    b = Builder(graph, op, op.span)
    for position, value in enumerate(op.operands):
        array = known(value)
        if array is not None and value.op is not None and value.op.name == "dequantize":
            stored = value.op.operands[0].op
            name = str(stored.attrs["name"]) if stored is not None and stored.name == "constant" else ""
            op.set_operand(position, b.constant(array, name=name))
            erase_dead(graph, [value.op])


def _without_conversions(graph: Graph, chosen: set[Op], forms: dict[Op, tuple[float, float]]) -> None:
    """Take quantize and dequantize away between products that are all float."""
    readers: dict[Op, set[Op | None]] = {}
    for op in forms:
        for value in op.operands[:3]:
            for pair in _pairs(value, forms):
                readers.setdefault(pair, set()).add(op)
    for op in list(graph.find("quantize")):
        around = {source for source in _sources(op.operands[0], forms) if source} | readers.get(op, set())
        if not around <= chosen:
            continue
        for user in op.result.users:
            if user.name == "dequantize" and user.operands[1:] == op.operands[1:]:
                graph.replace(user, [op.operands[0]])
        erase_dead(graph, [op])


def _pairs(value: Value, forms: Iterable[Op]) -> list[Op]:
    """The quantize operations that a product reads through, up to the products in front of them."""
    found, seen, stack = [], set[Value](), [value]
    while stack:
        at = stack.pop()
        if at in seen or at.op is None or at.op in forms:
            continue
        seen.add(at)
        if at.op.name == "quantize":
            found.append(at.op)
        stack += at.op.operands
    return found
