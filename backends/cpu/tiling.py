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
# Loads beyond this share of the multiply-adds no longer hide behind them.
_HIDDEN = 0.75
# A panel of more vectors than the first-level cache keeps comes from the second level for every tile, this slowly.
_KEPT, _STREAM = 512, 4.0
SINGLE = Dot.plain(DType.F32)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How rows and columns are cut: `count` row tiles of `base` rows, the first `extra` of them one taller.

    With `unit` the tiles consist of whole lines of so many rows, and `base` counts lines.
    """

    vectors: int
    panels: int
    count: int
    base: int
    extra: int
    cycles: float
    unit: int = 0

    @property
    def heights(self) -> list[int]:
        """Rows of the tiles, the taller ones first."""
        each = max(self.unit, 1)
        return [(self.base + 1) * each, self.base * each] if self.extra else [self.base * each]

    def start(self, tile: str) -> str:
        """C for the first row, or line, of a tile."""
        shift = f" + ({tile} < {self.extra} ? {tile} : {self.extra})" if self.extra else ""
        return f"{tile} * {self.base}{shift}"

    def calls(self, arguments: str, partial: bool) -> list[str]:
        """Calls of the tile function for row tile `t` and panel `c`; `partial`: the last panel has its own."""

        def pick(kind: str) -> str:
            first, last = (f"NAME_{kind}{height}{arguments}" for height in (self.heights[0], self.heights[-1]))
            return f"if (t < {self.extra}) {first} else {last}" if self.extra else last

        if not partial:
            return [pick("tile")]
        return [f"if (c < {self.panels - 1}) {{", pick("tile"), "} else {", pick("last"), "}"]


def choose_tiling(length: int, columns: int, steps: int, target: Target, dot: Dot = SINGLE) -> Tiling:
    """The tile shape of the least estimated cycles for one run of `length` rows and `steps` steps along K."""
    best = choose_lines(length, columns, steps, target, dot, 0)
    assert best is not None
    return best


def choose_lines(length: int, columns: int, steps: int, target: Target, dot: Dot, unit: int) -> Tiling | None:
    """The same for `length` lines of `unit` rows, in tiles of whole lines; None where none holds two of them."""
    width = dot.sum.bytes // 4  # registers for one vector of LANES elements
    best: Tiling | None = None
    vectors_needed = -(-columns // target.lanes)
    for vectors in range(1, min(8, vectors_needed) + 1):
        tallest = (target.registers - dot.spare - vectors * width) // (vectors * width)
        tallest //= max(unit, 1)
        if tallest < (2 if unit else 1):
            continue
        panels = -(-vectors_needed // vectors)
        count = -(-length // tallest)
        base, extra = divmod(length, count)
        cycles = 0.0
        for height, number in ((base + 1, extra), (base, count - extra)):
            rows = height * max(unit, 1)
            fmas = rows * vectors * width * dot.cycles
            stream = _STREAM * vectors * width if steps * vectors * width > _KEPT else 0.0
            loads = rows + vectors * width
            step = max(fmas, 4.0, vectors * width + rows / 2, stream) + _STEP_OVERHEAD + _LOAD * (rows + vectors)
            step += max(0.0, loads - _HIDDEN * fmas)
            cycles += number * panels * (step * steps + fmas + _TILE_OVERHEAD)
        if best is None or cycles < best.cycles:
            best = Tiling(vectors, panels, count, base, extra, cycles, unit)
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
