"""A graph as a flat list of what is drawn: operations, also inside fusions, with the values they read and write."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from secateur.ir.graph import Graph, Op, Value, bodies
from secateur.tools.viewer.records import Records


@dataclass(frozen=True)
class Frame:
    """A box an item lies in: a module of the source model (`key` is its path) or a fusion, which has a record."""

    kind: str
    key: str
    label: str
    record: int = -1


@dataclass(eq=False)
class Item:
    """One thing that is drawn.

    Attributes:
        record: number of its record.
        frames: the boxes around it, from the outside in.
        reads: keys of the values it reads; what is constant is left out.
        writes: keys of the values it makes.
        identity: what makes it the same operation in another graph: name, attributes, types, constants.
        place: where it comes from in the source model.
        unit: items of one unit, the body of a fusion, stay together.
    """

    record: int
    frames: tuple[Frame, ...]
    reads: tuple[Hashable, ...]
    writes: tuple[Hashable, ...]
    identity: Hashable = None
    place: Hashable = None
    unit: Hashable = None


def modules(path: str) -> tuple[Frame, ...]:
    """The boxes of a module path: `a.b` lies in `a`, which holds `a.b`. ONNX separates by slashes."""
    separator = "/" if "/" in path else "."
    names = [name for name in path.split(separator) if name]
    return tuple(Frame("module", separator.join(names[: i + 1]), name) for i, name in enumerate(names))


def flatten(graph: Graph, records: Records) -> list[Item]:
    """The items of a graph in program order: inputs, operations, outputs."""
    return _Flattening(records).whole(graph)


@dataclass
class _Flattening:
    """`origin` leads from the parameters and results of a fusion to the values they stand for."""

    records: Records
    items: list[Item] = field(default_factory=list)
    origin: dict[Value, Value] = field(default_factory=dict)

    def find(self, value: Value) -> Value:
        while value in self.origin:
            value = self.origin[value]
        return value

    def constant(self, value: Value) -> Op | None:
        op = self.find(value).op
        return op if op and op.name == "constant" else None

    def reads(self, values: Sequence[Value]) -> tuple[Value, ...]:
        return tuple(self.find(value) for value in values if not self.constant(value))

    def whole(self, graph: Graph) -> list[Item]:
        for index, value in enumerate(graph.inputs):
            self.border("input", value.hint or f"input {index}", value, index)
        self.body(graph, (), None)
        for index, value in enumerate(graph.outputs):
            label = "result" if len(graph.outputs) == 1 else f"result {index}"
            self.border("output", label, value, index)
        return self.items

    def border(self, kind: str, label: str, value: Value, index: int) -> None:
        """An input, or an output: which may be a constant, and then has no line to it."""
        record: dict[str, object] = {"name": label, "family": kind, "types": [str(value.type)]}
        constant = self.constant(value)
        if constant and kind == "output":
            record["constants"] = [("value", self.records.constant(constant))]
        reads = self.reads([value]) if kind == "output" else ()
        writes = (value,) if kind == "input" else ()
        identity = (kind, index)
        self.items.append(Item(self.records.add(record), (), reads, writes, identity, identity, (kind, index)))

    def body(self, graph: Graph, frames: tuple[Frame, ...], unit: Op | None) -> None:
        for op in graph.ops:
            if op.name == "constant":
                continue
            inner = bodies(op)
            if inner:
                self.fusion(op, inner[0], frames, unit or op)
            else:
                around = frames or modules(op.span.module if op.span else "")
                self.items.append(self.operation(op, around, unit or op))

    def fusion(self, op: Op, inner: Graph, frames: tuple[Frame, ...], unit: Op) -> None:
        record = self.records.op(op, [self.constant(value) for value in op.operands])
        label = " + ".join(_names(inner))
        self.origin.update(zip(inner.inputs, op.operands, strict=True))
        around = frames or _common([modules(o.span.module) for o in inner.walk() if o.span and o.name != "constant"])
        key = f"{around[-1].key if around else ''}#{op.attrs.get('kind', '')}:{_first_place(inner)}"
        self.body(inner, (*around, Frame("fusion", key, label, record)), unit)
        self.origin.update(zip(op.results, inner.outputs, strict=True))

    def operation(self, op: Op, frames: tuple[Frame, ...], unit: Op) -> Item:
        constants = [self.constant(value) for value in op.operands]
        attrs = tuple((key, str(value)) for key, value in sorted(op.attrs.items()))
        types = tuple(str(value.type) for value in (*op.operands, *op.results))
        held = tuple(self.records.digest(item) for item in constants if item)
        place = (op.span.module, op.span.file, op.span.line) if op.span else ("", "", 0)
        return Item(
            self.records.op(op, constants),
            frames,
            self.reads(op.operands),
            tuple(op.results),
            (op.name, attrs, types, held),
            (op.name, *place),
            unit,
        )


def _names(graph: Graph) -> list[str]:
    return [op.name for op in graph.ops if op.name != "constant"]


def _first_place(graph: Graph) -> str:
    return next((str(op.span) for op in graph.walk() if op.span and op.name != "constant"), "")


def _common(paths: Sequence[tuple[Frame, ...]]) -> tuple[Frame, ...]:
    """The longest common beginning."""
    shared: list[Frame] = []
    for level in zip(*paths):
        if any(frame != level[0] for frame in level):
            break
        shared.append(level[0])
    return tuple(shared)
