"""Weights as integers on arrays alone: scales beside a search, second-order rounding beside nearest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from secateur.passes.quantize.forms import W4, W8
from secateur.passes.quantize.recipe import Scheme
from secateur.passes.quantize.second_order import second_order
from secateur.passes.quantize.weights import find_scales, least_scales, nearest, pack

SEED = int(np.random.default_rng().integers(1 << 30))


@pytest.fixture
def rng() -> np.random.Generator:
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def correlated(rng: np.random.Generator, samples: int, inputs: int) -> np.ndarray:
    """Inputs that share a few directions, as real activations do."""
    few = rng.standard_normal((samples, max(2, inputs // 4))) @ rng.standard_normal((max(2, inputs // 4), inputs))
    return few + 0.1 * rng.standard_normal((samples, inputs))


def product_error(x: np.ndarray, rows: np.ndarray, integers: np.ndarray, scales: np.ndarray) -> float:
    real = integers * np.repeat(scales.astype(np.float64), rows.shape[1] // scales.shape[1], axis=1)
    return float(np.square(x @ (real - rows).T).sum())


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [0, 16])
def test_second_order_rounding_errs_less_than_nearest(
    weights: str, act_order: bool, group: int, rng: np.random.Generator
) -> None:
    form, x = {"int8": W8, "int4": W4}[weights], correlated(rng, 400, 64)
    rows = rng.standard_normal((24, 64)).astype(np.float32)
    scales = find_scales(rows, Scheme(weights, group=group))
    assert scales.shape == (24, 4 if group else 1)
    found = second_order(rows, 2 * x.T @ x, scales, form, act_order=act_order, block=24)
    assert found.dtype == np.int8 and form.low <= found.min() and found.max() <= form.high
    plain = product_error(x, rows, nearest(rows, scales, form), scales)
    assert product_error(x, rows, found, scales) < 0.6 * plain


def test_blocks_do_not_change_what_is_found(rng: np.random.Generator) -> None:
    x, rows = correlated(rng, 200, 32), rng.standard_normal((8, 32)).astype(np.float32)
    scales, hessian = find_scales(rows, Scheme("int4")), 2 * x.T @ x
    one, *others = (second_order(rows, hessian, scales, W4, block=block) for block in (32, 1, 5, 1000))
    for other in others:
        assert (one != other).mean() < 0.02  # sums in another order may tip what lies halfway


def test_second_order_rounding_is_near_the_best_of_all_roundings(rng: np.random.Generator) -> None:
    total = np.zeros(3)
    for _ in range(60):
        x = correlated(rng, 50, 8)
        rows = rng.standard_normal((1, 8)).astype(np.float32)
        scales = find_scales(rows, Scheme("int4"))
        below = np.floor(rows / scales)
        every = [np.clip(below + np.array(up), W4.low, W4.high) for up in itertools.product((0, 1), repeat=8)]
        best = min(product_error(x, rows, integers, scales) for integers in every)
        found = product_error(x, rows, second_order(rows, 2 * x.T @ x, scales, W4), scales)
        plain = product_error(x, rows, nearest(rows, scales, W4), scales)
        assert found <= plain * (1 + 1e-9)
        total += best, found, plain
    best, found, plain = total
    print(total)
    assert found - best < 0.5 * (plain - best), "at least half way from nearest to the best there is"


def test_inputs_that_are_never_used_are_rounded_to_nearest(rng: np.random.Generator) -> None:
    x = correlated(rng, 100, 16)
    x[:, [2, 9]] = 0
    rows = rng.standard_normal((4, 16)).astype(np.float32)
    scales = find_scales(rows, Scheme("int4"))
    found = second_order(rows, 2 * x.T @ x, scales, W4)
    np.testing.assert_array_equal(found[:, [2, 9]], nearest(rows, scales, W4)[:, [2, 9]])
    dead = second_order(rows, np.zeros((16, 16)), scales, W4)
    np.testing.assert_array_equal(dead, nearest(rows, scales, W4))


def test_what_is_no_matrix_of_squares_falls_back_to_nearest(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((4, 6)).astype(np.float32)
    scales = find_scales(rows, Scheme("int4"))
    for hessian in (np.full((6, 6), np.nan), np.full((6, 6), np.inf)):
        np.testing.assert_array_equal(second_order(rows, hessian, scales, W4), nearest(rows, scales, W4))


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_scales_are_close_to_the_best_of_a_search(weights: str, rng: np.random.Generator) -> None:
    form, rows = {"int8": W8, "int4": W4}[weights], rng.standard_t(4, (6, 200)).astype(np.float32)
    importance = rng.uniform(0.1, 10, 200)
    scales = find_scales(rows, Scheme(weights), importance)

    def error(row: np.ndarray, scale: float) -> float:
        return float((np.square(np.clip(np.rint(row / scale), form.low, form.high) * scale - row) * importance).sum())

    for row, scale in zip(rows.astype(np.float64), scales[:, 0].astype(np.float64), strict=True):
        full = np.abs(row).max() / form.high
        best = min(error(row, full * share) for share in np.linspace(0.3, 1.0, 700))
        assert error(row, scale) <= min(1.3 * best, error(row, full) * 1.0001)


def test_scales_by_channel_group_and_tensor(rng: np.random.Generator) -> None:
    weights = rng.standard_normal((4, 3, 5, 5)).astype(np.float32)
    weights[1] = 0
    packed = {}
    for scheme in (Scheme(), Scheme(per_channel=False), Scheme("int4", group=25)):
        scales = find_scales(weights, scheme)
        assert (scales > 0).all() and np.isfinite(scales).all()
        packed[scheme] = pack(nearest(weights, scales, W8), scales, weights.shape, scheme)
    assert [p.scale.shape for p in packed.values()] == [(4, 1, 1, 1), (), (4, 1, 1, 1)]
    assert not packed[Scheme()].real()[1].any()
    np.testing.assert_allclose(packed[Scheme()].real(), weights, atol=float(packed[Scheme()].scale.max()))
    rows = rng.standard_normal((6, 32)).astype(np.float32)
    scheme = Scheme("int4", group=8, activations=False)
    scales = find_scales(rows, scheme)
    grouped = pack(nearest(rows, scales, W4), scales, rows.shape, scheme)
    assert (grouped.integers.shape, grouped.scale.shape) == ((6, 4, 8), (6, 4, 1))
    np.testing.assert_allclose(grouped.real(), rows, atol=float(scales.max()))
    assert find_scales(rows, Scheme("int4", group=5)).shape == (6, 1), "groups that do not divide are whole rows"


def test_a_large_bias_fits_the_accumulator() -> None:
    bias, weights = np.array([1e4, 0.1], np.float32), np.full((2, 4), 1e-7, np.float32)
    least = least_scales(bias, 0.01)
    scales = find_scales(weights, Scheme(), least=least)
    assert (np.abs(bias) / (scales[:, 0].astype(np.float64) * 0.01) < 2**31 - 2**29).all()
    assert least_scales(None, 0.01) is None
