"""Integers only where they pay: what stays float on which processor, conversions counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secateur.backends.cpu import prefer
from secateur.backends.cpu.compile import Options, compile_graph
from secateur.backends.cpu.prefer import keep_float
from secateur.backends.cpu.target import TARGETS, find_target
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Value
from secateur.ir.interpret import interpret
from secateur.ir.verify import verify

VNNI = next(target for target in TARGETS.values() if any("vnni" in feature for feature in target.features))


def through_bytes(b: Builder, x: Value) -> Value:
    scale, zero = b.constant(np.asarray(0.05, np.float32)), b.constant(np.asarray(128, np.uint8))
    return b.dequantize(b.quantize(x, scale, zero), scale, zero)


def three_layers(seed: int = 0) -> Graph:
    """Three quantised linear layers in a row."""
    rng = np.random.default_rng(seed)
    b = Builder.graph("layers", x="f32[64,128]")
    x = b["x"]
    for _ in range(3):
        integers = rng.integers(-127, 128, (128, 128)).astype(np.int8)
        scale, zero = b.constant(np.full((128, 1), 0.001, np.float32)), b.constant(np.zeros((), np.int8))
        x = b.linear(through_bytes(b, x), b.dequantize(b.constant(integers), scale, zero))
    return b.returns(x)


def test_a_processor_with_dot_products_computes_in_integers() -> None:
    graph = three_layers()
    before = str(graph)
    assert keep_float(graph, VNNI) == []
    assert str(graph) == before


def test_one_without_vectors_of_bytes_keeps_floats_and_loses_the_conversions() -> None:
    graph = three_layers()
    kept = keep_float(graph, find_target("generic"))
    verify(graph)
    assert len(kept) == 3 and all(item.float_cycles < item.integer_cycles for item in kept)
    assert {op.name for op in graph.ops} == {"constant", "linear"}


def test_conversions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The middle layer alone would be cheaper in floats; whether it becomes float hangs on what converting costs."""
    for price, floats in ((1.0, 1), (1000.0, 0)):
        graph = three_layers()
        layers = graph.find("linear")
        forms = {layers[0]: (100.0, 900.0), layers[1]: (500.0, 100.0), layers[2]: (100.0, 900.0)}

        def of(self: Any, op: Any, forms: Any = forms) -> tuple[float, float]:
            return forms[op]

        def conversions(self: Any, shape: Any, price: float = price) -> tuple[float, float]:
            return price, price

        monkeypatch.setattr(prefer._Costs, "of", of)
        monkeypatch.setattr(prefer._Costs, "conversions", conversions)
        kept = keep_float(graph, VNNI)
        verify(graph)
        assert [item.op for item in kept] == layers[1:2] * floats
        # In front of the float layer and behind it there are integers: what they read is still quantised.
        assert len(graph.find("quantize")) == 3


def test_what_stays_float_is_reported_and_close() -> None:
    graph = three_layers()
    x = np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)
    auto = compile_graph(graph, Options(target="generic"))
    always = compile_graph(graph, Options(target="generic", integers="always"))
    found, forced = (program.manifest["quantization"] for program in (auto, always))
    assert (found["products"]["integer"], found["products"]["float"], found["conversions"]) == (0, 3, 0)
    assert len(found["kept_float"]) == 3 and "cycles in integers" in found["kept_float"][0]["reason"]
    assert (forced["products"]["integer"], forced["products"]["float"], forced["kept_float"]) == (3, 0, [])
    (want,) = interpret(graph, x)
    for program in (auto, always):
        assert np.linalg.norm(program(x) - want) < 0.05 * np.linalg.norm(want)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(CompileError, match="integers must be 'auto' or 'always', got 'never'"):
        Options(integers="never")
