"""Every op, compiled: interpreter and native code agree on instances drawn from the op's own sample.

Instances of several ops are compiled together, as one program with many inputs and outputs: the
C compiler's start-up would otherwise be most of the time.
"""

from __future__ import annotations

import numpy as np
import pytest
from secateur.backends.cpu.compile import compile_graph
from secateur.ir.builder import Builder
from secateur.ir.draw import Draw
from secateur.ir.interpret import run_op
from secateur.ir.opdef import all_ops, lookup
from secateur.ir.types import DType, TensorType

SEED = int(np.random.default_rng().integers(1 << 30))
INSTANCES = 12
GROUP = 13
# Relative to the largest magnitude of the result; sums are taken in another order.
TOLERANCE = {DType.F32: 3e-5, DType.F64: 1e-10, DType.F16: 4e-3, DType.BF16: 3e-2}
NAMES = [name for name in all_ops() if name != "constant"]
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


@pytest.mark.parametrize("group", range(-(-len(NAMES) // GROUP)))
def test_compiled_ops_agree_with_their_references(group: int) -> None:
    b = Builder.graph("ops")
    inputs, outputs, expected, labels = [], [], [], []
    for name in NAMES[group * GROUP : (group + 1) * GROUP]:
        for number in range(INSTANCES):
            draw = Draw(SEED + number)
            sample = lookup(name).sample(draw)
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
            labels += [f"{name}, seed {SEED + number}: {op} {sample.attrs}"] * len(op.results)
    program = compile_graph(b.returns(*outputs), pipeline="none")
    actual = program(*inputs)
    for got, wanted, label in zip(actual, expected, labels, strict=True):
        assert_close(got, wanted, label)
