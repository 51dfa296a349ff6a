"""The table of what is quantised: one row for each operation, one word for each of its operands.

Words for operands:
    a8      8 bits: u8 with a zero point, or i8 where the recipe wants symmetric activations
    s8      i8 around zero
    m8      8 bits without a zero point: u8 where nothing is negative, else i8
    s16     i16 around zero
    w       weights
    out     as the result is wanted: s16 or a8
    mul     s16 between two of one shape (a gate of a transformer), else a8 (a gate of a channel)
    (none)  left alone
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from secateur.ir.graph import Op
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType

EIGHT = ("a8", "s8", "m8")


def _always(op: Op) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Row:
    """How an operation takes part.

    Attributes:
        kind: product, attention and norm start integer islands wherever they stand; function, join, gate, mean
            and bend continue one; move hands integers on as they are.
        words: for each operand; the last one stands for all further operands.
        refuse: why this instance cannot be quantised, or the empty string.
    """

    kind: str
    words: tuple[str, ...]
    refuse: Callable[[Op], str] = _always

    def word(self, position: int) -> str:
        return self.words[min(position, len(self.words) - 1)]


ANCHORS = ("product", "attention", "norm")
# Their results are integers of their own making; where only floats are wanted of them 16 bits say enough.
BOUNDED = ("attention", "norm", "function", "join", "gate", "mean")

LARGEST_BIAS = 2**30  # in steps of the accumulator: half of what an i32 holds
MOST_TERMS = (2**31 - 1 - LARGEST_BIAS) // (255 * 127)  # products of u8 and i8 that surely fit the other half


def _long(terms: int) -> str:
    return "" if terms <= MOST_TERMS else f"sums of {terms} products do not fit 32 bits"


def _refuse_weighted(op: Op) -> str:
    weights = constant_value(op.operands[1])
    if weights is None:
        return "its weights are not constant"
    return _long(weights[0].size if len(weights) else 0)


def _refuse_matmul(op: Op) -> str:
    return _long(op.operands[0].shape[-1])


def _refuse_attention(op: Op) -> str:
    if len(op.operands) > 3 and op.operands[3].type.dtype is not DType.BOOL:
        return "its mask is added, not true and false"
    return ""


def _refuse_norm(op: Op) -> str:
    if op.attrs["dims"] != 1:
        return f"it normalises {op.attrs['dims']} dimensions at once"
    return "" if all(constant_value(v) is not None for v in op.operands[1:]) else "its parameters are not constant"


def _refuse_gate(op: Op) -> str:
    return "it multiplies by a constant" if any(constant_value(v) is not None for v in op.operands) else ""


def _refuse_mean(op: Op) -> str:
    axes, rank = op.attrs["axes"], op.operands[0].type.rank
    return "" if rank > 2 and sorted(axes) == list(range(2, rank)) else "it is not a mean over an image"


_FUNCTIONS = "gelu gelu_tanh silu sigmoid tanh hard_swish hard_sigmoid mish elu exp softplus softmax erf"

TABLE: dict[str, Row] = {
    "conv": Row("product", ("a8", "w", ""), _refuse_weighted),
    "linear": Row("product", ("a8", "w", ""), _refuse_weighted),
    "matmul": Row("product", ("m8", "m8"), _refuse_matmul),
    "attention": Row("attention", ("s8", "s8", "s8", ""), _refuse_attention),
    "layer_norm": Row("norm", ("s16", "", ""), _refuse_norm),
    "rms_norm": Row("norm", ("s16", ""), _refuse_norm),
    **{name: Row("function", ("s16",)) for name in _FUNCTIONS.split()},
    "add": Row("join", ("out", "out")),
    "mul": Row("gate", ("mul", "mul"), _refuse_gate),
    "avg_pool": Row("mean", ("a8",)),
    "reduce_mean": Row("mean", ("a8",), _refuse_mean),
    **{name: Row("bend", ("out",)) for name in ("relu", "leaky_relu", "clamp")},
    **{name: Row("move", ("out",)) for name in ("reshape", "transpose", "slice", "flip", "max_pool", "concat")},
}
