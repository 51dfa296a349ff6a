"""The mean minus the value."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.rewrite import Match, Outcome, RewriteStats, apply_rules, rule
from secateur.passes.base import Pass


@rule("sub(x, reduce_mean(x))")
def swapped_sub_rule(m: Match, b: Builder) -> Outcome:
    """x - mean(x) == mean(x) - x"""
    return b.sub(m.root.operands[1], m["x"])


@dataclass(frozen=True)
class Planted(Pass):
    """The mean minus the value."""

    def run(self, graph: Graph) -> RewriteStats:
        return apply_rules(graph, [swapped_sub_rule])
