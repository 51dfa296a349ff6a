"""Uses a value in front of its definition."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.passes.base import Pass


@dataclass(frozen=True)
class Planted(Pass):
    """Uses a value in front of its definition."""

    def run(self, graph: Graph) -> None:
        for op in graph.find("exp"):
            b = Builder(graph, op, op.span)
            graph.move(op, next(graph.ops))
            op.span = b.span
