"""Joints: values whose channels can be scaled, because what makes them and what reads them takes the factors in.

With x_j divided by s_j where it is made, and the weights that meet x_j multiplied by s_j, the graph computes
the same. That moves range between activations and weights, or between the weights of two layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.ops.constant import constant_value
from secateur.passes.dce import DeadCode
from secateur.passes.quantize.calibrate import channel_axis
from secateur.passes.quantize.plan import Plan
from secateur.passes.quantize.stream import copied

HOMOGENEOUS = ("relu", "leaky_relu", "max_pool", "avg_pool", "clamp")  # f(x / s) == f(x) / s for s > 0; clamp in part
NORMS = ("layer_norm", "rms_norm")


@dataclass(frozen=True)
class Joint:
    """A place where channels can be scaled.

    Attributes:
        value: read by all of `readers` as operand 0; its dimension `axis` is the channels.
        maker: a product or a norm whose result reaches the value through nothing but homogeneous functions.
        readers: products.
        clamps: on the way from the maker to the value; their bounds do not scale.
        shared: whether something else reads the value too; the maker, a norm then, is doubled.
    """

    value: Value
    axis: int
    maker: Op
    readers: tuple[Op, ...]
    clamps: tuple[Op, ...] = ()
    shared: bool = False

    @property
    def channels(self) -> int:
        return self.value.shape[self.axis]


def find_joints(graph: Graph, plan: Plan) -> list[Joint]:
    """The joints in front of the planned products, in program order."""
    found = []
    for value in dict.fromkeys(op.operands[0] for op in plan.weights):
        readers = tuple(op for op in value.users if op in plan.weights and op.operands[0] is value and _reads(op))
        if not readers or value.op is None:
            continue
        shared = len(value.uses) > len(readers)
        axis = channel_axis(value)
        if shared:
            if value.op.name in NORMS and _absorbs(value.op, axis):
                found.append(Joint(value, axis, value.op, readers, shared=True))
            continue
        maker, clamps = _maker(value, axis, [])
        if maker is not None and maker not in readers:
            found.append(Joint(value, axis, maker, readers, tuple(clamps)))
    return found


def _reads(op: Op) -> bool:
    """Whether a product's weights show which of them meet an input channel."""
    return op.name == "linear" or op.attrs["groups"] == 1 or _depthwise(op)


def _depthwise(op: Op) -> bool:
    return op.operands[1].shape[1] == 1 and op.attrs["groups"] == op.operands[0].shape[1]


def _absorbs(op: Op, axis: int) -> bool:
    """Whether an operation can divide each channel of its result, which lie along `axis`, by a number."""
    constant = all(constant_value(value) is not None for value in op.operands[1:])
    if op.name in NORMS:
        return constant and op.attrs["dims"] == 1 and axis == op.result.type.rank - 1
    return constant and ((op.name == "conv" and axis == 1) or (op.name == "linear" and axis == op.result.type.rank - 1))


def _maker(value: Value, axis: int, clamps: list[Op]) -> tuple[Op | None, list[Op]]:
    """What makes the channels of a value, and the clamps it goes through on the way."""
    op = value.op
    if op is None or op.operands == ():
        return None, clamps
    if _absorbs(op, axis):
        return op, clamps
    x = op.operands[0]
    if op.name == "mul":  # one side is enough
        for side in op.operands:
            if side.shape == value.shape and len(side.uses) == 1:
                maker, passed = _maker(side, axis, list(clamps))
                if maker is not None:
                    return maker, passed
        return None, clamps
    before = _axis_before(op, axis)
    if before is None or len(x.uses) != 1:
        return None, clamps
    return _maker(x, before, [*clamps, op] if op.name == "clamp" else clamps)


def _axis_before(op: Op, axis: int) -> int | None:
    """The dimension of operand 0 that holds the channels of the result's dimension `axis`; None where they mix."""
    before, after = op.operands[0].shape, op.result.shape
    if op.name in HOMOGENEOUS:
        return axis if axis == 1 or len(op.operands) == 1 else None
    if op.name == "reduce_mean":
        return axis if axis not in op.attrs["axes"] and (op.attrs["keepdims"] or axis < min(op.attrs["axes"])) else None
    if op.name == "transpose":
        return int(op.attrs["perm"][axis])
    if op.name == "reshape":
        if before[: axis + 1] == after[: axis + 1]:
            return axis
        if axis == len(after) - 1 and before[-1:] == after[-1:]:
            return len(before) - 1
    return None


# Arrays -------------------------------------------------------------------------------------------


class Arrays:
    """The weights and biases of a graph while they are scaled; the graph is written to at the end."""

    def __init__(self) -> None:
        self.changed: dict[tuple[Op, int], np.ndarray] = {}

    def get(self, op: Op, position: int) -> np.ndarray | None:
        if (op, position) in self.changed:
            return self.changed[op, position]
        return constant_value(op.operands[position]) if position < len(op.operands) else None

    def rows(self, op: Op) -> np.ndarray:
        """Largest magnitude of the weights of each output channel, or of the factors of a norm."""
        weights = self.get(op, 1)
        if op.name in NORMS:
            return np.ones(op.result.shape[-1]) if weights is None else np.abs(weights).astype(np.float64)
        assert weights is not None
        return np.abs(weights.reshape(len(weights), -1)).max(1, initial=0).astype(np.float64)

    def columns(self, op: Op) -> np.ndarray:
        """Largest magnitude of the weights that meet each input channel."""
        weights = self.get(op, 1)
        assert weights is not None
        if op.name == "conv" and op.attrs["groups"] > 1:
            return np.abs(weights.reshape(op.attrs["groups"], -1)).max(1, initial=0).astype(np.float64)
        return np.abs(weights).max(tuple(i for i in range(weights.ndim) if i != 1), initial=0).astype(np.float64)

    def divide(self, op: Op, factors: np.ndarray) -> None:
        """Divide the channels that an operation makes."""
        weights, bias = self.get(op, 1), self.get(op, 2)
        if weights is None:
            weights = np.ones(op.result.shape[-1], np.float32)  # a norm without factors
        self.changed[op, 1] = (weights / factors.reshape(-1, *[1] * (weights.ndim - 1))).astype(np.float32)
        if bias is not None:
            self.changed[op, 2] = (bias / factors).astype(np.float32)

    def multiply(self, op: Op, factors: np.ndarray) -> None:
        """Multiply the weights that meet each input channel."""
        weights = self.get(op, 1)
        assert weights is not None
        if op.name == "conv" and op.attrs["groups"] > 1:
            each = np.repeat(factors, len(weights) // len(factors)).reshape(-1, *[1] * (weights.ndim - 1))
        else:
            each = factors.reshape(1, -1, *[1] * (weights.ndim - 2))
        self.changed[op, 1] = (weights * each).astype(np.float32)


def scale(joint: Joint, factors: np.ndarray, arrays: Arrays) -> None:
    """Divide the channels of a joint by factors (f64 [channels]) and let the readers make up for it."""
    arrays.divide(joint.maker, factors)
    for op in joint.readers:
        arrays.multiply(op, factors)


def written(graph: Graph, arrays: Arrays, shared: Sequence[Joint] = ()) -> Graph:
    """A copy of a graph with other weights; norms of `shared` joints are doubled, one for the readers alone."""
    copy, mapping = copied(graph)
    doubled: Mapping[Op, Joint] = {joint.maker: joint for joint in shared}
    for op in {op for op, _ in arrays.changed}:
        new = mapping[op.results[0]].op
        assert new is not None
        b = Builder(copy, new, new.span)
        operands = list(new.operands)
        for position in range(1, 3):
            if (op, position) in arrays.changed:
                old = op.operands[position].op if position < len(op.operands) else None
                constant = b.constant(arrays.changed[op, position], name=old.attrs["name"] if old else "")
                operands[position : position + 1] = [constant]
        if op in doubled:
            alone = b.op(op.name, operands, op.attrs).result
            for reader in doubled[op].readers:
                copy_of = mapping[reader.results[0]].op
                assert copy_of is not None
                copy_of.set_operand(0, alone)
        else:
            new.set_operands(operands)
    DeadCode().run(copy)
    return copy
