"""Seeded random draws for op samples, property tests and the fuzzer."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from secateur.ir.types import DType

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One valid instance of an op: operand arrays (all of them constants or inputs) and attributes."""

    operands: tuple[np.ndarray, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Draw:
    """A seeded source of shapes, element types, attributes and tensors.

    Args:
        seed: the same seed draws the same things.
        specials: float tensors sometimes hold NaN and infinities, integer ones their extremes.
    """

    # Primes and their neighbours, one below/at/above common vector widths, and the degenerate sizes.
    SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33)

    def __init__(self, seed: builtins.int, *, specials: builtins.bool = True) -> None:
        self.seed = seed
        self.specials = specials
        self.rng = np.random.default_rng(seed)

    def int(self, low: builtins.int, high: builtins.int) -> builtins.int:
        """An integer in low..high, both included."""
        return int(self.rng.integers(low, high + 1))

    def float(self, low: builtins.float, high: builtins.float) -> builtins.float:
        return float(np.float32(self.rng.uniform(low, high)))

    def bool(self, chance: builtins.float = 0.5) -> builtins.bool:
        return bool(self.rng.random() < chance)

    def choice(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def size(self, most: builtins.int = 33) -> builtins.int:
        return self.choice([size for size in self.SIZES if size <= most])

    def shape(
        self,
        least: builtins.int = 0,
        most: builtins.int = 4,
        *,
        numel: builtins.int = 4096,
        empty: builtins.bool = True,
    ) -> tuple[builtins.int, ...]:
        """A shape of rank least..most with at most `numel` elements; now and then one with a zero."""
        shape = [self.size() for _ in range(self.int(least, most))]
        while np.prod(shape, dtype=np.int64) > numel:
            shape[int(np.argmax(shape))] //= 2
        if empty and shape and self.bool(0.04):
            shape[self.int(0, len(shape) - 1)] = 0
        return tuple(shape)

    def broadcastable(self, shape: Sequence[builtins.int]) -> tuple[builtins.int, ...]:
        """A shape that broadcasts to `shape` by the rules of NumPy."""
        kept = list(shape[self.int(0, len(shape)) :] if self.bool(0.3) else shape)
        return tuple(1 if self.bool(0.25) else size for size in kept)

    def tensor(
        self,
        dtype: DType,
        shape: Sequence[builtins.int],
        low: builtins.float | None = None,
        high: builtins.float | None = None,
        *,
        specials: builtins.bool | None = None,
    ) -> np.ndarray:
        """A tensor of random values: floats normal (or uniform in low..high), integers small.

        With `specials` (default: as the Draw says, and only where no range is given) a quarter of
        the tensors carry NaN, infinities and signed zeros, or the integer type's extremes.
        """
        if dtype is DType.BOOL:
            return np.asarray(self.rng.random(shape) < 0.5)
        if low is not None and high is not None:
            if dtype.is_int:
                return np.asarray(self.rng.integers(int(low), int(high) + 1, shape)).astype(dtype.numpy)
            return np.asarray(self.rng.uniform(low, high, shape)).astype(dtype.numpy)
        wanted = self.specials if specials is None else specials
        if dtype.is_int:
            floor = 0 if dtype is DType.U8 else -100
            values = np.asarray(self.rng.integers(floor, 100, shape)).astype(dtype.numpy)
            limits = np.iinfo(dtype.numpy)
            odd: list[Any] = [limits.min, limits.max, 0]
        else:
            scale = self.choice([0.5, 1.0, 3.0])
            values = np.asarray(self.rng.standard_normal(shape) * scale).astype(dtype.numpy)
            odd = [np.nan, np.inf, -np.inf, 0.0, -0.0]
        if wanted and values.size and self.bool(0.25):
            places = self.rng.integers(values.size, size=min(3, values.size))
            values.reshape(-1)[places] = self.rng.choice(np.array(odd, dtype=values.dtype), size=len(places))
        return values

    def permutation(self, rank: builtins.int) -> tuple[builtins.int, ...]:
        return tuple(int(axis) for axis in self.rng.permutation(rank))
