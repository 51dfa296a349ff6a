"""Building and interpreting graphs from Python."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.interpret import interpret
from secateur.ir.types import DType


def test_arrays_become_constants() -> None:
    b = Builder.graph("f", x="f32[2]")
    graph = b.returns(b.add(b["x"], np.array([1, 2], np.float32)))
    assert [op.name for op in graph.ops] == ["constant", "add"]
    assert interpret(graph, np.ones(2, np.float32))[0].tolist() == [2, 3]


def test_constants_of_python_numbers() -> None:
    b = Builder.graph()
    assert [str(b.constant(v).type) for v in (1.5, 3, True, [1, 2])] == ["f32[]", "i64[]", "bool[]", "i64[2]"]
    assert str(b.constant(1, DType.F16).type) == "f16[]"


def test_several_results() -> None:
    b = Builder.graph("f", x="f32[4]")
    values, indices = b.topk(b["x"], k=2, axis=0)
    assert (str(values.type), str(indices.type)) == ("f32[2]", "i64[2]")


def test_refusals() -> None:
    b = Builder.graph("f", x="f32[4]")
    with pytest.raises(CompileError, match="unknown op 'rleu'"):
        b.rleu(b["x"])
    with pytest.raises(CompileError, match="neither a Value nor an array"):
        b.relu(3.0)
    with pytest.raises(CompileError, match="its element type must be one of bool"):
        b.where(b["x"], b["x"], b["x"])
    with pytest.raises(CompileError, match="attribute 'axis' must be int, got 'last'"):
        b.softmax(b["x"], axis="last")
    with pytest.raises(CompileError, match="mode = 'mirror' is not one of"):
        b.pad(b["x"], low=(0,), high=(0,), interior=(0,), mode="mirror")
    with pytest.raises(KeyError):
        b["y"]


def test_interpreter_checks_its_inputs() -> None:
    b = Builder.graph("f", x="f32[4]")
    graph = b.returns(b.relu(b["x"]))
    for arrays, message in (
        ((), "takes 1 inputs, got 0"),
        ((np.zeros(3, np.float32),), r"input 0 \(x\) must be f32\[4\], got f32\[3\]"),
        ((np.zeros(4, np.complex64),), "unsupported element type complex64"),
    ):
        with pytest.raises(CompileError, match=message):
            interpret(graph, *arrays)
