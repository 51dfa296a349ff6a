"""The square root of a square is the value itself."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.rewrite import Match, Outcome, RewriteStats, apply_rules, rule
from secateur.passes.base import Pass


@rule("sqrt(square(x))")
def lost_sign_rule(m: Match, b: Builder) -> Outcome:
    """sqrt(x ** 2) == x"""
    return m["x"]


@dataclass(frozen=True)
class Planted(Pass):
    """The square root of a square is the value itself."""

    def run(self, graph: Graph) -> RewriteStats:
        return apply_rules(graph, [lost_sign_rule])
