"""Programs that were once compiled wrongly, as text: the interpreter and native code agree on them."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.backends.cpu.compile import Options, compile_graph
from secateur.backends.cpu.kernel import draw
from secateur.ir.interpret import interpret
from secateur.ir.text import parse

SEED = int(np.random.default_rng().integers(1 << 30))
W = "%w = constant {value = [2,0.5,0.5,0.5,2,0.5,0.5,0.5,2]} : f32[3,3]"

CASES = {
    "a linear layer's strided operand is its residual too": f"""
        graph @main(%x: f32[3,5]) -> (f32[5,3]) {{
          {W}
          %0 = transpose(%x) {{perm = [1,0]}} : f32[5,3]
          %1 = linear(%0, %w) : f32[5,3]
          %2 = add(%1, %0) : f32[5,3]
          return %2
        }}""",
    "a product's strided right side is its residual too": """
        graph @main(%x: f32[5,5], %y: f32[5,10]) -> (f32[5,5]) {
          %0 = slice(%y) {starts = [0,0], stops = [5,10], steps = [1,2]} : f32[5,5]
          %1 = matmul(%x, %0) : f32[5,5]
          %2 = add(%1, %0) : f32[5,5]
          return %2
        }""",
    "the bias is an operand of the epilogue too": f"""
        graph @main(%x: f32[5,3]) -> (f32[5,3]) {{
          {W}
          %b = constant {{value = [1,-2,3]}} : f32[3]
          %0 = linear(%x, %w, %b) : f32[5,3]
          %1 = tanh(%0) : f32[5,3]
          %2 = mul(%1, %b) : f32[5,3]
          return %2
        }}""",
    "the weights are an operand of the epilogue too": f"""
        graph @main(%x: f32[3,3]) -> (f32[3,3]) {{
          {W}
          %0 = linear(%x, %w) : f32[3,3]
          %1 = tanh(%0) : f32[3,3]
          %2 = mul(%1, %w) : f32[3,3]
          return %2
        }}""",
    "a layer with one output channel, whose bias is a single number": """
        graph @main(%x: f32[5,3]) -> (f32[5,1]) {
          %w = constant {value = [1,2,3]} : f32[1,3]
          %b = constant {value = [0.5]} : f32[1]
          %0 = linear(%x, %w, %b) : f32[5,1]
          %1 = sigmoid(%0) : f32[5,1]
          return %1
        }""",
    "a normalisation over a single element, with its weight": """
        graph @main(%x: f32[5,1], %y: f32[5,1]) -> (f32[5,1]) {
          %w = constant {value = [3]} : f32[1]
          %0 = layer_norm(%x, %w) {dims = 1, eps = 1e-05} : f32[5,1]
          %1 = add(%0, %y) : f32[5,1]
          return %1
        }""",
    "a box that holds its anchor's bias": """
        graph @main(%x: f32[5,3], %w: f32[1,3]) -> (f32[5,1]) {
          %0 = fusion(%x, %w) {kind = "linear"} graph @inner(%0: f32[5,3], %1: f32[1,3]) -> (f32[5,1]) {
            %b = constant {value = [0.5]} : f32[1]
            %2 = linear(%0, %1, %b) : f32[5,1]
            %3 = sigmoid(%2) : f32[5,1]
            return %3
          } : f32[5,1]
          return %0
        }""",
    "a stride so large that no window leaves the padding": f"""
        graph @main(%x: f32[1,3,4,4]) -> (f32[1,3,1,1]) {{
          {W}
          %v = reshape(%w) {{shape = [3,3,1,1]}} : f32[3,3,1,1]
          %0 = conv(%x, %v) {{stride = [30,30], padding = [9,9,9,9], dilation = [1,1]}} : f32[1,3,1,1]
          return %0
        }}""",
}


@pytest.mark.parametrize("name", CASES)
def test_compiled_right(name: str) -> None:
    graph = parse(CASES[name])
    rng = np.random.default_rng(SEED)
    inputs = [draw(value.type, rng) for value in graph.inputs]
    actual = compile_graph(graph, Options(threads=2))(*inputs)
    expected = interpret(graph, *inputs)
    for got, wanted in zip(actual if isinstance(actual, tuple) else (actual,), expected, strict=True):
        np.testing.assert_allclose(got, wanted, 1e-5, 1e-5, err_msg=f"seed {SEED}")
