"""Dead code elimination."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.graph import Graph, bodies
from secateur.passes.base import Pass


@dataclass(frozen=True)
class DeadCode(Pass):
    """Removes operations whose results nobody uses, in body graphs too.

    before:  %0 = relu(%x);  %1 = exp(%x);  return %0
    after:   %0 = relu(%x);  return %0

    Exact. Graph inputs stay, used or not: they are the signature.
    """

    def run(self, graph: Graph) -> None:
        for op in reversed(list(graph.ops)):
            if not any(value.uses for value in op.results):
                graph.erase(op)
                continue
            for body in bodies(op):
                self.run(body)
