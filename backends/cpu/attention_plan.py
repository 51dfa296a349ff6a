"""Attention in fixed point: how it is cut, where everything lies, and the two products of a tile of queries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from secateur.backends.cpu.band import LINE
from secateur.backends.cpu.cexpr import CTYPE
from secateur.backends.cpu.dot import Dot, choose_dot
from secateur.backends.cpu.kernel import Job
from secateur.backends.cpu.tile import TileCode
from secateur.backends.cpu.tiling import Tiling
from secateur.ir.types import DType

PANEL_VECTORS = 2
AMX_ROWS, AMX_DEPTH = 32, 64  # two tiles of queries; bytes along K of a tile


@dataclass(frozen=True)
class Plan:
    """Sizes, and where everything lies in scratch memory; `tiles`: products are those of AMX."""

    scores: Dot
    values: Dot
    batch: tuple[int, ...]
    s: int
    d: int
    t: int
    dv: int
    width: int
    tiling: Tiling
    tiles: bool

    def depth(self, dot: Dot, length: int) -> int:
        """`length` elements along K, padded to what one step takes."""
        return -(-length // AMX_DEPTH) * AMX_DEPTH if self.tiles else dot.steps(length) * dot.group

    @property
    def panels(self) -> tuple[int, int]:
        """Of keys and of values."""
        return -(-self.t // self.width), -(-self.dv // self.width)

    @property
    def key_panel(self) -> int:
        """Elements of a packed panel of keys."""
        return self.depth(self.scores, self.d) * self.width

    @property
    def value_panel(self) -> int:
        return self.depth(self.values, self.t) * self.width

    @property
    def row(self) -> int:
        """Elements of a row of scores."""
        return self.panels[0] * self.width

    @property
    def query(self) -> int:
        """Elements of a copied query."""
        return self.depth(self.scores, self.d)

    @cached_property
    def places(self) -> tuple[list[tuple[str, str, int]], int]:
        """(name, C type, byte offset) of each array in scratch memory, and their size together."""
        tall, (keys, values) = AMX_ROWS if self.tiles else max(self.tiling.heights), self.panels
        arrays = [
            ("keys", self.scores.right, keys * self.key_panel),
            ("values", self.values.right, values * self.value_panel),
            ("key_start", DType.I32, keys * self.width),
            ("value_start", DType.I32, values * self.width),
            ("queries", self.scores.left, tall * self.query),
            ("scores", DType.I32, tall * self.row),
            ("weights", self.values.left, tall * self.row),
            ("sums", DType.I32, tall * values * self.width),
            ("inverse", DType.I32, tall),
        ]
        offset, found = 0, []
        for name, dtype, count in arrays:
            found.append((name, CTYPE[dtype], offset))
            offset += -(-count * dtype.bytes // LINE) * LINE
        return found, offset + LINE


def make_plan(job: Job) -> Plan:
    target = job.target
    q, _, v = (value.shape for value in job.anchor.operands[:3])
    s, d, t, dv = *q[-2:], *v[-2:]
    scores = choose_dot(target, DType.I8, DType.I8, DType.I32)
    values = choose_dot(target, DType.U8, DType.I8, DType.I32)
    tallest = max(1, (target.registers - max(scores.spare, values.spare) - PANEL_VECTORS) // PANEL_VECTORS)
    tiles = "amx_int8" in target.features and s >= AMX_ROWS // 2
    if tiles:  # which multiply either sign by either sign
        tallest = AMX_ROWS
        scores, values = (Dot(left, left, DType.I8, DType.I32, 4) for left in (DType.I8, DType.U8))
    count = -(-s // tallest)
    tiling = Tiling(PANEL_VECTORS, 1, count, s // count, s % count, 0.0)
    return Plan(scores, values, q[:-2], s, d, t, dv, PANEL_VECTORS * target.lanes, tiling, tiles)


def products(plan: Plan, lanes: int) -> list[str]:
    """C functions: one for each product, or where AMX does not compute them one for each height of a tile too."""
    if plan.tiles:
        return _amx_products(plan)
    ldk, ldv = plan.width * plan.scores.group, plan.width * plan.values.group
    score = TileCode(plan.scores, PANEL_VECTORS, (), plan.d, plan.query, ldk, plan.row)
    value = TileCode(plan.values, PANEL_VECTORS, (), plan.t, plan.row, ldv, plan.panels[1] * plan.width)
    both = (("scores", score), ("values", value))
    return [
        code.emit(f"NAME_{name}{height}", height, plan.width, lanes)
        for name, code in both
        for height in plan.tiling.heights
    ]


def _amx_products(plan: Plan) -> list[str]:
    """A function for each product: up to 32 rows by 32 columns in four tiles."""
    signed = (("scores", "dpbssd", plan.query, plan.row), ("values", "dpbusd", plan.row, plan.panels[1] * plan.width))
    found = []
    for name, product, lda, ldo in signed:
        dot, length = (plan.scores, plan.d) if name == "scores" else (plan.values, plan.t)
        lines = [
            f"static void NAME_{name}(const void *a, const int8_t *b, int32_t *o, int rows) {{",
            "_tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);",
            f"for (int k = 0; k < {plan.depth(dot, length)}; k += {AMX_DEPTH}, b += {AMX_DEPTH * plan.width}) {{",
            f"_tile_loadd(6, b, {4 * plan.width}); _tile_loadd(7, b + 64, {4 * plan.width});",
            f"_tile_loadd(4, (const char *)a + k, {lda});",
            f"_tile_{product}(0, 4, 6); _tile_{product}(1, 4, 7);",
            "if (rows <= 16) continue;",
            f"_tile_loadd(5, (const char *)a + k + {16 * lda}, {lda});",
            f"_tile_{product}(2, 5, 6); _tile_{product}(3, 5, 7);",
            "}",
            f"_tile_stored(0, o, {4 * ldo}); _tile_stored(1, o + 16, {4 * ldo});",
            "if (rows <= 16) return;",
            f"_tile_stored(2, o + {16 * ldo}, {4 * ldo}); _tile_stored(3, o + {16 * ldo + 16}, {4 * ldo});",
            "}",
        ]
        found.append("\n".join(lines))
    return found
