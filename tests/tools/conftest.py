"""A model that has something for every planted mistake, and where the mistakes are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph
from secateur.passes import base

PLANTS = Path(__file__).parent / "plants"


@pytest.fixture
def plants() -> Iterator[Path]:
    """The folder of wrong passes; those that a test loads are forgotten after it."""
    known = dict(base._loaded)
    yield PLANTS
    base._loaded.clear()
    base._loaded.update(known)


@pytest.fixture(scope="session")
def host() -> Graph:
    """Some 60 operations: attention, a layer norm, a square product, casts, slices, and a tail that hides them."""
    rng = np.random.default_rng(0)
    b = Builder.graph("host", x="f32[6,12]", mask="f32[2,6,6]")

    def weight(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[-1]))

    def heads(value: object) -> object:
        return b.transpose(b.reshape(value, shape=(6, 2, 6)), perm=(1, 0, 2))

    x = b["x"]
    normal = b.layer_norm(x, weight(12), weight(12), dims=1, eps=1e-5)
    q, k, v = (heads(b.linear(normal, weight(12, 12), weight(12))) for _ in range(3))
    scores = b.add(b.matmul(q, b.transpose(k, perm=(0, 2, 1))), b["mask"])
    mixed = b.matmul(b.softmax(scores, axis=2), v)
    joined = b.reshape(b.transpose(mixed, perm=(1, 0, 2)), shape=(6, 12))
    x = b.relu(b.add(b.linear(joined, weight(12, 12)), x))
    centred = b.sub(x, b.reduce_mean(x, axes=(1,), keepdims=True))
    square = b.add(b.matmul(centred, b.transpose(b.constant(weight(6, 12)), perm=(1, 0))), weight(6))
    steps = b.cast(b.cast(b.mul(square, np.float32([3.0])), dtype="i32"), dtype="f32")
    turned = b.transpose(b.transpose(b.reshape(steps, shape=(2, 3, 2, 3)), perm=(1, 0, 3, 2)), perm=(2, 1, 0, 3))
    turned = b.reshape(b.add(turned, b.sin(turned)), shape=(6, 6))
    parts = [b.slice(turned, starts=(0, at), stops=(6, at + 3), steps=(1, 1)) for at in (0, 3)]
    joined = b.concat(b.tanh(parts[0]), b.sqrt(b.square(parts[1])), axis=1)
    small = b.exp(b.neg(b.maximum(joined, square)))
    tail = b.add(b.mul(small, b.sigmoid(small)), b.cos(joined))
    tail = b.sub(tail, b.reduce_mean(tail, axes=(1,), keepdims=True))
    return b.returns(b.linear(tail, weight(4, 6), weight(4)), b.reduce_sum(small, axes=(0, 1), keepdims=False))


@pytest.fixture(scope="session")
def tensors() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((6, 12)).astype(np.float32), rng.standard_normal((2, 6, 6)).astype(np.float32)]
