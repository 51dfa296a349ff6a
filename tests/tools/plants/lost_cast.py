"""Rounding to an integer is forgotten."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.rewrite import Match, Outcome, RewriteStats, apply_rules, rule
from secateur.passes.base import Pass


@rule("cast(cast(x))")
def lost_cast_rule(m: Match, b: Builder) -> Outcome:
    """cast(cast(x)) == x"""
    return m["x"] if m["x"].type == m.root.result.type else None


@dataclass(frozen=True)
class Planted(Pass):
    """Rounding to an integer is forgotten."""

    def run(self, graph: Graph) -> RewriteStats:
        return apply_rules(graph, [lost_cast_rule])
