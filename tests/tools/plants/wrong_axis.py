"""A softmax along the axis before the last."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.passes.base import Pass


@dataclass(frozen=True)
class Planted(Pass):
    """A softmax along the axis before the last."""

    def run(self, graph: Graph) -> None:
        for op in graph.find("softmax"):
            b = Builder(graph, op, op.span)
            axis = op.result.type.rank - 2
            graph.replace(op, [b.softmax(op.operands[0], axis=axis)])
