"""What training descends: cross entropy with labels, and distillation from a float graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.backends.torch.train import trainable
from secateur.ir.diagnostics import CompileError, nearest
from secateur.ir.graph import Graph, Op, Value

Tensors = tuple[Tensor, ...]
Kind = Literal["kl", "mse", "cosine"]


@dataclass(frozen=True)
class Objective:
    """A loss, and the values inside the graph that it looks at.

    Attributes:
        compute: (outputs, inputs, extra) -> a scalar. `outputs` are the graph's, then those of `watch`;
            `inputs` the graph's inputs; `extra` what else a batch holds, such as labels.
        watch: names of values, as `find_value` knows them.
    """

    compute: Callable[[Tensors, Tensors, Tensors], Tensor]
    watch: tuple[str, ...] = ()


def cross_entropy(output: int = 0) -> Objective:
    """Cross entropy of logits f32[..., classes] with labels: the last of a batch's tensors, integers [...]."""
    return Objective(lambda outputs, inputs, extra: _labelled(outputs[output], extra))


def _labelled(logits: Tensor, extra: Tensors) -> Tensor:
    if not extra:
        raise CompileError("a batch holds no labels", hint="give them behind the inputs, or a teacher")
    labels = extra[-1]
    if labels.is_floating_point() or labels.shape != logits.shape[:-1]:
        shapes = f"{list(labels.shape)} for logits {list(logits.shape)}"
        raise CompileError(f"labels must be integers, one for each row of logits; got {labels.dtype} {shapes}")
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long())


@dataclass(frozen=True)
class Distillation:
    """How a student follows its teacher (Hinton et al. 2015; of inner values: Romero et al. 2015, TinyBERT 2020).

    The loss is  share * soft + (1 - share) * hard + sum over `match` of weight * |s - t|^2 / |t|^2.

    Attributes:
        temperature: T of kl, whose gradients the factor T^2 keeps at the size of those of the hard loss.
        share: of the soft loss; the rest is cross entropy with labels, where batches have them.
        match: name of a value inside both graphs -> its weight.
        kind: how outputs are compared: "kl" for logits, "mse" relative to the teacher's power, or 1 - cosine
            of the last axis for embeddings.
        outputs: numbers of the outputs that are compared.
    """

    temperature: float = 2.0
    share: float = 0.9
    match: Mapping[str, float] = field(default_factory=dict)
    kind: Kind = "kl"
    outputs: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.kind not in ("kl", "mse", "cosine"):
            raise CompileError(f"kind: {self.kind!r} is not one of kl, mse, cosine")
        if not (self.temperature > 0 and 0 <= self.share <= 1):
            raise CompileError(f"temperature {self.temperature} must be above 0 and share {self.share} in 0..1")


def distil(teacher: Graph, options: Distillation | None = None) -> Objective:
    """The objective of following a float graph of the same inputs.

    Raises:
        CompileError: a value to match, or an output, is not in the teacher.
    """
    how = options or Distillation()
    names = tuple(how.match)
    model = trainable(watching(teacher, names)).requires_grad_(False)
    if any(not 0 <= output < len(teacher.outputs) for output in how.outputs):
        raise CompileError(f"outputs {list(how.outputs)} are not all in 0..{len(teacher.outputs) - 1} of the teacher")

    def compute(outputs: Tensors, inputs: Tensors, extra: Tensors) -> Tensor:
        with torch.no_grad():
            wanted = model(*inputs)
        pairs = [(outputs[number], wanted[number]) for number in how.outputs]
        loss = torch.stack([_compare(s, t, how) for s, t in pairs]).mean()
        if extra and how.share < 1 and how.kind == "kl":
            loss = how.share * loss + (1 - how.share) * _labelled(outputs[how.outputs[0]], extra)
        for position, weight in enumerate(how.match.values(), start=-len(names)):
            loss = loss + weight * _relative(outputs[position], wanted[position])
        return loss

    return Objective(compute, names)


def _compare(student: Tensor, teacher: Tensor, how: Distillation) -> Tensor:
    _check_shapes(student, teacher)
    if how.kind == "mse":
        return _relative(student, teacher)
    if how.kind == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
    t = how.temperature
    wide = student.shape[-1]
    log_p, log_q = (F.log_softmax(x.reshape(-1, wide) / t, dim=-1) for x in (student, teacher))
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * t * t


def _relative(student: Tensor, teacher: Tensor) -> Tensor:
    _check_shapes(student, teacher)
    power = teacher.square().mean()
    return (student - teacher).square().mean() / power.clamp(min=torch.finfo(power.dtype).tiny)


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        shapes = f"{list(student.shape)} and the teacher {list(teacher.shape)}"
        raise CompileError(f"a value to compare has shape {shapes}", hint="compare values of one shape")


# Values inside a graph ----------------------------------------------------------------------------


def watching(graph: Graph, names: tuple[str, ...]) -> Graph:
    """The graph with the named values as further outputs."""
    if not names:
        return graph
    made = graph.clone()
    made.outputs = (*made.outputs, *(find_value(made, name) for name in names))
    return made


def find_value(graph: Graph, name: str) -> Value:
    """The real-valued result that a name stands for: of the value itself, of the module that makes it (its last
    result), or of the weights that make it.

    Raises:
        CompileError: there is none.
    """
    results = [r for op in graph.ops if op.name != "constant" for r in op.results if r.type.dtype.is_float]
    own = [value for value in results if value.hint == name]
    inside = [value for value in results if (_module(value) + ".").startswith(name + ".")]
    weighed = [value for value in results if name in _weights(value)]
    found = own or inside or weighed
    if not found:
        known = {value.hint for value in results} | {_module(value) for value in results}
        known |= {weights for value in results for weights in _weights(value)}
        raise CompileError(f"graph @{graph.name} has no value {name!r}", hint=nearest(name, known - {""}))
    return found[-1]


def _module(value: Value) -> str:
    span = value.op.span if value.op is not None else None
    return span.module if span is not None else ""


def _weights(value: Value) -> list[str]:
    """Names of the weights that a product or normalisation reads, with and without their last part."""
    if value.op is None or value.op.name in ("dequantize", "quantize", "reshape", "transpose"):
        return []
    made = [_weight_constant(operand) for operand in value.op.operands[1:]]
    names = [str(op.attrs["name"]) for op in made if op is not None and op.attrs["name"]]
    return [*names, *(name.removesuffix(".weight") for name in names)]


def _weight_constant(value: Value) -> Op | None:
    """The constant behind a value, through what unpacks integer weights."""
    while value.op is not None and value.op.name in ("dequantize", "reshape", "transpose"):
        value = value.op.operands[0]
    return value.op if value.op is not None and value.op.name == "constant" else None
