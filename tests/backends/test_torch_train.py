"""Graphs that learn: gradients, learned steps, and values that flow back into the graph."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.backends.torch.lower import run, to_module, to_numpy
from secateur.backends.torch.simulate import lsq_step, quantize_codes, step
from secateur.backends.torch.train import to_graph, trainable
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Value
from secateur.ir.interpret import interpret
from secateur.ir.text import parse, weights
from secateur.ir.types import DType

CONV = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1)}
POOL = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0, 0, 0), "dilation": (1, 1)}


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def real(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def fake(b: Builder, x: Value, scale: float, zero: int = 0, dtype: DType = DType.U8) -> Value:
    """quantize and dequantize with one step for the whole tensor."""
    s, z = b.constant(scale), b.constant(zero, dtype)
    return b.dequantize(b.quantize(x, s, z), s, z)


def weight(b: Builder, w: np.ndarray, name: str, most: int = 127, groups: int = 0) -> Value:
    """Dequantised integer weights: a step for each output channel, or for each group of a row."""
    parts = w.reshape(w.shape[0], -1, groups) if groups else w
    axes = (2,) if groups else tuple(range(1, w.ndim))
    scale = np.abs(parts).max(axis=axes, keepdims=True) / np.float32(most)
    codes = np.round(parts / scale).astype(np.int8)
    made = b.dequantize(b.constant(codes, name=name), scale, np.zeros((), np.int8))
    return b.reshape(made, shape=w.shape) if groups else made


def network(rng: np.random.Generator, batch: int = 2, most: int = 127, groups: int = 0) -> Graph:
    """conv -> relu -> max_pool -> linear, quantised; the pool works on codes."""
    b = Builder.graph("net", x=f"f32[{batch},3,6,6]")
    x = fake(b, b["x"], 0.03, 117)
    y = b.conv(x, weight(b, real(rng, 4, 3, 3, 3), "conv.weight", most), b.constant(real(rng, 4), name="b"), **CONV)
    s, z = b.constant(0.05), b.constant(3, DType.U8)
    y = b.max_pool(b.quantize(b.relu(y), s, z), **POOL)
    y = b.dequantize(y, b.constant(0.05), b.constant(3, DType.U8))
    y = b.reshape(y, shape=(batch, 36))
    return b.returns(
        b.linear(y, weight(b, real(rng, 5, 36), "fc.weight", most, groups), b.constant(real(rng, 5), name="c"))
    )


def learn(module: torch.nn.Module, x: Tensor, steps: int = 5, rate: float = 0.02) -> list[float]:
    """Descend towards a fixed target; the loss before each step."""
    target = torch.linspace(-1, 1, module(x)[0].numel()).reshape(module(x)[0].shape)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (module(x)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("options", [{}, {"most": 7}, {"most": 7, "groups": 12}], ids=["int8", "int4", "groups"])
def test_values_flow_back_exactly(options: dict[str, int], rng: np.random.Generator) -> None:
    """Lowered numerics are the simulated ones (pytorch/executorch#16426): before, and after training."""
    graph = network(rng, **options)
    module = trainable(graph)
    x = torch.from_numpy(real(rng, 2, 3, 6, 6))
    assert torch.equal(module(x)[0], run(graph, x)[0])
    assert str(to_graph(module, graph)) == str(graph)
    for before, after in zip(weights(graph).values(), weights(to_graph(module, graph)).values(), strict=True):
        np.testing.assert_array_equal(before, after)

    losses = learn(module, x)
    assert losses[-1] < losses[0]
    trained = to_graph(module, graph)
    assert torch.equal(module(x)[0], run(trained, x)[0])
    # Sums in another order may round one code of 288 to its neighbour, which is a step of 0.05 times a weight.
    np.testing.assert_allclose(interpret(trained, x.numpy())[0], to_numpy(module(x)[0]), atol=0.2)
    codes = [
        op.attrs["value"] for op in trained.find("constant") if op.result.type.dtype is DType.I8 and op.attrs["name"]
    ]
    most = options.get("most", 127)
    assert len(codes) == 2 and all(np.abs(array).max() <= most for array in codes)
    changed = [
        not np.array_equal(a, b) for a, b in zip(codes, (w for w in weights(graph).values() if w.dtype == np.int8))
    ]
    assert changed == [True, True]


def test_every_learnable_value_has_a_gradient(rng: np.random.Generator) -> None:
    module = trainable(network(rng))
    learn(module, torch.from_numpy(real(rng, 2, 3, 6, 6)), steps=2)  # a master in the middle of its cell has none yet
    gradients = {name: p.grad for name, p in module.named_parameters()}
    names = {
        "w_conv_weight",
        "step_conv_weight",
        "w_fc_weight",
        "step_fc_weight",
        "w_b",
        "w_c",
        "step_x",
        "step_quantize",
    }
    assert set(gradients) == names
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.abs().sum() > 0, name


def test_gradients_of_a_step_are_those_of_lsq(rng: np.random.Generator) -> None:
    """Equations 2 and 3 of the paper, and its gradient scale, per element on both sides of the range."""
    x = torch.from_numpy(real(rng, 64)) * 3  # 12 steps: about half is inside
    start, share = torch.tensor(0.25), 1 / math.sqrt(64 * 7)
    ratio = torch.ones((), requires_grad=True)
    s = step(ratio, start, share)
    zero = torch.zeros((), dtype=torch.int8)
    y = (quantize_codes(x, s, zero, -8, 7) - zero) * s
    upstream = torch.from_numpy(real(rng, 64))
    (y * upstream).sum().backward()
    v = x / 0.25
    expected = torch.where(v.round() < -8, -8.0, torch.where(v.round() > 7, 7.0, v.round() - v))
    assert ((v < -8).any(), (v > 7).any(), ((v > -8) & (v < 7)).any()) == (True, True, True)
    torch.testing.assert_close(ratio.grad, (expected * upstream).sum() * share / start)


def test_gradients_pass_inside_the_range_only() -> None:
    x = torch.tensor([-9.0, -8.0, 0.3, 7.0, 7.4, 7.6, 100.0], requires_grad=True)
    quantize_codes(x, torch.tensor(1.0), torch.zeros((), dtype=torch.int8), -8, 7).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 1, 0, 0]


def test_gradients_of_steps_per_channel(rng: np.random.Generator) -> None:
    """A step for each output channel gets the errors of that channel's weights, weighted by what they multiply."""
    b = Builder.graph("linear", x="f32[4,6]")
    w = real(rng, 3, 6)
    graph = b.returns(b.linear(b["x"], weight(b, w, "w")))
    module = trainable(graph, masters={"w": w})
    x = torch.from_numpy(real(rng, 4, 6))
    module(x)[0].sum().backward()
    codes = torch.from_numpy(
        next(op.attrs["value"] for op in graph.find("constant") if op.attrs["name"] == "w")
    ).float()
    master, ratio, start = (module.get_parameter("w_w"), module.get_parameter("step_w"), module.get_buffer("start_w"))
    torch.testing.assert_close(master.grad, x.sum(0).expand(3, 6))
    errors = codes - master.detach() / start
    expected = (errors * x.sum(0)).sum(1, keepdim=True) / math.sqrt(6 * 127) / start
    torch.testing.assert_close(ratio.grad, expected, atol=1e-3, rtol=1e-3)


def test_a_step_that_is_too_wide_learns_to_shrink(rng: np.random.Generator) -> None:
    b = Builder.graph("wide", x="f32[256]")
    graph = b.returns(fake(b, b["x"], 2.0, 128))
    module = trainable(graph)
    x = torch.from_numpy(real(rng, 256))
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    errors = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (module(x)[0] - x).square().mean()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < errors[0] / 10
    assert 0 < float(to_graph(module, graph).find("constant")[0].attrs["value"]) < 1


def test_both_ends_of_codes_keep_one_step(rng: np.random.Generator) -> None:
    """The graph holds the step in front of a pool and behind it as two constants."""
    graph = network(rng)
    module = trainable(graph)
    learn(module, torch.from_numpy(real(rng, 2, 3, 6, 6)))
    trained = to_graph(module, graph)
    (front,) = [op for op in trained.find("quantize") if op.result.users[0].name == "max_pool"]
    (behind,) = trained.find("max_pool")[0].result.users
    values = [float(op.operands[1].op.attrs["value"]) for op in (front, behind)]
    assert values[0] == values[1] != np.float32(0.05)


def test_float_weights_start_from_what_they_were(rng: np.random.Generator) -> None:
    """Known weights are used where they round to the graph's codes; elsewhere they would change the start."""
    w = real(rng, 5, 8)
    b = Builder.graph("fc", x="f32[1,8]")
    graph = b.returns(b.linear(b["x"], weight(b, w, "w")))
    other = w.copy()
    other[0, 0] += 1
    module = trainable(graph, masters={"w": other})
    master = to_numpy(module.get_parameter("w_w"))
    np.testing.assert_array_equal(master[1:], w[1:])
    assert master[0, 0] != other[0, 0]
    np.testing.assert_array_equal(weights(to_graph(module, graph))["w"], weights(graph)["w"])
    graph.find("constant")[0].attrs["name"] = "w_quantized"  # what ONNX Runtime calls the codes of w
    assert torch.equal(
        trainable(graph, masters={"w": other}).get_parameter("w_w_quantized"), module.get_parameter("w_w")
    )


def test_lsq_start(rng: np.random.Generator) -> None:
    w = real(rng, 5, 8)
    b = Builder.graph("fc", x="f32[1,8]")
    graph = b.returns(b.linear(b["x"], weight(b, w, "w", most=7)))
    module = trainable(graph, masters={"w": w}, initial="lsq")
    master = to_numpy(module.get_parameter("w_w"))
    expected = 2 * np.abs(master).mean(1, keepdims=True) / np.sqrt(7)
    np.testing.assert_allclose(to_numpy(module.get_buffer("start_w")), expected, rtol=1e-6)
    assert lsq_step(np.zeros((2, 3), np.float32), 7, (2, 1)).tolist() == [[1], [1]]


def test_any_batch_size(rng: np.random.Generator) -> None:
    """A graph for two examples trains on five, each as if it were alone."""
    graph = network(rng)
    module = trainable(graph)
    x = torch.from_numpy(real(rng, 5, 3, 6, 6))
    whole = module(x)[0]
    assert whole.shape == (5, 5)
    alone = torch.cat([module(x[i : i + 2])[0][:1] for i in range(4)])
    torch.testing.assert_close(whole[:4], alone)
    learn(module, x)
    small = to_graph(module, network(rng, batch=1))
    torch.testing.assert_close(run(small, x[:1])[0], module(x[:1])[0])


def test_movement_takes_any_batch_size(rng: np.random.Generator) -> None:
    b = Builder.graph("moves", x="f32[1,4,6]")
    heads = b.transpose(b.reshape(b["x"], shape=(1, 4, 2, 3)), perm=(0, 2, 1, 3))
    first = b.slice(heads, starts=(0, 0, 1, 0), stops=(1, 2, 3, 3), steps=(1, 1, 1, 1))
    flat = b.reshape(first, shape=(2, 6))
    token = b.constant(real(rng, 1, 1, 6), name="token")
    joined = b.concat(token, b["x"], axis=1)
    mean = b.broadcast_to(b.reduce_mean(joined, axes=(1,), keepdims=True), shape=(1, 5, 6))
    graph = b.returns(b.add(joined, mean), flat)
    module = trainable(graph)
    x = torch.from_numpy(real(rng, 3, 4, 6))
    sums, parts = module(x)
    for i in range(3):
        one = run(graph, x[i : i + 1])
        assert torch.equal(sums[i : i + 1], one[0]) and torch.equal(parts[2 * i : 2 * i + 2], one[1])


def test_a_graph_through_text_trains_alike(rng: np.random.Generator) -> None:
    graph = network(rng)
    again = parse(str(graph), weights(graph))
    x = torch.from_numpy(real(rng, 2, 3, 6, 6))
    assert learn(trainable(graph), x) == learn(trainable(again), x)


def test_modules_can_be_copied(rng: np.random.Generator) -> None:
    """Keeping the best of several is done by copies, also of the module."""
    graph = network(rng)
    module = trainable(graph)
    kept = copy.deepcopy(module)
    learn(module, torch.from_numpy(real(rng, 2, 3, 6, 6)))
    np.testing.assert_array_equal(weights(to_graph(kept, graph))["fc.weight"], weights(graph)["fc.weight"])


def test_what_is_not_to_be_learned(rng: np.random.Generator) -> None:
    """Steps of integers that come in or go out, steps of biases, statistics, tables of indices and infinities."""
    b = Builder.graph("given", x="u8[2,4]", y="f32[2,4]")
    s, z = b.constant(0.1), b.constant(0, DType.U8)
    x = b.dequantize(b["x"], s, z)
    bias = b.dequantize(
        b.constant(np.array([5, -7, 0, 9], np.int32), name="bias"), b.constant(0.01), np.zeros((), np.int32)
    )
    mask = b.constant(np.array([0, -np.inf, 0, 0], np.float32), name="mask")
    norm = [b.constant(np.abs(real(rng, 4)), name=name) for name in ("gamma", "beta", "mean", "var")]
    y = b.batch_norm(b.maximum(b.add(b.add(x, bias), b["y"]), mask), *norm, eps=1e-5, axis=1)
    graph = b.returns(b.quantize(y, b.constant(0.2), b.constant(4, DType.U8)), y)
    module = trainable(graph)
    learned = {name for name, p in module.named_parameters() if p.requires_grad}
    assert learned == {"w_bias", "w_gamma", "w_beta"}
    x8, y32 = rng.integers(0, 256, (2, 4)).astype(np.uint8), real(rng, 2, 4)
    codes, values = module(torch.from_numpy(x8), torch.from_numpy(y32))
    wanted = interpret(graph, x8, y32)
    np.testing.assert_array_equal(to_numpy(codes), wanted[0])
    np.testing.assert_allclose(to_numpy(values), wanted[1], rtol=1e-5)


def test_float_graphs_train_too(rng: np.random.Generator) -> None:
    b = Builder.graph("float", x="f32[2,8]")
    graph = b.returns(b.linear(b["x"], b.constant(real(rng, 3, 8), name="w"), b.constant(real(rng, 3), name="b")))
    module = trainable(graph)
    x = torch.from_numpy(real(rng, 2, 8))
    losses = learn(module, x)
    assert losses[-1] < losses[0]
    assert torch.equal(module(x)[0], to_module(to_graph(module, graph))(x)[0])


def test_refusals(rng: np.random.Generator) -> None:
    graph = network(rng)
    with pytest.raises(CompileError, match=r"the module has no value for graph @other: constant 0 is not f32\[\]"):
        to_graph(trainable(graph), Builder.graph("other", x="f32[1]").returns())

    b = Builder.graph("integers", x="f32[2,4]")
    codes = b.quantize(b["x"], b.constant(0.1), b.constant(0, DType.I8))
    b.returns(b.linear(codes, rng.integers(-9, 9, (3, 4)).astype(np.int8)))
    with pytest.raises(CompileError, match=r"linear computes with integers, which have no gradient\nhint: train the"):
        trainable(b.into)

    for scale in (0.0, np.inf, np.nan):
        b = Builder.graph("scale", x="f32[2]")
        b.returns(fake(b, b["x"], scale))
        with pytest.raises(CompileError, match="a scale is not a positive, finite number"):
            trainable(b.into)
