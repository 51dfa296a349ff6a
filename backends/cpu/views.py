"""Where values lie: buffers, and strided views of them.

Reshape, transpose, slice, broadcast and flip cost nothing here: they are other views of the same
buffer, and a kernel that cannot read a view gets a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from secateur.ir.types import DType, TensorType, numel

ARENA, INPUT, OUTPUT, WEIGHT = "arena", "input", "output", "weight"


@dataclass(eq=False, slots=True)
class Buffer:
    """A range of memory: `kind` says which, `index` is the number of the graph input or output.

    `first` and `last` are the steps that write it first and use it last; `offset` is set by the
    memory plan (arena) or by the weight file's layout.
    """

    kind: str
    bytes: int
    index: int = 0
    offset: int = 0
    first: int = -1
    last: int = -1
    data: np.ndarray | None = None
    shares: Buffer | None = None

    @property
    def root(self) -> Buffer:
        """The buffer whose memory this one lives in."""
        return self.shares.root if self.shares else self


@dataclass(frozen=True, slots=True)
class View:
    """A tensor in a buffer. `offset` and `strides` count elements; a stride may be 0 or negative."""

    buffer: Buffer
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @staticmethod
    def whole(buffer: Buffer, type: TensorType) -> View:
        return View(buffer, type.dtype, type.shape, contiguous_strides(type.shape))

    @property
    def contiguous(self) -> bool:
        wanted = contiguous_strides(self.shape)
        return all(n == 1 or a == b for n, a, b in zip(self.shape, self.strides, wanted)) or 0 in self.shape

    def transpose(self, perm: tuple[int, ...]) -> View:
        return replace(self, shape=tuple(self.shape[p] for p in perm), strides=tuple(self.strides[p] for p in perm))

    def slice(self, starts: tuple[int, ...], stops: tuple[int, ...], steps: tuple[int, ...]) -> View:
        offset = self.offset + sum(a * s for a, s in zip(starts, self.strides))
        shape = tuple(max(0, -(-(b - a) // c)) for a, b, c in zip(starts, stops, steps))
        return replace(self, shape=shape, strides=tuple(s * c for s, c in zip(self.strides, steps)), offset=offset)

    def broadcast(self, shape: tuple[int, ...]) -> View:
        """This view stretched to `shape` by NumPy's rules."""
        missing = len(shape) - len(self.shape)
        strides = [0] * missing
        for own, wanted, stride in zip(self.shape, shape[missing:], self.strides):
            strides.append(stride if own == wanted else 0)
        return replace(self, shape=shape, strides=tuple(strides))

    def flip(self, axes: tuple[int, ...]) -> View:
        offset, strides = self.offset, list(self.strides)
        for axis in axes:
            offset += (self.shape[axis] - 1) * strides[axis]
            strides[axis] = -strides[axis]
        return replace(self, strides=tuple(strides), offset=offset)

    def reshape(self, shape: tuple[int, ...]) -> View | None:
        """The same elements under another shape, or None where that needs a copy."""
        if self.contiguous:
            return replace(self, shape=shape, strides=contiguous_strides(shape))
        strides: list[int] = []
        old = [(n, s) for n, s in zip(self.shape, self.strides) if n != 1]
        new = list(shape)
        while new:
            if new[0] == 1:
                strides.append(0)
                new.pop(0)
                continue
            group: list[int] = []
            have, want = 1, 1
            taken: list[tuple[int, int]] = []
            while have != want or have == 1:
                if have <= want and old:
                    taken.append(old.pop(0))
                    have *= taken[-1][0]
                elif new:
                    group.append(new.pop(0))
                    want *= group[-1]
                else:
                    return None
            if any(a[1] != b[0] * b[1] for a, b in pairwise(taken)):
                return None
            inner = taken[-1][1]
            strides += [inner * numel(tuple(group[i + 1 :])) for i in range(len(group))]
        return replace(self, shape=shape, strides=tuple(strides))


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(numel(shape[axis + 1 :]) for axis in range(len(shape)))


def collapse(shape: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[list[int], list[list[int]]]:
    """Merge neighbouring dimensions that every operand walks through evenly; drop those of size 1.

    Returns the shape (at least one dimension) and each operand's strides for it.
    """
    dims: list[int] = []
    walks: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        if dims and all(w[-1] == s[axis] * size for w, s in zip(walks, strides)):
            dims[-1] *= size
            for walk, stride in zip(walks, strides):
                walk[-1] = stride[axis]
        else:
            dims.append(size)
            for walk, stride in zip(walks, strides):
                walk.append(stride[axis])
    return (dims, walks) if dims else ([1], [[1] for _ in strides])
