"""How the inner loop of a product multiplies on a target: how many elements of K one step takes, and from what.

An 8-bit product adds 2 or 4 neighbours along K to one 32-bit sum in one step, so that weights are packed
`group` neighbours side by side, [K / group, width, group]. All steps are exact modulo 2^32:

    quads   vpdpbusd (AVX-512 VNNI, AVX-VNNI) takes u8 x i8, sdot (NEON) i8 x i8. A left side of the other sign
            has its top bit flipped when it is copied, which shifts it by 128: `shift` times the sum of a
            column's weights is taken off again, at compile time where weights are constant.
    pairs   vpmaddwd takes i16 x i16 and cannot overflow with 8-bit values. Its cousin vpmaddubsw would take
            u8 x i8, but saturates at 16 bits: 255 * 127 + 255 * 127 comes out as 32767.
    one     plain C, for element types of 32 bits and more, and for 8 bits without any instruction of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.backends.cpu.target import Target
from secateur.ir.types import DType

_VNNI = ("avx512_vnni", "avx_vnni")
_PAIRS = "ssse3"  # vpmaddwd is older, but widening bytes fast is not


@dataclass(frozen=True, slots=True)
class Dot:
    """One step of a tile: sums + left * right.

    Attributes:
        source: element type of the left operand in memory.
        left: the one the tile reads: where it differs, the operand is copied and converted first.
        right: element type of the packed right operand.
        sum: of the accumulators.
        group: neighbours along K that one step takes.
        cycles: instructions for a vector of sums.
        spare: registers a step needs besides sums and right vectors.
    """

    source: DType
    left: DType
    right: DType
    sum: DType
    group: int = 1
    cycles: float = 1.0
    spare: int = 2

    @staticmethod
    def plain(dtype: DType) -> Dot:
        """All of one element type."""
        return Dot(dtype, dtype, dtype, dtype)

    @property
    def shift(self) -> int:
        """What converting the left operand adds to each of its elements."""
        flipped = self.left is not self.source and self.left.bytes == self.source.bytes
        return (128 if self.source is DType.I8 else -128) if flipped else 0

    def steps(self, run: int) -> int:
        """Steps over `run` neighbours along K."""
        return -(-run // self.group)

    def convert(self, element: str) -> str:
        """C for an element of the left operand as the tile reads it."""
        return f"({element}) ^ 0x80" if self.shift else element

    def splat(self, at: str) -> str:
        """C for `group` neighbours of the left operand in every lane."""
        return f"splat_{self.sum}(*({at}))" if self.group == 1 else f"splat_word({at})"

    def load(self, at: str) -> str:
        """C for a vector of the packed right operand."""
        if self.group > 1:
            return f"load_quads({at})" if self.group == 4 else f"load_pairs_{self.right}({at})"
        loaded = f"load_{self.right}({at})"
        return loaded if self.right is self.sum else f"CONVERT({loaded}, v_{self.sum})"

    def step(self, sums: str, left: str, right: str) -> str:
        """C statement for one step."""
        if self.group == 1:
            return f"{sums} += {left} * {right};"
        return f"{sums} = add_{'quads' if self.group == 4 else 'pairs'}({sums}, {left}, {right});"

    def pack(self, matrix: np.ndarray, width: int) -> np.ndarray:
        """[K, N] -> [panels, K / group, width, group], padded with zeros."""
        depth, columns = matrix.shape
        panels, steps = -(-columns // width), self.steps(depth)
        packed = np.zeros((panels, steps * self.group, width), dtype=self.right.numpy)
        for panel in range(panels):
            part = matrix[:, panel * width : (panel + 1) * width]
            packed[panel, :depth, : part.shape[1]] = part
        if self.group == 1:
            return packed
        return np.ascontiguousarray(packed.reshape(panels, steps, self.group, width).swapaxes(2, 3))


def choose_dot(target: Target, left: DType, right: DType, sum: DType, shifted: bool = True) -> Dot:
    """The fastest exact way to multiply on a target.

    Args:
        shifted: whether the caller can take off what a shift of the left operand adds.
    """
    if left is sum:
        return Dot.plain(sum)
    features = target.features
    quads = DType.U8 if any(name in features for name in _VNNI) else DType.I8 if "asimddp" in features else None
    if quads and right is DType.I8 and (left is quads or shifted):
        return Dot(left, quads, right, sum, 4)
    if _PAIRS in features or "avx2" in features:
        return Dot(left, DType.I16, right, sum, 2, 2.0, 4)
    return Dot(left, left, right, sum, 1, 1.6, 4)
