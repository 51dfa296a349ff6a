"""Linear layers over weights in groups: the kernel against the interpreter, and the way weights are packed."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from secateur.backends.artifact import Program
from secateur.backends.cpu.compile import Options, compile_graph
from secateur.backends.cpu.kernels.grouped import choose_rows, fits_four_bits, pack_groups, pack_scales
from secateur.backends.cpu.target import TARGETS, Target, missing_features
from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.ir.interpret import interpret
from secateur.ir.types import DType, TensorType

SEED = int(np.random.default_rng().integers(1 << 30))
HERE = [t for t in TARGETS.values() if t.machine == platform.machine() and not missing_features(t.features)]
# rows, columns, groups, weights in a group: whole words and parts of one, partial panels, one group only
SHAPES = [
    (1, 64, 4, 32),
    (1, 300, 3, 8),
    (2, 17, 5, 3),
    (7, 33, 1, 70),
    (30, 100, 2, 12),
    (3, 1, 1, 1),
    (129, 20, 3, 16),
]


def layers(rng: np.random.Generator, shapes: list[tuple[int, int, int, int]], most: int, quantized: bool) -> Graph:
    """Layers side by side, each as one operation or, with `quantized`, as imported: dequantize, reshape, linear."""
    b = Builder.graph("layers")
    results = []
    for rows, columns, groups, size in shapes:
        x = b.into.add_input(TensorType(DType.F32, (rows, groups * size)))
        weight = rng.integers(-most - 1, most + 1, (columns, groups, size)).astype(np.int8)
        scale = np.exp2(rng.uniform(-6, 1, (columns, groups, 1))).astype(np.float32)
        bias = rng.standard_normal(columns).astype(np.float32)
        if quantized:
            real = b.reshape(b.dequantize(weight, scale, np.zeros((), np.int8)), shape=[columns, groups * size])
            results.append(b.relu(b.linear(x, real, bias)))
        else:
            results.append(b.relu(b.linear_grouped(x, weight, scale, bias)))
    return b.returns(*results)


def check(graph: Graph, target: Target, rng: np.random.Generator) -> Program:
    program = compile_graph(graph, Options(target=target.name))
    inputs = [rng.standard_normal(value.shape, dtype=np.float32) for value in graph.inputs]
    results = program(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    for got, wanted in zip(results, interpret(graph, *inputs), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max(), err_msg=f"seed {SEED}")
    assert [row["family"] for row in program.manifest["kernels"]] == ["grouped"] * len(results)
    return program


@pytest.mark.parametrize("most", [7, 127])
@pytest.mark.parametrize("target", HERE, ids=lambda target: target.name)
def test_against_the_interpreter(target: Target, most: int) -> None:
    rng = np.random.default_rng(SEED)
    check(layers(rng, SHAPES, most, False), target, rng)


def test_dequantised_weights_are_read_as_they_are_stored() -> None:
    """The weights of a program take the bytes that the integers take, 4 bits each."""
    rng = np.random.default_rng(SEED)
    program = check(layers(rng, [(1, 256, 8, 32)], 7, True), HERE[0], rng)
    stored = 256 * 256
    assert stored / 2 <= program.manifest["weights_bytes"] < stored / 2 + 256 * 8 * 4 + 256 * 4 + 4096


def test_what_fits_four_bits() -> None:
    assert fits_four_bits(np.array([-8, 7], np.int8))
    assert not fits_four_bits(np.array([8], np.int8)) and not fits_four_bits(np.array([-9], np.int8))


@pytest.mark.parametrize("seed", range(10))
def test_packed_words_hold_every_weight(seed: int) -> None:
    rng = np.random.default_rng(SEED + seed)
    columns, groups, size, width = (int(n) for n in rng.integers(1, 30, 4))
    weight = rng.integers(-8, 8, (columns, groups, size)).astype(np.int8)
    scale = rng.standard_normal((columns, groups, 1)).astype(np.float32)
    words = pack_groups(weight, width)
    assert words.dtype == np.int32 and words.shape[1:] == (groups, -(-size // 8), width)
    spread = (words[..., None] << (28 - 4 * np.arange(8, dtype=np.int32))) >> 28  # [panels, G, words, width, 8]
    found = spread.transpose(0, 3, 1, 2, 4).reshape(-1, groups, words.shape[2] * 8)[:columns, :, :size]
    np.testing.assert_array_equal(found, weight, err_msg=f"seed {SEED + seed}")
    scales = pack_scales(scale, width).swapaxes(1, 2).reshape(-1, groups)
    np.testing.assert_array_equal(scales[:columns], scale[:, :, 0])
    wide = pack_groups(np.where(weight == 7, 100, weight).astype(np.int8), width)
    assert wide.dtype == np.int8 and wide.shape[1:] == (groups, size, width)


@pytest.mark.parametrize("rows", [1, 2, 13, 500])
@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_tiles_fit_the_registers_and_cover_all_rows(target: Target, rows: int) -> None:
    tiling = choose_rows(rows, 1000, 512, target)
    tallest = max(tiling.heights)
    assert 2 * tallest * tiling.vectors + tiling.vectors + 3 <= target.registers
    assert tiling.count * tiling.base + tiling.extra == rows
    assert tiling.panels * tiling.vectors * target.lanes >= 1000
