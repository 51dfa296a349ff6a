"""What stands at the rim of integer arithmetic: dequantised tensors, quantised weights, real constants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.interpret import run_op
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType
from secateur.passes.integer.bounds import Range, bounds

BYTES = (DType.I8, DType.U8)
SMALL = (*BYTES, DType.I16)
STEPS = 12  # operations between a constant and the number it stands for


@dataclass(frozen=True)
class Leaf:
    """A dequantised tensor: `value` holds integers that stand for (value - zero) * scale.

    `scale` f64 and `zero` i64 broadcast to the value's shape.
    """

    value: Value
    scale: np.ndarray
    zero: np.ndarray

    @property
    def plain(self) -> bool:
        """Whether the whole tensor has one scale and one zero point."""
        return self.scale.size == 1 and self.zero.size == 1

    @property
    def point(self) -> int:
        """The zero point of a plain leaf."""
        return int(self.zero.reshape(()))

    @property
    def step(self) -> float:
        """The scale of a plain leaf."""
        return float(self.scale.reshape(()))

    def real(self) -> Range:
        """The lowest and highest number it may hold."""
        low, high = bounds(self.value)
        ends = (low - self.zero) * self.scale, (high - self.zero) * self.scale
        return np.asarray(np.min(ends)), np.asarray(np.max(ends))


def parameters(op: Op) -> tuple[np.ndarray, np.ndarray] | None:
    """(scale f64, zero i64) of a quantize or dequantize; None where they are not constant.

    Raises:
        CompileError: a scale is not a positive number.
    """
    scale, zero = (known(value) for value in op.operands[1:3])
    if scale is None or zero is None:
        return None
    wide = scale.astype(np.float64)
    if not np.all(np.isfinite(wide) & (wide > 0)):
        bad = wide[~(np.isfinite(wide) & (wide > 0))].flat[0]
        raise CompileError(
            f"{op.name}: a scale is {bad:g}", span=op.span, hint="a scale is the positive size of one step"
        )
    return wide, zero.astype(np.int64)


def leaf(value: Value) -> Leaf | None:
    """The leaf behind a value that `dequantize` makes with constant parameters."""
    if value.op is None or value.op.name != "dequantize":
        return None
    given = parameters(value.op)
    return Leaf(value.op.operands[0], *given) if given else None


def known(value: Value, depth: int = STEPS) -> np.ndarray | None:
    """The array of a value that hangs on constants only, through few operations; None for any other."""
    if (array := constant_value(value)) is not None:
        return array
    op = value.op
    if op is None or not depth or not op.operands or len(op.results) > 1:
        return None
    arrays = []
    for operand in op.operands:
        array = known(operand, depth - 1)
        if array is None:
            return None
        arrays.append(array)
    return run_op(op, arrays)[0]


@dataclass(frozen=True)
class Weights:
    """Weights of a product as i8 [O, ...] with a scale f64 [O] for each output channel."""

    integers: np.ndarray
    scale: np.ndarray


def weights(value: Value) -> Weights | str:
    """The i8 weights behind an operand of a product, or why there are none."""
    if value.op is None or value.op.name != "dequantize":
        return "the weights are not quantised" if known(value) is not None else "the weights are not constant"
    given = parameters(value.op)
    stored = known(value.op.operands[0])
    if given is None or stored is None:
        return "the weights are not constant"
    scale, zero = (_per_channel(item, stored.ndim) for item in given)
    if scale is None or zero is None:
        return "the weights have scales other than one for each output channel"
    apart = stored.astype(np.int64) - zero.reshape(-1, *[1] * (stored.ndim - 1))
    if apart.size and (apart.min() < -128 or apart.max() > 127):
        return f"the weights ({stored.dtype} minus a zero point) do not fit i8"
    return Weights(apart.astype(np.int8), np.broadcast_to(scale, stored.shape[:1]).astype(np.float64))


def _per_channel(item: np.ndarray, rank: int) -> np.ndarray | None:
    """[O], or [1], of parameters that differ along the leading dimension only."""
    if item.ndim > rank:
        return item.reshape(-1) if item.size == 1 else None
    full = item.reshape((1,) * (rank - item.ndim) + item.shape)
    return full.reshape(-1) if rank and full.size == full.shape[0] else None


def unquantized_weights(graph: Graph) -> None:
    """Constants that are dequantised where a float operation needs them become floats, but for linear weights.

    Those a kernel reads as they are: fewer bytes of weights are what makes a product of few rows fast.
    """
    for op in graph.find("dequantize"):
        users = [
            inner for user in op.result.users for inner in (user.result.users if user.name == "reshape" else [user])
        ]
        if known(op.operands[0]) is None or any(user.name == "linear" for user in users):
            continue
        graph.replace(op, [Builder(graph, op, op.span).constant(run_op(op, [_must(v) for v in op.operands])[0])])


def _must(value: Value) -> np.ndarray:
    array = known(value)
    assert array is not None
    return array
