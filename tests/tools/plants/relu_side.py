"""A relu moves to the wrong side of an addition."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.rewrite import Match, Outcome, RewriteStats, apply_rules, rule
from secateur.passes.base import Pass


@rule("relu(add(x, y))")
def relu_side_rule(m: Match, b: Builder) -> Outcome:
    """relu(x + y) == relu(x) + y"""
    return b.add(b.relu(m["x"]), m["y"]) if m["x"].type == m.root.result.type else None


@dataclass(frozen=True)
class Planted(Pass):
    """A relu moves to the wrong side of an addition."""

    def run(self, graph: Graph) -> RewriteStats:
        return apply_rules(graph, [relu_side_rule])
