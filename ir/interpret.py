"""The oracle: runs a graph by each op's NumPy reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.opdef import lookup
from secateur.ir.types import TensorType

Watch = Callable[[Op, tuple[np.ndarray, ...]], None]


def check_inputs(graph: Graph, arrays: Sequence[np.ndarray]) -> None:
    """Raises `CompileError` where number, shape or element type of the inputs do not fit."""
    if len(arrays) != len(graph.inputs):
        raise CompileError(f"graph @{graph.name} takes {len(graph.inputs)} inputs, got {len(arrays)}")
    for position, (value, array) in enumerate(zip(graph.inputs, arrays, strict=True)):
        name = f"input {position}" + (f" ({value.hint})" if value.hint else "")
        try:
            given = TensorType.of(array)
        except KeyError:
            raise CompileError(f"{name} has unsupported element type {array.dtype}") from None
        if given != value.type:
            raise CompileError(f"{name} must be {value.type}, got {given}")


def run_op(op: Op, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The results of one operation by its reference."""
    with np.errstate(all="ignore"):
        results = lookup(op.name, op.span).reference(*arrays, **op.attrs)
    return tuple(map(np.asarray, results if isinstance(results, tuple) else (results,)))


def run(graph: Graph, arrays: Sequence[np.ndarray], watch: Watch | None = None) -> list[np.ndarray]:
    """Evaluate a graph on inputs that are known to fit. Values are dropped after their last use.

    Args:
        watch: called with every operation and its results, in order.
    """
    live: dict[Value, np.ndarray] = dict(zip(graph.inputs, arrays, strict=True))
    pending = Counter(value for op in [*graph.ops, graph.terminator] for value in op.operands)
    for op in graph.ops:
        results = run_op(op, [live[value] for value in op.operands])
        live.update(zip(op.results, results, strict=True))
        if watch:
            watch(op, results)
        for value in op.operands:
            pending[value] -= 1
            if not pending[value]:
                del live[value]
    return [live[value] for value in graph.outputs]


def interpret(graph: Graph, *inputs: np.ndarray) -> list[np.ndarray]:
    """Run a graph on NumPy arrays, op by op. Slow, exact in meaning, and the standard all else is held to.

    Raises:
        CompileError: number, shape or element type of the inputs do not fit.
    """
    arrays = [np.asarray(array) for array in inputs]
    check_inputs(graph, arrays)
    return run(graph, arrays)
