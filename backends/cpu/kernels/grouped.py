"""Linear layers over 4- and 8-bit weights with a scale for each group: what generates text one row at a time.

Such a layer waits for its weights, so they are read as they are stored and become floats in registers. Weights of
4 bits lie eight to a 32-bit word, [panels, groups, words, width]: a vector of words holds eight neighbours along K
for each of its columns. Where a permutation of 16 floats by 4-bit indices exists it is the conversion. Each group
is added up by itself, and its sum, times its scale, to the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.backends.cpu.cexpr import CTYPE
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.target import Target
from secateur.backends.cpu.tile import Epilogue, TileCode, check_epilogue
from secateur.backends.cpu.tiling import SINGLE, Tiling, functions_for
from secateur.ir.types import DType, numel

WORD = 8  # 4-bit weights in a word
UNITS = 8  # panels wanted, so that threads share evenly
_UNPACK = 2.5  # instructions that make a vector of floats of one of weights


def _match(job: Job) -> str:
    op = job.anchor
    if op.name != "linear_grouped":
        return f"{op.name} has no groups of weights"
    if op.result.type.numel == 0 or op.operands[0].type.numel == 0:
        return "empty"
    if any(job.constant(value) is None for value in op.operands[1:3]):
        return "weights are not constant"
    return check_epilogue(job)


def choose_rows(rows: int, columns: int, depth: int, target: Target) -> Tiling:
    """The tile shape of the least estimated cycles; sums of a group and of the whole fill the registers."""
    needed = -(-columns // target.lanes)
    best: Tiling | None = None
    for vectors in range(1, max(1, min(8, needed // UNITS)) + 1):
        tallest = (target.registers - 3 - vectors) // (2 * vectors)
        if tallest < 1:
            continue
        panels, count = -(-needed // vectors), -(-rows // tallest)
        base, extra = divmod(rows, count)
        step = (_UNPACK * count + rows) * vectors + (rows + 2.0 * count) / 2
        cycles = panels * (step * depth + 60.0 * count)
        if best is None or cycles < best.cycles:
            best = Tiling(vectors, panels, count, base, extra, cycles)
    assert best is not None
    return best


def _tiling(job: Job) -> Tiling:
    x, result = job.anchor.operands[0].shape, job.anchor.result.shape
    return choose_rows(numel(result[:-1]), result[-1], x[-1], job.target)


def fits_four_bits(weight: np.ndarray) -> bool:
    return bool(weight.min() >= -8 and weight.max() <= 7)


def pack_groups(weight: np.ndarray, width: int) -> np.ndarray:
    """i8 [N, G, g] -> [panels, G, g, width], or as words i32 [panels, G, g / 8, width] where 4 bits hold all."""
    columns, groups, size = weight.shape
    panels = -(-columns // width)
    four = fits_four_bits(weight)
    padded = np.zeros((panels * width, groups, -(-size // WORD) * WORD if four else size), np.int8)
    padded[:columns, :, :size] = weight
    panel = padded.reshape(panels, width, groups, -1).transpose(0, 2, 3, 1)
    if not four:
        return np.ascontiguousarray(panel)
    nibbles = (panel & 15).astype(np.uint32).reshape(panels, groups, -1, WORD, width)
    shifts = 4 * np.arange(WORD, dtype=np.uint32).reshape(-1, 1)
    return np.bitwise_or.reduce(nibbles << shifts, axis=3).view(np.int32)


def pack_scales(scale: np.ndarray, width: int) -> np.ndarray:
    """f32 [N, G, 1] -> [panels, G, width]."""
    columns, groups, _ = scale.shape
    panels = -(-columns // width)
    padded = np.zeros((panels * width, groups), np.float32)
    padded[:columns] = scale[:, :, 0]
    return np.ascontiguousarray(padded.reshape(panels, width, groups).swapaxes(1, 2))


@dataclass(frozen=True)
class GroupedCode:
    """What a tile function is made from: `tile` says where sums start and what becomes of them.

    Attributes:
        groups: how many, of `size` weights each.
        four: whether weights are 4 bits wide, eight to a word.
    """

    tile: TileCode
    groups: int
    size: int
    four: bool

    def emit(self, name: str, rows: int, columns: int, lanes: int) -> str:
        vectors, epilogue = self.tile.vectors, self.tile.epilogue
        stored = "int32_t" if self.four else "int8_t"
        params = epilogue.params() if epilogue else ""
        result = f"{CTYPE[self.tile.result or DType.F32]} *o"
        scaled = [f"c[i][{j}] += sum[i][{j}] * load_f32(s + {j} * LANES);" for j in range(vectors)]
        return "\n".join(
            [
                f"INLINE void {name}(const float *a, const {stored} *b, const float *s, {result}{params}) {{",
                f"v_f32 c[{rows}][{vectors}];",
                *self.tile.start(rows, columns, lanes),
                f"for (int q = 0; q < {self.groups}; q++, a += {self.size}, s += {vectors * lanes}) {{",
                f"v_f32 sum[{rows}][{vectors}];",
                f"UNROLL for (int i = 0; i < {rows}; i++) {{",
                *(f"sum[i][{j}] = (v_f32){{0}};" for j in range(vectors)),
                "}",
                *self._sums(rows, vectors * lanes),
                f"UNROLL for (int i = 0; i < {rows}; i++) {{",
                *scaled,
                *["}"] * 2,
                *self.tile.finish(rows, columns, lanes),
                "}",
            ]
        )

    def _sums(self, rows: int, width: int) -> list[str]:
        """The loop over a group."""
        if not self.four:
            load = "CONVERT(CONVERT(load_i8(b + {} * LANES), v_i32), v_f32)"
            body = self._products(rows, load, "k")
            return [f"for (int k = 0; k < {self.size}; k++, b += {width}) {{", *body, "}"]
        lines, whole = [], self.size // WORD * WORD
        if whole:
            lines += [f"for (int k = 0; k < {whole}; k += {WORD}, b += {width}) {{", *self._word(rows, WORD), "}"]
        if self.size % WORD:
            lines += ["{", f"const int k = {whole};", *self._word(rows, self.size % WORD), f"b += {width};", "}"]
        return lines

    def _word(self, rows: int, count: int) -> list[str]:
        """The first `count` weights of each word at `b`."""
        return [
            *(f"const v_i32 w{j} = load_i32(b + {j} * LANES);" for j in range(self.tile.vectors)),
            f"UNROLL for (int n = 0; n < {count}; n++) {{",
            *self._products(rows, "nibble_f32(w{}, n)", "k + n"),
            "}",
        ]

    def _products(self, rows: int, weight: str, at: str) -> list[str]:
        vectors = self.tile.vectors
        return [
            *(f"const v_f32 u{j} = {weight.format(j)};" for j in range(vectors)),
            f"UNROLL for (int i = 0; i < {rows}; i++) {{",
            f"const v_f32 x = splat_f32(a[i * {self.tile.lda}L + {at}]);",
            *(f"sum[i][{j}] += x * u{j};" for j in range(vectors)),
            "}",
        ]


def _emit(job: Job) -> Kernel:
    op, lanes = job.anchor, job.target.lanes
    weight, scale = (job.constant(value) for value in op.operands[1:3])
    assert weight is not None and scale is not None
    columns, groups, size = weight.shape
    tiling = _tiling(job)
    width, depth = tiling.vectors * lanes, groups * size
    bias = op.operands[3] if len(op.operands) > 3 else None
    epilogue = Epilogue(job, columns, tiling.panels * width + 8 * lanes, bias)
    tile = TileCode(SINGLE, tiling.vectors, (), depth, depth, width, columns, epilogue, job.result_type.dtype)
    code = GroupedCode(tile, groups, size, fits_four_bits(weight))
    packed, scales = pack_groups(weight, width), pack_scales(scale, width)
    functions = functions_for(code.emit, tiling, columns, width, lanes)
    stored = "int32_t" if code.four else "int8_t"
    result = CTYPE[job.result_type.dtype]
    call = f"(x + m * {depth}L, b, s, o + at{epilogue.arguments('at', 'column')});"
    lines = [
        "KERNEL(NAME) {",
        "(void)scratch;",
        "const float *x = p[0];",
        f"{result} *o = ({result} *)p[3];",
        *epilogue.declare(4),
        "for (long c = begin; c < end; c++) {",
        f"const {stored} *b = (const {stored} *)p[1] + c * {packed[0].size}L;",
        f"const float *s = (const float *)p[2] + c * {scales[0].size}L;",
        f"const long column = c * {width};",
        f"for (long t = 0; t < {tiling.count}; t++) {{",
        f"const long m = {tiling.start('t')}, at = m * {columns} + column;",
        *tiling.calls(call, columns % width != 0),
        *["}"] * 3,
    ]
    source = job.position(op.operands[0])
    assert source is not None
    args = (source, packed, scales, ("result", 0), *(pointer for _, pointer in epilogue.pointers))
    note = f"{max(tiling.heights)}x{width} tiles, {4 if code.four else 8}-bit weights, {groups} groups of {size}"
    return Kernel("\n\n".join([*functions, "\n".join(lines)]), args, tiling.panels, note=note)


def _example(rows: int, columns: int, groups: int, size: int, *epilogue: str) -> Example:
    types = (f"f32[{rows},{groups * size}]", f"i8[{columns},{groups},{size}]", f"f32[{columns},{groups},1]")
    return Example("linear_grouped", (*types, f"f32[{columns}]"), constants=(1, 2, 3), epilogue=epilogue)


GROUPED = family(
    Family(
        name="grouped",
        doc="Linear layers over constant 4- or 8-bit weights with a scale for each group along K.",
        match=_match,
        emit=_emit,
        cost=lambda job: _tiling(job).cycles + 300.0,
        examples=(
            _example(1, 2048, 64, 32),
            _example(5, 200, 3, 13, "relu"),
            _example(128, 768, 6, 128),
            _example(1, 1000, 1, 768),
        ),
    )
)
