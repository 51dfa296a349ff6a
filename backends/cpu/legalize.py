"""Makes a graph one that the kernels can run: splits fusions no kernel takes, decomposes the rest."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.backends.cpu.adapt import adapt, needs_no_kernel
from secateur.backends.cpu.kernel import Job
from secateur.backends.cpu.lower import choose, is_free
from secateur.backends.cpu.target import Target
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op, Value, copy_ops
from secateur.ir.opdef import lookup
from secateur.ir.rewrite import erase_dead


def legalize(graph: Graph, target: Target) -> None:
    """Rewrite in place until every operation has a kernel.

    Raises:
        CompileError: lists every kind of operation that has none.
    """
    lacking: dict[str, str] = {}
    worklist = list(graph.ops)
    while worklist:
        op = worklist.pop()
        if op.graph is not graph or is_free(op) or needs_no_kernel(op):
            continue
        chosen, why = choose(Job(op, target))
        if chosen is not None:
            continue
        if op.name == "fusion":
            worklist += split(graph, op, target)
            continue
        simpler = rebuild(graph, op)
        if simpler is None:
            lacking[op.name] = why
        else:
            worklist += simpler
    if lacking:
        shown = "\n".join(f"  {name}: {why}" for name, why in sorted(lacking.items()))
        raise CompileError(f"the CPU backend has no kernel for:\n{shown}")


def rebuild(graph: Graph, op: Op) -> list[Op] | None:
    """Replace an operation by another form or by its definition; returns the new operations, or None."""
    previous = op.prev
    b = Builder(graph, op, op.span)
    definition = lookup(op.name).decompose
    values: Sequence[Value] | None = adapt(b, op)
    if values is None and definition is not None:
        values = definition(b, op)
    if values is None:
        return None
    new, at = [], op.prev
    while at is not None and at is not previous:
        new.append(at)
        at = at.prev
    operands = [value.op for value in op.operands if value.op]
    graph.replace(op, values)
    erase_dead(graph, [*operands, *new])
    return new


def split(graph: Graph, op: Op, target: Target) -> list[Op]:
    """Split a fusion behind the longest part that some kernel takes; the rest becomes another one."""
    inner = list(op.attrs["body"].ops)
    for cut in range(len(inner) - 1, 0, -1):
        parts = _cut(op, inner[:cut], inner[cut:])
        if parts is None or choose(Job(parts[0], target))[0] is None:
            continue
        return _place(graph, op, *parts)
    return _unpack(graph, op)


def _cut(op: Op, head: list[Op], tail: list[Op]) -> tuple[Op, Op] | None:
    """Two fusions joined by one value, not yet in a graph; None where more than one value would cross."""
    body: Graph = op.attrs["body"]
    inside = {value for o in head for value in o.results}
    needed = [*(v for o in tail for v in o.operands), *body.outputs]
    crossing = list(dict.fromkeys(v for v in needed if v in inside and v.op and v.op.name != "constant"))
    if len(crossing) != 1 or all(o.name == "constant" for o in tail):
        return None
    outer = dict(zip(body.inputs, op.operands, strict=True))
    scalars = [o for o in head if o.name == "constant"]
    first = _fusion(op, head, crossing, outer)
    second = _fusion(op, [*scalars, *tail], list(body.outputs), {**outer, crossing[0]: first.results[0]})
    return first, second


def _fusion(op: Op, ops: list[Op], outputs: list[Value], outer: dict[Value, Value]) -> Op:
    inside = {value for o in ops for value in o.results}
    used = dict.fromkeys(v for o in ops for v in o.operands if v not in inside)
    body = Graph(op.attrs["body"].name, [v.type for v in used])
    mapping: dict[Value, Value] = dict(zip(used, body.inputs, strict=True))
    copy_ops(ops, body, mapping)
    body.outputs = [mapping[v] for v in outputs]
    erase_dead(body, list(body.ops))
    kind = next((o.name for o in body.ops if not lookup(o.name).elementwise and o.name != "constant"), "pointwise")
    return Op("fusion", [outer[v] for v in used], {"body": body, "kind": kind}, [v.type for v in outputs], op.span)


def _place(graph: Graph, op: Op, first: Op, second: Op) -> list[Op]:
    graph.insert(first, op)
    graph.insert(second, op)
    graph.replace(op, second.results)
    return [first, second]


def _unpack(graph: Graph, op: Op) -> list[Op]:
    """Replace a fusion by the operations of its body."""
    body: Graph = op.attrs["body"]
    mapping = dict(zip(body.inputs, op.operands, strict=True))
    previous = op.prev
    copy_ops(body.ops, graph, mapping, before=op)
    graph.replace(op, [mapping[value] for value in body.outputs])
    at = previous.next if previous else next(graph.ops)
    new: list[Op] = []
    while at is not None and len(new) < len(body):
        new.append(at)
        at = at.next
    return new
