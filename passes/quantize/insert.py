"""Insertion: a graph with a quantize and a dequantize in front of each use that was planned."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op, Value, copy_ops
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType, TensorType
from secateur.passes.quantize.forms import Form, parameters, to_integers
from secateur.passes.quantize.plan import Plan, Site
from secateur.passes.quantize.weights import Packed


@dataclass
class Settings:
    """The numbers that go with a plan.

    Attributes:
        forms: the integers of each site.
        ranges: what they cover.
        packed: the weights of products.
        biases: corrected biases, f32 [O].
    """

    forms: dict[Site, Form] = field(default_factory=dict)
    ranges: dict[Site, tuple[float, float]] = field(default_factory=dict)
    packed: dict[Op, Packed] = field(default_factory=dict)
    biases: dict[Op, np.ndarray] = field(default_factory=dict)

    def parameters(self, site: Site) -> tuple[np.ndarray, np.ndarray]:
        return parameters(self.forms[site], *self.ranges[site])


def insert(graph: Graph, plan: Plan, settings: Settings) -> Graph:
    """The quantised graph; the given one stays as it is.

    before:  %y = conv(%x, %w, %b)
    after:   %0 = quantize(%x, %s, %z);  %1 = dequantize(%0, %s, %z)
             %2 = dequantize(%w8, %ws, %wz);  %y = conv(%1, %2, %b)
    """
    return _Insertion(graph, plan, settings).run()


def insert_switched(graph: Graph, plan: Plan, settings: Settings, switches: Collection[Op]) -> Graph:
    """As `insert`, but with a further input bool[] for each of `switches`, in order: whether that operation is
    quantised. One program, compiled once, then answers what each of them does to the results."""
    return _Insertion(graph, plan, settings, switches).run()


class _Insertion:
    def __init__(self, graph: Graph, plan: Plan, settings: Settings, switches: Collection[Op] = ()) -> None:
        self.graph, self.plan, self.settings = graph, plan, settings
        self.into = Graph(graph.name, [(value.hint, value.type) for value in graph.inputs])
        self.map: dict[Value, Value] = dict(zip(graph.inputs, self.into.inputs, strict=True))
        self.switches = {op: self.into.add_input(TensorType(DType.BOOL, ()), f"switch{i}")
                         for i, op in enumerate(switches)}  # fmt: skip
        self.numbers: dict[Site, tuple[Value, Value]] = {}  # scale and zero point, once for each site
        self.done: dict[tuple[Value, Site], Value] = {}

    def run(self) -> Graph:
        for op in self.graph.ops:
            if op.name == "constant":
                copy_ops([op], self.into, self.map)
                continue
            operands = [self._operand(op, position) for position in range(len(op.operands))]
            self._copy(op, operands)
        self.into.outputs = [self._operand(self.graph.terminator, i) for i in range(len(self.graph.outputs))]
        for op in self.into.find("constant"):
            if not op.result.uses:
                self.into.erase(op)
        return self.into

    def _copy(self, op: Op, operands: list[Value]) -> None:
        if op in self.settings.biases:
            name = _bias_name(op)
            operands = [*operands[:2], self._switched(op, operands[2] if len(operands) > 2 else None, name)]
        new = Op(op.name, operands, op.attrs, (value.type for value in op.results), op.span)
        self.into.insert(new)
        for old, made in zip(op.results, new.results, strict=True):
            made.hint = old.hint
            self.map[old] = made

    def _switched(self, op: Op, old: Value | None, name: str) -> Value:
        """The corrected bias, or with a switch that one or the old one."""
        b = Builder(self.into, span=op.span)
        new = b.constant(self.settings.biases[op], name=name)
        if op not in self.switches:
            return new
        before = b.constant(np.zeros(new.shape, np.float32)) if old is None else old
        return b.where(self.switches[op], new, before)

    def _operand(self, op: Op, position: int) -> Value:
        value = op.operands[position]
        plain = self.map[value]
        b = Builder(self.into, span=op.span)
        site = self.plan.uses.get((op, position))
        if self.switches and op not in self.switches:
            return plain  # a movement: what reads its result is quantised there, which is the same
        if position == 1 and op in self.settings.packed:
            made = self._weights(b, op, value)
        elif site is not None:
            made = self._through(b, value, site)
        else:
            return plain
        return b.where(self.switches[op], made, plain) if op in self.switches else made

    def _through(self, b: Builder, value: Value, site: Site) -> Value:
        """The value after quantisation and back, made once for all its uses."""
        if (value, site) in self.done:
            return self.done[value, site]
        if site not in self.numbers:
            scale, zero = self.settings.parameters(site)
            self.numbers[site] = b.constant(scale), b.constant(zero)
        scale_value, zero_value = self.numbers[site]
        array = constant_value(value)
        if array is None:
            integers = b.quantize(self.map[value], scale_value, zero_value)
        else:
            assert value.op is not None
            exact = to_integers(array, self.settings.forms[site], *self.settings.parameters(site))
            integers = b.constant(exact, name=value.op.attrs["name"])
        self.done[value, site] = b.dequantize(integers, scale_value, zero_value)
        return self.done[value, site]

    def _weights(self, b: Builder, op: Op, value: Value) -> Value:
        packed = self.settings.packed[op]
        assert value.op is not None
        integers = b.constant(packed.integers, name=value.op.attrs["name"])
        real = b.dequantize(integers, b.constant(packed.scale), b.constant(np.zeros((), np.int8)))
        return real if real.shape == packed.shape else b.reshape(real, shape=packed.shape)


def _bias_name(op: Op) -> str:
    made = op.operands[2].op if len(op.operands) > 2 else None
    if made is not None and made.name == "constant":
        return f"{made.attrs['name']}.corrected" if made.attrs["name"] else ""
    return ""
