"""Histograms, observers and number formats beside the whole data and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.interpret import run_op
from secateur.passes.quantize.forms import P8, S8, S16, U8, W4, Form, parameters, rounded, to_integers
from secateur.passes.quantize.histogram import Histogram
from secateur.passes.quantize.observers import OBSERVERS, candidates, observer, squared_error

SEED = int(np.random.default_rng().integers(1 << 30))
FORMS = {form.name: form for form in (U8, P8, S8, S16, W4)}


@pytest.fixture
def rng() -> np.random.Generator:
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def seen(*parts: np.ndarray, bins: int = 4096) -> Histogram:
    histogram = Histogram(bins=bins)
    for part in parts:
        histogram.add(part.astype(np.float32))
    return histogram


@pytest.mark.parametrize("bins", [16, 64, 4096])
def test_a_growing_histogram_counts_as_one_over_everything(bins: int, rng: np.random.Generator) -> None:
    for _ in range(60):
        channels = int(rng.integers(1, 4))
        histogram, parts = Histogram(channels, bins), []
        for _ in range(6):
            part = rng.standard_normal((5, channels, 7)) * 10.0 ** rng.integers(-3, 4) + rng.choice([0, 0, 100, -50])
            parts.append((np.abs(part) if rng.random() < 0.2 else part).astype(np.float32))
            histogram.add(parts[-1], 1)
        x = np.concatenate(parts)
        counts, edges = histogram.counts, histogram.edges()
        assert counts.sum() == x.size
        np.testing.assert_array_equal(np.histogram(x.astype(np.float64), edges)[0], counts)
        np.testing.assert_array_equal(histogram.high, x.max((0, 2)))
        np.testing.assert_array_equal(histogram.low, x.min((0, 2)))
        np.testing.assert_allclose(histogram.mean_squares(), np.square(x.astype(np.float64)).mean((0, 2)))
        spread = max(x.max(), 0) - min(x.min(), 0)
        assert spread <= edges[-1] - edges[0] <= 5 * spread, "the bins are wasted on what was never seen"


def test_constants_zeros_and_unusual_values() -> None:
    zeros = seen(np.zeros(10))
    assert zeros.range() == (0.0, 0.0) and zeros.counts.sum() == 10
    assert Histogram().range() == (0.0, 0.0)
    spoilt = seen(np.array([1.0, np.nan, np.inf, -2.0]))
    assert (spoilt.unusual, spoilt.range()) == (2, (-2.0, 1.0))


@pytest.mark.parametrize("form", FORMS.values(), ids=str)
@pytest.mark.parametrize("name", OBSERVERS)
def test_observers_take_degenerate_tensors(name: str, form: Form) -> None:
    for data in (np.zeros(5), np.full(5, 3.0), np.full(5, -3.0), np.array([1e-40]), np.array([3e38, -3e38]), []):
        low, high = OBSERVERS[name](seen(np.asarray(data)), form)
        scale, zero = parameters(form, low, high)
        assert np.isfinite(scale) and scale > 0
        assert form.low <= int(zero) <= form.high
        assert rounded(np.float32(0), form, scale, zero) == 0, "zero is always exact"


@pytest.mark.parametrize("share", [0.999, 0.9999])
def test_percentiles_are_those_of_the_whole_data(share: float, rng: np.random.Generator) -> None:
    parts = [rng.standard_normal(50_000) * scale for scale in (0.3, 1.0, 2.0)]
    x = np.concatenate(parts)
    low, high = OBSERVERS[f"p{share * 100:g}"](seen(*parts), S8)
    outside = (1 - share) / 2
    np.testing.assert_allclose([low, high], np.quantile(x.astype(np.float32), [outside, 1 - outside]), rtol=0.02)
    low, high = OBSERVERS[f"p{share * 100:g}"](seen(np.abs(x)), U8)
    assert low == np.abs(x.astype(np.float32)).min()
    np.testing.assert_allclose(high, np.quantile(np.abs(x), share), rtol=0.02)


@pytest.mark.parametrize("form", [U8, S8, W4], ids=str)
def test_mse_is_close_to_the_best_of_a_brute_force_search(form: Form, rng: np.random.Generator) -> None:
    for x in (rng.standard_t(3, 40_000), rng.standard_normal(40_000), rng.exponential(1.0, 40_000)):
        histogram = seen(x)

        def error(low: float, high: float, x: np.ndarray = x) -> float:
            return float(np.square(rounded(x, form, *parameters(form, low, high)).astype(np.float64) - x).sum())

        found = error(*OBSERVERS["mse"](histogram, form))
        low, high = histogram.range()
        grid = np.linspace(0.02, 1, 40)
        best = min(error(low * a, high * b) for a in grid for b in ([a] if form.symmetric else grid))
        assert found <= 1.1 * best
        assert found <= 1.001 * error(low, high)


@pytest.mark.parametrize("form", [U8, S8], ids=str)
def test_entropy_cuts_lonely_outliers_and_keeps_what_is_dense(form: Form, rng: np.random.Generator) -> None:
    x = rng.standard_normal(100_000)
    low, high = OBSERVERS["entropy"](seen(np.append(x, [80.0, -80.0])), form)
    assert -40 < low < -2 and 2 < high < 40
    even = rng.uniform(-1, 1, 100_000)
    low, high = OBSERVERS["entropy"](seen(even), form)
    assert low < -0.9 and high > 0.9


def test_errors_from_a_histogram_are_those_of_the_data(rng: np.random.Generator) -> None:
    x = rng.standard_normal(20_000).astype(np.float32)
    centres, counts = seen(x).weights()
    for form in (U8, S8, W4):
        for high in (1.0, 2.5, 4.0):
            exact = np.square(rounded(x, form, *parameters(form, -high, high)) - x).astype(np.float64).sum()
            np.testing.assert_allclose(squared_error(centres, counts, form, -high, high), exact, rtol=0.02)


@pytest.mark.parametrize("form", [U8, P8, S8, S16], ids=str)
def test_rounding_is_that_of_the_operations(form: Form, rng: np.random.Generator) -> None:
    x = np.concatenate([rng.uniform(-4, 4, 1000), np.arange(-20, 20) / 8]).astype(np.float32)
    scale, zero = parameters(form, 0.0 if form is P8 else -3.0, 3.5)
    x = np.clip(x, form.low - 0.0 if form is P8 else -3.0, 3.5).astype(np.float32)  # beyond, i8 and i16 hold one more
    b = Builder.graph("m", x=f"f32[{x.size}]")
    whole = b.quantize(b["x"], b.constant(scale), b.constant(zero))
    b.dequantize(whole, b.constant(scale), b.constant(zero))
    first, second = [op for op in b.into.ops if op.name != "constant"]
    (integers,) = run_op(first, [x, scale, zero])
    np.testing.assert_array_equal(to_integers(x, form, scale, zero), integers)
    np.testing.assert_array_equal(rounded(x, form, scale, zero), run_op(second, [integers, scale, zero])[0])


def test_channels_have_scales_of_their_own() -> None:
    scale, zero = parameters(S8, np.array([-1.0, 0.0, -127.0]), np.array([0.5, 0.0, 1.0]))
    np.testing.assert_allclose(scale, [1 / 127, 1.0, 1.0], rtol=1e-6)
    assert zero.dtype == np.int8 and not zero.any()


def test_offers_that_mean_the_same_are_made_once() -> None:
    even = seen(np.linspace(-1, 1, 999))
    offers = candidates(even, S8, ("minmax", "minmax", "p99.999", "mse"))
    assert next(iter(offers)) == "minmax"
    assert len({parameters(S8, *o)[0].item() for o in offers.values()}) == len(offers)


def test_an_unknown_observer_is_named() -> None:
    with pytest.raises(CompileError, match="unknown observer 'minmaxx'\nhint: did you mean 'minmax'"):
        observer("minmaxx")
