"""What a kernel family is given and what it gives back.

A family is one declaration: which jobs it matches, what they cost, how they are emitted. The
registry collects families from `kernels/`; tests and benchmarks enumerate it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from secateur.backends.cpu.target import Target
from secateur.backends.cpu.views import View
from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op, Value, copy_ops
from secateur.ir.opdef import lookup
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType, TensorType


@dataclass
class Job:
    """One operation (often a fusion) to be run as one kernel.

    Attributes:
        op: the operation of the graph.
        views: where each operand lies; set once the lowering has decided it.
        results: where each result goes.
    """

    op: Op
    target: Target
    views: tuple[View, ...] = ()
    results: tuple[View, ...] = ()

    @cached_property
    def body(self) -> Graph | None:
        return self.op.attrs["body"] if self.op.name == "fusion" else None

    @cached_property
    def ops(self) -> list[Op]:
        """The operations inside, in order: the op itself where it is no fusion."""
        return list(self.body.ops) if self.body else [self.op]

    @cached_property
    def anchor(self) -> Op:
        """The first operation that is not elementwise, else the first one."""
        real = [op for op in self.ops if op.name != "constant"]
        return next((op for op in real if not lookup(op.name).elementwise), real[0])

    @cached_property
    def epilogue(self) -> list[Op]:
        """The elementwise operations behind the anchor, scalar constants included."""
        return [op for op in self.ops if op is not self.anchor]

    def position(self, value: Value) -> int | None:
        """Which operand of the job a value of the body is; None for one computed inside."""
        if self.body is None:
            return self.op.operands.index(value)
        return value.index if value.op is None else None

    def constant(self, value: Value) -> np.ndarray | None:
        """The array of an operand that is known at compile time."""
        position = self.position(value)
        return None if position is None else constant_value(self.op.operands[position])

    def view(self, value: Value) -> View:
        """Where an operand of the anchor or epilogue lies."""
        position = self.position(value)
        assert position is not None
        return self.views[position]

    def reads_once(self, position: int) -> bool:
        """Whether one operand slot inside, and no other, reads the job's operand: its layout is that reader's alone."""
        value = self.body.inputs[position] if self.body else self.op.operands[position]
        return sum(operand is value for op in self.ops for operand in op.operands) == 1

    @property
    def result_type(self) -> TensorType:
        return self.op.results[0].type


@dataclass(frozen=True)
class Kernel:
    """Emitted code.

    Attributes:
        code: C with `NAME` standing for the function's name; begins with helpers, ends with
            `KERNEL(NAME) { ... }`. Kernels of equal code are emitted once.
        args: what `p[0]`, `p[1]`, ... point to: an operand's position, ("result", index), or an
            array that is packed for this kernel.
        tasks: number of independent units; the kernel runs units begin..end.
        scratch: bytes of memory at `SCRATCH` for each thread.
        inplace: operands whose memory the first result may take over.
        note: for the report.
    """

    code: str
    args: tuple[int | tuple[str, int] | np.ndarray, ...]
    tasks: int
    scratch: int = 0
    inplace: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Example:
    """A representative job: what a family's test compares with the interpreter and its benchmark times.

    Attributes:
        op: the anchor's name.
        operands: types of its operands; those at `constants` are known at compile time.
        attrs: the anchor's attributes.
        epilogue: elementwise ops of one operand that follow it.
    """

    op: str
    operands: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    epilogue: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join((f"{self.op}({', '.join(self.operands)})", *self.epilogue))

    def graph(self, rng: np.random.Generator) -> Graph:
        """The graph of the example, with random constants."""
        b = Builder.graph("example")
        values = []
        for position, text in enumerate(self.operands):
            type = TensorType.parse(text)
            known = position in self.constants
            values.append(b.constant(draw(type, rng)) if known else b.into.add_input(type))
        results = list(b.op(self.op, values, dict(self.attrs)).results)
        for name in self.epilogue:
            results[0] = b.op(name, [results[0]], {}).result
        return b.returns(*results)


def together(examples: Sequence[Example], rng: np.random.Generator) -> Graph:
    """One graph that runs several examples side by side: compiled once, each is a step of its own."""
    whole = Graph("examples")
    outputs: list[Value] = []
    for example in examples:
        graph = example.graph(rng)
        mapping = {value: whole.add_input(value.type) for value in graph.inputs}
        copy_ops(graph.ops, whole, mapping)
        outputs += [mapping[value] for value in graph.outputs]
    whole.outputs = outputs
    return whole


def draw(type: TensorType, rng: np.random.Generator) -> np.ndarray:
    """Random data for a benchmark or test: normal floats, small integers that are valid indices."""
    if type.dtype.is_float:
        return np.asarray(rng.standard_normal(type.shape)).astype(type.dtype.numpy)
    return np.asarray(rng.integers(0, 2 if type.dtype is DType.BOOL else 8, type.shape)).astype(type.dtype.numpy)


@dataclass(frozen=True)
class Family:
    """A family of kernels.

    Attributes:
        name: as reports show it.
        doc: one line.
        match: why a job is not for this family, or the empty string.
        emit: writes the code for a job whose views are known.
        cost: estimated cycles on one core; the cheapest matching family is taken.
        accepts: whether operand `position` may be this (not contiguous) view.
        places: whether the result may be written in a permuted layout whose last axis stays last.
        examples: jobs that stand for what the family is for: its test and its benchmark.
        features: what the target's processors must have; the family is for no other target.
    """

    name: str
    doc: str
    match: Callable[[Job], str]
    emit: Callable[[Job], Kernel]
    cost: Callable[[Job], float]
    accepts: Callable[[Job, int, View], bool] = lambda job, position, view: False
    places: bool = False
    examples: tuple[Example, ...] = ()
    features: tuple[str, ...] = ()


REGISTRY: dict[str, Family] = {}


def family(item: Family) -> Family:
    """Register a family."""
    if item.name in REGISTRY:
        raise ValueError(f"kernel family {item.name!r} is declared twice")
    REGISTRY[item.name] = item
    return item


def only(*names: str) -> Callable[[Job], str]:
    """A match for single operations of the given names."""

    def match(job: Job) -> str:
        return (
            "" if len(job.ops) == 1 and job.anchor.name in names else f"{job.anchor.name} is not {' or '.join(names)}"
        )

    return match


def streaming_cost(job: Job) -> float:
    """Cycles when memory traffic is all that counts: 8 bytes per cycle."""
    moved = sum(v.type.bytes for v in (*job.op.operands, *job.op.results))
    return moved / 8.0 + 200.0
