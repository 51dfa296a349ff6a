"""8-bit products on every target this machine runs: equal to the interpreter's to the last bit."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest

from secateur.backends.cpu.band import Problem
from secateur.backends.cpu.compile import Options, compile_graph
from secateur.backends.cpu.dot import choose_dot
from secateur.backends.cpu.target import TARGETS, Target, missing_features
from secateur.ir.builder import Builder
from secateur.ir.graph import Value
from secateur.ir.interpret import interpret
from secateur.ir.types import DType, TensorType

SEED = int(np.random.default_rng().integers(1 << 30))
HERE = [t for t in TARGETS.values() if t.machine == platform.machine() and not missing_features(t.features)]
BYTES = (np.uint8, np.int8)
FOUR = ("x86-64-v4-vnni", "x86-64-v4-vbmi", "x86-64-v4-amx", "x86-64-v3-vnni", "aarch64-dotprod")


class Program:
    """Many products side by side as one graph, so that the C compiler starts once.

    Args:
        rng: draws the numbers; all values of a type are equally likely.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.b = Builder.graph("products")
        self.inputs: list[np.ndarray] = []
        self.outputs: list[Value] = []

    def drawn(self, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        limits = np.iinfo(dtype)
        return self.rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)

    def input(self, array: np.ndarray) -> Value:
        self.inputs.append(array)
        return self.b.into.add_input(TensorType.of(array))

    def bias(self, count: int) -> np.ndarray:
        return self.drawn(np.int32, (count,))

    def product(self, op: str, x: Value, w: Value | np.ndarray, bias: Any = None, **attrs: Any) -> Value:
        weight = self.b.constant(w) if isinstance(w, np.ndarray) else w
        operands = [x, weight] + ([] if bias is None else [bias if isinstance(bias, Value) else self.b.constant(bias)])
        result = self.b.op(op, operands, attrs).result
        self.outputs.append(result)
        return result

    def linear(self, dtype: Any, rows: int, depth: int, columns: int, *, bias: bool = True) -> Value:
        x = self.input(self.drawn(dtype, (rows, depth)))
        return self.product("linear", x, self.drawn(np.int8, (columns, depth)), self.bias(columns) if bias else None)

    def conv(self, dtype: Any, size: int, channels: int, outs: int, kernel: int, **attrs: Any) -> Value:
        groups = attrs.get("groups", 1)
        given = {"stride": (1, 1), "padding": (0,) * 4, "dilation": (1, 1), "channels_last": True, **attrs}
        x = self.input(self.drawn(dtype, (attrs.pop("batch", 1), size, size + 1, channels)))
        given.pop("batch", None)
        w = self.drawn(np.int8, (outs, channels // groups, kernel, kernel))
        return self.product("conv", x, w, self.bias(outs), **given)

    def check(self, target: Target | str, kernels: set[str] | None = None) -> None:
        """Compile, run, compare; `kernels` are the families that may be chosen."""
        graph = self.b.returns(*self.outputs)
        expected = interpret(graph, *self.inputs)
        program = compile_graph(graph, Options(target=getattr(target, "name", target), pipeline="none"))
        actual = program(*self.inputs)
        actual = actual if isinstance(actual, tuple) else (actual,)
        for value, got, wanted in zip(self.outputs, actual, expected, strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=f"{value.op} {value.op and value.op.attrs}, seed {SEED}")
        if kernels:
            used = {row["family"] for row in program.manifest["kernels"] if row["op"] in ("conv", "linear", "matmul")}
            assert used <= kernels, used


@pytest.fixture(params=HERE, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Target:
    print("seed", SEED)
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def test_linear_of_every_depth(target: Target, rng: np.random.Generator) -> None:
    """Depths that leave 0..3 of a group of four, rows and columns around every tile's edge."""
    program = Program(rng)
    for dtype in BYTES:
        for depth in (1, 2, 3, 4, 5, 7, 8, 31, 64, 67):
            program.linear(dtype, int(rng.integers(1, 20)), depth, int(rng.integers(1, 70)), bias=depth % 2 == 0)
        program.linear(dtype, 29, 1024, 48)  # rows that fall into few sets of the cache
        program.linear(dtype, 1, 300, 200)
    program.check(target, {"gemm", "amx"})


def test_extremes(target: Target, rng: np.random.Generator) -> None:
    """Where sums of two products in 16 bits would saturate: the numbers that make them largest, everywhere."""
    program = Program(rng)
    for left, right in ((255, -128), (255, 127), (-128, -128), (-128, 127), (127, -128)):
        dtype = np.uint8 if left > 127 else np.int8
        for depth in (1, 3, 4, 5, 4096):
            x = program.input(np.full((7, depth), left, dtype))
            program.product("linear", x, np.full((33, depth), right, np.int8), program.bias(33))
        x = program.input(np.full((1, 9, 9, 6), left, dtype))
        window = {"stride": (1, 1), "padding": (1,) * 4, "dilation": (1, 1), "channels_last": True}
        program.product("conv", x, np.full((20, 6, 3, 3), right, np.int8), program.bias(20), pad_value=left, **window)
        a, b = program.input(np.full((2, 9, 65), left, dtype)), program.input(np.full((2, 65, 18), right, np.int8))
        program.product("matmul", a, b)
    a, b = program.input(np.full((9, 65), 255, np.uint8)), program.input(np.full((65, 18), 255, np.uint8))
    program.product("matmul", a, b)
    program.check(target)


def test_sums_wrap(target: Target, rng: np.random.Generator) -> None:
    """Sums beyond 32 bits come out modulo 2^32, the bias included."""
    program = Program(rng)
    x = program.input(np.full((5, 40), 255, np.uint8))
    for start, weight in ((2**31 - 1, 127), (-(2**31), -128)):
        program.product("linear", x, np.full((17, 40), weight, np.int8), np.full(17, start, np.int32))
    y = program.input(np.full((5, 40), -128, np.int8))
    program.product("linear", y, np.full((17, 40), -128, np.int8), np.full(17, 2**31 - 1, np.int32))
    program.check(target)


def test_convolutions(target: Target, rng: np.random.Generator) -> None:
    program = Program(rng)
    for dtype in BYTES:
        pad = int(program.drawn(dtype, ()))
        one = {"padding": (1, 1, 1, 1), "pad_value": pad}
        program.conv(dtype, 9, 8, 20, 3, **one)
        program.conv(dtype, 9, 3, 17, 3, **one)
        program.conv(dtype, 11, 3, 16, 7, stride=(2, 2), padding=(3, 3, 3, 3), pad_value=pad)
        program.conv(dtype, 9, 5, 9, 3, dilation=(2, 2), padding=(2, 1, 0, 3), pad_value=pad)
        program.conv(dtype, 8, 16, 33, 1)
        program.conv(dtype, 8, 6, 5, 1, stride=(2, 1), batch=2)
        program.conv(dtype, 8, 1, 3, 2, stride=(3, 2), padding=(4, 4, 4, 4), pad_value=pad)
        program.conv(dtype, 7, 12, 10, 3, groups=2, **one)
        program.conv(dtype, 7, 15, 6, 3, groups=3, batch=2, **one)
        program.conv(dtype, 2, 4, 4, 1, stride=(5, 5), padding=(3, 3, 3, 3), pad_value=pad)
        program.conv(dtype, 5, 20, 40, 3, batch=2, **one)  # rows so short that a tile holds several
        program.conv(dtype, 7, 8, 20, 3, stride=(2, 2), **one)
        program.conv(dtype, 3, 8, 12, 2, dilation=(2, 1), groups=2, padding=(1, 0, 2, 1), pad_value=pad)
    program.check(target)


def test_other_ranks_and_layouts(target: Target, rng: np.random.Generator) -> None:
    """One and three spatial dimensions, channels first, and a matrix on the right instead of a filter."""
    program = Program(rng)
    for dtype in BYTES:
        pad = int(program.drawn(dtype, ()))
        for n in (1, 2, 3):
            x = program.input(program.drawn(dtype, (2, 5, *(7, 6, 5)[:n])))
            window = {"stride": (1, 2, 1)[:n], "padding": (1,) * (2 * n), "dilation": (1,) * n, "pad_value": pad}
            w = program.drawn(np.int8, (6, 5, *(3, 2, 3)[:n]))
            program.product("conv", x, w, program.bias(6), **window)
        x = program.input(program.drawn(dtype, (3, 5, 13)))
        for right in BYTES:
            program.product("matmul", x, program.drawn(right, (13, 21)))
    program.check(target)


def test_both_sides_at_run_time(target: Target, rng: np.random.Generator) -> None:
    """Every pair of signs; batches that broadcast; sides that are transposed, and so read along other strides."""
    program = Program(rng)
    for left in BYTES:
        for right in BYTES:
            for m, k, n in ((1, 1, 1), (7, 3, 5), (16, 32, 48), (33, 66, 31), (20, 5, 200)):
                a, b = program.input(program.drawn(left, (2, m, k))), program.input(program.drawn(right, (2, k, n)))
                program.product("matmul", a, b)
                turned = program.input(program.drawn(right, (n, k)))
                program.product("matmul", a, program.b.transpose(turned, perm=[1, 0]))
            a, b = program.input(program.drawn(left, (2, 1, 9, 12))), program.input(program.drawn(right, (2, 12, 6)))
            program.product("matmul", program.b.transpose(a, perm=[1, 0, 2, 3]), b)
            heads = program.input(program.drawn(left, (6, 2, 12)))
            program.product("matmul", program.b.transpose(heads, perm=[1, 0, 2]), b)
    program.check(target, {"matmul", "plain"})


def test_weights_at_run_time(target: Target, rng: np.random.Generator) -> None:
    program = Program(rng)
    for dtype in BYTES:
        x, w = program.input(program.drawn(dtype, (4, 3, 22))), program.input(program.drawn(np.int8, (35, 22)))
        program.product("linear", x, w)
        program.product("linear", x, w, program.input(program.bias(35)))
        program.product("linear", x, program.drawn(np.int8, (35, 22)), program.input(program.bias(35)))
        pixels, filters = (
            program.input(program.drawn(dtype, (1, 6, 6, 4))),
            program.input(program.drawn(np.int8, (5, 4, 3, 3))),
        )
        window = {"stride": (1, 1), "padding": (1, 1, 0, 2), "dilation": (1, 1), "channels_last": True}
        program.product("conv", pixels, filters, pad_value=int(program.drawn(dtype, ())), **window)
    program.check(target)


def test_views_of_an_input(target: Target, rng: np.random.Generator) -> None:
    """Rows with a gap between them, and columns in front of other columns: read in groups, but no further."""
    program = Program(rng)
    for dtype in BYTES:
        x = program.input(program.drawn(dtype, (6, 40)))
        for start, stop in ((0, 16), (3, 19), (33, 40)):
            part = program.b.slice(x, starts=[0, start], stops=[6, stop], steps=[1, 1])
            program.product("linear", part, program.drawn(np.int8, (9, stop - start)))
    program.check(target)


def test_empty(target: Target, rng: np.random.Generator) -> None:
    program = Program(rng)
    for dtype in BYTES:
        for m, k, n in ((0, 4, 5), (3, 0, 5), (3, 4, 0)):
            a = program.input(program.drawn(dtype, (m, k)))
            program.product("matmul", a, program.drawn(np.int8, (k, n)))
            program.product("linear", a, program.drawn(np.int8, (n, k)), program.bias(n))
    program.check(target)


def requantised(program: Program, value: Value, dtype: Any, channels: int) -> Value:
    """A rescale per channel to `dtype`, as the lowering writes it."""
    b = program.b
    multiplier = b.constant(program.rng.integers(1 << 20, 1 << 24, channels).astype(np.int32))
    return b.rescale(value, multiplier, b.constant(np.asarray(3, dtype)), shift=34)


def test_fused_requantisation(target: Target, rng: np.random.Generator) -> None:
    """A whole layer as one kernel: product, residual sum in fixed point, rescale and saturation."""
    program = Program(rng)
    for dtype in BYTES:
        for into, outs in ((np.uint8, 16), (np.int8, 31), (np.int16, 40), (np.int32, 9)):
            program.conv(dtype, 9, 8, outs, 3, padding=(1,) * 4, pad_value=5)
            program.outputs.append(requantised(program, program.outputs.pop(), into, outs))
            program.linear(dtype, 9, 30, outs)
            other = program.input(program.drawn(np.int32, (9, outs)) >> 4)
            total = program.b.maximum(program.b.add(program.outputs.pop(), other), np.asarray(-5, np.int32))
            program.outputs.append(requantised(program, total, into, outs))
    graph = program.b.returns(*program.outputs)
    compiled = compile_graph(graph, Options(target=target.name))
    for got, wanted in zip(compiled(*program.inputs), interpret(graph, *program.inputs), strict=True):
        np.testing.assert_array_equal(got, wanted, err_msg=f"seed {SEED}")
    assert len(compiled.manifest["kernels"]) == len(program.outputs), [r["op"] for r in compiled.manifest["kernels"]]


@pytest.mark.parametrize("seed", range(20))
def test_tiles_of_whole_rows_cover_an_image_once(seed: int) -> None:
    """Short rows of an image share a tile where that keeps more sums in registers; every row is in one of them."""
    rng = np.random.default_rng(SEED + seed)
    height, width, channels, columns = (int(n) for n in rng.integers((1, 1, 1, 1), (30, 16, 600, 600)))
    dot = choose_dot(TARGETS["x86-64-v4-vnni"], DType.U8, DType.I8, DType.I32)
    item = Problem(dot, 1, height, width, channels, height, width, columns, kernel=(3, 3), low=(1, 1), high=(1, 1))
    tiling = item.tiling(TARGETS["x86-64-v4-vnni"])
    rows = tiling.base * tiling.count + tiling.extra
    assert rows == (height if tiling.unit else width), f"seed {SEED + seed}"
    assert tiling.unit in (0, width) and max(tiling.heights) * tiling.vectors + tiling.vectors + dot.spare <= 32


def test_seven_rows_of_seven_pixels() -> None:
    dot = choose_dot(TARGETS["x86-64-v4-vnni"], DType.U8, DType.I8, DType.I32)
    item = Problem(dot, 1, 7, 7, 512, 7, 7, 512, kernel=(3, 3), low=(1, 1), high=(1, 1))
    tiling = item.tiling(TARGETS["x86-64-v4-vnni"])
    assert (tiling.unit, tiling.heights, tiling.vectors) == (7, [14, 7], 2)


def test_what_a_step_takes() -> None:
    """Four neighbours where there is an instruction, else two; never the saturating one of unsigned by signed pairs."""

    def group(name: str, left: DType = DType.U8, right: DType = DType.I8, **options: bool) -> int:
        return choose_dot(TARGETS[name], left, right, DType.I32, **options).group

    assert [group(name) for name in FOUR] == [4] * len(FOUR)
    assert [group(name) for name in ("x86-64-v2", "x86-64-v3", "x86-64-v4")] == [2] * 3
    assert group("generic") == group("aarch64") == 1
    assert group("x86-64-v4-vnni", right=DType.U8) == 2  # its right side is signed
    assert group("x86-64-v4-vnni", DType.I8) == 4 and group("x86-64-v4-vnni", DType.I8, shifted=False) == 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", [t.name for t in HERE] + ["aarch64-dotprod"])
def test_packing_keeps_every_weight_once(name: str, seed: int) -> None:
    rng = np.random.default_rng(SEED + seed)
    dot = choose_dot(TARGETS[name], DType.U8, DType.I8, DType.I32)
    depth, columns, width = (int(n) for n in rng.integers(1, 40, 3))
    matrix = rng.integers(1, 127, (depth, columns), np.int8)
    packed = dot.pack(matrix, width)
    assert packed.size % (width * dot.group) == 0 and packed.dtype == np.int8
    steps = packed.reshape(-1, dot.steps(depth), width, dot.group)
    rows = steps.transpose(1, 3, 0, 2).reshape(dot.steps(depth) * dot.group, -1)
    np.testing.assert_array_equal(rows[:depth, :columns], matrix, err_msg=f"seed {SEED + seed}")
    assert not rows[depth:].any() and not rows[:, columns:].any()


def test_arm_code_compiles(rng: np.random.Generator, tmp_path: Any) -> None:
    """What this machine cannot run is at least C that a compiler for it takes."""
    from secateur.backends.cpu.compile import compile_to

    pytest.importorskip("ziglang")
    program = Program(rng)
    for dtype in BYTES:
        program.linear(dtype, 9, 30, 20)
        a, b = program.input(program.drawn(dtype, (9, 30))), program.input(program.drawn(np.int8, (30, 20)))
        program.product("matmul", a, b)
    graph = program.b.returns(*program.outputs)
    for name in ("aarch64", "aarch64-dotprod"):
        (tmp_path / name).mkdir()
        compile_to(tmp_path / name, graph, Options(target=name))
        text = "".join(file.read_text() for file in (tmp_path / name).glob("kernels_*.c"))
        assert ("add_quads" in text) == (name == "aarch64-dotprod")
