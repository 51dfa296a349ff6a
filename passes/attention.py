"""Attention recognised from its pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.ir.graph import Graph
from secateur.ir.rewrite import RewriteStats, apply_rules
from secateur.passes.base import Pass
from secateur.passes.rules import topic


@dataclass(frozen=True)
class Attention(Pass):
    """Makes one `attention` of products, scale, mask and softmax, and takes repeated heads and causal masks in.

    before:  %0 = matmul(%q, %kt);  %1 = mul(%0, %scale);  %2 = add(%1, %mask);  %3 = softmax(%2);  %4 = matmul(%3, %v)
    after:   %4 = attention(%q, %k, %v, %mask) {scale}

    Expects canonical forms. Not exact: softmax and products round at other places. A mask that is
    not known and holds -inf for a whole row is the one case apart: the pieces give NaN, attention 0.
    """

    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5

    def run(self, graph: Graph) -> RewriteStats:
        return apply_rules(graph, [*topic("attention"), *topic("movement")])
