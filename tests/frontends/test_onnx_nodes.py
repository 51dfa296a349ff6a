"""ONNX's own node tests: none may come out wrong. What is not supported must be refused, not guessed."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import numpy_helper  # noqa: E402

from secateur.frontends.onnx import import_onnx  # noqa: E402
from secateur.ir.diagnostics import CompileError  # noqa: E402
from secateur.ir.interpret import interpret  # noqa: E402

LEAST_SHARE = 0.75  # of the cases, passed


def as_array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def frozen(model: Any, arrays: list[Any], kinds: str) -> tuple[Any, list[Any]]:
    """The model with those inputs as initializers whose kind of element is in `kinds`: shapes, axes and the like."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.input[:]
    left = []
    for info, array in zip(model.graph.input, arrays, strict=True):
        if isinstance(array, (np.ndarray, np.generic)) and array.dtype.kind in kinds:
            copy.graph.initializer.append(numpy_helper.from_array(np.asarray(array), info.name))
        else:
            copy.graph.input.append(info)
            left.append(array)
    return copy, left


def agree(actual: np.ndarray, wanted: Any, rtol: float, atol: float) -> bool:
    wanted = np.asarray(wanted)
    if actual.dtype != wanted.dtype or actual.shape != wanted.shape:
        return False
    if wanted.dtype.name in ("bfloat16", "float16"):  # ONNX rounds after each step of an expanded op, we once
        ulp = float(np.finfo(np.float16).eps) if wanted.dtype == np.float16 else 2.0**-7
        rtol, atol = max(rtol, 2 * ulp), max(atol, ulp)
    if wanted.dtype.kind not in "iub":
        actual, wanted = actual.astype(np.float64), wanted.astype(np.float64)
    return bool(np.allclose(actual, wanted, rtol, atol, equal_nan=True))


def outcome(case: Any) -> str:
    """pass, refused or wrong. Inputs that must be known at import are frozen, integers first."""
    inputs, outputs = ([as_array(value) for value in values] for values in case.data_sets[0])
    for kinds in ("", "iub", "iubfV"):
        model, left = frozen(case.model, inputs, kinds)
        try:
            results = interpret(import_onnx(model), *map(np.asarray, left))
        except CompileError as error:
            if "must be a constant" in str(error) or "must be known" in str(error):
                continue
            return "refused"
        pairs = zip(results, outputs, strict=True)
        return "pass" if all(agree(*pair, max(case.rtol, 1e-3), max(case.atol, 1e-7)) for pair in pairs) else "wrong"
    return "refused"


def test_no_node_test_is_wrong() -> None:
    from onnx.backend.test.loader import load_node_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_node_model_tests()
    outcomes = {case.name: outcome(case) for case in cases}
    counts = Counter(outcomes.values())
    print(dict(counts))
    assert [name for name, result in outcomes.items() if result == "wrong"] == []
    assert counts["pass"] >= LEAST_SHARE * len(cases)
