"""Constant folding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.interpret import run_op
from secateur.passes.base import Pass

KEPT = ("dequantize",)  # a quantised constant stays small, and stays quantised
EXPANDING = ("broadcast_to",)  # repeats what its operand already says: folded only into what uses it


@dataclass(frozen=True)
class Fold(Pass):
    """Evaluates what depends on constants only, by each operation's reference.

    before:  %w = constant @w;  %0 = transpose(%w) {perm = [1,0]};  %1 = matmul(%x, %0)
    after:   %0 = constant @w;  %1 = matmul(%x, %0)

    Exact: the reference defines the operation. Bounded: the program grows by at most `limit` bytes
    in all beyond the constants that fold away, and no more than that is evaluated at a time for one
    result. Only values that something else needs are stored; a broadcast stays a broadcast, and a
    quantised constant is not turned into real numbers.
    """

    limit: int = 4 << 20

    def run(self, graph: Graph) -> None:
        known, folded = self._evaluate(graph)
        budget = self.limit
        for op in reversed(folded):
            if not any(value.uses for value in op.results):
                graph.erase(op)
                continue
            growth = sum(value.type.bytes for value in op.results) - _freed(op)
            if (op.name in EXPANDING and growth > 0) or growth > budget:
                continue  # its operands are needed then, and are stored when their turn comes
            budget -= max(growth, 0)
            at = Builder(graph, op, op.span)
            name = _parameter_name(op)
            graph.replace(op, [at.constant(_own(known[value]), name=name) for value in op.results])
        for op in graph.find("constant"):
            if not op.result.uses:
                graph.erase(op)

    def _evaluate(self, graph: Graph) -> tuple[dict[Value, np.ndarray], list[Op]]:
        """The array of every value that depends on constants only, and the operations that make them."""
        known: dict[Value, np.ndarray] = {}
        folded: list[Op] = []
        for op in graph.ops:
            if op.name == "constant":
                known[op.result] = op.attrs["value"]
            elif op.operands and op.name not in KEPT and all(value in known for value in op.operands):
                most = self.limit + sum(value.type.bytes for value in op.operands)
                if op.name in EXPANDING or sum(value.type.bytes for value in op.results) <= most:
                    arrays = run_op(op, [known[value] for value in op.operands])
                    known.update(zip(op.results, arrays, strict=True))
                    folded.append(op)
        return known, folded


def _freed(op: Op) -> int:
    """Bytes of the constants that only `op` needs, through whatever else only `op` needs."""
    total = 0
    for value in dict.fromkeys(op.operands):
        if value.op is not None and len(value.users) == 1:
            total += value.type.bytes if value.op.name == "constant" else _freed(value.op)
    return total


def _parameter_name(op: Op) -> str:
    """The name of the largest parameter that a value is made of, so that a reader knows it again."""
    made_of = [value for value in op.operands if value.op is not None]
    while made_of:
        largest = max(made_of, key=lambda value: value.type.bytes)
        assert largest.op is not None
        if largest.op.name == "constant":
            return str(largest.op.attrs["name"])
        made_of = [value for value in largest.op.operands if value.op is not None]
    return ""


def _own(array: np.ndarray) -> np.ndarray:
    """The array in row-major order with its own memory: references may return views that repeat elements."""
    return np.ascontiguousarray(array).reshape(array.shape)
