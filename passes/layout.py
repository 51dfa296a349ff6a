"""Channels-last layout for convolution networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.rewrite import Match, Outcome, RewriteStats, apply_rules, rule
from secateur.passes.base import Pass
from secateur.passes.cse import CommonSubexpressions
from secateur.passes.rules.movement import inverse
from secateur.passes.rules.transposes import FROM_CHANNELS_LAST
from secateur.passes.transpose_elim import TransposeElimination


@rule("conv(x, ...)")
def channels_last_conv(m: Match, b: Builder) -> Outcome:
    """conv(x) == to_channels_first(conv(to_channels_last(x), channels_last))"""
    op = m.root
    if op.result.type.rank != 4 or op.attrs["channels_last"]:
        return None
    x = b.transpose(m["x"], perm=inverse(FROM_CHANNELS_LAST))
    result = b.op("conv", [x, *op.operands[1:]], {**op.attrs, "channels_last": True}).result
    return b.transpose(result, perm=FROM_CHANNELS_LAST)


@dataclass(frozen=True)
class Layout(Pass):
    """Puts the channels of 2-D convolution networks last: every convolution, and all between them.

    before:  %0 = conv(%x, %w);  %1 = relu(%0);  %2 = conv(%1, %v)
    after:   %t = transpose(%x);  %0 = conv(%t, %w) {channels_last};  %1 = relu(%0);
             %2 = conv(%1, %v) {channels_last};  %u = transpose(%2)

    Each convolution is wrapped in two transposes; these sink through what lies between convolutions
    and cancel, so that few are left at the rim. Not exact: sums are added up in another order.
    """

    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5

    def run(self, graph: Graph) -> RewriteStats:
        stats = apply_rules(graph, [channels_last_conv])
        stats.add(TransposeElimination().run(graph))
        CommonSubexpressions().run(graph)  # several convolutions may have transposed the same value
        return stats
