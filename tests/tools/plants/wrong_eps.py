"""An epsilon gets lost on the way."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.passes.base import Pass


@dataclass(frozen=True)
class Planted(Pass):
    """An epsilon gets lost on the way."""

    def run(self, graph: Graph) -> None:
        for op in graph.find("layer_norm"):
            b = Builder(graph, op, op.span)
            graph.replace(op, [b.layer_norm(*op.operands, dims=op.attrs["dims"], eps=1e-1)])
