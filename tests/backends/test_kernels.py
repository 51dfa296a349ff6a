"""Every kernel family, on its own examples: it is the one chosen, and it agrees with the interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.backends.cpu.compile import compile_graph
from secateur.backends.cpu.kernel import draw
from secateur.backends.cpu.lower import families
from secateur.ir.builder import Builder
from secateur.ir.graph import copy_ops
from secateur.ir.interpret import interpret

SEED = int(np.random.default_rng().integers(1 << 30))


@pytest.mark.parametrize("name", families())
def test_examples(name: str) -> None:
    """All examples of a family as one program, so that the C compiler starts once."""
    rng = np.random.default_rng(SEED)
    examples = families()[name].examples
    assert examples, f"family {name} declares no example"
    whole = Builder.graph("examples").into
    outputs, inputs, expected, labels = [], [], [], []
    for example in examples:
        graph = example.graph(rng)
        mapping = {value: whole.add_input(value.type) for value in graph.inputs}
        copy_ops(graph.ops, whole, mapping)
        outputs += [mapping[value] for value in graph.outputs]
        arrays = [draw(value.type, rng) for value in graph.inputs]
        inputs += arrays
        expected += interpret(graph, *arrays)
        labels += [f"{example} (seed {SEED})"] * len(graph.outputs)
    whole.outputs = outputs
    program = compile_graph(whole, pipeline="none")
    used = [row["family"] for row in program.manifest["kernels"]]
    assert used.count(name) == len(examples), used
    results = program(*inputs)
    for got, wanted, label in zip(results if isinstance(results, tuple) else [results], expected, labels, strict=True):
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * scale, err_msg=label)
