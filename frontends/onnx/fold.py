"""A builder that computes what is known at once, so that shapes are numbers when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.frontends.onnx.load import check_size
from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.opdef import lookup
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import TensorType

FOLD_ELEMENTS = 1 << 20  # of the operands and of the result together
HEAVY_ELEMENTS = 1 << 12
HEAVY = frozenset({"matmul", "linear", "einsum", "conv", "conv_transpose", "attention"})
KEPT = frozenset({"constant", "dequantize"})  # integers of a quantised model stay integers


class FoldingBuilder(Builder):
    """Evaluates operations whose operands are all constants, up to a bound on their size.

    Exporters compute the shapes for Reshape, Slice, Expand and their kin in the graph itself
    (Shape, Gather, Concat ...); importing needs them as values. The bound keeps the import from
    blowing up what the model states briefly, e.g. an Expand of one number to a large tensor.
    """

    def op(self, name: str, values: Sequence[Value | np.ndarray], attrs: dict[str, Any]) -> Op:
        arrays = [value if isinstance(value, np.ndarray) else constant_value(value) for value in values]
        known = [array for array in arrays if array is not None]
        if name not in KEPT and len(known) == len(arrays):
            opdef = lookup(name, self.span)
            complete = opdef.complete(attrs, self.span)
            types = opdef.result_types([TensorType.of(array) for array in known], complete, self.span)
            elements = sum(array.size for array in known) + sum(type.numel for type in types)
            if len(types) == 1 and elements <= (HEAVY_ELEMENTS if name in HEAVY else FOLD_ELEMENTS):
                with np.errstate(all="ignore"):
                    folded = np.array(opdef.reference(*known, **complete), dtype=types[0].dtype.numpy, order="C")
                return super().op("constant", (), {"value": folded})
        made = super().op(name, values, attrs)
        for result in made.results:
            check_size(result.type.dtype, result.shape, self.span)
        return made


def drop_dead(graph: Graph) -> None:
    """Erase operations nobody uses: the shape arithmetic that folding has made idle."""
    for op in reversed(list(graph.ops)):
        if not any(result.uses for result in op.results):
            graph.erase(op)
