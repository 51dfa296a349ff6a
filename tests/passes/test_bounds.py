"""Bounds: the size that folding may add, the work that passes do, the patterns they match."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.rewrite import apply_rules, is_number, match, pattern
from secateur.ir.types import DType
from secateur.passes.canonicalize import RULES, Canonicalize
from secateur.passes.fold import Fold
from secateur.passes.fuse import Fuse
from secateur.passes.layout import Layout


def constant_bytes(graph: Graph) -> int:
    return sum(op.result.type.bytes for op in graph.find("constant"))


@pytest.mark.parametrize("limit", [0, 5_000, 70_000, 1 << 20])
def test_folding_grows_the_program_by_no_more_than_the_limit(limit: int) -> None:
    b = Builder.graph("m", x="f32[64,64]")
    values = []
    for _ in range(6):
        column, row = (np.random.default_rng().standard_normal(s).astype(np.float32) for s in ((64, 1), (1, 64)))
        values.append(b.add(b["x"], b.exp(b.mul(b.constant(column), b.constant(row)))))
    graph = b.returns(*values)
    before = constant_bytes(graph)
    Fold(limit=limit).run(graph)
    assert constant_bytes(graph) <= before + limit
    assert len(graph.find("exp")) == max(6 - limit // (64 * 64 * 4 - 2 * 64 * 4), 0)


def test_folding_a_weight_in_place_is_free() -> None:
    b = Builder.graph("m", x="f32[4,512]")
    w = b.transpose(b.constant(np.zeros((512, 512), np.float32), name="w"), perm=(1, 0))
    graph = b.returns(b.linear(b["x"], w))
    Fold(limit=0).run(graph)
    assert [op.name for op in graph.ops] == ["constant", "linear"]
    assert next(graph.ops).attrs["name"] == "w"


def test_a_weight_used_twice_is_not_free_to_fold() -> None:
    b = Builder.graph("m", x="f32[4,512]")
    w = b.constant(np.zeros((512, 512), np.float32), name="w")
    graph = b.returns(b.linear(b["x"], b.transpose(w, perm=(1, 0))), b.linear(b["x"], w))
    Fold(limit=1 << 19).run(graph)
    assert len(graph.find("transpose")) == 1


def tower(blocks: int) -> Graph:
    """Residual blocks: convolution, bias, activation by pieces, addition."""
    b = Builder.graph("tower", x="f32[1,2,4,4]")
    w = b.constant(np.ones((2, 2, 3, 3), np.float32))
    value = b["x"]
    for _ in range(blocks):
        y = b.conv(value, w, stride=(1, 1), padding=(1, 1, 1, 1), dilation=(1, 1))
        y = b.add(y, b.constant(np.ones((2, 1, 1), np.float32)))
        y = b.mul(y, b.sigmoid(y))
        value = b.add(value, b.reshape(b.reshape(y, shape=(2, 16)), shape=(1, 2, 4, 4)))
    return b.returns(value)


@pytest.mark.parametrize("run", [Canonicalize().run, Layout().run], ids=["canonicalize", "layout"])
def test_rewriting_visits_a_constant_number_of_operations_for_each(run) -> None:
    visits = {}
    for blocks in (20, 200):
        graph = tower(blocks)
        visits[blocks] = run(graph).visits / blocks
    assert visits[200] < 1.2 * visits[20]


def test_one_value_with_many_users_is_not_visited_for_each_of_them() -> None:
    b = Builder.graph("wide", x="f32[4]")
    shared = b.neg(b.neg(b["x"]))
    graph = b.returns(*(b.add(b.exp(shared), b.constant(float(i))) for i in range(300)))
    stats = apply_rules(graph, RULES)
    assert stats.visits < 8 * 300


def test_fusion_looks_at_each_operation_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.passes import fuse

    counts = {}
    for blocks in (20, 200):
        graph = tower(blocks)
        calls = [0]

        def counted(op, calls=calls, real=fuse.lookup):
            calls[0] += 1
            return real(op)

        with monkeypatch.context() as patch:
            patch.setattr(fuse, "lookup", counted)
            Fuse().run(graph)
        counts[blocks] = calls[0] / blocks
    assert counts[200] < 1.2 * counts[20]


def test_patterns_backtrack_over_operand_orders() -> None:
    b = Builder.graph("m", x="f32[2]", y="f32[2]")
    value = b.sub(b.mul(b["x"], b["y"]), b.exp(b["y"]))
    found = match(pattern("sub(mul(a, b), exp(a))"), value.op)
    assert found is not None and found["a"] is b["y"] and found["b"] is b["x"]


@pytest.mark.parametrize(
    ("value", "dtype", "number", "wanted"),
    [
        (1.0, DType.F32, 1, True),
        (1.0000001, DType.F32, 1, False),
        (0.7071068, DType.F32, 0.7071067811865476, True),
        (0.70711, DType.F32, 0.7071067811865476, False),
        (0.707, DType.F16, 0.7071067811865476, True),
        (float("nan"), DType.F32, 0, False),
        (3, DType.I64, 3, True),
        (3, DType.I64, 3.5, False),
        (True, DType.BOOL, True, True),
        (True, DType.BOOL, 1, False),
        (1, DType.I64, True, False),
    ],
)
def test_numbers_in_patterns(value: float, dtype: DType, number: float, wanted: bool) -> None:
    b = Builder.graph("m")
    for shape in ((), (3, 2)):
        assert is_number(b.constant(np.full(shape, value), dtype), number) == wanted
