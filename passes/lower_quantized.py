"""Quantised islands as integer operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.ir.graph import Graph
from secateur.ir.rewrite import RewriteStats, apply_rules
from secateur.passes.base import Pass
from secateur.passes.integer import movement, norms, products, requantize
from secateur.passes.integer.leaves import unquantized_weights
from secateur.passes.integer.merge import merge_layers
from secateur.passes.rules import topic

SUMS = ("zero_point_of_residual", "number_of_sum", "constant_of_sum")
MOVEMENT = [*(item for item in topic("quantized") if item.name not in SUMS), *movement.RULES]
BIAS = [item for item in topic("linear") if item.name == "linear_bias"]
# One way of writing each thing first: dequantize sinks and quantize rises through movements, weights are of `linear`.
FORMS = [*MOVEMENT, *BIAS, products.matmul_of_weights]
# Every phase sees what the one before has made: dequantised i32 behind products, then one requantisation.
PHASES = (
    [*products.RULES, *norms.RULES, *MOVEMENT],
    requantize.RULES,
    [item for item in topic("quantized") if item.name in SUMS],
)


@dataclass(frozen=True)
class LowerQuantized(Pass):
    """Computes between quantize and dequantize in integers: 8-bit products, fixed-point rescaling, tables.

    before:  %d = dequantize(%x, ...);  %w = dequantize(%c, ...);  %0 = conv(%d, %w, %b);  %q = quantize(%0, ...)
    after:   %0 = conv(%x, %c, %i) {pad_value};  %q = rescale(%0, %multiplier, %zero) {shift}

    What has no integer form stays as it is, real numbers between a dequantize and a quantize, and the statistics
    say why. Not exact: a result may be one step of its scale away from where real numbers round to.
    """

    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 0.02

    def run(self, graph: Graph) -> RewriteStats:
        stats = apply_rules(graph, FORMS)
        merge_layers(graph)
        for rules in PHASES:
            stats.add(apply_rules(graph, rules))
        unquantized_weights(graph)
        return stats
