"""Canonical forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.ir.graph import Graph
from secateur.ir.rewrite import RewriteStats, apply_rules
from secateur.passes.base import Pass
from secateur.passes.rules import topic

TOPICS = ("movement", "indexing", "algebra", "linear", "norms", "activations")
RULES = [rule for name in TOPICS for rule in topic(name)]


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Writes what can be written in several ways in one: identities go, pieces become the operation they spell.

    before:  %0 = reshape(%x);  %1 = reshape(%0);  %2 = sigmoid(%1);  %3 = mul(%1, %2)
    after:   %1 = reshape(%x);  %3 = silu(%1)

    Not exact: an operation recognised from pieces rounds at other places than the pieces.
    """

    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5

    def run(self, graph: Graph) -> RewriteStats:
        return apply_rules(graph, RULES)
