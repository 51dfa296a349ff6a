"""A square weight is taken as it is where it should be transposed."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.passes.base import Pass


@dataclass(frozen=True)
class Planted(Pass):
    """A square weight is taken as it is where it should be transposed."""

    def run(self, graph: Graph) -> None:
        for op in graph.find("matmul"):
            b = Builder(graph, op, op.span)
            source = op.operands[1].op
            if source and source.name == "transpose" and source.operands[0].type == source.result.type:
                graph.replace(op, [b.matmul(op.operands[0], source.operands[0])])
