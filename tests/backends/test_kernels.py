"""Every kernel family, on its own examples: it is the one chosen, and it agrees with the interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.backends.cpu.compile import Options, compile_graph
from secateur.backends.cpu.kernel import draw, together
from secateur.backends.cpu.lower import families
from secateur.backends.cpu.target import missing_features
from secateur.ir.interpret import interpret

SEED = int(np.random.default_rng().integers(1 << 30))


@pytest.mark.parametrize("name", families())
def test_examples(name: str) -> None:
    """All examples of a family as one program, so that the C compiler starts once."""
    rng = np.random.default_rng(SEED)
    examples = families()[name].examples
    assert examples, f"family {name} declares no example"
    if missing := missing_features(families()[name].features):
        pytest.skip(f"this machine has no {', '.join(missing)}")
    whole = together(examples, rng)
    inputs = [draw(value.type, rng) for value in whole.inputs]
    expected = interpret(whole, *inputs)
    program = compile_graph(whole, Options(pipeline="none"))
    used = [row["family"] for row in program.manifest["kernels"]]
    assert used.count(name) == len(examples), used
    results = program(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    for output, got, wanted in zip(whole.outputs, results, expected, strict=True):
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * scale, err_msg=f"{output.op}, seed {SEED}")
