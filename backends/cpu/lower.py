"""Graph -> steps: a kernel for every operation, a buffer for every value."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from secateur.backends.cpu.adapt import needs_no_kernel
from secateur.backends.cpu.kernel import REGISTRY, Family, Job, Kernel
from secateur.backends.cpu.target import Target
from secateur.backends.cpu.views import ARENA, INPUT, OUTPUT, WEIGHT, Buffer, View
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import TensorType

# Below this many cycles waking the other threads costs more than they bring.
SERIAL_CYCLES = 12_000


@dataclass
class Step:
    """One kernel call: `args` are what the kernel's pointers point to, in its order."""

    kernel: Kernel
    args: list[View]
    family: str
    op: Op | None
    cycles: float
    why: str = ""

    @property
    def serial(self) -> bool:
        return self.cycles < SERIAL_CYCLES or self.kernel.tasks < 2


@dataclass
class Lowered:
    """A program: steps in order, the buffers they touch, and the sizes of inputs and outputs."""

    graph: Graph
    target: Target
    steps: list[Step] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)


@cache
def families() -> dict[str, Family]:
    """Every kernel family by name."""
    import secateur.backends.cpu.kernels as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(REGISTRY)


def choose(job: Job) -> tuple[Family | None, str]:
    """The cheapest family that matches, and what was considered, for the report."""
    costs: dict[str, float] = {}
    reasons = []
    for name, item in families().items():
        if any(feature not in job.target.features for feature in item.features):
            continue
        reason = item.match(job)
        if reason:
            reasons.append(f"{name}: {reason}")
        else:
            costs[name] = item.cost(job)
    if not costs:
        return None, "; ".join(reasons)
    best = min(costs, key=lambda name: costs[name])
    others = ", ".join(f"{name} {cost:.0f}" for name, cost in costs.items() if name != best)
    return families()[best], f"{costs[best]:.0f} cycles estimated" + (f" ({others})" if others else "")


_VIEWS: dict[str, Callable[[View, Op], View | None]] = {
    "reshape": lambda view, op: view.reshape(op.result.shape),
    "transpose": lambda view, op: view.transpose(op.attrs["perm"]),
    "slice": lambda view, op: view.slice(op.attrs["starts"], op.attrs["stops"], op.attrs["steps"]),
    "broadcast_to": lambda view, op: view.broadcast(op.result.shape),
    "flip": lambda view, op: view.flip(op.attrs["axes"]),
}


def is_free(op: Op) -> bool:
    """Whether an operation is lowered to views and copies: it needs no kernel family."""
    return (
        op.name in _VIEWS or op.name in ("constant", "concat") or (op.name == "pad" and op.attrs["mode"] == "constant")
    )


def lower(graph: Graph, target: Target, progress: Callable[[float], None] | None = None) -> Lowered:
    """Lower a legal graph. Raises `CompileError` listing every operation that has no kernel."""
    lowering = _Lowering(graph, target)
    count = max(1, len(graph))
    for number, op in enumerate(graph.ops):
        lowering.op(op)
        if progress:
            progress(number / count)
    lowering.outputs()
    return lowering.program


class _Lowering:
    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph = graph
        self.target = target
        self.program = Lowered(graph, target)
        self.views: dict[Value, View] = {}
        self.copies: dict[View, View] = {}
        for index, value in enumerate(graph.inputs):
            buffer = self.buffer(INPUT, value.type)
            buffer.index = index
            self.views[value] = View.whole(buffer, value.type)

    def buffer(self, kind: str, type: TensorType, data: np.ndarray | None = None) -> Buffer:
        buffer = Buffer(kind, type.bytes, data=data)
        self.program.buffers.append(buffer)
        return buffer

    def view(self, value: Value) -> View:
        """Where a value lies; a constant gets its place in the weights when it is first asked for."""
        if value not in self.views:
            data = constant_value(value)
            assert data is not None
            self.views[value] = View.whole(self.buffer(WEIGHT, value.type, data), value.type)
        return self.views[value]

    def op(self, op: Op) -> None:
        if op.name == "constant":
            return
        if needs_no_kernel(op):
            self.views.update({value: View.whole(self.buffer(ARENA, value.type), value.type) for value in op.results})
        elif op.name in _VIEWS:
            (value,) = op.operands
            source = self.view(value)
            view = _VIEWS[op.name](source, op)
            if view is None:
                view = _VIEWS[op.name](self.contiguous(source), op)
            assert view is not None
            self.views[op.result] = view
        elif op.name == "concat":
            self.concat(op)
        elif is_free(op):
            self.pad(op)
        else:
            self.kernel(op)

    def kernel(self, op: Op) -> None:
        job = Job(op, self.target)
        chosen, why = choose(job)
        if chosen is None:
            raise CompileError(f"no CPU kernel for {op.name}: {why}", span=op.span)
        views = []
        for position, value in enumerate(op.operands):
            view = self.view(value)
            fits = view.contiguous or chosen.accepts(job, position, view)
            views.append(view if fits else self.contiguous(view))
        job.views = tuple(views)
        job.results = tuple(self.place(op, value, chosen) for value in op.results)
        kernel = chosen.emit(job)
        args = [self.argument(job, item) for item in kernel.args]
        self.step(Step(kernel, args, chosen.name, op, chosen.cost(job), why))
        self.views.update(zip(op.results, job.results, strict=True))

    def place(self, op: Op, value: Value, chosen: Family) -> View:
        """A buffer for a result; laid out as the only user, a transpose, wants it where the family can."""
        users = value.users
        if chosen.places and len(users) == 1 and users[0].name == "transpose":
            perm = users[0].attrs["perm"]
            if perm and perm[-1] == len(perm) - 1:
                moved = users[0].result.type
                inverse = tuple(int(axis) for axis in np.argsort(perm))
                return View.whole(self.buffer(ARENA, moved), moved).transpose(inverse)
        return View.whole(self.buffer(ARENA, value.type), value.type)

    def argument(self, job: Job, item: int | tuple[str, int] | np.ndarray) -> View:
        if isinstance(item, np.ndarray):
            type = TensorType.of(item)
            return View.whole(self.buffer(WEIGHT, type, np.ascontiguousarray(item)), type)
        return job.results[item[1]] if isinstance(item, tuple) else job.views[item]

    def step(self, step: Step) -> None:
        number = len(self.program.steps)
        self.program.steps.append(step)
        for view in step.args:
            if view.buffer.first < 0:
                view.buffer.first = number
            view.buffer.last = number

    def contiguous(self, view: View) -> View:
        """The view itself, or a copy of it in a buffer of its own."""
        if view.contiguous:
            return view
        if view not in self.copies:
            type = TensorType(view.dtype, view.shape)
            into = View.whole(self.buffer(ARENA, type), type)
            self.copy(view, into)
            self.copies[view] = into
        return self.copies[view]

    def copy(self, source: View, into: View, op: Op | None = None) -> None:
        from secateur.backends.cpu.kernels.pointwise import copy_kernel

        kernel = copy_kernel(source, into, self.target.lanes)
        cycles = 200.0 + 2 * into.dtype.bytes * float(np.prod(into.shape)) / 8
        self.step(Step(kernel, [source, into], "copy", op, cycles))

    def concat(self, op: Op) -> None:
        """Each part is copied to its place in the result."""
        whole = View.whole(self.buffer(ARENA, op.result.type), op.result.type)
        axis, start = op.attrs["axis"], 0
        for value in op.operands:
            size = value.shape[axis]
            starts = tuple(start if i == axis else 0 for i in range(value.type.rank))
            stops = tuple(start + size if i == axis else n for i, n in enumerate(op.result.shape))
            if value.type.numel:
                self.copy(self.view(value), whole.slice(starts, stops, (1,) * value.type.rank), op)
            start += size
        self.views[op.result] = whole

    def pad(self, op: Op) -> None:
        """Fill, then copy the operand to its place between the padding."""
        from secateur.backends.cpu.kernels.pointwise import copy_kernel

        (value,), attrs = op.operands, op.attrs
        whole = View.whole(self.buffer(ARENA, op.result.type), op.result.type)
        array = np.full((), attrs["value"], dtype=op.result.type.dtype.numpy)
        filler = View.whole(self.buffer(WEIGHT, TensorType.of(array), array), TensorType.of(array))
        fill = copy_kernel(filler, whole, self.target.lanes)
        self.step(Step(fill, [filler, whole], "fill", op, 200.0 + op.result.type.bytes / 16))
        steps = tuple(gap + 1 for gap in attrs["interior"])
        stops = tuple(a + (n - 1) * s + 1 for a, n, s in zip(attrs["low"], value.shape, steps, strict=True))
        if value.type.numel:
            self.copy(self.view(value), whole.slice(attrs["low"], stops, steps), op)
        self.views[op.result] = whole

    def outputs(self) -> None:
        """Let the last writer of each output write to the caller's memory; copy where that cannot be."""
        for index, value in enumerate(self.graph.outputs):
            view = self.view(value)
            whole = view.contiguous and view.offset == 0 and view.buffer.bytes == value.type.bytes
            if view.buffer.kind == ARENA and whole and view.buffer.first >= 0:
                view.buffer.kind, view.buffer.index = OUTPUT, index
                continue
            buffer = self.buffer(OUTPUT, value.type)
            buffer.index = index
            if value.type.numel:
                self.copy(view, View.whole(buffer, value.type))
