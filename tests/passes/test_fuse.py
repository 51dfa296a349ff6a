"""Legality of boxes: convexity, and where a box may stand."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.builder import Builder
from secateur.ir.draw import Draw
from secateur.ir.graph import Graph, Op
from secateur.ir.interpret import interpret
from secateur.ir.opdef import lookup
from secateur.ir.text import parse
from secateur.ir.types import DType
from secateur.ir.verify import verify
from secateur.passes.fuse import CONTRACTIONS, Fuse, box, is_convex


def diamond() -> tuple[Graph, dict[str, Op]]:
    """exp feeds sin and cos, add joins them: exp with add but without a side is not convex."""
    graph = parse("""graph @m(%x: f32[4]) -> (f32[4]) {
      %a = exp(%x) : f32[4]
      %b = sin(%a) : f32[4]
      %c = reduce_sum(%b) {axes = [0], keepdims = true} : f32[1]
      %d = cos(%a) : f32[4]
      %e = add(%d, %c) : f32[4]
      return %e
    }""")
    return graph, {op.result.hint: op for op in graph.ops}


@pytest.mark.parametrize(
    ("names", "convex"), [("ade", False), ("de", True), ("ab", True), ("abd", True), ("abcde", True), ("ae", False)]
)
def test_convexity(names: str, convex: bool) -> None:
    graph, ops = diamond()
    group = [ops[name] for name in names]
    assert is_convex(group) == convex
    if not convex:
        with pytest.raises(ValueError, match="cannot become one"):
            box(graph, group, "pointwise")
    verify(graph)


def test_fuse_keeps_the_diamond_acyclic() -> None:
    graph, _ = diamond()
    x = np.linspace(-1, 1, 4, dtype=np.float32)
    before = interpret(graph, x)
    Fuse(prologues=()).run(graph)
    verify(graph)
    assert [op.attrs.get("kind", op.name) for op in graph.ops] == ["exp", "sin", "reduce_sum", "pointwise"]
    np.testing.assert_array_equal(interpret(graph, x)[0], before[0])


def test_a_box_with_two_results() -> None:
    graph, ops = diamond()
    fusion = box(graph, [ops["a"], ops["b"]], "pointwise")
    verify(graph)
    assert [value.hint for value in fusion.results] == ["a", "b"]


def test_a_value_needed_before_the_last_operation_is_refused() -> None:
    graph, ops = diamond()
    with pytest.raises(ValueError, match="cannot become one"):
        box(graph, [ops["b"], ops["d"]], "pointwise")  # %c between them needs %b
    verify(graph)


def random_graph(draw: Draw, count: int) -> Graph:
    """Elementwise operations, products, reductions and norms over random earlier values."""
    b = Builder.graph("random", x="f32[4,4]", y="f32[4,4]")
    values = [b["x"], b["y"]]
    w = b.constant(draw.tensor(DType.F32, (4, 4), -0.5, 0.5))
    for _ in range(count):
        x, y = draw.choice(values), draw.choice(values[-4:])
        kind = draw.choice(["add", "mul", "tanh", "sigmoid", "linear", "reduce_max", "softmax", "matmul", "half"])
        if kind in ("add", "mul", "matmul"):
            value = b.op(kind, [b.tanh(x) if kind == "mul" else x, y], {}).result
        elif kind == "linear":
            value = b.linear(x, w)
        elif kind == "half":
            value = b.mul(y, b.constant(0.5))
        elif kind == "reduce_max":
            value = b.add(b.reduce_max(x, axes=(1,), keepdims=True), y)
        else:
            value = b.softmax(y, axis=1) if kind == "softmax" else b.op(kind, [y], {}).result
        values.append(b.tanh(value) if kind == "matmul" else value)
    return b.returns(values[-1], draw.choice(values))


@pytest.mark.parametrize("trial", range(25))
def test_random_graphs_stay_legal_and_equal(trial: int) -> None:
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    draw = Draw(seed, specials=False)
    graph = random_graph(draw, draw.int(2, 40))
    inputs = [draw.tensor(DType.F32, (4, 4)) for _ in graph.inputs]
    before = interpret(graph, *inputs)
    Fuse().run(graph)
    verify(graph)
    for want, got in zip(before, interpret(graph, *inputs), strict=True):
        np.testing.assert_array_equal(got, want)
    for op in graph.find("fusion"):
        assert_contract(op)


def assert_contract(fusion: Op) -> None:
    """What backends rely on: one anchor, elementwise around it, one result of its shape."""
    body, kind = fusion.attrs["body"], fusion.attrs["kind"]
    ops = [op for op in body.ops if op.name != "constant"]
    anchors = [op for op in ops if not lookup(op.name).elementwise]
    assert len(fusion.results) == 1
    assert [op.name for op in anchors] == ([] if kind == "pointwise" else [kind])
    if not anchors:
        assert {op.result.shape for op in ops} == {fusion.result.shape}
        return
    at = ops.index(anchors[0])
    assert at == 0 or kind not in CONTRACTIONS
    assert all(op.result.shape == anchors[0].operands[0].shape for op in ops[:at])
    assert all(op.result.shape == anchors[0].result.shape for op in ops[at:])
    assert all(op.result.type.numel == 1 for op in body.find("constant"))
