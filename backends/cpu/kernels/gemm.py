"""Matrix products and convolutions with constant weights, packed at compile time.

A convolution is a product without im2col: for a tile of output pixels in one row, the input
pixels they read under one filter row lie a constant stride apart, so the register tile walks
filter rows ("taps") and, inside each, one contiguous run of filter columns x channels. Where the
input needs padding, or its layout or stride does not suit, a band of it is copied into scratch
memory first, which stays in the second-level cache while all columns are computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.backends.cpu.cexpr import CTYPE
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.target import Target
from secateur.backends.cpu.tile import (
    Epilogue,
    TileCode,
    Tiling,
    check_epilogue,
    choose_tiling,
    pack_columns,
    row_stride_conflicts,
)
from secateur.backends.cpu.views import View, collapse
from secateur.ir.graph import Value
from secateur.ir.types import DType

DTYPES = (DType.F32, DType.F64, DType.I32, DType.I64)
BAND_BYTES = 192 << 10  # of the input, copied or read, that one unit works on
UNITS = 16  # units wanted, so that threads share evenly


@dataclass(frozen=True)
class Problem:
    """A convolution over channels-last input, or a product as a 1 x 1 one with a single row of pixels."""

    dtype: DType
    images: int
    height: int
    width: int
    channels: int  # of the input, all groups
    out_height: int
    out_width: int
    columns: int  # output channels of one group
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    low: tuple[int, int]
    high: tuple[int, int]

    @property
    def depth(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.channels // self.groups

    @property
    def group_channels(self) -> int:
        return self.channels // self.groups

    @property
    def flat(self) -> bool:
        """Whether all pixels form one run of rows."""
        simple = self.kernel == (1, 1) and self.stride == (1, 1) and not any((*self.low, *self.high))
        return simple and self.groups == 1

    def tiling(self, target: Target) -> Tiling:
        length = self.images * self.out_height * self.out_width if self.flat else self.out_width
        return choose_tiling(length, self.columns, self.depth, target, self.dtype)


def problem(job: Job) -> Problem:
    """The problem behind `linear`, `matmul` with a constant right side, or a channels-last `conv`."""
    op = job.anchor
    x, result = op.operands[0].type, op.result.type
    if op.name != "conv":
        rows = result.numel // result.shape[-1]
        ones, none = (1, 1), (0, 0)
        return Problem(x.dtype, 1, 1, rows, x.shape[-1], 1, rows, result.shape[-1], 1, ones, ones, ones, none, none)
    attrs: dict[str, Any] = op.attrs
    padding = attrs["padding"]
    return Problem(
        dtype=x.dtype,
        images=x.shape[0],
        height=x.shape[1],
        width=x.shape[2],
        channels=x.shape[3],
        out_height=result.shape[1],
        out_width=result.shape[2],
        columns=result.shape[3] // attrs["groups"],
        groups=attrs["groups"],
        kernel=op.operands[1].shape[2:],  # type: ignore[arg-type]
        stride=attrs["stride"],
        dilation=attrs["dilation"],
        low=padding[:2],
        high=padding[2:],
    )


def weight_operand(job: Job) -> Value:
    return job.anchor.operands[1]


def _match(job: Job) -> str:
    op = job.anchor
    if op.name not in ("conv", "linear", "matmul"):
        return f"{op.name} is no product"
    if op.result.type.dtype not in DTYPES:
        return f"element type {op.result.type.dtype}"
    if op.result.type.numel == 0 or op.operands[0].type.numel == 0:
        return "empty"
    if op.name == "conv" and (not op.attrs["channels_last"] or op.operands[0].type.rank != 4):
        return "not a channels-last 2-D convolution"
    weight = job.constant(weight_operand(job))
    if weight is None:
        return "weights are not constant"
    if op.name == "matmul" and weight.ndim > 2 and weight.size != weight.shape[-1] * weight.shape[-2]:
        return "a batch of right sides"
    return check_epilogue(job)


def _cost(job: Job) -> float:
    item = problem(job)
    tiling = item.tiling(job.target)
    runs = 1 if item.flat else item.images * item.out_height * item.groups
    return tiling.cycles * runs + 300.0


def _epilogue(job: Job, tiling: Tiling) -> Epilogue:
    columns = job.anchor.result.shape[-1]
    padded = max(columns, tiling.panels * tiling.vectors * job.target.lanes) + 8 * job.target.lanes
    bias = job.anchor.operands[2] if len(job.anchor.operands) > 2 else None
    return Epilogue(job, columns, padded, bias)


def pack_weights(job: Job, item: Problem, width: int) -> np.ndarray:
    """[groups, panels, K, width] with K in the order filter row, filter column, channel."""
    weight = job.constant(weight_operand(job))
    assert weight is not None
    if job.anchor.name == "matmul":
        return pack_columns(weight.reshape(weight.shape[-2:]), width)
    if job.anchor.name == "linear":
        return pack_columns(weight.T, width)
    groups = np.split(weight, item.groups)
    return np.stack([pack_columns(g.transpose(2, 3, 1, 0).reshape(item.depth, item.columns), width) for g in groups])


@dataclass(frozen=True)
class Source:
    """How the tile reads A: from the input itself, or from a packed band of `row` elements a row."""

    packed: bool
    pixel: int  # elements from a pixel to the next
    row: int  # elements from an input row to the next


def _source(job: Job, item: Problem, tiling: Tiling) -> Source:
    view = job.view(job.anchor.operands[0])
    tallest = max(tiling.heights)
    channels = item.group_channels
    if item.flat:
        dims, (walk,) = collapse((view.shape[:-1] or (1,)), view.strides[:-1] or (0,))
        step = walk[0] if len(dims) == 1 else -1
        step = channels if len(dims) == 1 and dims[0] == 1 else step
        unit = channels == 1 or view.strides[-1] == 1
        if unit and step >= 0 and not row_stride_conflicts(step * item.dtype.bytes, tallest):
            return Source(False, step, 0)
        spread = row_stride_conflicts(channels * item.dtype.bytes, tallest)
        return Source(True, channels + 16 * spread, 0)
    unit = channels == 1 or view.strides[3] == 1
    padded = any((*item.low, *item.high))
    stride = view.strides[2]
    if unit and not padded and not row_stride_conflicts(item.stride[1] * stride * item.dtype.bytes, tallest):
        return Source(False, stride, view.strides[1])
    spread = row_stride_conflicts(item.stride[1] * channels * item.dtype.bytes, tallest)
    pixel = channels + 16 * spread
    width = (item.out_width - 1) * item.stride[1] + (item.kernel[1] - 1) * item.dilation[1] + 1
    return Source(True, pixel, width * pixel)


def _taps(item: Problem, source: Source) -> tuple[tuple[tuple[int, int], ...], int]:
    """The loops around the innermost run, and its length."""
    if item.kernel == (1, 1):
        return (), item.group_channels
    rows = (item.kernel[0], item.dilation[0] * source.row)
    if item.dilation[1] == 1 and source.pixel == item.group_channels:
        return (rows,), item.kernel[1] * item.group_channels
    return (rows, (item.kernel[1], item.dilation[1] * source.pixel)), item.group_channels


def _split(item: Problem, tiling: Tiling, target: Target) -> tuple[int, int]:
    """(bands of one image, groups of column panels): by whichever side is cheaper to read twice."""
    size = item.dtype.bytes
    weights = item.depth * item.columns * size
    activations = item.images * item.height * item.width * item.group_channels * size
    rows = tiling.count if item.flat else item.out_height
    images = 1 if item.flat else item.images
    if weights > max(activations, target.l2_bytes // 4) and tiling.panels > 1:
        # Many panels stay whole units; few rows of them still have to give every thread some.
        return 1, min(tiling.panels, UNITS)
    wanted = max(UNITS // (images * item.groups), -(-activations // images // BAND_BYTES), 1)
    bands = min(rows, wanted + wanted % 2)
    columns = 1 if bands * images * item.groups >= 4 else min(tiling.panels, 4)
    return bands, columns


def _emit(job: Job) -> Kernel:
    item = problem(job)
    tiling = item.tiling(job.target)
    source = _source(job, item, tiling)
    epilogue = _epilogue(job, tiling)
    width = tiling.vectors * job.target.lanes
    weights = pack_weights(job, item, width)
    bands, column_groups = _split(item, tiling, job.target)
    taps, run = _taps(item, source)
    lda = source.pixel * (1 if item.flat else item.stride[1])
    result = job.result_type.dtype
    code = TileCode(item.dtype, tiling.vectors, taps, run, lda, width, item.columns * item.groups, epilogue, result)
    functions = code.functions(tiling, item.columns, job.target.lanes)
    writer = _Loops(job, item, tiling, source, epilogue, width, bands, column_groups, item.columns % width != 0)
    body = writer.kernel()
    anchor_input = job.position(job.anchor.operands[0])
    assert anchor_input is not None
    args = (anchor_input, weights, ("result", 0), *(pointer for _, pointer in epilogue.pointers))
    units = item.groups * (1 if item.flat else item.images) * bands * column_groups
    inplace = tuple(p for p in epilogue.full_operands(result) if p != anchor_input)
    note = f"{max(tiling.heights)}x{width} tiles, K {item.depth}, {'packed' if source.packed else 'direct'} input"
    return Kernel("\n\n".join([*functions, body]), args, units, writer.scratch(), inplace, note)


class _Loops:
    """Writes the loops around the tiles."""

    def __init__(
        self,
        job: Job,
        item: Problem,
        tiling: Tiling,
        source: Source,
        epilogue: Epilogue,
        width: int,
        bands: int,
        column_groups: int,
        partial: bool,
    ) -> None:
        self.job, self.item, self.tiling, self.source, self.epilogue = job, item, tiling, source, epilogue
        self.width, self.bands, self.column_groups, self.partial = width, bands, column_groups, partial
        self.view: View = job.view(job.anchor.operands[0])
        self.ctype = CTYPE[item.dtype]

    def scratch(self) -> int:
        """Bytes of the packed band of the largest unit."""
        if not self.source.packed:
            return 0
        item = self.item
        if item.flat:
            tiles = -(-self.tiling.count // self.bands)
            elements = tiles * max(self.tiling.heights) * self.source.pixel
        else:
            rows = -(-item.out_height // self.bands)
            elements = ((rows - 1) * item.stride[0] + (item.kernel[0] - 1) * item.dilation[0] + 1) * self.source.row
        return (elements + 64) * item.dtype.bytes

    def kernel(self) -> str:
        item, result = self.item, CTYPE[self.job.result_type.dtype]
        lines = [
            "KERNEL(NAME) {",
            f"const {self.ctype} *x = (const {self.ctype} *)p[0];",
            f"const {self.ctype} *w = p[1];",
            f"{result} *o = ({result} *)p[2];",
            *self.epilogue.declare(3),
            "(void)scratch;",
        ]
        if self.source.packed:
            lines.append(f"{self.ctype} *const band = ({self.ctype} *)SCRATCH;")
        lines.append("for (long u = begin; u < end; u++) {")
        lines.append(f"const long q = u % {self.column_groups}, part = u / {self.column_groups};")
        lines += self._flat() if item.flat else self._spatial()
        return "\n".join([*lines, "}", "}"])

    def _panels(self, inner: list[str], group: str) -> list[str]:
        """The loop over column panels around `inner`, which uses `b` and `column`."""
        count, step = self.tiling.panels, self.item.depth * self.width
        several = self.item.groups > 1
        base = f"{group} * {count * step}L + " if several else ""
        shift = f"{group} * {self.item.columns} + " if several else ""
        return [
            f"for (long c = q * {count} / {self.column_groups}; c < (q + 1) * {count} / {self.column_groups}; c++) {{",
            f"const {self.ctype} *b = w + {base}c * {step}L;",
            f"const long column = {shift}c * {self.width};",
            *inner,
            "}",
        ]

    def _call(self, a: str, at: str) -> list[str]:
        """Call the tile of the right height and width for row tile `t`."""
        return self.tiling.calls(f"({a}, b, o + {at}{self.epilogue.arguments(at, 'column')});", self.partial)

    def _flat(self) -> list[str]:
        count, item, source = self.tiling.count, self.item, self.source
        lines = [f"const long t0 = part * {count} / {self.bands}, t1 = (part + 1) * {count} / {self.bands};"]
        if source.packed:
            lines += [
                f"const long m0 = {self.tiling.start('t0')}, m1 = {self.tiling.start('t1')};",
                "if (PACKED != part) {",
                "PACKED = part;",
                "for (long m = m0; m < m1; m++) {",
                f"{self.ctype} *to = band + (m - m0) * {source.pixel};",
                *self._copy_row(),
                "}",
                "}",
            ]
        inner = [
            "for (long t = t0; t < t1; t++) {",
            f"const long m = {self.tiling.start('t')}, at = m * {item.columns} + column;",
            *self._call(f"band + (m - m0) * {source.pixel}" if source.packed else f"x + m * {source.pixel}L", "at"),
            "}",
        ]
        return [*lines, *self._panels(inner, "0")]

    def _copy_row(self) -> list[str]:
        """Copy row `m` of a matrix, whatever its strides, to `to`."""
        shape, strides = self.view.shape, self.view.strides
        dims, (walk,) = collapse(shape[:-1] or (1,), strides[:-1] or (0,))
        lines = ["long r = m;", f"const {self.ctype} *from = x;"]
        for size, stride in zip(reversed(dims), reversed(walk), strict=True):
            lines.append(f"from += r % {size} * {stride}L; r /= {size};")
        if strides[-1] == 1 or shape[-1] == 1:
            return [*lines, f"memcpy(to, from, {shape[-1]} * sizeof *to);"]
        return [*lines, f"for (long k = 0; k < {shape[-1]}; k++) to[k] = from[k * {strides[-1]}L];"]

    def _spatial(self) -> list[str]:
        item, source, view = self.item, self.source, self.view
        images, bands, height = item.images, self.bands, item.out_height
        lines = [
            f"const long g = part / {bands * images}, n = part / {bands} % {images}, s = part % {bands};",
            f"const long y0 = s * {height} / {bands}, y1 = (s + 1) * {height} / {bands};",
            f"const {self.ctype} *image = x + n * {view.strides[0]}L + g * {item.group_channels * view.strides[3]}L;",
        ]
        if source.packed:
            lines += ["if (PACKED != part) {", "PACKED = part;", *self._copy_band(), "}"]
            start = f"band + (y - y0) * {item.stride[0] * source.row}L"
        else:
            start = f"image + y * {item.stride[0] * source.row}L"
        step = item.stride[1] * source.pixel
        total = item.columns * item.groups
        inner = [
            "for (long y = y0; y < y1; y++) {",
            f"const {self.ctype} *a = {start};",
            f"const long row = (n * {height} + y) * {item.out_width * total}L + column;",
            f"for (long t = 0; t < {self.tiling.count}; t++) {{",
            f"const long px = {self.tiling.start('t')}, at = row + px * {total};",
            *self._call(f"a + px * {step}L", "at"),
            "}",
            "}",
        ]
        return [*lines, *self._panels(inner, "g")]

    def _copy_band(self) -> list[str]:
        """Copy the input rows that output rows y0..y1 read, with zeros where the padding is."""
        item, source, view = self.item, self.source, self.view
        channels, columns = item.group_channels, source.row // source.pixel
        left = min(item.low[1], columns)  # a large stride may never get out of the padding
        inside = min(item.width, columns - left)
        reach = (item.kernel[0] - 1) * item.dilation[0] + 1
        lines = [
            f"const long first = y0 * {item.stride[0]} - {item.low[0]};",
            f"const long rows = (y1 - y0 - 1) * {item.stride[0]} + {reach};",
            "for (long r = 0; r < rows; r++) {",
            f"{self.ctype} *to = band + r * {source.row}L;",
            "const long iy = first + r;",
            f"if (iy < 0 || iy >= {item.height}) {{ memset(to, 0, {source.row} * sizeof *to); continue; }}",
            f"const {self.ctype} *from = image + iy * {view.strides[1]}L;",
        ]
        if left:
            lines.append(f"memset(to, 0, {left * source.pixel} * sizeof *to);")
        right = columns - left - inside
        if right > 0:
            lines.append(f"memset(to + {(left + inside) * source.pixel}, 0, {right * source.pixel} * sizeof *to);")
        lines.append(f"to += {left * source.pixel};")
        if source.pixel == channels and view.strides[2] == channels and view.strides[3] == 1:
            lines.append(f"memcpy(to, from, {inside * channels} * sizeof *to);")
        elif view.strides[3] == 1 or channels == 1:
            lines.append(
                f"for (long i = 0; i < {inside}; i++) "
                f"memcpy(to + i * {source.pixel}, from + i * {view.strides[2]}L, {channels} * sizeof *to);"
            )
        else:
            lines.append(f"for (long c = 0; c < {channels}; c++) for (long i = 0; i < {inside}; i++)")
            lines.append(f"to[i * {source.pixel} + c] = from[i * {view.strides[2]}L + c * {view.strides[3]}L];")
        return [*lines, "}"]


def _convolution(size: int, channels: int, outs: int, kernel: int, stride: int) -> Example:
    attrs = {"stride": (stride, stride), "padding": (kernel // 2,) * 4, "dilation": (1, 1), "channels_last": True}
    types = (f"f32[1,{size},{size},{channels}]", f"f32[{outs},{channels},{kernel},{kernel}]", f"f32[{outs}]")
    return Example("conv", types, attrs, constants=(1, 2), epilogue=("relu",))


def _product(rows: int, depth: int, columns: int) -> Example:
    types = (f"f32[{rows},{depth}]", f"f32[{columns},{depth}]", f"f32[{columns}]")
    return Example("linear", types, constants=(1, 2))


GEMM = family(
    Family(
        name="gemm",
        doc="Register-tiled product or convolution with weights packed at compile time and a fused epilogue.",
        match=_match,
        emit=_emit,
        cost=_cost,
        accepts=lambda job, position, view: (
            position == job.position(job.anchor.operands[0]) and job.reads_once(position)
        ),
        examples=(
            *(_convolution(*sizes) for sizes in ((56, 64, 64, 3, 1), (28, 128, 128, 3, 1), (14, 256, 256, 3, 1))),
            *(_convolution(*sizes) for sizes in ((7, 512, 512, 3, 1), (224, 3, 64, 7, 2), (56, 256, 512, 1, 2))),
            *(_convolution(*sizes) for sizes in ((56, 64, 256, 1, 1), (14, 1024, 256, 1, 1), (7, 320, 1280, 1, 1))),
            *(_product(*sizes) for sizes in ((128, 768, 768), (128, 768, 3072), (128, 3072, 768), (1, 2048, 1000))),
            Example("matmul", ("f32[3,50,70]", "f32[70,30]"), constants=(1,), epilogue=("gelu",)),
            Example("linear", ("f64[33,70]", "f64[30,70]", "f64[30]"), constants=(1, 2)),
        ),
    )
)
