"""Graphs that learn: a QDQ graph -> a torch.fx.GraphModule with gradients, and trained values back into the graph.

Quantisation is simulated with the very numbers that it will have (simulate.py). Integer weights that are
dequantised get a float master, of which they are the rounded codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import fx

from secateur.backends.torch.lower import TORCH, Lowering, build, to_numpy, to_torch
from secateur.backends.torch.simulate import ANY_BATCH, lsq_step, quantize_codes, step, whole_batch
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import RETURN, Graph, Op, Value
from secateur.ir.types import DType, TensorType

# Operations that only move (or choose among) the codes of their first operand; concat those of all.
MOVES = frozenset(
    {"reshape", "transpose", "broadcast_to", "slice", "flip", "concat", "pad"}
    | {"gather", "gather_elements", "gather_nd", "max_pool", "reduce_max", "reduce_min"}
)
# Where constants without a name are parameters too: repaired or merged weights and biases have lost theirs.
LEARNED = {
    "conv": (1, 2),
    "conv_transpose": (1, 2),
    "linear": (1, 2),
    "matmul": (0, 1),
    "layer_norm": (1, 2),
    "rms_norm": (1,),
    "group_norm": (1, 2),
    "batch_norm": (1, 2),
}
STATISTICS = {"batch_norm": (3, 4)}  # measured, not learned; a folded graph has none
_MOST_I32 = 2**31 - 128  # the largest i32 that f32 holds
_BINDINGS = "secateur.bindings"


@dataclass(frozen=True)
class Binding:
    """Where a constant of the graph finds its trained values in the module.

    Attributes:
        constant: number of the constant, in the order of `constants_of`.
        kind: "value": `parameter` itself; "step": `start` times `parameter`; "codes": `parameter` rounded
            by the step and zero point of its dequantize, into `low`..`high`.
        type: of the constant.
    """

    constant: int
    kind: Literal["value", "step", "codes"]
    type: TensorType
    parameter: str
    start: str = ""
    step: int = -1
    zero: str = ""
    low: int = 0
    high: int = 0


# Lowering -----------------------------------------------------------------------------------------


def constants_of(graph: Graph) -> list[Op]:
    """Every constant of a graph and of the bodies in it, in order: how bindings count them."""
    return [op for op in graph.walk() if op.name == "constant"]


def _constant(value: Value) -> Op | None:
    return value.op if value.op is not None and value.op.name == "constant" else None


def _sources(value: Value) -> list[Op]:
    """The quantize operations whose codes a value holds."""
    if value.op is None:
        return []
    if value.op.name == "quantize":
        return [value.op]
    if value.op.name not in MOVES:
        return []
    moved = value.op.operands if value.op.name == "concat" else value.op.operands[:1]
    return [source for operand in moved for source in _sources(operand)]


def _tied_steps(graph: Graph) -> dict[Op, Op]:
    """Each constant that is a step -> the one that stands for all that must stay equal to it.

    The two ends of one tensor of codes have one step, also where the graph holds it twice.
    """
    parent: dict[Op, Op] = {}

    def root(op: Op) -> Op:
        while parent.setdefault(op, op) is not op:
            op = parent[op]
        return op

    for op in graph.walk():
        if op.name not in ("quantize", "dequantize"):
            continue
        mine = _constant(op.operands[1])
        if mine is None:
            continue
        root(mine)
        for source in _sources(op.operands[0]) if op.name == "dequantize" else ():
            other = _constant(source.operands[1])
            if other is not None and np.array_equal(mine.attrs["value"], other.attrs["value"]):
                parent[root(mine)] = root(other)
    return {op: root(op) for op in list(parent)}


def _code_range(codes: np.ndarray) -> tuple[int, int]:
    """What codes may become: 4 bits where they fit into 4, and the lowest one only where it is in use.

    Symmetric weights leave it out, which kernels may rely on.
    """
    least, most = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    limits = np.iinfo(codes.dtype)
    low, high = int(limits.min), int(limits.max)
    if codes.dtype == np.int32:
        low, high = -_MOST_I32 - 1, _MOST_I32
    if codes.dtype == np.int8 and least >= -8 and most <= 7 and (least or most):
        low, high = -8, 7
    return (low if least == low else low + 1) if low < 0 else low, high


class _Training(Lowering):
    """Lowers with gradients: steps and masters are parameters, codes travel as f32."""

    def __init__(self, graph: Graph, masters: Mapping[str, np.ndarray], initial: str) -> None:
        super().__init__()
        self.numbers = {op: number for number, op in enumerate(constants_of(graph))}
        self.roots = _tied_steps(graph)
        self.masters = masters
        self.initial = initial
        self.steps: dict[Op, fx.Node] = {}
        self.codes: set[fx.Node] = set()
        self.bindings: list[Binding] = []

    def bind(self, op: Op, kind: Literal["value", "step", "codes"], parameter: str, **more: Any) -> None:
        self.bindings.append(Binding(self.numbers[op], kind, op.result.type, parameter, **more))

    def constant(self, op: Op) -> fx.Node:
        if op in self.roots:
            return self.step(op)
        use = _weight_use(op)
        if use is not None:
            return self.weight(op, use)
        name = "w_" + (op.attrs["name"] or "constant")
        learns = _learns(op)
        held = self.hold(name, to_torch(op.attrs["value"]), parameter=learns, gradient=True)
        if learns:
            self.bind(op, "value", held)
        return self.fx.get_attr(held)

    def step(self, op: Op, start: np.ndarray | None = None) -> fx.Node:
        """The node of a step, the same for all constants that are tied."""
        root = self.roots[op]
        if root not in self.steps:
            array = root.attrs["value"] if start is None else start
            if not (np.isfinite(array).all() and (array > 0).all()):
                raise CompileError("a scale is not a positive, finite number", span=op.span)
            name, share = _about(root)
            learns = not any(_is_given(tied) for tied, other in self.roots.items() if other is root)
            ratio = self.hold(f"step_{name}", torch.ones(array.shape), parameter=True, gradient=learns)
            held = self.hold(f"start_{name}", to_torch(array))
            self.steps[root] = self.fx.call_function(step, (self.fx.get_attr(ratio), self.fx.get_attr(held), share))
            for tied in [tied for tied, other in self.roots.items() if other is root]:
                self.bind(tied, "step", ratio, start=held)
        return self.steps[root]

    def weight(self, op: Op, use: Op) -> fx.Node:
        """Codes that a float master gives: exactly those of the constant to begin with."""
        codes, name = op.attrs["value"], op.attrs["name"]
        scale_op, zero_op = _constant(use.operands[1]), _constant(use.operands[2])
        assert scale_op is not None and zero_op is not None
        scale, zero = scale_op.attrs["value"], zero_op.attrs["value"]
        low, high = _code_range(codes)
        known = self.masters.get(name, self.masters.get(name.removesuffix("_quantized")))  # as ONNX Runtime names them
        master = _master(codes, scale, zero, known)
        start = lsq_step(master, high, scale.shape) if self.initial == "lsq" else None
        held = self.hold("w_" + (name or "weight"), to_torch(master), parameter=True, gradient=True)
        offset = self.hold("zero_" + (name or "weight"), to_torch(zero))
        self.bind(op, "codes", held, step=self.numbers[scale_op], zero=offset, low=low, high=high)
        operands = (self.fx.get_attr(held), self.step(scale_op, start), self.fx.get_attr(offset), low, high)
        return self.coded(self.fx.call_function(quantize_codes, operands))

    def coded(self, node: fx.Node) -> fx.Node:
        self.codes.add(node)
        return node

    def result(self, node: fx.Node, value: Value) -> fx.Node:
        """Codes leave the module as integers, without a gradient."""
        return self.fx.call_method("to", (node, TORCH[value.type.dtype])) if node in self.codes else node

    def call(self, op: Op, operands: tuple[fx.Node, ...]) -> list[fx.Node]:
        if op.name == "quantize":
            limits = np.iinfo(op.result.type.dtype.numpy)
            node = self.fx.call_function(quantize_codes, (*operands, int(limits.min), int(limits.max)))
            return [self.coded(node)]
        held = [node in self.codes for node in operands]
        if op.name not in MOVES and any(held) and not (op.name == "dequantize" and not any(held[1:])):
            raise CompileError(
                f"{op.name} computes with integers, which have no gradient",
                span=op.span,
                hint="train the graph of quantize and dequantize, before it is lowered to integers",
            )
        if op.name in ANY_BATCH:
            attrs = whole_batch(op.attrs, op.operands[0].shape) if op.name == "slice" else dict(op.attrs)
            nodes = [self.fx.call_function(ANY_BATCH[op.name], operands, attrs)]
        else:
            nodes = super().call(op, operands)
        if op.name in MOVES and any(held):
            self.codes.update(nodes)
        return nodes


def _learns(op: Op) -> bool:
    """Whether a constant is a parameter: finite floats with a name, or that are weights of something."""
    value, uses = op.attrs["value"], list(op.result.uses)
    if not op.result.type.dtype.is_float or any(at in STATISTICS.get(user.name, ()) for user, at in uses):
        return False
    weighs = any(at in LEARNED.get(user.name, ()) for user, at in uses)
    return (weighs or bool(op.attrs["name"])) and bool(np.isfinite(value.astype(np.float32)).all())


def _weight_use(op: Op) -> Op | None:
    """The dequantize of an integer constant, if that is all it is for and its step and zero point are constant."""
    users = op.result.users
    if not users or any(user.name != "dequantize" or user.operands[0] is not op.result for user in users):
        return None
    if any(user.operands[1:] != users[0].operands[1:] for user in users):
        return None
    known = all(_constant(value) is not None for value in users[0].operands[1:])
    return users[0] if known and users[0].result.shape == op.result.shape else None


def _is_given(step: Op) -> bool:
    """Whether a step is not ours to learn: that of integers that come in or go out, or of an i32 bias.

    A bias has the product of two other steps, which lowering gives it again.
    """
    for user in step.result.users:
        if user.name not in ("quantize", "dequantize"):
            continue
        x = user.operands[0]
        crosses = x.op is None if user.name == "dequantize" else any(u.name == RETURN for u in user.result.users)
        if crosses or (_constant(x) is not None and x.type.dtype is DType.I32):
            return True
    return False


def _about(step: Op) -> tuple[str, float]:
    """A name for a step, and LSQ's share of its gradient: 1/sqrt(N * Qp).

    N counts the numbers of one example that share a step.
    """
    user = next(user for user in step.result.users if user.name in ("quantize", "dequantize"))
    x, constant = user.operands[0], _constant(user.operands[0])
    high = int(np.iinfo(user.operands[2].type.dtype.numpy).max)
    if constant is not None and not x.type.dtype.is_float:
        high = _code_range(constant.attrs["value"])[1]
    shape = x.shape if constant is not None or x.type.rank < 2 else x.shape[1:]
    name = constant.attrs["name"] if constant is not None else x.hint or step.attrs["name"]
    count = max(1, math.prod(shape) // max(1, step.result.type.numel))
    return name or user.name, 1 / math.sqrt(count * high)


def _master(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """A float weight that rounds to `codes`: the known one where it does, else the middle of what does."""
    middle = (codes.astype(np.float32) - zero.astype(np.float32)) * scale
    if known is None or known.shape != codes.shape:
        return np.asarray(middle)
    with np.errstate(all="ignore"):
        rounded = np.round(known.astype(np.float32) / scale) + zero.astype(np.float32)
    return np.where(rounded == codes, known, middle).astype(np.float32)


# Both ways ----------------------------------------------------------------------------------------


def float_constants(graph: Graph) -> dict[str, np.ndarray]:
    """The named f32 constants of a graph, for `masters`."""
    ops = (op for op in constants_of(graph) if op.attrs["name"] and op.result.type.dtype is DType.F32)
    return {op.attrs["name"]: op.attrs["value"] for op in ops}


def trainable(
    graph: Graph, *, masters: Mapping[str, np.ndarray] | None = None, initial: Literal["given", "lsq"] = "given"
) -> fx.GraphModule:
    """A module whose parameters have gradients, and which computes what the graph does to begin with.

    Parameters are `w_` + name for float constants and for the float masters of integer weights, and `step_` +
    name for the ratio of each scale to its calibrated value. Zero points stay; so do integer constants that are
    moved before they are dequantised, or dequantised in two ways. What is one constant in the graph stays one.
    The leading dimension of the inputs may differ from the graph's where it is a batch.

    Args:
        graph: of float operations, quantize and dequantize; a float graph is fine too.
        masters: float weights by the names of constants, e.g. those before quantisation: used where they
            round to the very code that the graph has.
        initial: "lsq" starts the steps of weights as LSQ does instead of where calibration left them; the
            module then no longer starts out as the graph.

    Raises:
        CompileError: integer operations between quantize and dequantize, or a scale of 0, NaN or infinity.
    """
    lowering = _Training(graph, masters or {}, initial)
    module = build(graph, lowering)
    module.meta[_BINDINGS] = tuple(lowering.bindings)
    return module


def to_graph(module: fx.GraphModule, graph: Graph) -> Graph:
    """The graph with a module's trained values as its constants; computes exactly what the module does.

    Args:
        module: from `trainable`.
        graph: that it was made of, or the same one at another batch size.

    Raises:
        CompileError: the module was made of another graph.
    """
    made = graph.clone()
    constants = constants_of(made)
    bindings: tuple[Binding, ...] = module.meta.get(_BINDINGS, ())
    steps = {binding.constant: binding for binding in bindings if binding.kind == "step"}
    for binding in bindings:
        fits = binding.constant < len(constants) and constants[binding.constant].result.type == binding.type
        if not fits:
            raise CompileError(
                f"the module has no value for graph @{graph.name}: constant {binding.constant} is not {binding.type}",
                hint="give the graph that the module was made of",
            )
        constants[binding.constant].attrs["value"] = _value(module, binding, steps)
    return made


@torch.no_grad()
def _value(module: fx.GraphModule, binding: Binding, steps: Mapping[int, Binding]) -> np.ndarray:
    tensor = module.get_parameter(binding.parameter).detach()
    if binding.kind == "step":
        tensor = step(tensor, module.get_buffer(binding.start), 1.0)
    elif binding.kind == "codes":
        owner = steps[binding.step]
        scale = step(module.get_parameter(owner.parameter), module.get_buffer(owner.start), 1.0)
        tensor = quantize_codes(tensor, scale, module.get_buffer(binding.zero), binding.low, binding.high)
    return np.array(to_numpy(tensor).astype(binding.type.dtype.numpy))
