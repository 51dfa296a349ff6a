"""Graphs as torch.fx modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.backends.torch.lower import executor, run, to_module, to_numpy, to_torch
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op
from secateur.ir.interpret import interpret
from secateur.ir.types import ALL, DType


def mlp() -> Graph:
    rng = np.random.default_rng()
    b = Builder.graph("mlp", x="f32[3,8]")
    weight = b.constant(rng.standard_normal((4, 8)).astype(np.float32), name="fc.weight")
    inner = Builder.graph("body", h=b.linear(b["x"], weight).type)
    body = inner.returns(inner.silu(inner.square(inner["h"])))
    hidden = b.fusion(b.linear(b["x"], weight), body=body)
    values, indices = b.topk(hidden, k=2, axis=1)
    return b.returns(b.cast(values, dtype=DType.F64), indices)


def test_module_computes_the_graph() -> None:
    graph = mlp()
    x = np.random.default_rng().standard_normal((3, 8)).astype(np.float32)
    for actual, expected in zip(run(graph, to_torch(x)), interpret(graph, x), strict=True):
        np.testing.assert_allclose(to_numpy(actual), expected, rtol=1e-5, atol=1e-6)


def test_executor_runs_on_arrays() -> None:
    """Results are the caller's: a later run leaves them alone."""
    graph = mlp()
    run = executor(graph)
    a, b = (np.random.default_rng().standard_normal((3, 8)).astype(np.float32) for _ in range(2))
    first = run(a)
    kept = [array.copy() for array in first]
    run(b)
    for actual, wanted, expected in zip(first, kept, interpret(graph, a), strict=True):
        np.testing.assert_array_equal(actual, wanted)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_named_floats_are_parameters_that_can_learn() -> None:
    module = to_module(mlp())
    assert [name for name, _ in module.named_parameters()] == ["w_fc_weight"]
    parameter = module.get_parameter("w_fc_weight").requires_grad_()
    module(torch.randn(3, 8))[0].sum().backward()
    assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_generated_code_names_the_ops() -> None:
    module = to_module(mlp())
    targets = [node.target.__name__ for node in module.graph.nodes if node.op == "call_function"]
    assert [name for name in targets if name != "getitem"] == ["linear", "linear", "square", "silu", "topk", "cast"]


@pytest.mark.parametrize("dtype", ALL)
def test_arrays_travel_both_ways(dtype: DType) -> None:
    for array in (np.arange(6).reshape(2, 3).astype(dtype.numpy), np.zeros((), dtype.numpy)):
        back = to_numpy(to_torch(np.broadcast_to(array, array.shape)))
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back, array)


def test_an_op_without_a_function_is_refused() -> None:
    graph = Graph("f")
    graph.insert(Op("mystery", (), {}, ()))
    with pytest.raises(CompileError, match="op 'mystery' has no torch function"):
        to_module(graph)
