"""A program with smaller dimensions: the part of reducing a failure that knows about shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.types import TensorType

SHAPES = ("shape", "size", "stops")  # attributes that hold sizes of dimensions
TARGETS = (1, 2, 3, 4)

Sizes = Callable[[int], int]


def shrunk(graph: Graph, inputs: Sequence[np.ndarray]) -> Iterator[tuple[Graph, tuple[np.ndarray, ...]]]:
    """Programs that fit together with smaller dimensions, and the corners of the input tensors that fit them."""
    leaves = [value.shape for value in graph.inputs]
    leaves += [op.result.shape for op in graph.ops if op.name == "constant"]
    sizes = sorted({size for shape in leaves for size in shape if size > 1}, reverse=True)
    for size in sizes:
        for target in [t for t in TARGETS if t < size] + [size // 2] * (size > 2 * TARGETS[-1]):
            yield from _made(graph, inputs, everywhere(size, target))
            yield from _made(graph, inputs, everywhere(size, target, multiples=True))
    for number, shape in enumerate(leaves):
        for axis, size in enumerate(shape):
            for target in [t for t in TARGETS if t < size]:
                yield from _made(graph, inputs, lambda size: size, {number: (axis, target)})


def everywhere(old: int, new: int, *, multiples: bool = False) -> Sizes:
    """Every dimension of size `old` gets size `new`; with `multiples`, 3 * old becomes 3 * new."""
    if multiples:
        return lambda size: size // old * new if size and size % old == 0 else size
    return lambda size: new if size == old else size


def _made(
    graph: Graph, inputs: Sequence[np.ndarray], sizes: Sizes, alone: Mapping[int, tuple[int, int]] | None = None
) -> Iterator[tuple[Graph, tuple[np.ndarray, ...]]]:
    """The program with other sizes, if inference accepts it. `alone`: leaf number -> (axis, size)."""
    leaves = _Leaves(sizes, dict(alone or {}))
    arrays = [leaves.corner(array) for array in inputs]
    try:
        made = _rebuilt(graph, [TensorType.of(array) for array in arrays], leaves)
    except (CompileError, ValueError):
        return
    yield made, tuple(arrays)


class _Leaves:
    """Cuts the inputs, then the constants of the program, in order."""

    def __init__(self, sizes: Sizes, alone: Mapping[int, tuple[int, int]]) -> None:
        self.sizes = sizes
        self.alone = alone
        self.count = 0

    def corner(self, array: np.ndarray) -> np.ndarray:
        shape = list(map(self.sizes, array.shape))
        if self.count in self.alone:
            axis, size = self.alone[self.count]
            shape[axis] = size
        self.count += 1
        return array[tuple(slice(size) for size in shape)]


def _rebuilt(graph: Graph, types: Sequence[TensorType], leaves: _Leaves) -> Graph:
    """A graph built again by inference; raises `CompileError` where the sizes do not fit together."""
    made = Graph(graph.name, [(value.hint, type) for value, type in zip(graph.inputs, types)])
    mapping: dict[Value, Value] = dict(zip(graph.inputs, made.inputs))
    for op in graph.ops:
        operands = [mapping[value] for value in op.operands]
        new = Builder(made, span=op.span).op(op.name, operands, _attrs(op, operands, leaves))
        for old, value in zip(op.results, new.results):
            value.hint = old.hint
            mapping[old] = value
    made.outputs = [mapping[value] for value in graph.outputs]
    return made


def _attrs(op: Op, operands: Sequence[Value], leaves: _Leaves) -> dict[str, Any]:
    if op.name == "constant":
        return {**op.attrs, "value": leaves.corner(op.attrs["value"])}
    attrs = dict(op.attrs)
    for key, value in attrs.items():
        if isinstance(value, Graph):
            attrs[key] = _rebuilt(value, [operand.type for operand in operands], leaves)
        elif key in SHAPES:
            attrs[key] = tuple(map(leaves.sizes, value))
    return attrs
