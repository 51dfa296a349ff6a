"""Checks that a graph is well formed: SSA, dominance, schemas, and types by running inference again."""

from __future__ import annotations

from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op, Value, bodies
from secateur.ir.opdef import lookup


def verify(graph: Graph) -> None:
    """Raises `CompileError` at the first operation that is not well formed."""
    defined: set[Value] = set(graph.inputs)
    for op in graph.ops:
        _check_operands(graph, op, defined)
        opdef = lookup(op.name, op.span)
        attrs = opdef.complete(op.attrs, op.span)
        if attrs.keys() != op.attrs.keys():
            missing = ", ".join(sorted(attrs.keys() - op.attrs.keys()))
            raise CompileError(f"{op.name} lacks attributes: {missing}", span=op.span)
        expected = opdef.result_types([value.type for value in op.operands], attrs, op.span)
        actual = tuple(value.type for value in op.results)
        if expected != actual:
            shown, wanted = (", ".join(map(str, types)) for types in (actual, expected))
            raise CompileError(f"{op.name} has result type {shown}, inference says {wanted}", span=op.span)
        for body in bodies(op):
            verify(body)
        defined.update(op.results)
    _check_operands(graph, graph.terminator, defined)


def _check_operands(graph: Graph, op: Op, defined: set[Value]) -> None:
    for position, value in enumerate(op.operands):
        if value not in defined:
            raise CompileError(
                f"operand {position} of {op.name} is used before it is defined in graph @{graph.name}", span=op.span
            )
        if (op, position) not in value.uses:
            raise CompileError(f"operand {position} of {op.name} does not know this use", span=op.span)
