"""Decomposition of operations that a backend has no use for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.opdef import lookup
from secateur.passes.base import Pass


@dataclass(frozen=True)
class Decompose(Pass):
    """Writes operations out by their own definition in simpler ones, and those in simpler ones yet.

    before:  %0 = layer_norm(%x, %w)
    after:   reduce_mean, sub, square, reduce_mean, add, rsqrt, mul, mul

    Not exact: pieces round between them. What has no decomposition, or none for its operands, stays.

    Attributes:
        only: the operations to decompose; empty for all.
        keep: the operations to leave whole.
    """

    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5

    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def run(self, graph: Graph) -> None:
        worklist = list(graph.ops)[::-1]
        while worklist:
            op = worklist.pop()
            rebuild = lookup(op.name, op.span).decompose
            if rebuild is None or op.name in self.keep or (self.only and op.name not in self.only):
                continue
            previous = op.prev
            values = rebuild(Builder(graph, op, op.span), op)
            if values is None:
                continue
            first = previous.next if previous is not None else next(graph.ops)
            while first is not None and first is not op:
                worklist.append(first)
                first = first.next
            graph.replace(op, values)
