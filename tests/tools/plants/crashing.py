"""Fails on every maximum."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.passes.base import Pass


@dataclass(frozen=True)
class Planted(Pass):
    """Fails on every maximum."""

    def run(self, graph: Graph) -> None:
        for op in graph.find("maximum"):
            b = Builder(graph, op, op.span)
            raise ZeroDivisionError(f"no {b} for {op}")
