"""A slice starts one too early."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.passes.base import Pass


@dataclass(frozen=True)
class Planted(Pass):
    """A slice starts one too early."""

    def run(self, graph: Graph) -> None:
        for op in graph.find("slice"):
            b = Builder(graph, op, op.span)
            starts, stops = list(op.attrs["starts"]), list(op.attrs["stops"])
            for axis, start in enumerate(starts):
                if start:
                    starts[axis], stops[axis] = start - 1, stops[axis] - 1
            graph.replace(op, [b.slice(op.operands[0], starts=starts, stops=stops, steps=op.attrs["steps"])])
