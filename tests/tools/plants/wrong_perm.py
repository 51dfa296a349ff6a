"""Two transposes are composed the wrong way round."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.rewrite import Match, Outcome, RewriteStats, apply_rules, rule
from secateur.passes.base import Pass


@rule("transpose(transpose(x))")
def wrong_perm_rule(m: Match, b: Builder) -> Outcome:
    """transpose(transpose(x, p), q) == transpose(x, q[p])"""
    p, q = m.op(0).attrs["perm"], m.root.attrs["perm"]
    result = b.transpose(m["x"], perm=[q[axis] for axis in p])
    return result if result.type == m.root.result.type else None


@dataclass(frozen=True)
class Planted(Pass):
    """Two transposes are composed the wrong way round."""

    def run(self, graph: Graph) -> RewriteStats:
        return apply_rules(graph, [wrong_perm_rule])
