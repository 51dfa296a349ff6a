"""Programs with PyTorch's `quantized_decomposed` operations, as PT2E makes them, and fake quantisation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operations
from torch import Tensor, nn

from secateur.backends.torch.train import trainable
from secateur.frontends.open import import_model
from secateur.frontends.torch_export import import_module
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.ir.interpret import interpret
from secateur.ir.text import parse, print_graph, weights
from secateur.ir.types import DType
from secateur.ir.verify import verify

Q = torch.ops.quantized_decomposed


@pytest.fixture
def rng() -> torch.Generator:
    seed = int(torch.randint(1 << 30, ()))
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


class Function(nn.Module):
    """A function as a module, with tensors that become its buffers."""

    def __init__(self, function: Any, **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args, **dict(self.named_buffers()))


def imported(function: Any, *inputs: Tensor, **buffers: Tensor) -> tuple[Graph, list[np.ndarray], list[np.ndarray]]:
    """The graph of a function, what it gives, and what PyTorch gives."""
    module = Function(function, **buffers)
    graph = import_module(module, inputs)
    verify(graph)
    text = print_graph(graph)
    assert print_graph(parse(text, weights(graph))) == text
    wanted = module(*inputs)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    return graph, interpret(graph, *(x.numpy() for x in inputs)), [x.numpy() for x in wanted]


def assert_codes(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal, but for rare numbers that lie on a half: there multiplying by 1/scale may round to the neighbour."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    apart = np.abs(actual.astype(np.int64) - expected)
    assert apart.max(initial=0) <= 1 and (apart > 0).mean() < 0.01


def codes_of(rng: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    limits = torch.iinfo(dtype)
    low, high = max(limits.min, -(2**15)), min(limits.max, 2**15)
    return torch.randint(low, high + 1, shape, generator=rng).to(dtype)


FORMS = {
    "u8": (torch.uint8, 0.031, 117, 0, 255),
    "i8": (torch.int8, 0.02, -3, -128, 127),
    "narrow": (torch.int8, 0.02, 0, -127, 127),
    "i4": (torch.int8, 0.3, 1, -8, 7),
    "reduced": (torch.uint8, 0.05, 64, 0, 127),
    "i16": (torch.int16, 0.0001, 0, -32768, 32767),
    "i32": (torch.int32, 1e-6, 0, -(2**31), 2**31 - 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_per_tensor(form: str, rng: torch.Generator) -> None:
    dtype, scale, zero, low, high = FORMS[form]
    x = torch.cat([torch.randn(3000, generator=rng) * 3, torch.tensor([torch.inf, -torch.inf, 1e30, -0.0])])
    x = x[:-4] if form == "i32" else x  # PyTorch converts what lies outside i32 to the lowest number

    def function(x: Tensor) -> Any:
        codes = Q.quantize_per_tensor(x, scale, zero, low, high, dtype)
        return codes, Q.dequantize_per_tensor(codes, scale, zero, low, high, dtype)

    graph, actual, expected = imported(function, x)
    assert len(graph.find("quantize")) == len(graph.find("dequantize")) == 1
    assert_codes(actual[0], expected[0])
    (back,) = imported(
        lambda q: function(x)[1] * 0 + Q.dequantize_per_tensor(q, scale, zero, low, high, dtype),
        torch.from_numpy(expected[0]),
    )[1]
    np.testing.assert_array_equal(back, expected[1])


def test_tensor_overloads(rng: torch.Generator) -> None:
    """Scale and zero point as tensors, in f64 and i64 of one element."""

    def function(x: Tensor, scale: Tensor, zero: Tensor, low: Tensor, high: Tensor) -> Any:
        codes = Q.quantize_per_tensor.tensor(x, scale, zero, 0, 200, torch.uint8)
        again = Q.quantize_per_tensor.tensor2(x, scale, zero, low, high, torch.uint8)
        return (
            codes,
            again,
            Q.dequantize_per_tensor.tensor(codes, scale, zero, 0, 200, torch.uint8),
            Q.dequantize_per_tensor.tensor2(again, scale, zero, low, high, torch.uint8),
        )

    settings = {"scale": torch.tensor([0.04], dtype=torch.float64), "zero": torch.tensor([90])}
    limits = {"low": torch.tensor(5), "high": torch.tensor(250)}
    _, actual, expected = imported(function, torch.randn(999, generator=rng), **settings, **limits)
    for a, e in zip(actual[:2], expected[:2], strict=True):
        assert_codes(a, e)
    for a, e in zip(actual[2:], expected[2:], strict=True):
        np.testing.assert_allclose(a, e, atol=0.041)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("zeros", [True, False])
def test_per_channel(axis: int, zeros: bool, rng: torch.Generator) -> None:
    shape = (3, 4, 5)
    scales = torch.rand(shape[axis], generator=rng) + 0.01
    points = (
        torch.randint(-9, 9, (shape[axis],), generator=rng) if zeros else torch.zeros(shape[axis], dtype=torch.int64)
    )

    def function(x: Tensor, q: Tensor, scales: Tensor, points: Tensor) -> Any:
        codes = Q.quantize_per_channel(x, scales, points, axis, -127, 127, torch.int8)
        given = Q.dequantize_per_channel(q, scales, points if zeros else None, axis, -127, 127, torch.int8)
        return codes, given

    x, q = torch.randn(shape, generator=rng) * 20, codes_of(rng, torch.int8, *shape)
    graph, actual, expected = imported(function, x, q, scales=scales, points=points)
    assert_codes(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])
    scale, zero = (value.shape for value in graph.find("dequantize")[0].operands[1:])
    wanted = tuple(size if at == axis else 1 for at, size in enumerate(shape))
    assert (scale, zero) == (wanted, wanted if zeros else ())


def test_groups(rng: torch.Generator) -> None:
    """Weights by groups along K become a constant [N, K/g, g] with scales [N, K/g, 1]."""
    codes = torch.randint(-8, 8, (6, 32), generator=rng).to(torch.int8)
    scales = torch.rand(6, 4, generator=rng) + 0.01
    zeros = torch.zeros(6, 4, dtype=torch.int32)

    def function(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor) -> Any:
        w = Q.dequantize_per_channel_group(codes, scales, zeros, -8, 7, torch.int8, 8, torch.float32)
        q = Q.quantize_per_channel_group(w, scales, zeros, -8, 7, torch.int8, 8)
        return torch.nn.functional.linear(x, w), q

    buffers = {"codes": codes, "scales": scales, "zeros": zeros}
    graph, actual, expected = imported(function, torch.randn(2, 32, generator=rng), **buffers)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-5)
    assert_codes(actual[1], expected[1])
    op = graph.find("dequantize")[0]
    assert [value.shape for value in op.operands] == [(6, 4, 8), (6, 4, 1), ()]
    assert op.operands[0].op is not None and op.operands[0].op.attrs["name"] == "codes"


def test_scales_that_are_computed(rng: torch.Generator) -> None:
    """Dynamic quantisation: scale and zero point from the tensor itself, for all of it and by rows."""

    def function(x: Tensor) -> Any:
        scale, zero = Q.choose_qparams.tensor(x, -128, 127, 1e-7, torch.int8)
        codes = Q.quantize_per_tensor.tensor(x, scale, zero, -128, 127, torch.int8)
        even, middle = Q.choose_qparams_symmetric.tensor(x, -127, 127, 1e-7, torch.int8)
        sound = Q.quantize_per_tensor.tensor(x, even, middle, -127, 127, torch.int8)
        scales, zeros = Q.choose_qparams_per_token_asymmetric(x, torch.int8)
        rows = Q.quantize_per_token(x, scales, zeros, -128, 127, torch.int8)
        back = Q.dequantize_per_token(rows, scales, zeros, -128, 127, torch.int8, torch.float32)
        return scale, zero, even, middle, codes, sound, rows, back

    _, actual, expected = imported(function, torch.randn(7, 64, generator=rng) * 4 + 1)
    for a, e in zip(actual[:4], expected[:4], strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6)
    for a, e in zip(actual[4:7], expected[4:7], strict=True):
        assert_codes(a, e)
    np.testing.assert_allclose(actual[7], expected[7], atol=0.1)


def test_fake_quantisation(rng: torch.Generator) -> None:
    def function(x: Tensor, scale: Tensor, zero: Tensor, one: Tensor, point: Tensor) -> Any:
        return (
            torch.fake_quantize_per_tensor_affine(x, 0.1, 3, 0, 255),
            torch.fake_quantize_per_tensor_affine(x, one, point, -128, 127),
            torch.fake_quantize_per_channel_affine(x, scale, zero, 1, -8, 7),
        )

    settings = {"scale": torch.rand(5, generator=rng) + 0.1, "zero": torch.arange(5, dtype=torch.int32) - 2}
    single = {"one": torch.tensor([0.2]), "point": torch.tensor([4], dtype=torch.int32)}
    graph, actual, expected = imported(function, torch.randn(40, 5, generator=rng), **settings, **single)
    for a, e, step in zip(actual, expected, (0.1, 0.2, 1.1), strict=True):
        apart = np.abs(a - e)
        assert apart.max() <= step * 1.01 and (apart > 1e-5).mean() < 0.02
    assert [op.result.type.dtype for op in graph.find("quantize")] == [DType.U8, DType.I8, DType.I8]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.relu(self.bn(self.conv(x))), 1))


def converted(x: Tensor) -> nn.Module:
    """A network quantised by PyTorch itself into the form of PT2E."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import _convert_to_reference_decomposed_fx, prepare_fx

    prepared = prepare_fx(Net().eval(), get_default_qconfig_mapping("qnnpack"), (x,))
    for _ in range(3):
        prepared(torch.randn_like(x))
    return _convert_to_reference_decomposed_fx(prepared)


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_pytorch_quantised(rng: torch.Generator, tmp_path: Path) -> None:
    torch.manual_seed(rng.initial_seed())
    x = torch.randn(1, 3, 4, 4)
    model = converted(x)
    graph = import_module(model, (x,))
    assert len(graph.find("quantize")) >= 3 and len(graph.find("dequantize")) >= 4
    wanted = model(x).detach().numpy()
    apart = np.abs(interpret(graph, x.numpy())[0] - wanted)
    assert np.median(apart) < 1e-5 and apart.max() < 0.2 * np.abs(wanted).max()
    assert (trainable(graph)(x)[0] - model(x)).abs().median() < 1e-5

    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(model, (x,)), path)
    assert print_graph(import_model(path)).partition("(")[2] == print_graph(graph).partition("(")[2]
    # A process that has never heard of these operations.
    alone = f"from secateur.frontends.open import import_model; print(len(import_model({str(path)!r})))"
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(len(graph)), done.stderr


REFUSED = {
    "a scale of 0.0": lambda x: Q.quantize_per_tensor(x, 0.0, 0, 0, 255, torch.uint8),
    "a scale of inf": lambda x: Q.quantize_per_tensor(x, float("inf"), 0, 0, 255, torch.uint8),
    "a zero point of 300 for u8": lambda x: Q.quantize_per_tensor(x, 0.1, 300, 0, 255, torch.uint8),
    "integers in uint16": lambda x: Q.quantize_per_tensor(x, 0.1, 0, 0, 255, torch.uint16),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_means_nothing_is_refused(message: str) -> None:
    with pytest.raises(CompileError, match=f"quantize_per_tensor.default.*{message}"):
        import_module(Function(REFUSED[message]), (torch.randn(3),))
