"""The text form: exact round trips, and errors that point at the place."""

from __future__ import annotations

import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.text import parse, print_graph, read_ir, weights, write_ir

MLP = """\
graph @mlp(%x: f32[1,64]) -> (f32[1,10]) {
  %w = constant @"fc weight" {value = [0.5]} : f32[1,1]
  %0 = mul(%x, %w) : f32[1,64]
  %1 = slice(%0) {starts = [0, 0], steps = [1, 2], stops = [1, 20]} : f32[1,10]
  %2 = leaky_relu(%1) {slope = 0.01} : f32[1,10]
  return %2
}
"""

NESTED = """\
graph @nested(%x: f32[4]) -> (f32[4], i64[4]) {
  %0 = fusion(%x) {kind = "pointwise"} graph @body(%x: f32[4]) -> (f32[4]) {
    %0 = relu(%x) : f32[4]
    return %0
  } : f32[4]
  %values, %order = sort(%0) {axis = 0, descending = false} : f32[4], i64[4]
  return %values, %order
}
"""


@pytest.mark.parametrize("text", [MLP, NESTED], ids=["attributes", "body"])
def test_print_of_parse_is_identity(text: str) -> None:
    assert str(parse(text)) == text


def test_comments_and_layout_are_free() -> None:
    graph = parse("// a file\ngraph @f(%x:f32[2])->(f32[2]){%0=relu(%x):f32[2]//here\nreturn %0}")
    assert str(graph) == "graph @f(%x: f32[2]) -> (f32[2]) {\n  %0 = relu(%x) : f32[2]\n  return %0\n}\n"


def test_defaults_are_filled_in() -> None:
    graph = parse("graph @f(%x: f32[2]) -> (f32[2]) { %0 = leaky_relu(%x) : f32[2] return %0 }")
    assert "{slope = 0.01}" in str(graph)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_inline_floats_are_exact(dtype: type) -> None:
    values = np.array([0.1, -1 / 3, 1e-7, 6e4, -0.0, np.inf, -np.inf, np.nan]).astype(dtype)
    b = Builder.graph("values")
    text = str(b.returns(b.constant(values)))
    (again,) = parse(text).find("constant")
    assert again.attrs["value"].tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_inline_integer_limits_are_exact(dtype: type) -> None:
    values = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
    b = Builder.graph("values")
    (again,) = parse(str(b.returns(b.constant(values)))).find("constant")
    assert again.attrs["value"].tolist() == values.tolist()


def test_large_constants_go_by_name() -> None:
    data = np.arange(64, dtype=np.float32)
    b = Builder.graph("big")
    graph = b.returns(b.add(b.constant(data, name="fc.weight"), b.constant(data + 1)))
    text = str(graph)
    assert "constant @fc.weight : f32[64]" in text and "constant @const.1 : f32[64]" in text
    again = parse(text, weights(graph))
    assert str(again) == text
    assert [op.attrs["value"][0] for op in again.find("constant")] == [0.0, 1.0]


def test_two_constants_of_one_name_stay_two() -> None:
    b = Builder.graph("twins")
    first, second = (b.constant(np.full(32, n, np.float32), name="w") for n in (1, 2))
    graph = b.returns(b.sub(first, second))
    again = parse(str(graph), weights(graph))
    assert [op.attrs["value"][0] for op in again.find("constant")] == [1.0, 2.0]


def test_files_keep_weights_and_spans(tmp_path: Path) -> None:
    b = Builder.graph("saved", x="bf16[64]")
    b.span = Span("net.py", 7, 3, "encoder.fc")
    weight = np.linspace(0, 1, 64).astype(ml_dtypes.bfloat16)
    graph = b.returns(b.mul(b["x"], b.constant(weight, name="w")))
    write_ir(graph, tmp_path / "saved.ir")
    again = read_ir(tmp_path / "saved.ir")
    assert print_graph(again, spans=True) == print_graph(graph, spans=True)
    assert 'loc("net.py:7:3", "encoder.fc")' in print_graph(again, spans=True)
    assert again.find("constant")[0].attrs["value"].tobytes() == weight.tobytes()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="cannot read"):
        read_ir(tmp_path / "none.ir")


def body(*lines: str, header: str = "graph @f(%x: f32[2]) -> (f32[2])") -> str:
    return "\n".join([header + " {", *(f"  {line}" for line in lines), "}"])


ERRORS = {
    "early end": (
        "graph @f(",
        """\
        <text>:1:10: the text ends too early
          graph @f(
                   ^
        hint: expected ')' or a value such as %0""",
    ),
    "missing parenthesis": (
        body("%0 = relu(%x : f32[2]", "return %0"),
        """\
        <text>:2:16: unexpected ':'
            %0 = relu(%x : f32[2]
                         ^
        hint: expected ')' or ','""",
    ),
    "unknown op": (
        body("%0 = rellu(%x) : f32[2]", "return %0"),
        """\
        <text>:2:8: unknown op 'rellu'
            %0 = rellu(%x) : f32[2]
                 ^
        hint: did you mean 'relu'?""",
    ),
    "undefined value": (
        body("%0 = relu(%y) : f32[2]", "return %0"),
        """\
        <text>:2:13: %y is not defined here
            %0 = relu(%y) : f32[2]
                      ^""",
    ),
    "defined twice": (
        body("%x = relu(%x) : f32[2]", "return %x"),
        """\
        <text>:2:3: %x is defined twice
            %x = relu(%x) : f32[2]
            ^""",
    ),
    "unknown element type": (
        body("%0 = relu(%x) : f33[2]", "return %0"),
        """\
        <text>:2:19: not a tensor type: f33
            %0 = relu(%x) : f33[2]
                            ^""",
    ),
    "other type than inferred": (
        body("%0 = relu(%x) : f32[3]", "return %0"),
        """\
        <text>:2:8: relu has type f32[2] here, the text says f32[3]
            %0 = relu(%x) : f32[3]
                 ^""",
    ),
    "unknown attribute": (
        body("%0 = reshape(%x) {shap = [2]} : f32[2]", "return %0"),
        """\
        <text>:2:8: reshape has no attribute 'shap'
            %0 = reshape(%x) {shap = [2]} : f32[2]
                 ^
        hint: did you mean 'shape'?""",
    ),
    "missing attribute": (
        body("%0 = reshape(%x) : f32[2]", "return %0"),
        """\
        <text>:2:8: reshape needs attribute 'shape' (ints)
            %0 = reshape(%x) : f32[2]
                 ^""",
    ),
    "number of operands": (
        body("%0 = add(%x) : f32[2]", "return %0"),
        """\
        <text>:2:8: add takes 2 operands, got 1
            %0 = add(%x) : f32[2]
                 ^""",
    ),
    "header and return": (
        body("return %x", header="graph @f(%x: f32[2]) -> (f32[3])"),
        """\
        <text>:2:3: return gives (f32[2]), the header says (f32[3])
            return %x
            ^""",
    ),
    "numbers of a constant": (
        body("%0 = constant {value = [1.0]} : f32[2]", "return %0"),
        """\
        <text>:2:8: 1 numbers for f32[2], which has 2 elements
            %0 = constant {value = [1.0]} : f32[2]
                 ^""",
    ),
    "constant without data": (
        body("%0 = constant @w : f32[2]", "return %0"),
        """\
        <text>:2:17: the data of constant @w is missing
            %0 = constant @w : f32[2]
                          ^
        hint: large constants are read from the .safetensors file beside the text; pass weights= to parse()""",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_point_at_the_place(case: str) -> None:
    text, message = ERRORS[case]
    with pytest.raises(CompileError) as caught:
        parse(text)
    assert str(caught.value) == textwrap.dedent(message)
