"""Channels-last layout for convolution networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.ir.graph import Graph
from secateur.ir.rewrite import RewriteStats, apply_rules
from secateur.passes.base import Pass
from secateur.passes.cse import CommonSubexpressions
from secateur.passes.rules import topic
from secateur.passes.transpose_elim import TransposeElimination


@dataclass(frozen=True)
class Layout(Pass):
    """Puts the channels of 2-D convolution networks last: every convolution, and all between them.

    before:  %0 = conv(%x, %w);  %1 = relu(%0);  %2 = conv(%1, %v)
    after:   %t = transpose(%x);  %0 = conv(%t, %w) {channels_last};  %1 = relu(%0);
             %2 = conv(%1, %v) {channels_last};  %u = transpose(%2)

    Each convolution is wrapped in two transposes; these sink through what lies between convolutions
    and cancel, so that few are left at the rim. Not exact: sums are added up in another order.
    """

    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5

    def run(self, graph: Graph) -> RewriteStats:
        stats = apply_rules(graph, topic("layout"))
        stats.add(TransposeElimination().run(graph))
        CommonSubexpressions().run(graph)  # several convolutions may have transposed the same value
        return stats
