"""The verifier finds what no builder would make."""

from __future__ import annotations

import pytest

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op
from secateur.ir.text import parse
from secateur.ir.types import TensorType
from secateur.ir.verify import verify

F32_2 = TensorType.parse("f32[2]")


def two_ops() -> Graph:
    return parse("graph @f(%x: f32[2]) -> (f32[2]) { %a = relu(%x) : f32[2] %b = neg(%a) : f32[2] return %b }")


def refused(graph: Graph) -> str:
    with pytest.raises(CompileError) as caught:
        verify(graph)
    return caught.value.message


def test_well_formed() -> None:
    verify(two_ops())


def test_use_before_definition() -> None:
    graph = two_ops()
    first, second = graph.ops
    graph.move(second, first)
    assert refused(graph) == "operand 0 of neg is used before it is defined in graph @f"


def test_value_of_another_graph() -> None:
    graph, other = two_ops(), two_ops()
    graph.outputs = other.outputs
    assert refused(graph) == "operand 0 of return is used before it is defined in graph @f"


def test_forgotten_use() -> None:
    graph = two_ops()
    graph.inputs[0].uses.clear()
    assert refused(graph) == "operand 0 of relu does not know this use"


def test_type_is_inferred_again() -> None:
    graph = two_ops()
    next(graph.ops).results[0].type = TensorType.parse("f32[3]")
    assert refused(graph) == "relu has result type f32[3], inference says f32[2]"


def test_unknown_op_and_attributes() -> None:
    graph = Graph("f", [F32_2])
    graph.outputs = graph.insert(Op("conv9", graph.inputs, {}, [F32_2])).results
    assert refused(graph) == "unknown op 'conv9'"
    graph = Graph("f", [F32_2])
    graph.outputs = graph.insert(Op("relu", graph.inputs, {"slope": 1.0}, [F32_2])).results
    assert refused(graph) == "relu has no attribute 'slope'"
    graph = Graph("f", [F32_2])
    graph.outputs = graph.insert(Op("leaky_relu", graph.inputs, {}, [F32_2])).results
    assert refused(graph) == "leaky_relu lacks attributes: slope"


def test_bodies_are_checked() -> None:
    inner = Builder.graph("body", x=F32_2)
    body = inner.returns(inner.relu(inner["x"]))
    b = Builder.graph("f", x=F32_2)
    graph = b.returns(b.fusion(b["x"], body=body, kind="pointwise"))
    verify(graph)
    next(body.ops).attrs["extra"] = 1
    assert refused(graph) == "relu has no attribute 'extra'"
