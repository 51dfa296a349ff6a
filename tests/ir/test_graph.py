"""The linked list of operations, uses, and copies."""

from __future__ import annotations

import pytest

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.text import parse
from secateur.ir.verify import verify


def chain() -> Graph:
    return parse(
        """graph @chain(%x: f32[2]) -> (f32[2]) {
             %a = relu(%x) : f32[2]
             %b = neg(%a) : f32[2]
             %c = add(%b, %b) : f32[2]
             return %c
           }"""
    )


def names(graph: Graph) -> list[str]:
    return [op.name for op in graph.ops]


def backwards(graph: Graph) -> list[str]:
    found, op = [], graph.terminator.prev
    while op:
        found.append(op.name)
        op = op.prev
    return found[::-1]


def test_order_both_ways() -> None:
    graph = chain()
    assert names(graph) == backwards(graph) == ["relu", "neg", "add"]
    assert len(graph) == 3 and len(Graph()) == 0


def test_insert_move_erase_keep_links() -> None:
    graph = chain()
    relu, neg, _ = graph.ops
    b = Builder(graph, neg)
    extra = b.exp(relu.result).op
    assert names(graph) == backwards(graph) == ["relu", "exp", "neg", "add"]
    graph.move(extra, graph.terminator)
    assert names(graph) == backwards(graph) == ["relu", "neg", "add", "exp"]
    graph.erase(extra)
    assert names(graph) == backwards(graph) == ["relu", "neg", "add"]
    assert extra.graph is None
    verify(graph)


def test_erase_refuses_what_is_used() -> None:
    graph = chain()
    with pytest.raises(ValueError, match="still has uses"):
        graph.erase(next(graph.ops))


def test_uses_count_every_operand() -> None:
    graph = chain()
    relu, neg, add = graph.ops
    assert list(neg.result.uses) == [(add, 0), (add, 1)]
    assert neg.result.users == [add]
    assert add.result.users == [graph.terminator]
    add.set_operand(1, relu.result)
    assert list(neg.result.uses) == [(add, 0)]
    assert (add, 1) in relu.result.uses


def test_replace_moves_uses_and_hint() -> None:
    graph = chain()
    _, neg, add = graph.ops
    new = Builder(graph, neg).abs(graph.inputs[0])
    graph.replace(neg, [new])
    assert add.operands == (new, new) and new.hint == "b"
    assert names(graph) == ["relu", "abs", "add"]
    verify(graph)


def test_outputs_are_uses() -> None:
    graph = chain()
    graph.outputs = [graph.inputs[0], graph.inputs[0]]
    *_, add = graph.ops
    assert not add.result.uses
    assert [position for _, position in graph.inputs[0].uses] == [0, 0, 1]


def test_iterating_while_erasing_and_inserting() -> None:
    graph = chain()
    graph.outputs = graph.inputs
    seen = []
    for op in graph.ops:
        seen.append(op.name)
        if op.name == "relu":
            Builder(graph, op.next).exp(op.result)
        if op.name == "exp":
            graph.erase(op)
    assert seen == ["relu", "exp", "neg", "add"]
    assert names(graph) == ["relu", "neg", "add"]


def test_clone_is_deep_but_shares_arrays() -> None:
    b = Builder.graph("f", x="f32[2]")
    inner = Builder.graph("body", x="f32[2]")
    body = inner.returns(inner.relu(inner["x"]))
    weight = b.constant([1.0, 2.0])
    graph = b.returns(b.fusion(b.mul(b["x"], weight), body=body))
    copy = graph.clone()
    assert str(copy) == str(graph)
    verify(copy)
    copied = copy.find("constant")[0]
    assert weight.op and copied.attrs["value"] is weight.op.attrs["value"]
    assert copy.find("fusion")[0].attrs["body"] is not body
    for op in reversed([*copy.ops]):
        copy.outputs = copy.inputs
        copy.erase(op)
    assert names(graph) == ["constant", "mul", "fusion"]


def test_take_restores_in_place() -> None:
    graph = chain()
    saved = graph.clone()
    text = str(graph)
    graph.outputs = graph.inputs
    graph.take(saved)
    assert str(graph) == text
    assert all(op.graph is graph for op in graph.ops)
    verify(graph)


def test_walk_enters_bodies() -> None:
    inner = Builder.graph("body", x="f32[2]")
    body = inner.returns(inner.relu(inner["x"]))
    b = Builder.graph("f", x="f32[2]")
    graph = b.returns(b.fusion(b["x"], body=body))
    assert [op.name for op in graph.walk()] == ["fusion", "relu"]
