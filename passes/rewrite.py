"""Rules of your own, from files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.ir.rewrite import RewriteStats, apply_rules
from secateur.ir.rules import load_rules
from secateur.passes.base import Pass
from secateur.passes.rules import topic, topics


@dataclass(frozen=True)
class Rewrite(Pass):
    """Applies the rules of `.rules` files, or of built-in topics by name, until none fires.

    `rewrite{rules=movement+my.rules}`; docs/rules.md explains the files, `secateur test-rules` tries them.

    before:  %0 = transpose(%x) {perm = [1,0]};  %1 = transpose(%0) {perm = [1,0]}
    after:   %x, with the rules of `movement`

    Not exact: it is as exact as the rules are.
    """

    rules: tuple[str, ...] = ()
    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5

    def run(self, graph: Graph) -> RewriteStats:
        if not self.rules:
            raise CompileError(
                "pass 'rewrite' has no rules to apply",
                hint=f"rewrite{{rules=my.rules}}, or a built-in topic: {', '.join(topics())}",
            )
        known = topics()
        return apply_rules(
            graph, [r for name in self.rules for r in (topic(name) if name in known else load_rules(name))]
        )
