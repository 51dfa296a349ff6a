"""Rows of the ATen table: each function below is exported, imported and compared with eager PyTorch.

A family is exported as one module with many results; a failure names the result.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from secateur.frontends.torch_export import import_module
from secateur.ir.interpret import interpret
from secateur.ir.text import parse, print_graph, weights
from secateur.ir.verify import verify

Case = Callable[..., object]


class Family(torch.nn.Module):
    def __init__(self, functions: dict[str, Case]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, *args: torch.Tensor) -> dict[str, object]:
        return {name: function(*args) for name, function in self.functions.items()}


def check(functions: dict[str, Case], *inputs: torch.Tensor, tolerance: float = 2e-5) -> None:
    module = Family(functions)
    expected = {}
    for name, result in module(*inputs).items():
        for index, item in enumerate(result if isinstance(result, (tuple, list)) else [result]):
            expected[f"{name}[{index}]"] = item
    graph = import_module(module, inputs)
    verify(graph)
    text = print_graph(graph)
    assert print_graph(parse(text, weights(graph))) == text
    results = interpret(graph, *(item.numpy() for item in inputs))
    assert len(results) == len(expected)
    for (name, want), got in zip(expected.items(), results, strict=True):
        assert got.dtype == want.numpy().dtype, name
        assert got.shape == tuple(want.shape), name
        np.testing.assert_allclose(got, want.detach().numpy(), rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.fixture
def rng() -> torch.Generator:
    seed = int(torch.randint(1 << 30, ()))
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


UNARY = """
    abs acos asin atan asinh atanh ceil cos cosh deg2rad erf erfc exp exp2 expm1 floor frac isfinite isinf isnan
    log log10 log1p log2 logical_not neg reciprocal relu round rsqrt selu celu sigmoid sign sin sinh sqrt square
    tan tanh trunc
"""


def test_unary(rng: torch.Generator) -> None:
    x = torch.rand(2, 3, 4, generator=rng) * 0.9 + 0.05
    check({name: getattr(torch, name) for name in UNARY.split()}, x)


def test_unary_on_integers_gives_floats(rng: torch.Generator) -> None:
    x = torch.randint(1, 5, (3, 4), generator=rng)
    check({name: getattr(torch, name) for name in ("exp", "sqrt", "sin", "sigmoid", "floor", "abs", "neg")}, x)


BINARY: dict[str, Case] = {
    "add": lambda x, y, i, b: x + y,
    "add_alpha": lambda x, y, i, b: torch.add(x, y, alpha=3),
    "sub_alpha": lambda x, y, i, b: torch.sub(x, y, alpha=0.5),
    "rsub": lambda x, y, i, b: 1 - x,
    "float+int tensor": lambda x, y, i, b: x + i,
    "int+float number": lambda x, y, i, b: i + 1.5,
    "int+int number": lambda x, y, i, b: i * 2,
    "bool+bool": lambda x, y, i, b: b + b,
    "bool*int": lambda x, y, i, b: b * i,
    "bool*number": lambda x, y, i, b: b * 2.0,
    "0-d float with int": lambda x, y, i, b: i * y[0, 0, 0],
    "0-d int with float": lambda x, y, i, b: x * i[0, 0],
    "0-d f64 with f32": lambda x, y, i, b: x * x[0, 0, 0].double(),
    "f16+f32": lambda x, y, i, b: x.half() + y,
    "int32+int64": lambda x, y, i, b: i.int() + i,
    "u8+i8": lambda x, y, i, b: i.to(torch.uint8) + i.to(torch.int8),
    "div int": lambda x, y, i, b: i / (i.abs() + 1),
    "div floor": lambda x, y, i, b: torch.div(x, y, rounding_mode="floor"),
    "div trunc": lambda x, y, i, b: torch.div(i, 3, rounding_mode="trunc"),
    "div trunc float": lambda x, y, i, b: torch.div(x * 9, y, rounding_mode="trunc"),
    "floor_divide": lambda x, y, i, b: i // 3,
    "remainder": lambda x, y, i, b: i % 3,
    "fmod": lambda x, y, i, b: torch.fmod(i, 3),
    "pow 2": lambda x, y, i, b: x**2,
    "pow 3": lambda x, y, i, b: i**3,
    "pow 0.5": lambda x, y, i, b: x.abs() ** 0.5,
    "pow -1": lambda x, y, i, b: y**-1,
    "pow 2.5": lambda x, y, i, b: y**2.5,
    "pow tensor": lambda x, y, i, b: y**x,
    "number to the power": lambda x, y, i, b: 2.0**x,
    "maximum": lambda x, y, i, b: torch.maximum(x, y),
    "atan2": lambda x, y, i, b: torch.atan2(x, y),
    "comparisons": lambda x, y, i, b: (x > y, x >= 0, i == 1, i != i.T.contiguous().reshape(4, 3).T, x < i, x <= 0.5),
    "logic": lambda x, y, i, b: (b & (x > 0), torch.logical_or(b, i), b ^ b, ~b, ~i, i & 3, i | 1, i << 1, i >> 1),
    "where": lambda x, y, i, b: torch.where(b, x, 0),
    "where promotes": lambda x, y, i, b: torch.where(b, i, x),
    "masked_fill": lambda x, y, i, b: x.masked_fill(b, float("-inf")),
    "clamp": lambda x, y, i, b: (x.clamp(-0.5, 0.5), x.clamp(min=0.1), i.clamp(max=1), i.clamp(0.5, 1.5)),
    "clamp tensor": lambda x, y, i, b: torch.clamp(x, -y, y),
    "clip": lambda x, y, i, b: torch.clip(x, 0, 1),
    "addcmul": lambda x, y, i, b: torch.addcmul(x, y, y, value=0.5),
    "addcdiv": lambda x, y, i, b: torch.addcdiv(x, x, y, value=2),
    "lerp": lambda x, y, i, b: torch.lerp(x, y, 0.3),
    "casts": lambda x, y, i, b: (x.double(), (x * 9).int(), i.float(), b.float(), i.bool(), x.to(i.dtype), x.half()),
    "in place": lambda x, y, i, b: x.clone().add_(1).mul_(y).relu_(),
    "masked number": lambda x, y, i, b: torch.isfinite(x) & (x > 0),
}


def test_binary(rng: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, generator=rng)
    y = torch.rand(2, 1, 4, generator=rng) + 0.5
    i = torch.randint(-5, 6, (3, 4), generator=rng)
    b = torch.rand(3, 4, generator=rng) < 0.5
    check(BINARY, x, y, i, b)


ACTIVATIONS: dict[str, Case] = {
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "elu": lambda x: F.elu(x, 1.5),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.7),
    "softplus": lambda x: F.softplus(x, 2.0, 3.0),
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 20.0),
    "glu": lambda x: F.glu(x, -1),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3])),
    "softmax": lambda x: F.softmax(x, -2),
    "softmax dtype": lambda x: F.softmax(x, -1, dtype=torch.float64),
    "softmax 0-d": lambda x: F.softmax(x[0, 0, 0], 0),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "softmin": lambda x: F.softmin(x, 0),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "cosine": lambda x: F.cosine_similarity(x, x + 1, dim=-1),
}


def test_activations(rng: torch.Generator) -> None:
    check(ACTIVATIONS, torch.randn(2, 3, 4, generator=rng) * 2)


SHAPES: dict[str, Case] = {
    "view": lambda x: x.view(6, -1),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(-1, (2, 2)),
    "squeeze": lambda x: (x[:1].squeeze(), x[:1].squeeze(0), x.squeeze(-1), x[:1, :1].squeeze((0, 1))),
    "unsqueeze": lambda x: x.unsqueeze(-2),
    "expand": lambda x: x[:, :1].expand(5, 2, -1, 4),
    "permute": lambda x: (x.permute(-1, 0, 1), x.mT, x[0].t(), x.transpose(0, -1), x.movedim(0, -1)),
    "0-d": lambda x: (x[0, 0, 0].unsqueeze(0), x[0, 0, 0].sum(), x.sum().reshape(1, 1), x.sum().transpose(0, -1)),
    "slice": lambda x: (x[:, -2:], x[..., ::2], x[:, 5:], x[:, 1:-1, 1], x[-1], x[..., None, 0], x.narrow(1, -2, 2)),
    "cat": lambda x: (torch.cat([x, x * 2], -1), torch.cat([x.int(), x], 0), torch.cat([torch.zeros(0), x])),
    "stack": lambda x: torch.stack([x, -x], -1),
    "split": lambda x: (*x.split(2, -2), *x.split([1, 3], 2), *x.chunk(3, 2), *torch.tensor_split(x, 3, 2)),
    "unbind": lambda x: x.unbind(-1),
    "flip": lambda x: x.flip(0, -1),
    "roll": lambda x: (x.roll(1, -1), x.roll((5, -1), (0, 2)), x.roll(3)),
    "repeat": lambda x: (x.repeat(2, 1, 3, 1), x.tile(2), x.repeat_interleave(2, -1), x.repeat_interleave(3)),
    "pad": lambda x: (F.pad(x, (1, 2), value=0.5), F.pad(x, (-1, 1, 0, 2)), F.pad(x, (0, 1, 1, 0, 2, 0))),
    "pad modes": lambda x: [F.pad(x, (2, 1), mode=m) for m in ("reflect", "replicate", "circular")],
    "pad 2-D": lambda x: [F.pad(x[None], (1, 1, 1, 1), mode=m) for m in ("reflect", "replicate", "circular")],
    "triangles": lambda x: (x.tril(), x.triu(1), x.tril(-1)),
    "scatter slices": lambda x: (x.slice_scatter(x[:, :1], 1, 2, 3), x.slice_scatter(x[..., :2] * 2, -1, 0, 4, 2)),
    "assign": lambda x: _assign(x),
    "full": lambda x: (torch.full_like(x, 2), torch.ones(2, 3), x.new_zeros(3), torch.full((2,), 7), torch.eye(3, 4)),
    "arange": lambda x: (torch.arange(5), torch.arange(0.5, 3), torch.arange(9, 2, -2), torch.linspace(0, 1, 7)),
    "indices": lambda x: (torch.tril_indices(3, 3), torch.triu_indices(3, 4, 1)),
    "meshgrid": lambda x: torch.meshgrid(torch.arange(3.0), x[0, 0], indexing="ij"),
    "shuffle": lambda x: (F.pixel_shuffle(x.reshape(1, 4, 2, 3), 2), F.pixel_unshuffle(x.reshape(1, 1, 4, 6), 2)),
    "channels": lambda x: F.channel_shuffle(x.reshape(1, 6, 2, 2), 3),
    "unfold": lambda x: x.unfold(1, 2, 1),
    "diagonal": lambda x: (x.diagonal(0, 1, 2), x[0].diagonal(1)),
    "rot90": lambda x: torch.rot90(x, 1, [1, 2]),
    "clone": lambda x: x.clone().contiguous().detach(),
}


def _assign(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 0] = 1.0
    y[0, 1, 2] = 5
    y[..., 1:3] += 1
    return y


def test_shapes(rng: torch.Generator) -> None:
    check(SHAPES, torch.randn(2, 3, 4, generator=rng))


REDUCTIONS: dict[str, Case] = {
    "sum": lambda x, i: (x.sum(), x.sum(-1), x.sum((0, -1), keepdim=True), i.sum(), i.int().sum(0), (x > 0).sum(1)),
    "mean": lambda x, i: (x.mean(), x.mean((-1, 1)), i.to(torch.float64).mean(0), i.float().mean()),
    "prod": lambda x, i: (x.prod(), x.prod(-1), i.prod(0, keepdim=True)),
    "max": lambda x, i: (x.max(), x.amax(-1), x.amin((0, 1)), *x.max(1), *x.min(-1, keepdim=True), (x > 0).amax(0)),
    "argmax": lambda x, i: (x.argmax(), x.argmax(-1), x.argmin(0, keepdim=True), i.argmax(0)),
    "any": lambda x, i: ((x > 2).any(), (x > 2).any(-1), (x > -9).all(), i.all(0), torch.count_nonzero(i, 0)),
    "var": lambda x, i: (
        x.var(),
        x.var(-1),
        x.std((0, 1), correction=0),
        x.std(-1, keepdim=True),
        x.std(unbiased=False),
    ),
    "var_mean": lambda x, i: (*torch.var_mean(x, -1), *torch.std_mean(x, (0, 2), correction=0)),
    "norm": lambda x, i: (x.norm(), x.norm(dim=-1), x.norm(p=1, dim=0), torch.linalg.vector_norm(x, 3, dim=(0, 1))),
    "norm inf": lambda x, i: (torch.linalg.vector_norm(x, float("inf"), dim=1), torch.linalg.vector_norm(x, 0)),
    "logsumexp": lambda x, i: (x.logsumexp(-1), x.logsumexp((0, 1), keepdim=True)),
    "scan": lambda x, i: (x.cumsum(-1), x.cumprod(0), i.int().cumsum(0)),
    "topk": lambda x, i: (*x.topk(2, -1), *x.topk(1, 0, largest=False)),
    "sort": lambda x, i: (*x.sort(-1), *x.sort(1, descending=True), x.argsort(0), *torch.sort(i, stable=True)),
    "median": lambda x, i: (x.median(), i.median()),
    "layer norm by hand": lambda x, i: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5),
}


def test_reductions(rng: torch.Generator) -> None:
    check(REDUCTIONS, torch.randn(2, 3, 4, generator=rng), torch.randint(-3, 4, (5, 2), generator=rng))


INDEXING: dict[str, Case] = {
    "embedding": lambda x, i: F.embedding(i, x.reshape(6, 4)),
    "index_select": lambda x, i: (x.index_select(-1, i[0]), x.reshape(-1).index_select(0, i[1])),
    "gather": lambda x, i: (x.gather(-1, i[None].expand(2, -1, -1)), x.gather(2, i[None, :1])),
    "take": lambda x, i: x.take(i),
    "one": lambda x, i: (x[:, :, i], x[:, [0, -1]], x[i[0] % 2]),
    "two": lambda x, i: (x[i % 2, i % 3], x[:, i % 3, i], x[i[0] % 2, :, i[0]], x[:, i[:1] % 3, i[:, :1]]),
    "three": lambda x, i: x[i % 2, i % 3, i],
    "put": lambda x, i: (
        x.index_put((i[0] % 2,), torch.tensor(5.0)),
        x.index_put((i % 2, i % 3), x[1, 0], accumulate=True),
    ),
    "mask": lambda x, i: x.index_put((x > 0,), torch.tensor(0.5)),
    "scatter": lambda x, i: (x[0].scatter(-1, i, x[1]), x[0].scatter(-1, i[:, :1], 2.0)),
    "scatter_add": lambda x, i: (x[0].scatter_add(0, i % 3, x[1]), x[0].scatter_reduce(0, i % 3, x[1], "amax")),
    "one_hot": lambda x, i: F.one_hot(i, 4),
    "select_scatter": lambda x, i: x.select_scatter(x[:, 0], 1, -1),
}


def test_indexing(rng: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, generator=rng)
    check(INDEXING, x, torch.stack([torch.randperm(4, generator=rng) for _ in range(3)]))


PRODUCTS: dict[str, Case] = {
    "mm": lambda a, b: a[0] @ b[0],
    "bmm": lambda a, b: torch.bmm(a, b),
    "broadcast": lambda a, b: a[:, None] @ b,
    "vectors": lambda a, b: (
        a[0, 0] @ b[0],
        a[0] @ b[0, :, 0],
        a @ b[0, :, 0],
        a[0, 0] @ a[0, 1],
        a[0, 0].outer(b[0, 0]),
    ),
    "addmm": lambda a, b: (torch.addmm(b[0, 0], a[0], b[0]), torch.addmm(a[0] @ b[0], a[0], b[0], beta=0.5, alpha=2)),
    "addmm constant": lambda a, b: torch.addmm(torch.ones(2), a[0], torch.arange(8.0).reshape(4, 2)),
    "baddbmm": lambda a, b: torch.baddbmm(b[:, :1], a, b, beta=2),
    "linear": lambda a, b: (F.linear(a, b[0].T, b[0, 0]), F.linear(a[0, 0], b[0].T), F.linear(a, b[0, :, 0])),
    "einsum": lambda a, b: (
        torch.einsum("bij,bjk->bik", a, b),
        torch.einsum("bij,bjk", a, b),
        torch.einsum("...ij,...jk->...ik", a, b),
        torch.einsum("...i,...i", a, a),
        torch.einsum("ii->i", a[0, :3, :3]),
    ),
    "bilinear": lambda a, b: F.bilinear(a, a, torch.ones(2, 4, 4), torch.ones(2)),
}


def test_products(rng: torch.Generator) -> None:
    check(PRODUCTS, torch.randn(2, 3, 4, generator=rng), torch.randn(2, 4, 5, generator=rng))


CONVOLUTIONS: dict[str, Case] = {
    "plain": lambda x, w: F.conv2d(x, w, padding=1),
    "strided": lambda x, w: F.conv2d(x, w, torch.ones(4), stride=2, padding=(2, 1), dilation=(1, 2)),
    "grouped": lambda x, w: F.conv2d(x, w[:, :1], groups=4),
    "same": lambda x, w: (F.conv2d(x, w[..., :2], padding="same"), F.conv2d(x, w, padding="valid")),
    "unbatched": lambda x, w: F.conv2d(x[0], w),
    "1-D": lambda x, w: F.conv1d(x[:, :, 0], w[:, :, 0], padding=1),
    "3-D": lambda x, w: F.conv3d(x[:, :, None], w[:, :, None], padding=(0, 1, 1)),
    "transposed": lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
    "transposed groups": lambda x, w: F.conv_transpose2d(x, w[:, :2], torch.ones(4), groups=2, dilation=2),
    "transposed 1-D": lambda x, w: F.conv_transpose1d(x[:, :, 0], w[:, :, 0], stride=3),
}


def test_convolutions(rng: torch.Generator) -> None:
    check(CONVOLUTIONS, torch.randn(2, 4, 7, 6, generator=rng), torch.randn(4, 4, 3, 3, generator=rng))


POOLS: dict[str, Case] = {
    "max": lambda x: (F.max_pool2d(x, 2), F.max_pool2d(x, 3, 2, 1, ceil_mode=True), F.max_pool2d(x, 2, 1, dilation=2)),
    "max 1-D": lambda x: (F.max_pool1d(x[0], 2), F.max_pool3d(x[None], 2)),
    "avg": lambda x: (F.avg_pool2d(x, 2), F.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "avg ceil": lambda x: (F.avg_pool2d(x, 2, 2, ceil_mode=True), F.avg_pool2d(x, 99, ceil_mode=True)),
    "avg divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "avg 1-D": lambda x: (F.avg_pool1d(x[0], 2), F.avg_pool3d(x[None], 2)),
    "adaptive": lambda x: (
        F.adaptive_avg_pool2d(x, 1),
        F.adaptive_avg_pool2d(x, (3, 2)),
        F.adaptive_avg_pool2d(x, (4, 5)),
    ),
    "adaptive 1-D": lambda x: (F.adaptive_avg_pool1d(x[0], 2), F.adaptive_max_pool1d(x[0], 3)),
    "adaptive max": lambda x: (F.adaptive_max_pool2d(x, 1), F.adaptive_max_pool2d(x, (3, 3))),
    "nearest": lambda x: (F.interpolate(x, scale_factor=2), F.interpolate(x, (5, 13)), F.interpolate(x[0], 4)),
    "nearest-exact": lambda x: F.interpolate(x, (4, 11), mode="nearest-exact"),
    "bilinear": lambda x: (
        F.interpolate(x, scale_factor=1.7, mode="bilinear"),
        F.interpolate(x, (3, 5), mode="bilinear"),
    ),
    "corners": lambda x: F.interpolate(x, (4, 13), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "linear": lambda x: F.interpolate(x[0], 9, mode="linear"),
    "trilinear": lambda x: F.interpolate(x[None], scale_factor=2, mode="trilinear"),
}


def test_pools_and_resizing(rng: torch.Generator) -> None:
    check(POOLS, torch.randn(2, 3, 6, 9, generator=rng))


NORMS: dict[str, Case] = {
    "layer": lambda x, w: (F.layer_norm(x, (3,)), F.layer_norm(x, (5, 3), w.expand(5, 3), w.expand(5, 3), 1e-3)),
    "layer bias": lambda x, w: F.layer_norm(x, (3,), None, w),
    "rms": lambda x, w: (F.rms_norm(x, (3,), w, 1e-6), F.rms_norm(x, (3,))),
    "group": lambda x, w: (F.group_norm(x, 2), F.group_norm(x, 4, torch.arange(4.0), torch.ones(4))),
    "batch": lambda x, w: (
        F.batch_norm(x, torch.ones(4), torch.arange(1.0, 5)),
        F.batch_norm(x[:, :3, 0], w, w * w, w, w),
    ),
    "instance": lambda x, w: (F.instance_norm(x), F.instance_norm(x, weight=torch.arange(4.0), bias=torch.ones(4))),
}


def test_normalisation(rng: torch.Generator) -> None:
    check(NORMS, torch.randn(2, 4, 5, 3, generator=rng), torch.rand(3, generator=rng) + 0.5)


sdpa = F.scaled_dot_product_attention
ATTENTION: dict[str, Case] = {
    "plain": lambda q, k, m: sdpa(q, k, k),
    "scaled": lambda q, k, m: sdpa(q, k, k[..., :3], scale=0.3),
    "causal": lambda q, k, m: sdpa(q, q, q, is_causal=True),
    "bool mask": lambda q, k, m: sdpa(q, k, k, m > 0),
    "float mask": lambda q, k, m: sdpa(q, k, k, m),
    "grouped": lambda q, k, m: sdpa(q, k[:, :2], k[:, :2], enable_gqa=True),
    "broadcast": lambda q, k, m: sdpa(q, k[:1, :1], k),
    "three dimensions": lambda q, k, m: sdpa(q[0], k[0], k[0], m),
    "two dimensions": lambda q, k, m: sdpa(q[0, 0], k[0, 0], k[0, 0], m),
}


def test_attention(rng: torch.Generator) -> None:
    mask = torch.randn(5, 6, generator=rng)
    mask[:, 0] = 1  # a row without any key has no defined result
    check(ATTENTION, torch.randn(2, 4, 5, 8, generator=rng), torch.randn(2, 4, 6, 8, generator=rng), mask)


def test_layers_without_a_row_are_decomposed(rng: torch.Generator) -> None:
    torch.manual_seed(0)
    gru, lstm = torch.nn.GRU(4, 5, batch_first=True), torch.nn.LSTM(4, 3, bidirectional=True)
    heads = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    encoder = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    for parameter in [p for m in (gru, lstm, heads, encoder) for p in m.parameters()]:
        parameter.requires_grad_(False)
    module = torch.nn.ModuleList([gru, lstm, heads, encoder])

    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = module

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return gru(x)[0], lstm(x)[0], heads(x, x, x)[0], encoder(x)

    x = torch.randn(2, 3, 4, generator=rng)
    model = Layers().eval()
    results = interpret(import_module(model, (x,)), x.numpy())
    for want, got in zip(model(x), results, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=2e-5, atol=2e-5)


def test_narrow_floats(rng: torch.Generator) -> None:
    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.LayerNorm(8)).to(dtype)
        x = torch.randn(3, 8, generator=rng).to(dtype)
        graph = import_module(model, (x,))
        array = x.view(torch.uint16).numpy().view(graph.inputs[0].type.dtype.numpy)
        got = interpret(graph, array)[0].astype(np.float32)
        want = model(x).detach().float().numpy()
        assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)
