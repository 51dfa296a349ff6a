"""Elimination of transposes and reshapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.ir.graph import Graph
from secateur.ir.rewrite import RewriteStats, apply_rules
from secateur.passes.base import Pass
from secateur.passes.rules import topic

MOVEMENT = topic("movement")
CANCEL = [item for item in MOVEMENT if item.name != "transpose_of_ones"]


@dataclass(frozen=True)
class TransposeElimination(Pass):
    """Sinks transposes towards the outputs until they cancel; then turns those that move no data into reshapes.

    before:  %0 = transpose(%x) {perm = [0,2,3,1]};  %1 = relu(%0);  %2 = transpose(%1) {perm = [0,3,1,2]}
    after:   %2 = relu(%x)

    Not exact: elements move and none changes, but a reduction may add them up in another order.
    """

    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5

    def run(self, graph: Graph) -> RewriteStats:
        # A transpose of ones must stay one while it sinks: as a reshape it would not meet its inverse.
        stats = apply_rules(graph, [*CANCEL, *topic("transposes")])
        stats.add(apply_rules(graph, MOVEMENT))
        return stats
