"""A linear layer loses its bias."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.rewrite import Match, Outcome, RewriteStats, apply_rules, rule
from secateur.passes.base import Pass


@rule("linear(x, w, t)")
def dropped_bias_rule(m: Match, b: Builder) -> Outcome:
    """linear(x, w, t) == linear(x, w)"""
    return b.linear(m["x"], m["w"])


@dataclass(frozen=True)
class Planted(Pass):
    """A linear layer loses its bias."""

    def run(self, graph: Graph) -> RewriteStats:
        return apply_rules(graph, [dropped_bias_rule])
