"""How the rows and columns of a product are cut into register tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from secateur.backends.cpu.dot import Dot
from secateur.backends.cpu.target import Target
from secateur.ir.types import DType

# What one FMA per cycle costs beside: loop overhead per K, and entry, epilogue and exit per tile.
_STEP_OVERHEAD = 0.5
_LOAD = 0.02
_TILE_OVERHEAD = 30.0
SINGLE = Dot.plain(DType.F32)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How `length` rows and `columns` columns are cut: `count` row tiles, the first `extra` one row taller."""

    vectors: int
    panels: int
    count: int
    base: int
    extra: int
    cycles: float

    @property
    def heights(self) -> list[int]:
        return [self.base + 1, self.base] if self.extra else [self.base]

    def start(self, tile: str) -> str:
        """C for the first row of a tile."""
        shift = f" + ({tile} < {self.extra} ? {tile} : {self.extra})" if self.extra else ""
        return f"{tile} * {self.base}{shift}"

    def calls(self, arguments: str, partial: bool) -> list[str]:
        """Calls of the tile function for row tile `t` and panel `c`; `partial`: the last panel has its own."""

        def pick(kind: str) -> str:
            low = f"NAME_{kind}{self.base}{arguments}"
            return f"if (t < {self.extra}) NAME_{kind}{self.base + 1}{arguments} else {low}" if self.extra else low

        if not partial:
            return [pick("tile")]
        return [f"if (c < {self.panels - 1}) {{", pick("tile"), "} else {", pick("last"), "}"]


def choose_tiling(length: int, columns: int, steps: int, target: Target, dot: Dot = SINGLE) -> Tiling:
    """The tile shape of the least estimated cycles for one run of `length` rows and `steps` steps along K."""
    width = dot.sum.bytes // 4  # registers for one vector of LANES elements
    best: Tiling | None = None
    vectors_needed = -(-columns // target.lanes)
    for vectors in range(1, min(8, vectors_needed) + 1):
        tallest = (target.registers - dot.spare - vectors * width) // (vectors * width)
        if tallest < 1:
            continue
        panels = -(-vectors_needed // vectors)
        count = -(-length // tallest)
        base, extra = divmod(length, count)
        cycles = 0.0
        for height, number in ((base + 1, extra), (base, count - extra)):
            fmas = height * vectors * width * dot.cycles
            step = max(fmas, 4.0, vectors * width + height / 2) + _STEP_OVERHEAD + _LOAD * (height + vectors)
            cycles += number * panels * (step * steps + fmas + _TILE_OVERHEAD)
        if best is None or cycles < best.cycles:
            best = Tiling(vectors, panels, count, base, extra, cycles)
    assert best is not None
    return best


def row_stride_conflicts(stride_bytes: int, rows: int) -> bool:
    """Whether rows this far apart fall into so few sets of a 32 KiB 8-way cache that they evict each other."""
    lines = stride_bytes // 64
    if stride_bytes % 64 or lines == 0:
        return False
    return rows / (64 // int(np.gcd(lines, 64))) > 6


def functions_for(
    emit: Callable[[str, int, int, int], str], tiling: Tiling, columns: int, width: int, lanes: int
) -> list[str]:
    """NAME_tileH for each height H of a tiling, and NAME_lastH where the last panel is partial."""
    last = columns - (tiling.panels - 1) * width
    found = [emit(f"NAME_tile{height}", height, width, lanes) for height in tiling.heights]
    if last != width:
        found += [emit(f"NAME_last{height}", height, last, lanes) for height in tiling.heights]
    return found
