"""How a product is cut for tile registers: rows into tiles, K into steps, columns into panels, all into units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.backends.cpu.band import Problem
from secateur.backends.cpu.target import Target

ROWS, COLUMNS, DEPTH = 16, 16, 64  # of a tile: rows, 32-bit columns, bytes along K
PANEL = 2 * COLUMNS
BAND_BYTES = 192 << 10  # of the input, copied or read, that one unit works on
UNITS = 16  # units wanted, so that threads share evenly


@dataclass(frozen=True)
class Grid:
    """How rows are cut: runs of `length` rows into `count` tiles of `height`; the last one begins early.

    So no tile reads beyond its run, and `skip` of its rows are the neighbour's. A run is a row of the image, or
    with `flat` all of them. `gathered`: all that a pixel of the result reads is copied side by side first, for
    rows of the image so short that tiles would be mostly empty.
    """

    length: int
    count: int
    height: int
    panels: int
    flat: bool = True
    gathered: bool = False

    @staticmethod
    def of(item: Problem) -> Grid:
        panels, rows = -(-item.columns // PANEL), item.images * item.out_height
        whole = Grid._cut(rows * item.out_width, panels, True, not item.flat)
        if item.flat:
            return whole
        lines = Grid._cut(item.out_width, panels, False, False)
        gain = rows * lines.count * lines.tile_cycles - whole.count * whole.tile_cycles
        copies = item.kernel[0] * item.kernel[1] * item.channels / 64 / panels
        return whole if item.groups == 1 and gain > 0.2 * whole.count * (whole.tile_cycles + copies) else lines

    @staticmethod
    def _cut(length: int, panels: int, flat: bool, gathered: bool) -> Grid:
        count = -(-length // ROWS)
        return Grid(length, count, -(-length // count), panels, flat, gathered)

    @property
    def tile_cycles(self) -> float:
        """Of a step, measured on Sapphire Rapids: lower tiles still wait for the same loads of the right side."""
        return max(2 * self.height + 2, 22 + 0.8 * self.height)

    @property
    def skip(self) -> int:
        return self.count * self.height - self.length

    def start(self, tile: str) -> str:
        """C for the first row of a tile."""
        last = self.length - self.height
        return (
            f"({tile} < {self.count - 1} ? {tile} * {self.height} : {last})" if self.skip else f"{tile} * {self.height}"
        )


@dataclass(frozen=True)
class Units:
    """The work of one kernel in `bands` of `rows` (tiles of a flat problem, else rows of the result), by `columns`.

    Where weights are the larger side every unit reads all of the other one: then only columns are split.
    """

    bands: int
    rows: int
    columns: int

    @staticmethod
    def of(item: Problem, grid: Grid, target: Target) -> Units:
        weights = item.depth * item.columns
        activations = item.images * item.height * item.width * item.group_channels
        rows, outer = (grid.count, 1) if grid.flat else (item.out_height, item.images * item.groups)
        if weights > max(activations, target.l2_bytes // 4) and grid.panels > 1:
            return Units(1, rows, min(grid.panels, UNITS))
        wanted = max(UNITS // 2 // outer, -(-activations // item.images // BAND_BYTES), 1)
        band = -(-rows // wanted)
        band += band % 2 if grid.flat or grid.count % 2 else 0  # tiles go in pairs
        bands = -(-rows // band)
        return Units(bands, band, min(grid.panels, -(-UNITS // (bands * outer))))


@dataclass(frozen=True)
class Steps:
    """Each run along K in `count` steps of `bytes`, which may exceed it in the last step."""

    count: int
    bytes: int

    @staticmethod
    def of(run: int) -> Steps:
        count = -(-run // DEPTH)
        return Steps(count, 4 * -(-run // (4 * count)))

    @staticmethod
    def exact(run: int) -> Steps | None:
        """Steps that read nothing beyond the run, or None where these would be many."""
        least = -(-run // DEPTH)
        counts = range(least, least + -(-least // 2) + 1)
        return next((Steps(n, run // n) for n in counts if run % (4 * n) == 0 and run // n <= DEPTH), None)


def pack_tiles(matrix: np.ndarray, steps: Steps) -> np.ndarray:
    """[steps * bytes, N] -> the panels of one group side by side, each [steps, tiles, bytes / 4, 16, 4]."""
    depth, columns = matrix.shape
    tiles = -(-columns // COLUMNS)
    full = np.zeros((depth, tiles * COLUMNS), matrix.dtype)
    full[:, :columns] = matrix
    split = full.reshape(depth // steps.bytes, steps.bytes // 4, 4, tiles, COLUMNS).transpose(3, 0, 1, 4, 2)
    panels = [split[at : at + 2].swapaxes(0, 1).reshape(-1) for at in range(0, tiles, 2)]
    return np.concatenate(panels)
