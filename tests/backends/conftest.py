"""Compiled ops beside their references: instances drawn from each op's own sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from secateur.backends.artifact import load
from secateur.backends.cpu.compile import Options, compile_graph
from secateur.ir.builder import Builder
from secateur.ir.draw import Draw
from secateur.ir.interpret import run_op
from secateur.ir.opdef import lookup
from secateur.ir.types import DType, TensorType

AssertOpsAgree = Callable[..., None]
# Relative to the largest magnitude of the result; sums are taken in another order.
TOLERANCE = {DType.F32: 3e-5, DType.F64: 1e-10, DType.F16: 4e-3, DType.BF16: 3e-2}
# Operands that models hold as constants, and for which other kernels are chosen when they are.
WEIGHTS = {"conv": (1, 2), "linear": (1, 2), "matmul": (1,), "conv_transpose": (1, 2), "layer_norm": (1, 2)}


def assert_close(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Integers and bools exactly; floats by type, NaN and infinities in the same places."""
    dtype = DType.of(expected.dtype)
    if not dtype.is_float:
        np.testing.assert_array_equal(actual, expected, err_msg=what)
        return
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    finite = e[np.isfinite(e)]
    scale = max(1.0, float(np.abs(finite).max())) if finite.size else 1.0
    np.testing.assert_allclose(a, e, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale, err_msg=what)


def compile_and_compare(
    names: Sequence[str],
    instances: int,
    seed: int,
    *,
    target: str = "native",
    cc: str | None = None,
    threads: Sequence[int] = (),
) -> None:
    """Compile instances of all the named ops as one program and run it; with other `threads` the same bits come out.

    One program with many inputs and outputs: the C compiler's start-up would otherwise be most of
    the time.
    """
    b = Builder.graph("ops")
    inputs, outputs, expected, labels = [], [], [], []
    for name in names:
        for number in range(instances):
            sample = lookup(name).sample(Draw(seed + number))
            constant = WEIGHTS.get(name, ()) if number % 2 else ()
            values = []
            for position, array in enumerate(sample.operands):
                if position in constant:
                    values.append(b.constant(array))
                else:
                    values.append(b.into.add_input(TensorType.of(array)))
                    inputs.append(array)
            op = b.op(name, values, dict(sample.attrs))
            outputs += op.results
            expected += run_op(op, sample.operands)
            labels += [f"{name}, seed {seed + number}: {op} {sample.attrs}"] * len(op.results)
    program = compile_graph(b.returns(*outputs), Options(pipeline="none", target=target, cc=cc))
    actual = program(*inputs)
    for got, wanted, label in zip(actual, expected, labels, strict=True):
        assert_close(got, wanted, label)
    for count in threads:
        for again, first, label in zip(load(program.folder, count)(*inputs), actual, labels, strict=True):
            assert again.tobytes() == first.tobytes(), f"{count} threads: {label}"


@pytest.fixture
def assert_ops_agree() -> AssertOpsAgree:
    """`compile_and_compare`, for the tests of this folder."""
    return compile_and_compare
