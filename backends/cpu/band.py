"""The left side of a product: its shape as a convolution, how the tile walks it, and copies of it where needed.

A tile reads input pixels that lie a constant stride apart. Where the input needs padding or conversion, or its
layout does not suit, a band of it (the input rows of a few output rows) is copied into scratch memory first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.backends.cpu.cexpr import CTYPE
from secateur.backends.cpu.dot import Dot, choose_dot
from secateur.backends.cpu.kernel import Job
from secateur.backends.cpu.target import Target
from secateur.backends.cpu.tiling import Tiling, choose_lines, choose_tiling, row_stride_conflicts
from secateur.backends.cpu.views import View, collapse

LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class Problem:
    """A convolution over channels-last input, or a product as a 1 x 1 one with a single row of pixels."""

    dot: Dot
    images: int
    height: int
    width: int
    channels: int  # of the input, all groups
    out_height: int
    out_width: int
    columns: int  # output channels of one group
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    low: tuple[int, int] = (0, 0)
    high: tuple[int, int] = (0, 0)
    pad_value: int = 0

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
        """Tiles of the pixels of one row, of all pixels where they form one run, or of several short rows."""
        steps = self.dot.steps(self.depth)
        if self.flat:
            length = self.images * self.out_height * self.out_width
            return choose_tiling(length, self.columns, steps, target, self.dot)
        row = choose_tiling(self.out_width, self.columns, steps, target, self.dot)
        lines = choose_lines(self.out_height, self.columns, steps, target, self.dot, self.out_width)
        return lines if lines and lines.cycles < row.cycles * self.out_height else row


def problem(job: Job) -> Problem:
    """The problem behind `linear`, `matmul` with a constant right side, or a channels-last `conv`."""
    op = job.anchor
    x, w, result = op.operands[0].type, op.operands[1].type, op.result.type
    shifted = len(op.operands) < 3 or job.constant(op.operands[2]) is not None
    dot = choose_dot(job.target, x.dtype, w.dtype, result.dtype, shifted)
    if op.name != "conv":
        rows = result.numel // result.shape[-1]
        return Problem(dot, 1, 1, rows, x.shape[-1], 1, rows, result.shape[-1])
    attrs: dict[str, Any] = op.attrs
    padding = attrs["padding"]
    return Problem(
        dot=dot,
        images=x.shape[0],
        height=x.shape[1],
        width=x.shape[2],
        channels=x.shape[3],
        out_height=result.shape[1],
        out_width=result.shape[2],
        columns=result.shape[3] // attrs["groups"],
        groups=attrs["groups"],
        kernel=w.shape[2:],  # type: ignore[arg-type]
        stride=attrs["stride"],
        dilation=attrs["dilation"],
        low=padding[:2],
        high=padding[2:],
        pad_value=attrs["pad_value"],
    )


@dataclass(frozen=True)
class Source:
    """How the tile reads A: from the input itself, or from a packed band.

    Attributes:
        pixel: elements from a pixel to the next.
        row: elements from an input row to the next.
        taps: (count, stride) loops around the innermost run of neighbours.
        run: length of that run.
    """

    packed: bool
    pixel: int
    row: int
    taps: tuple[tuple[int, int], ...]
    run: int

    @property
    def runs(self) -> int:
        """How many runs one result reads."""
        count = 1
        for number, _ in self.taps:
            count *= number
        return count


def source_of(job: Job, item: Problem, tallest: int) -> Source:
    """The input itself where tiles of up to `tallest` rows can read it as it is, else a packed band."""
    view = job.view(job.anchor.operands[0])
    direct = _flat_source(view, item, tallest) if item.flat else _spatial_source(view, item, tallest)
    # A run is read in whole groups, and what lies behind the input is not ours.
    if direct and item.dot.left is item.dot.source and direct.run % item.dot.group == 0:
        return direct
    return packed_source(item, tallest)


def packed_source(item: Problem, tallest: int) -> Source:
    """A band whose rows lie as close as the cache likes."""
    channels, size = item.group_channels, item.dot.left.bytes
    spread = row_stride_conflicts(item.stride[1] * channels * size, tallest)
    pixel = channels + LINE // size * spread
    if item.flat:
        return Source(True, pixel, 0, (), channels)
    width = (item.out_width - 1) * item.stride[1] + (item.kernel[1] - 1) * item.dilation[1] + 1
    return Source(True, pixel, width * pixel, *_taps(item, pixel, width * pixel))


def _flat_source(view: View, item: Problem, tallest: int) -> Source | None:
    dims, (walk,) = collapse((view.shape[:-1] or (1,)), view.strides[:-1] or (0,))
    channels = item.group_channels
    step = walk[0] if len(dims) == 1 else -1
    step = channels if len(dims) == 1 and dims[0] == 1 else step
    unit = channels == 1 or view.strides[-1] == 1
    if not unit or step < 0 or row_stride_conflicts(step * item.dot.left.bytes, tallest):
        return None
    return Source(False, step, 0, (), channels)


def _spatial_source(view: View, item: Problem, tallest: int) -> Source | None:
    stride, (_, row, pixel, channel) = item.stride[1], view.strides
    unit = item.group_channels == 1 or channel == 1
    padded = any((*item.low, *item.high))
    if not unit or padded or row_stride_conflicts(stride * pixel * item.dot.left.bytes, tallest):
        return None
    return Source(False, pixel, row, *_taps(item, pixel, row))


def _taps(item: Problem, pixel: int, row: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """The loops around the innermost run, and its length."""
    if item.kernel == (1, 1):
        return (), item.group_channels
    rows = (item.kernel[0], item.dilation[0] * row)
    if item.dilation[1] == 1 and pixel == item.group_channels:
        return (rows,), item.kernel[1] * item.group_channels
    return (rows, (item.kernel[1], item.dilation[1] * pixel)), item.group_channels


# Copies -------------------------------------------------------------------------------------------


def copy_elements(dot: Dot, count: int, stride: int = 1) -> str:
    """C that copies `count` elements from `from` to `to`, converted to what the tile reads."""
    if stride == 1 and dot.left is dot.source:
        return f"memcpy(to, from, {count} * sizeof *to);"
    return f"for (long k = 0; k < {count}; k++) to[k] = {dot.convert(f'from[k * {stride}L]')};"


def copy_row(item: Problem, view: View) -> list[str]:
    """Copy row `m` of a matrix at `x`, whatever its strides, to `to`."""
    shape, strides = view.shape, view.strides
    dims, (walk,) = collapse(shape[:-1] or (1,), strides[:-1] or (0,))
    lines = ["long r = m;", f"const {CTYPE[item.dot.source]} *from = x;"]
    for size, stride in zip(reversed(dims), reversed(walk), strict=True):
        lines.append(f"from += r % {size} * {stride}L; r /= {size};")
    return [*lines, copy_elements(item.dot, shape[-1], 1 if shape[-1] == 1 else strides[-1])]


def _fill(item: Problem, at: str, count: int) -> str:
    """C that fills `count` elements with what padding holds."""
    if not item.pad_value and not item.dot.shift:
        return f"memset({at}, 0, {count} * sizeof *to);"
    return f"for (long k = 0; k < {count}; k++) ({at})[k] = {item.dot.convert(str(item.pad_value))};"


def copy_band(item: Problem, source: Source, view: View) -> list[str]:
    """Copy the input rows of `image` that output rows y0..y1 read to `band`, and the padding around them."""
    channels, columns = item.group_channels, source.row // source.pixel
    left = min(item.low[1], columns)  # a large stride may never get out of the padding
    inside = min(item.width, columns - left)
    right = columns - left - inside
    reach = (item.kernel[0] - 1) * item.dilation[0] + 1
    lines = [
        f"const long first = y0 * {item.stride[0]} - {item.low[0]};",
        f"const long rows = (y1 - y0 - 1) * {item.stride[0]} + {reach};",
        "for (long r = 0; r < rows; r++) {",
        f"{CTYPE[item.dot.left]} *to = band + r * {source.row}L;",
        "const long iy = first + r;",
        f"if (iy < 0 || iy >= {item.height}) {{ {_fill(item, 'to', source.row)} continue; }}",
        f"const {CTYPE[item.dot.source]} *from = image + iy * {view.strides[1]}L;",
    ]
    if left:
        lines.append(_fill(item, "to", left * source.pixel))
    if right > 0:
        lines.append(_fill(item, f"to + {(left + inside) * source.pixel}", right * source.pixel))
    lines.append(f"to += {left * source.pixel};")
    unit = view.strides[3] == 1 or channels == 1
    if unit and source.pixel == channels == view.strides[2]:
        return [*lines, copy_elements(item.dot, inside * channels), "}"]
    step = f"to += {source.pixel}, from += {view.strides[2]}L"
    copy = copy_elements(item.dot, channels, 1 if unit else view.strides[3])
    return [*lines, f"for (long i = 0; i < {inside}; i++, {step}) {copy}", "}"]
