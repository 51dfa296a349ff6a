"""Per-channel scales and shifts, batch normalisation among them, folded into weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.ir.graph import Graph
from secateur.ir.rewrite import RewriteStats, apply_rules
from secateur.passes.base import Pass
from secateur.passes.rules import topic


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Moves what a constant per channel does to a convolution or linear layer into its weights.

    before:  %0 = conv(%x, %w);  %1 = batch_norm(%0, %gamma, %beta, %mean, %var);  %2 = relu(%1)
    after:   %0 = conv(%x, %w', %b');  %2 = relu(%0)

    A batch_norm becomes a multiplication and an addition of constants; these fold into the
    contraction in front of them, else into the one behind, else stay pointwise. Weights that are
    used twice stay as they are. The new weights are computed in f64 and rounded once. Not exact:
    the same sums are rounded at other places.
    """

    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5

    def run(self, graph: Graph) -> RewriteStats:
        return apply_rules(graph, topic("scale_shift"))
