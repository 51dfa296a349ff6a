"""Symbolically traced modules: every kind of node, with names and module paths kept."""

import numpy as np
import pytest
import torch

from secateur.frontends.open import import_model
from secateur.frontends.torch_fx import import_fx
from secateur.ir.diagnostics import CompileError
from secateur.ir.interpret import interpret


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(5, 4)
        self.shift = torch.nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.linear(x)) + self.shift


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop(self.inner(x)).view(-1, 2).unsqueeze(0)
        return y.mul_(2) - torch.nn.functional.gelu(y)


def test_traced_module() -> None:
    traced = torch.fx.symbolic_trace(Net())
    kinds = {node.op for node in traced.graph.nodes}
    assert kinds >= {"call_module", "call_function", "call_method", "get_attr"}
    x = torch.randn(3, 5)
    graph = import_fx(traced, (x,))
    with torch.no_grad():
        want = traced.eval()(x).numpy()
    np.testing.assert_allclose(interpret(graph, x.numpy())[0], want, rtol=1e-5, atol=1e-6)


def test_names_and_module_paths_survive() -> None:
    graph = import_model(torch.fx.symbolic_trace(Net()), torch.randn(3, 5))
    names = {op.attrs["name"] for op in graph.find("constant")}
    assert {"inner.linear.weight", "inner.linear.bias", "inner.shift"} <= names
    modules = {op.name: op.span.module for op in graph.ops if op.span}
    assert modules["linear"] == "inner.linear"
    assert modules["sin"] == "inner"


def test_recorded_lines_survive() -> None:
    tracer = torch.fx.Tracer()
    tracer.record_stack_traces = True
    net = Net()
    graph = import_fx(torch.fx.GraphModule(net, tracer.trace(net)), torch.randn(3, 5))
    (sine,) = graph.find("sin")
    assert sine.span is not None
    assert sine.span.file.endswith("test_torch_fx.py")


def test_an_edited_graph() -> None:
    traced = torch.fx.symbolic_trace(Inner())
    for node in traced.graph.nodes:
        if node.target is torch.sin:
            node.target = torch.cos
    traced.recompile()
    graph = import_fx(traced, torch.randn(3, 5))
    assert graph.find("cos") and not graph.find("sin")


def test_unsupported_operations_are_listed() -> None:
    class Hard(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.inv(x)

    with pytest.raises(CompileError, match=r"1 unsupported operation:\n  aten\.linalg_inv_ex"):
        import_fx(torch.fx.symbolic_trace(Hard()), torch.randn(3, 3))


def test_shapes_are_needed() -> None:
    with pytest.raises(CompileError, match="example_inputs"):
        import_model(torch.fx.symbolic_trace(Net()))
