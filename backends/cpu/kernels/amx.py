"""8-bit products and convolutions with constant weights on the tile registers of Intel AMX.

A block of the result is 2 x 2 tiles of sums, 32 rows x 32 columns: four loads feed four products of 16 x 64 by
64 x 16. The left side is walked as in the gemm family (band.py): input pixels lie a constant stride apart, so a
tile load reads them in place. Weights are packed [steps, tiles, K / 4, 16, 4], each run along K cut into equal
steps of at most 64 bytes. The sums are stored to the stack, from where the epilogue reads them; the bias is
what the tiles start from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from secateur.backends.cpu.band import (
    LINE,
    Problem,
    Source,
    copy_band,
    copy_elements,
    copy_row,
    packed_source,
    problem,
    source_of,
)
from secateur.backends.cpu.blockcode import STRAIGHT, BlockCode
from secateur.backends.cpu.blocks import COLUMNS, PANEL, Grid, Steps, Units, pack_tiles
from secateur.backends.cpu.cexpr import CTYPE
from secateur.backends.cpu.dot import Dot
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.kernels.gemm import GEMM, weight_matrices
from secateur.backends.cpu.tile import Epilogue
from secateur.ir.types import DType

BYTES = (DType.I8, DType.U8)
FETCHED = 64 << 10  # bytes of panels up to which fetching the next one was found to pay
SLACK = 128  # bytes behind a band that the last rows may read and multiply by zero
# Cycles, measured on Sapphire Rapids: a product takes one for each row of its left tile, a load 0.9 for each row,
# a store one. What the epilogue takes is not counted, here or in the gemm family: products hide much of it.
_LOAD_ROW, _STEP_LEAST, _BLOCK = 0.9, 40.0, 10.0
_ISSUE = 1.5  # the gemm family counts one instruction a cycle where such processors do nearly two


def _match(job: Job) -> str:
    if job.anchor.name in ("conv", "linear", "matmul"):
        if any(value.type.dtype not in BYTES for value in job.anchor.operands[:2]):
            return "operands are not 8 bits wide"
        if len(job.anchor.operands) > 2 and job.constant(job.anchor.operands[2]) is None:
            return "the bias is not constant"
    return GEMM.match(job)


def tile_problem(job: Job) -> Problem:
    """The problem as the gemm family sees it; tiles multiply either sign by either sign, so nothing is converted."""
    left, right = (value.type.dtype for value in job.anchor.operands[:2])
    return replace(problem(job), dot=Dot(left, left, right, DType.I32, 4))


def _reading(job: Job, item: Problem, grid: Grid) -> tuple[Source, Steps]:
    """How the left side is read; a tile takes whole lines of its rows, so their places in the cache do not matter."""
    if grid.gathered:
        return Source(True, item.depth, 0, (), item.depth), Steps.of(item.depth)
    source = source_of(job, item, 1)
    steps = None if source.packed else Steps.exact(source.run)
    if steps is None:
        source = packed_source(item, 1)
        steps = Steps.of(source.run)
    return source, steps


def _cost(job: Job) -> float:
    item = tile_problem(job)
    grid = Grid.of(item)
    run = item.depth if grid.flat else item.group_channels * item.kernel[1]
    steps = Steps.of(run)
    count = steps.count * item.depth // run
    wide = 1 if item.columns <= COLUMNS else 2
    height, right = grid.height, steps.bytes // 4

    def block(rows: int) -> float:
        step = max(rows * wide * height, _LOAD_ROW * (rows * height + wide * right), _STEP_LEAST / 2 * rows)
        return step * count + rows * wide * height + _BLOCK

    tiles = grid.count if grid.flat else grid.count * item.images * item.out_height
    return _ISSUE * (tiles // 2 * block(2) + tiles % 2 * block(1)) * grid.panels * item.groups + 300.0


def _epilogue(job: Job) -> Epilogue:
    columns = job.anchor.result.shape[-1]
    bias = job.anchor.operands[2] if len(job.anchor.operands) > 2 else None
    return Epilogue(job, columns, columns + 2 * PANEL, bias)


def _emit(job: Job) -> Kernel:
    item = tile_problem(job)
    grid = Grid.of(item)
    units = Units.of(item, grid, job.target)
    writer = _Writer(job, item, grid, units, *_reading(job, item, grid), _epilogue(job))
    padded = writer.steps.count * writer.steps.bytes
    matrices = weight_matrices(job, item, writer.source.run, padded)
    weights = np.stack([pack_tiles(matrix, writer.steps) for matrix in matrices])
    anchor_input = job.position(job.anchor.operands[0])
    assert anchor_input is not None
    args = (anchor_input, weights, ("result", 0), *(pointer for _, pointer in writer.epilogue.pointers))
    tasks = item.groups * (1 if grid.flat else item.images) * units.bands * units.columns
    inplace = tuple(p for p in writer.epilogue.full_operands(job.result_type.dtype) if p != anchor_input)
    reads = "gathered" if grid.gathered else "packed" if writer.source.packed else "direct"
    note = f"{writer.grid.height}x{PANEL} AMX tiles, K {item.depth} by {writer.steps.bytes}, {reads} input"
    return Kernel(writer.code(), args, tasks, writer.scratch(), inplace, note)


@dataclass(frozen=True)
class _Writer:
    """Writes the blocks of tiles and the loops around them."""

    job: Job
    item: Problem
    grid: Grid
    units: Units
    source: Source
    steps: Steps
    epilogue: Epilogue

    @cached_property
    def blocks(self) -> BlockCode:
        item, result = self.item, self.job.result_type.dtype
        ldo, lanes = item.columns * item.groups, self.job.target.lanes
        parts = (item.dot, self.source, self.steps, self.lda, self.grid.height, self.epilogue)
        return BlockCode(*parts, result, ldo, lanes, self.ahead)

    @property
    def ahead(self) -> int:
        """Lines of the next panel that each step fetches: weights that units read once come from far away.

        All blocks of a panel share the work; without it the first one would wait for all of the panel.
        """
        steps = self.source.runs * self.steps.count
        blocks = -(-self.units.rows * (1 if self.grid.flat else self.grid.count) // 2)
        long = steps * self.steps.bytes * PANEL > FETCHED  # the processor itself sees where these go on
        if self.units.bands > 1 or self.grid.panels == 1 or blocks == 1 or steps <= STRAIGHT or long:
            return 0
        return -(-self.steps.bytes * PANEL // (blocks * LINE))

    @property
    def lda(self) -> int:
        return self.source.pixel * (1 if self.grid.flat else self.item.stride[1])

    @property
    def last(self) -> int:
        """Columns of the last panel."""
        return self.item.columns - (self.grid.panels - 1) * PANEL

    def scratch(self) -> int:
        """Bytes of the packed band of the largest unit."""
        if not self.source.packed:
            return 0
        item, rows = self.item, self.units.rows
        if self.grid.flat:
            return rows * self.grid.height * self.source.pixel + SLACK
        reach = (rows - 1) * item.stride[0] + (item.kernel[0] - 1) * item.dilation[0] + 1
        return reach * self.source.row + SLACK

    def code(self) -> str:
        functions = [text for columns in self._kinds() for text in self.blocks.functions(columns)]
        return "\n\n".join([*functions, self.kernel()])

    def _kinds(self) -> list[int]:
        """Columns of the panels: of all, and of the last one where it has less."""
        return [PANEL, self.last] if self.grid.panels > 1 and self.last < PANEL else [self.last]

    def kernel(self) -> str:
        item, column_groups = self.item, self.units.columns
        result = CTYPE[self.job.result_type.dtype]
        lines = [
            "KERNEL(NAME) {",
            f"const {CTYPE[item.dot.left]} *x = (const {CTYPE[item.dot.left]} *)p[0];",
            f"const {CTYPE[item.dot.right]} *w = p[1];",
            f"{result} *o = ({result} *)p[2];",
            *self.epilogue.declare(3),
            f"int32_t sums[{2 * self._size}] __attribute__((aligned(64)));  // of two blocks in turns",
            "struct waiting done = {0};",
            "long half = 0;",
            "(void)scratch;",
        ]
        if self.source.packed:
            lines.append(f"{CTYPE[item.dot.left]} *const band = ({CTYPE[item.dot.left]} *)SCRATCH;")
        lines += [
            f"configure_tiles({self.grid.height}, {self.steps.bytes});",
            "for (long u = begin; u < end; u++) {",
            f"const long q = u % {column_groups}, part = u / {column_groups};",
            *(self._flat() if self.grid.flat else self._spatial()),
            "}",
            "_tile_release();",
            *self._finish(),
            "}",
        ]
        return "\n".join(lines)

    @property
    def _size(self) -> int:
        """Sums of one block."""
        return 2 * self.grid.height * PANEL

    def _finish(self) -> list[str]:
        """The epilogue of the last block."""
        kinds = [f"NAME_rest_{columns}({self.blocks.waiting('done')});" for columns in self._kinds()]
        return kinds if len(kinds) == 1 else [f"if (done.kind) {kinds[1]} else {kinds[0]}"]

    def _turn_to(self, kind: int) -> list[str]:
        """Panels of one kind after those of another: the epilogues of the others first."""
        other = self._kinds()[1 - kind]
        rest = f"NAME_rest_{other}({self.blocks.waiting('done')});"
        return [f"if (done.kind != {kind}) {{", rest, f"done.rows = 0, done.kind = {kind};", "}"]

    def _panels(self, group: str, tiles: list[str]) -> list[str]:
        """The loop over column panels of a unit; `tiles` is the head of the loop over pairs of row tiles."""
        item, count, column_groups = self.item, self.grid.panels, self.units.columns
        runs = self.source.runs * self.steps.count * self.steps.bytes
        size = runs * PANEL
        whole = runs * COLUMNS * -(-item.columns // COLUMNS)
        several = item.groups > 1
        base = f"{group} * {whole}L + " if several else ""
        shift = f"{group} * {item.columns} + " if several else ""
        lines = [
            f"for (long c = q * {count} / {column_groups}; c < (q + 1) * {count} / {column_groups}; c++) {{",
            f"const {CTYPE[item.dot.right]} *b = w + {base}c * {size}L;",
            f"const long column = {shift}c * {PANEL};",
        ]
        if len(self._kinds()) == 1:
            return [*lines, *tiles, *self._block(self.last, 0), "}", "}"]
        lines += [f"if (c < {count - 1}) {{", *self._turn_to(0), *tiles, *self._block(PANEL, 0), "}", "} else {"]
        return [*lines, *self._turn_to(1), *tiles, *self._block(self.last, 1), "}", "}", "}"]

    def _block(self, columns: int, kind: int) -> list[str]:
        """A block of two row tiles, or of the one that is left; its sums wait for the next block."""
        height, done = self.grid.height, self.blocks.waiting("done")
        first, second = (" - skip0", " - skip1") if self.grid.skip else ("", "")
        width = -(-columns // COLUMNS) * COLUMNS
        start = f"sums + half{f' + skip0 * {width}' if self.grid.skip else ''}"

        steps = self.source.runs * self.steps.count
        share = self.ahead * LINE * steps
        first_tile = "t0" if self.grid.flat else "0"
        ahead = f"b + {steps * self.steps.bytes * PANEL}L + (t - {first_tile}) / 2 * {share}L, " if self.ahead else ""

        def wait(rows: str) -> str:
            return f"done = (struct waiting){{{start}, {rows}, at0 + column, column, {kind}}};"

        return [
            *self._place("t", "0"),
            "if (t + 1 < t1) {",
            *self._place("t + 1", "1"),
            f"NAME_block2_{columns}(b, x0, x1, sums + half, {height}{second}, {ahead}{done});",
            wait(f"{2 * height}{first}{second}"),
            "} else {",
            f"NAME_block1_{columns}(b, x0, sums + half, {ahead}{done});",
            wait(f"{height}{first}"),
            "}",
            f"half = {self._size} - half;",
        ]

    def _place(self, tile: str, number: str) -> list[str]:
        """Where row tile `tile` reads (`x`) and writes first (`at`); how many of its rows are another's (`skip`).

        The rows of two tiles in turn are neighbours in the result, so only the first one's place there counts.
        """
        item, source, grid = self.item, self.source, self.grid
        left, total = CTYPE[item.dot.left], item.columns * item.groups
        skip = [f"const long skip{number} = p{number} * {grid.height} - m{number};"] if grid.skip else []
        if grid.flat:
            base = (
                f"band + (m{number} - low) * {source.pixel}L" if source.packed else f"x + m{number} * {source.pixel}L"
            )
            return [
                f"const long p{number} = {tile}, m{number} = {grid.start(f'p{number}')};",
                *skip,
                f"const {left} *x{number} = {base};",
                f"const long at{number} = p{number} * {grid.height * total}L; (void)at{number};",
            ]
        row = f"(r{number} - y0)" if source.packed else f"r{number}"
        base = "band" if source.packed else "image"
        return [
            f"const long r{number} = y0 + ({tile}) / {grid.count}, p{number} = ({tile}) % {grid.count};",
            f"const long m{number} = {grid.start(f'p{number}')};",
            *skip,
            f"const {left} *x{number} = {base} + {row} * {item.stride[0] * source.row}L + m{number} * {self.lda}L;",
            f"const long at{number} = ((n * {item.out_height} + r{number}) * {item.out_width}L"
            f" + p{number} * {grid.height}) * {total}L; (void)at{number};",
        ]

    def _flat(self) -> list[str]:
        grid, item = self.grid, self.item
        lines = self._ends("t", "part", grid.count)
        if self.source.packed:
            lines += [
                f"const long low = {grid.start('t0')}, high = {grid.start('(t1 - 1)')} + {grid.height};",
                "if (PACKED != part) {",
                "PACKED = part;",
                f"{CTYPE[item.dot.left]} *row = band;",
                f"for (long m = low; m < high; m++, row += {self.source.pixel}) {{",
                f"{CTYPE[item.dot.left]} *to = row;",
                *(self._gather() if grid.gathered else copy_row(item, self.job.view(self.job.anchor.operands[0]))),
                "}",
                "}",
            ]
        return [*lines, *self._panels("0", ["for (long t = t0; t < t1; t += 2) {"])]

    def _gather(self) -> list[str]:
        """Copy what all taps of the filter read for pixel `m` of the result to `to`, side by side."""
        item, view = self.item, self.job.view(self.job.anchor.operands[0])
        (_, width), (down, right), channels = item.kernel, item.stride, item.channels
        return [
            f"const long n = m / {item.out_height * item.out_width};",
            f"const long py = m / {item.out_width} % {item.out_height}, px = m % {item.out_width};",
            f"for (long f = 0; f < {item.kernel[0] * width}; f++, to += {channels}) {{",
            f"const long iy = py * {down} - {item.low[0]} + f / {width} * {item.dilation[0]};",
            f"const long ix = px * {right} - {item.low[1]} + f % {width} * {item.dilation[1]};",
            f"const int inside = iy >= 0 && iy < {item.height} && ix >= 0 && ix < {item.width};",
            f"if (!inside) {{ memset(to, {item.pad_value & 255}, {channels}); continue; }}",
            f"const {CTYPE[item.dot.left]} *from = x + n * {view.strides[0]}L + iy * {view.strides[1]}L"
            f" + ix * {view.strides[2]}L;",
            copy_elements(item.dot, channels, 1 if channels == 1 else view.strides[3]),
            "}",
        ]

    def _ends(self, name: str, band: str, count: int) -> list[str]:
        """The first row of a band and the one behind its last."""
        rows = self.units.rows
        end = f"{name}0 + {rows} < {count} ? {name}0 + {rows} : {count}"
        return [f"const long {name}0 = {band} * {rows}, {name}1 = {end};"]

    def _spatial(self) -> list[str]:
        item, bands = self.item, self.units.bands
        view = self.job.view(self.job.anchor.operands[0])
        lines = [
            f"const long g = part / {bands * item.images}, n = part / {bands} % {item.images}, s = part % {bands};",
            *self._ends("y", "s", item.out_height),
            f"const {CTYPE[item.dot.left]} *image = x + n * {view.strides[0]}L"
            f" + g * {item.group_channels * view.strides[3]}L;",
            "(void)image;",
        ]
        if self.source.packed:
            lines += ["if (PACKED != part) {", "PACKED = part;", *copy_band(item, self.source, view), "}"]
        head = f"for (long t = 0, t1 = (y1 - y0) * {self.grid.count}; t < t1; t += 2) {{"
        return [*lines, *self._panels("g", [head])]


def _convolution(size: int, channels: int, outs: int, kernel: int, stride: int) -> Example:
    attrs = {"stride": (stride, stride), "padding": (kernel // 2,) * 4, "dilation": (1, 1), "channels_last": True}
    types = (f"u8[1,{size},{size},{channels}]", f"i8[{outs},{channels},{kernel},{kernel}]", f"i32[{outs}]")
    return Example("conv", types, attrs, constants=(1, 2))


def _product(rows: int, depth: int, columns: int) -> Example:
    return Example("linear", (f"i8[{rows},{depth}]", f"i8[{columns},{depth}]", f"i32[{columns}]"), constants=(1, 2))


AMX = family(
    Family(
        name="amx",
        doc="8-bit product or convolution on AMX tiles, with weights packed at compile time and a fused epilogue.",
        match=_match,
        emit=_emit,
        cost=_cost,
        accepts=GEMM.accepts,
        examples=(
            *(_convolution(*sizes) for sizes in ((56, 64, 64, 3, 1), (28, 128, 128, 3, 1), (14, 256, 256, 3, 1))),
            *(_convolution(*sizes) for sizes in ((7, 512, 512, 3, 1), (224, 3, 64, 7, 2), (56, 256, 512, 1, 2))),
            *(_convolution(*sizes) for sizes in ((56, 64, 256, 1, 1), (14, 1024, 256, 1, 1), (7, 320, 1280, 1, 1))),
            *(_product(*sizes) for sizes in ((128, 768, 768), (128, 768, 3072), (128, 3072, 768), (64, 384, 1536))),
            Example("matmul", ("u8[3,50,72]", "u8[72,40]"), constants=(1,)),
        ),
        features=("amx_tile", "amx_int8"),
    )
)
