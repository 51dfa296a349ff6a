"""Integer kernels agree with the interpreter to the last bit, at the extremes and on every target of this machine."""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import pytest

from secateur.backends.cpu.compile import Options, compile_graph
from secateur.backends.cpu.lower import lower
from secateur.backends.cpu.target import TARGETS, find_target, missing_features
from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Value
from secateur.ir.interpret import interpret
from secateur.ir.types import FLOATS, INTS, DType, TensorType
from secateur.passes.manager import PassManager, resolve

SEED = int(np.random.default_rng().integers(1 << 30))
HERE = [t.name for t in TARGETS.values() if t.machine == platform.machine() and not missing_features(t.features)]
ELEMENTWISE = ["quantize", "dequantize", "rescale", "saturate", "lookup", "decay", "cast", "maximum", "minimum"]
STORED = (DType.I8, DType.U8, DType.I16, DType.I32)


def number(value: float, dtype: DType = DType.I32) -> np.ndarray:
    return np.asarray(value, dtype.numpy)


def spread(dtype: DType, rng: np.random.Generator, count: int = 1000) -> np.ndarray:
    """Numbers of every magnitude of a type, its limits and their neighbours among them."""
    if dtype.is_float:
        powers = np.exp2(rng.uniform(-30, 70, count)) * rng.choice([-1.0, 1.0], count)
        limits = [float(edge) for d in INTS for edge in (np.iinfo(d.numpy).min, np.iinfo(d.numpy).max)]
        near = [e + d for e in limits for d in (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)]
        halves = np.arange(-300, 300) + 0.5
        odd = [np.nan, np.inf, -np.inf, 0.0, -0.0]
        values = np.concatenate([powers, near, halves, odd]).astype(dtype.numpy)
        return np.concatenate([values, np.nextafter(values, dtype.numpy.type(0))])
    limits = np.iinfo(dtype.numpy)
    powers = (np.exp2(rng.uniform(0, limits.bits - 1, count)) * rng.choice([-1.0, 1.0], count)).astype(np.int64)
    edges = [limits.min, limits.min + 1, limits.max - 1, limits.max, 0, 1]
    return np.concatenate([powers.astype(dtype.numpy), np.array(edges, dtype.numpy)])


def assert_exact(b: Builder, outputs: list[Value], inputs: list[np.ndarray], target: str) -> Graph:
    """Compile, run, and compare every output bit for bit."""
    graph = b.returns(*outputs)
    program = compile_graph(graph, Options(pipeline="none", target=target))
    results = program(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    for value, got, wanted in zip(outputs, results, interpret(graph, *inputs), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted, err_msg=f"{target}, seed {SEED}: {value.op} {value.type}")
    return graph


@pytest.mark.parametrize("target", HERE)
def test_drawn_instances(target: str, assert_ops_agree: Callable[..., None]) -> None:
    print("seed", SEED)
    assert_ops_agree(ELEMENTWISE, 12, SEED, target=target)


@pytest.mark.parametrize("target", HERE)
def test_conversions_at_the_limits(target: str) -> None:
    """Every conversion between number types, clipped and wrapped, of numbers around every type's limits."""
    rng = np.random.default_rng(SEED)
    b = Builder.graph("conversions")
    inputs, outputs = [], []
    for source in (*INTS, DType.F32, DType.F64):
        inputs.append(spread(source, rng))
        x = b.into.add_input(TensorType.of(inputs[-1]))
        outputs += [b.cast(x, dtype=into) for into in INTS]
        if source not in FLOATS:
            outputs += [b.saturate(x, dtype=into) for into in INTS]
    assert_exact(b, outputs, inputs, target)


@pytest.mark.parametrize("target", HERE)
def test_requantisation_at_the_limits(target: str) -> None:
    """Every shift, the largest products, halves on both sides of zero, into every stored type."""
    rng = np.random.default_rng(SEED)
    b = Builder.graph("rescale")
    x, m = spread(DType.I32, rng), spread(DType.I32, rng)
    halves = np.arange(-len(x) // 2, len(x) - len(x) // 2, dtype=np.int32)
    inputs = [x, m, halves]
    values = [b.into.add_input(TensorType.of(array)) for array in inputs]
    outputs = []
    for shift in range(1, 63):
        outputs.append(b.rescale(values[0], values[1], number(0), shift=shift))
        if shift <= 31:
            outputs.append(b.rescale(values[2], number(1 << max(shift - 2, 0)), number(0), shift=shift))
    for power, shift in ((0, 1), (0, 2), (0, 16), (30, 31), (3, 34), (3, 35), (5, 62), (4, 4), (6, 5)):
        # Two ops become one kernel, in which the multiplier is a number.
        outputs.append(b.neg(b.rescale(values[0], number(1 << power), number(0), shift=shift)))
    for into in STORED:
        zero = number(rng.integers(0, 127), into)
        outputs += [b.rescale(values[0], values[1], zero, shift=shift) for shift in (31, 40, 55)]
    assert_exact(b, outputs, inputs, target)


@pytest.mark.parametrize("target", HERE)
def test_quantisation_at_the_limits(target: str) -> None:
    """Halves to even, infinities, NaN, and quotients beyond every type."""
    rng = np.random.default_rng(SEED)
    b = Builder.graph("quantize")
    inputs = [spread(DType.F32, rng)]
    x = b.into.add_input(TensorType.of(inputs[0]))
    outputs = []
    for into in STORED:
        for scale in (1.0, 0.37, 3e-5, 1e30):
            zero = number(rng.integers(0, 127), into)
            outputs.append(b.quantize(x, number(scale, DType.F32), zero))
    assert_exact(b, outputs, inputs, target)


@pytest.mark.parametrize("target", HERE)
def test_tables_at_every_entry(target: str) -> None:
    """Every value of the 8-bit types and of i16, in tables of every width."""
    rng = np.random.default_rng(SEED)
    b = Builder.graph("tables")
    inputs, outputs = [], []
    for source in (DType.I8, DType.U8, DType.I16):
        limits = np.iinfo(source.numpy)
        inputs.append(np.arange(limits.min, limits.max + 1).astype(source.numpy))
        x = b.into.add_input(TensorType.of(inputs[-1]))
        for kind in STORED:
            low, high = np.iinfo(kind.numpy).min, np.iinfo(kind.numpy).max
            entries = rng.integers(low, high + 1, 129 if source is DType.I16 else 256)
            entries[:2] = low, high
            for into in STORED:
                outputs.append(b.lookup(x, table=tuple(map(int, entries)), dtype=into))
    assert_exact(b, outputs, inputs, target)


def limits_of(dtype: DType, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers of the whole range of a type, its extremes more often."""
    low, high = np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max
    values = rng.integers(low, high + 1, shape)
    return np.where(rng.random(shape) < 0.3, rng.choice([low, high], shape), values).astype(dtype.numpy)


# images, height, width, channels, kernel, stride, dilation, padding
WINDOWS = [
    (1, 7, 7, 48, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    (2, 8, 9, 17, (3, 3), (1, 1), (1, 1), (1, 0, 2, 1)),
    (1, 14, 14, 32, (3, 3), (2, 2), (1, 1), (0, 0, 1, 1)),
    (1, 13, 29, 5, (5, 5), (1, 1), (1, 1), (2, 2, 2, 2)),
    (2, 9, 6, 33, (5, 5), (2, 2), (1, 1), (2, 2, 2, 2)),
    (1, 7, 7, 64, (7, 7), (1, 1), (1, 1), (0, 0, 0, 0)),
    (1, 12, 12, 16, (7, 7), (1, 1), (1, 1), (3, 3, 3, 3)),
    (1, 10, 11, 20, (3, 2), (1, 2), (2, 3), (2, 0, 1, 3)),
    (1, 1, 40, 16, (1, 4), (1, 3), (1, 1), (0, 2, 0, 2)),
    (1, 24, 24, 3, (2, 2), (2, 2), (1, 1), (0, 0, 0, 0)),
    (1, 3, 300, 400, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
]


@pytest.mark.parametrize("target", HERE)
def test_depthwise(target: str) -> None:
    """Windows of every kind, bare and requantised, with the largest products there are."""
    rng = np.random.default_rng(SEED)
    b = Builder.graph("depthwise")
    inputs, outputs = [], []
    for n, height, width, channels, kernel, stride, dilation, padding in WINDOWS:
        for dtype in (DType.U8, DType.I8):
            inputs.append(limits_of(dtype, (n, height, width, channels), rng))
            x = b.into.add_input(TensorType.of(inputs[-1]))
            attrs = {"stride": stride, "dilation": dilation, "padding": padding, "groups": channels}
            weight = limits_of(DType.I8, (channels, 1, *kernel), rng)
            bias = limits_of(DType.I32, (channels,), rng)
            plain = b.conv(x, weight, channels_last=True, **attrs)
            biased = b.conv(x, weight, bias, channels_last=True, pad_value=int(limits_of(dtype, (), rng)), **attrs)
            multiplier = rng.integers(1 << 20, 1 << 31, channels).astype(np.int32)
            zero = number(rng.integers(0, 127), dtype)
            outputs += [plain, b.rescale(biased, multiplier, zero, shift=46)]
    graph = assert_exact(b, outputs, inputs, target)
    used = chosen(graph, target)
    assert used.count("depthwise_integer") == len(outputs), used


def chosen(graph: Graph, target: str) -> list[str]:
    """The kernel families a graph is compiled to."""
    program = lower(PassManager(resolve("cpu")).run(graph.clone()), find_target(target))
    return [step.family for step in program.steps]


@pytest.mark.parametrize("target", HERE)
def test_standardize(target: str) -> None:
    """Rows without variance, of the largest variance, with outliers and with few elements; bare and requantised."""
    rng = np.random.default_rng(SEED)
    b = Builder.graph("standardize")
    inputs, outputs = [], []
    for size in (1, 2, 15, 16, 17, 96, 768, 5000):
        rows = [limits_of(DType.I16, (size,), rng), np.full(size, 32767), np.full(size, -32768), np.zeros(size)]
        rows += [rng.integers(-most, most + 1, size) for most in (1, 2, 30, 1000)]
        rows += [np.where(np.arange(size) == 0, 32767, 0), np.where(np.arange(size) % 2, 32767, -32768)]
        inputs.append(np.stack(rows).astype(np.int16))
        x = b.into.add_input(TensorType.of(inputs[-1]))
        for epsilon, centre in ((0, True), (40, True), ((1 << 44) - 1, True), (1, False)):
            value = b.standardize(x, epsilon=epsilon, centre=centre)
            multiplier = rng.integers(1 << 20, 1 << 31, size).astype(np.int32)
            moved = b.add(
                b.rescale(value, multiplier, number(0), shift=28), limits_of(DType.I16, (size,), rng).astype(np.int32)
            )
            outputs += [value, b.rescale(moved, number(1), number(77, DType.U8), shift=16)]
    graph = assert_exact(b, outputs, inputs, target)
    assert chosen(graph, target).count("standardize") >= 32


# queries, heads of queries and of keys, keys, elements of keys and of values
ATTENTIONS = [
    (128, 2, 2, 128, 64, 64),
    (5, 4, 2, 33, 17, 9),
    (1, 1, 1, 1, 1, 1),
    (40, 3, 1, 70, 32, 40),
    (3, 1, 1, 4, 4, 4),
]


@pytest.mark.parametrize("target", HERE)
def test_attention(target: str) -> None:
    """Masks of every kind, rows that see nothing, equal scores and the largest ones; operands and result permuted."""
    rng = np.random.default_rng(SEED)
    b = Builder.graph("attention")
    inputs: list[np.ndarray] = []
    outputs = []

    def given(array: np.ndarray) -> Value:
        inputs.append(array)
        return b.into.add_input(TensorType.of(array))

    for s, heads, shared, t, d, dv in ATTENTIONS:
        shapes = ((2, heads, s, d), (2, shared, t, d), (2, shared, t, dv))
        masks = [rng.random(shape) < 0.7 for shape in ((2, heads, s, t), (1, 1, 1, t), (s, 1))]
        for variant, operands in enumerate(([], [], *([mask] for mask in masks))):
            q, k, v = (limits_of(DType.I8, shape, rng) for shape in shapes)
            if variant == 1:
                k[...] = k[:, :, :1]
                v[...] = rng.choice([-128, 127])
            operands = list(map(given, (q, k, v, *operands)))
            for bare in (True, False):
                attrs = {
                    "multiplier": int(rng.integers(1 << 28, 1 << 31)),
                    "shift": int(rng.integers(30, 42 + 12 * bare)),
                }
                value = b.attention_integer(*operands, causal=variant % 2 == 1, **attrs)
                if not bare:
                    multiplier = rng.integers(1 << 24, 1 << 31, dv).astype(np.int32)
                    value = b.rescale(value, multiplier, number(128, DType.U8), shift=38)
                    value = b.transpose(value, perm=(0, 2, 1, 3))
                outputs.append(value)
    # Every exponent up to 15 octaves, each key's weight in a column of its own.
    steps, keys = np.arange(2, 34, 2, dtype=np.int8), np.arange(-128, 128).astype(np.int8)
    operands = [
        given(x) for x in (steps.reshape(1, 16, 1), keys.reshape(1, 256, 1), np.eye(256, dtype=np.int8)[None] * 127)
    ]
    outputs.append(b.attention_integer(*operands, multiplier=1 << 30, shift=31))
    s, heads, d = 21, 3, 20
    merged = given(limits_of(DType.I8, (1, s, 3, heads, d), rng))
    parts = [
        b.transpose(
            b.reshape(
                b.slice(merged, starts=(0, 0, i, 0, 0), stops=(1, s, i + 1, heads, d), steps=(1,) * 5),
                shape=(1, s, heads, d),
            ),
            perm=(0, 2, 1, 3),
        )
        for i in range(3)
    ]
    outputs.append(b.transpose(b.attention_integer(*parts, multiplier=1 << 30, shift=36), perm=(0, 2, 1, 3)))
    graph = assert_exact(b, outputs, inputs, target)
    assert chosen(graph, target).count("attention_integer") == 2 * 5 * len(ATTENTIONS) + 2


REDUCED = [((2, 7, 7, 50), (1, 2)), ((3, 40, 21), (2,)), ((5, 64), (0, 1)), ((4, 3, 33), (0, 2)), ((1, 1), (1,))]


@pytest.mark.parametrize("target", HERE)
def test_reductions_with_what_is_around_them(target: str) -> None:
    """Casts in front, requantisation behind, along every kind of axis, as one kernel."""
    rng = np.random.default_rng(SEED)
    b = Builder.graph("reductions")
    inputs, outputs = [], []
    for shape, axes in REDUCED:
        for dtype in (DType.U8, DType.I8, DType.I16):
            for kind in (b.reduce_sum, b.reduce_max, b.reduce_min):
                inputs += [limits_of(dtype, shape, rng) for _ in range(2)]
                first, second = (b.cast(b.into.add_input(TensorType.of(x)), dtype=DType.I32) for x in inputs[-2:])
                outputs.append(kind(first, axes=axes, keepdims=True))
                moved = b.mul(b.sub(second, number(77)), number(3))
                total = kind(moved, axes=axes, keepdims=False)
                outputs.append(b.rescale(total, number(1234567890), number(9, DType.I8), shift=42))
    graph = assert_exact(b, outputs, inputs, target)
    assert set(chosen(graph, target)) == {"reduce"}


@pytest.mark.parametrize("target", HERE)
def test_movement(target: str) -> None:
    """Transposes, concatenations and padding of small integers; pooling over the whole range of a type."""
    rng = np.random.default_rng(SEED)
    b = Builder.graph("movement")
    inputs, outputs = [], []
    for dtype in (DType.U8, DType.I8, DType.I16):
        for shape in ((1, 5, 6, 48), (2, 3, 17, 3), (1, 40, 1, 130)):
            inputs.append(limits_of(dtype, shape, rng))
            x = b.into.add_input(TensorType.of(inputs[-1]))
            outputs += [b.transpose(x, perm=perm) for perm in ((0, 2, 1, 3), (0, 3, 1, 2), (3, 2, 1, 0))]
            outputs += [b.concat(x, x, axis=axis) for axis in range(4)]
            outputs.append(b.pad(x, low=(0, 1, 2, 0), high=(0, 2, 0, 3), interior=(0, 0, 1, 0), value=7))
            window = {"kernel": (3, 1), "stride": (2, 1), "padding": (1, 0, 1, 0), "dilation": (1, 1)}
            outputs.append(b.max_pool(x, channels_last=True, **window))
    assert_exact(b, outputs, inputs, target)
