"""A row is added as a column, where the matrix is square."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.rewrite import Match, Outcome, RewriteStats, apply_rules, rule
from secateur.passes.base import Pass


@rule("add(matmul(x, y), t)")
def wrong_broadcast_rule(m: Match, b: Builder) -> Outcome:
    """x @ y + t == x @ y + t as a column"""
    if m["t"].type.rank != 1:
        return None
    column = b.reshape(m["t"], shape=(m["t"].shape[0], 1))
    return b.add(m.root.operands[0], b.broadcast_to(column, shape=m.root.result.shape))


@dataclass(frozen=True)
class Planted(Pass):
    """A row is added as a column, where the matrix is square."""

    def run(self, graph: Graph) -> RewriteStats:
        return apply_rules(graph, [wrong_broadcast_rule])
