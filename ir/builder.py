"""Builds operations with inference, defaults and checks, at a chosen place in a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.opdef import lookup
from secateur.ir.types import DType, TensorType


class Builder:
    """Every op of the registry is a method: `b.conv(x, w, stride=(2, 2))` returns its result.

    An op with several results returns a tuple of values. Operands may be NumPy arrays, which
    become constants. Raises `CompileError` where operands or attributes do not fit.

        b = Builder.graph("mlp", x="f32[1,64]")
        b.returns(b.relu(b.linear(b["x"], weight, bias)))

    Args:
        graph: where operations go.
        before: in front of which operation; by default at the end.
        span: the source position new operations get.
    """

    def __init__(self, graph: Graph, before: Op | None = None, span: Span | None = None) -> None:
        self.into = graph
        self.before = before
        self.span = span

    @staticmethod
    def graph(name: str = "main", /, **inputs: str | TensorType) -> Builder:
        """A builder over a new graph with the given inputs, e.g. `x="f32[1,64]"`."""
        types = [(key, TensorType.parse(t) if isinstance(t, str) else t) for key, t in inputs.items()]
        return Builder(Graph(name, types))

    def __getitem__(self, name: str) -> Value:
        """The graph input called `name`."""
        for value in self.into.inputs:
            if value.hint == name:
                return value
        raise KeyError(name)

    def returns(self, *values: Value) -> Graph:
        """Set the graph's outputs and return the finished graph."""
        self.into.outputs = values
        return self.into

    def constant(self, value: np.ndarray | float | Sequence[Any], dtype: DType | None = None, name: str = "") -> Value:
        """A constant; a Python number or list becomes an array of `dtype` (f32, or i64 for integers)."""
        if not isinstance(value, np.ndarray):
            guess = np.asarray(value)
            default = {"f": DType.F32, "i": DType.I64, "b": DType.BOOL}[guess.dtype.kind]
            value = guess.astype((dtype or default).numpy)
        elif dtype is not None and value.dtype != dtype.numpy:
            value = value.astype(dtype.numpy)
        return self.op("constant", (), {"value": value, "name": name}).result

    def op(self, name: str, values: Sequence[Value | np.ndarray], attrs: dict[str, Any]) -> Op:
        """Append one operation and return it."""
        opdef = lookup(name, self.span)
        operands = [self.constant(v) if isinstance(v, np.ndarray) else v for v in values]
        for value in operands:
            if not isinstance(value, Value):
                raise CompileError(f"{name}: operand {value!r} is neither a Value nor an array", span=self.span)
        complete = opdef.complete(attrs, self.span)
        types = opdef.result_types([value.type for value in operands], complete, self.span)
        return self.into.insert(Op(name, operands, complete, types, self.span), self.before)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        lookup(name.removesuffix("_"), self.span)

        def build(*values: Value | np.ndarray, **attrs: Any) -> Value | tuple[Value, ...]:
            results = self.op(name.removesuffix("_"), values, attrs).results
            return results[0] if len(results) == 1 else results

        return build
