"""Products on AMX tiles: equal to the interpreter's to the last bit, by any number of threads, where tiles overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secateur.backends.artifact import Program, load
from secateur.backends.cpu.band import Problem
from secateur.backends.cpu.blocks import DEPTH, ROWS, Grid, Steps, pack_tiles
from secateur.backends.cpu.compile import Options, compile_graph, compile_to
from secateur.backends.cpu.dot import Dot
from secateur.backends.cpu.kernels.amx import AMX
from secateur.backends.cpu.target import TARGETS, cpu_features, missing_features, native_target
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Value
from secateur.ir.interpret import interpret
from secateur.ir.types import DType, TensorType

SEED = int(np.random.default_rng().integers(1 << 30))
TARGET = "x86-64-v4-amx"
MISSING = missing_features(TARGETS[TARGET].features)
needs_amx = pytest.mark.skipif(bool(MISSING), reason=f"this machine lacks {', '.join(MISSING)}")


class Layers:
    """8-bit layers side by side as one graph."""

    def __init__(self) -> None:
        print("seed", SEED)
        self.rng = np.random.default_rng(SEED)
        self.b = Builder.graph("layers")
        self.inputs: list[np.ndarray] = []
        self.outputs: list[Value] = []

    def drawn(self, dtype: Any, *shape: int) -> np.ndarray:
        """Any number of a type, its limits more often than the others."""
        limits = np.iinfo(dtype)
        array = self.rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        edges = self.rng.choice([limits.min, limits.max], shape).astype(dtype)
        return np.where(self.rng.random(shape) < 0.2, edges, array).astype(dtype)

    def input(self, array: np.ndarray) -> Value:
        self.inputs.append(array)
        return self.b.into.add_input(TensorType.of(array))

    def linear(self, x: Value, outs: int, bias: bool = True) -> Value:
        operands = [x, self.b.constant(self.drawn(np.int8, outs, x.shape[-1]))]
        return self.b.linear(*operands, *([self.drawn(np.int32, outs)] if bias else []))

    def conv(self, x: Value, outs: int, kernel: int, **attrs: Any) -> Value:
        groups = attrs.get("groups", 1)
        w = self.b.constant(self.drawn(np.int8, outs, x.shape[-1] // groups, kernel, kernel))
        given = {"stride": (1, 1), "padding": (kernel // 2,) * 4, "dilation": (1, 1), "channels_last": True, **attrs}
        return self.b.op("conv", [x, w, self.b.constant(self.drawn(np.int32, outs))], given).result

    def rescaled(self, value: Value, dtype: Any, shift: int = 55, multiplier: Any = None) -> Value:
        """Requantised by a factor for each channel; a sum of any 32 bits spreads over the result's type."""
        if multiplier is None:
            multiplier = self.rng.integers(1 << 29, 1 << 31, value.shape[-1]).astype(np.int32)
        zero = self.b.constant(np.asarray(self.rng.integers(0, 100), dtype))
        return self.b.rescale(value, np.asarray(multiplier, np.int32), zero, shift=shift)

    def check(self, pipeline: str = "default") -> Program:
        """Compile, run with 1, 2 and 3 threads, compare; every product must be on tiles."""
        graph = self.b.returns(*self.outputs)
        expected = interpret(graph, *self.inputs)
        program = compile_graph(graph, Options(target=TARGET, pipeline=pipeline))
        for threads in (1, 2, 3):
            actual = load(program.folder, threads)(*self.inputs)
            actual = actual if isinstance(actual, tuple) else (actual,)
            for value, got, wanted in zip(self.outputs, actual, expected, strict=True):
                assert got.dtype == wanted.dtype
                np.testing.assert_array_equal(got, wanted, err_msg=f"{threads} threads, seed {SEED}: {value.op}")
        used = [row["family"] for row in program.manifest["kernels"]]
        assert not {"gemm", "plain"} & set(used) and "amx" in used, used
        return program


@needs_amx
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_rows_and_columns_around_the_edges_of_tiles(dtype: Any) -> None:
    """Tiles that overlap, single tiles, half panels, depths that are no whole steps; with and without a bias."""
    layers = Layers()
    for rows in (16, 17, 31, 33, 49, 100, 196):
        outs, depth = int(layers.rng.integers(33, 140)), int(layers.rng.integers(65, 300))
        for columns in (outs, 32, 48):
            layers.outputs.append(layers.linear(layers.input(layers.drawn(dtype, rows, depth)), columns, columns != 32))
    layers.check()


@needs_amx
def test_requantised_into_every_type() -> None:
    """Rows in pairs and the odd one, whole panels and parts; a factor for each channel or for all; small shifts."""
    layers = Layers()
    for dtype in (np.uint8, np.int8, np.int16, np.int32):
        for rows, columns in ((33, 64), (47, 72), (16, 40)):
            x = layers.input(layers.drawn(np.uint8, rows, 128))
            layers.outputs.append(layers.rescaled(layers.linear(x, columns), dtype))
            total = layers.linear(x, columns)
            layers.outputs.append(layers.rescaled(total, dtype, shift=25, multiplier=3))
            total = layers.linear(x, columns, bias=False)
            layers.outputs.append(layers.b.saturate(total, dtype=DType.of(np.dtype(dtype))))
    layers.check()


@needs_amx
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_convolutions(dtype: Any) -> None:
    """Padding with a zero point, strides, dilation, groups, images; few channels, as in a stem."""
    layers = Layers()
    pad = int(layers.drawn(dtype, 1)[0])
    for size, channels, outs, kernel, attrs in (
        (14, 64, 64, 3, {}),
        (28, 32, 40, 3, {"stride": (2, 2)}),
        (30, 3, 64, 7, {"stride": (2, 2)}),
        (7, 96, 32, 3, {}),
        (7, 64, 96, 3, {}),
        (14, 66, 128, 3, {"stride": (2, 2)}),
        (14, 128, 72, 1, {"stride": (2, 2), "padding": (0, 0, 0, 0)}),
        (19, 64, 33, 1, {}),
        (20, 64, 64, 1, {"stride": (2, 2)}),
        (17, 36, 48, 3, {"dilation": (2, 2), "padding": (2, 1, 0, 3)}),
        (9, 64, 128, 3, {"groups": 2}),
        (9, 40, 64, 5, {"padding": (0, 0, 0, 0)}),
    ):
        x = layers.input(layers.drawn(dtype, 2, size, size + 1, channels))
        value = layers.conv(x, outs, kernel, pad_value=pad, **attrs)
        layers.outputs += [layers.rescaled(value, np.uint8), value]
    layers.check()


@needs_amx
def test_residuals_in_place() -> None:
    """A result that takes over the memory of what is added to it, where tiles overlap: every row once."""
    layers = Layers()
    b = layers.b
    for rows in (196, 49, 33):
        x = layers.input(layers.drawn(np.uint8, 1, rows, 64))
        for _ in range(3):
            inner = layers.rescaled(layers.linear(x, 64), np.uint8)
            wide = layers.rescaled(layers.linear(inner, 64), np.int32, shift=40)
            total = b.add(wide, b.mul(b.cast(x, dtype="i32"), np.asarray(70000, np.int32)))
            x = layers.rescaled(total, np.uint8, shift=20, multiplier=1)
        layers.outputs.append(x)
    program = layers.check()
    assert sum(row["family"] == "amx" for row in program.manifest["kernels"]) == 18, program.report()


@needs_amx
def test_columns_and_batches_of_a_matrix_product() -> None:
    """Either sign on either side; a left side whose rows are apart, turned or sliced."""
    layers = Layers()
    b = layers.b
    for left in (np.uint8, np.int8):
        for right in (np.uint8, np.int8):
            x = layers.input(layers.drawn(left, 3, 40, 72))
            layers.outputs.append(b.matmul(x, layers.drawn(right, 72, 48)))
        turned = b.transpose(layers.input(layers.drawn(left, 2, 20, 5, 64)), perm=(0, 2, 1, 3))
        layers.outputs.append(b.matmul(turned, layers.drawn(np.int8, 64, 96)))
        part = b.slice(layers.input(layers.drawn(left, 50, 200)), starts=(0, 3), stops=(50, 131), steps=(1, 1))
        layers.outputs.append(layers.linear(part, 64))
    layers.check("none")


@needs_amx
def test_sums_wrap() -> None:
    """Sums beyond 32 bits come out modulo 2^32."""
    layers = Layers()
    x = layers.input(np.full((32, 128), 255, np.uint8))
    for start, weight in ((2**31 - 1, 127), (-(2**31), -128)):
        w, bias = np.full((64, 128), weight, np.int8), np.full(64, start, np.int32)
        layers.outputs.append(layers.b.linear(x, w, bias))
    layers.check()


# Without tiles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [*range(1, 70), 196, 3136])
def test_tiles_overlap_no_more_than_they_must(length: int) -> None:
    item = Problem(Dot.plain(DType.I32), 1, 1, length, 64, 1, length, 64)
    grid = Grid.of(item)
    assert 1 <= grid.height <= ROWS and grid.count * grid.height - grid.skip == length
    assert 0 <= grid.skip < grid.count and (grid.count - 1) * ROWS < length


@pytest.mark.parametrize("run", [1, 3, 4, 21, 64, 68, 96, 160, 192, 320, 4608])
def test_steps(run: int) -> None:
    steps = Steps.of(run)
    assert steps.bytes <= DEPTH and steps.bytes % 4 == 0 and run <= steps.count * steps.bytes < run + DEPTH
    exact = Steps.exact(run)
    if exact is not None:
        assert exact.count * exact.bytes == run and exact.bytes <= DEPTH and exact.bytes % 4 == 0
    assert (exact is None) == (run in (1, 3, 21, 68)), exact


def test_packing_keeps_every_weight_once() -> None:
    rng = np.random.default_rng(SEED)
    steps = Steps(3, 24)
    matrix = rng.integers(1, 127, (72, 50), np.int8)
    packed = pack_tiles(matrix, steps)
    whole, half = packed[: 72 * 32].reshape(3, 2, 6, 16, 4), packed[72 * 32 :].reshape(3, 2, 6, 16, 4)
    columns = [panel[:, tile].transpose(0, 1, 3, 2).reshape(72, 16) for panel in (whole, half) for tile in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(columns, 1)[:, :50], matrix, err_msg=f"seed {SEED}")
    assert not np.concatenate(columns, 1)[:, 50:].any()


def test_other_targets_have_no_tiles() -> None:
    layers = Layers()
    layers.outputs.append(layers.linear(layers.input(layers.drawn(np.uint8, 64, 128)), 64))
    program = compile_graph(layers.b.returns(*layers.outputs), Options(target="generic"))
    assert [row["family"] for row in program.manifest["kernels"]] == ["gemm"]
    assert AMX.features == ("amx_tile", "amx_int8")


def test_a_system_that_refuses_tiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """`native` is another target, and a program for AMX is refused when it is loaded."""
    from secateur.backends.cpu import target

    caches = (cpu_features, native_target)
    monkeypatch.setattr(target, "_tiles_permitted", lambda: False)
    for cached in caches:
        cached.cache_clear()
    try:
        assert not cpu_features() & set(AMX.features) and native_target().name != TARGET
        layers = Layers()
        graph = layers.b.returns(layers.linear(layers.input(layers.drawn(np.int8, 8, 8)), 8))
        compile_to(tmp_path, graph, Options(target=TARGET))
        with pytest.raises(CompileError, match=r"needs CPU features this machine lacks: .*amx_tile, amx_int8"):
            load(tmp_path)
    finally:
        for cached in caches:
            cached.cache_clear()
