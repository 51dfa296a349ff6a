"""Depthwise convolution of 8-bit images, channels last, into i32; average pooling is one with weights of 1.

Rows of the image lie in one register as groups, pairs of i16 or quads of u8, so that one instruction
multiplies several taps of a filter column and adds them up. Two rows of the result are computed together
where they share the groups: the odd one uses weights shifted by one row.

    pairs (x0 x1) (x2 x3)    row y: (w0 w1) (w2 0)    row y + 1: (0 w0) (w1 w2)
    quads (x0 x1 x2 x3)      row y: (w0 w1 w2 0)      row y + 1: (0 w0 w1 w2)

Quads are for processors with VNNI, which multiplies u8 by i8: i8 images have their top bit flipped on the
way, and the 128 times the sum of the weights that this adds is taken off again at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from secateur.backends.cpu.cexpr import CTYPE, to_memory
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.kernels.depthwise import Window, depthwise_epilogue, window
from secateur.backends.cpu.tile import Epilogue, check_epilogue
from secateur.ir.types import DType

BYTES = (DType.I8, DType.U8)
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
CACHE = 24 << 10  # bytes of image rows that are walked once for each vector of channels: they stay in the first level


@dataclass(frozen=True)
class Taps:
    """The filter in groups of rows, for `rows` rows of the result computed together.

    A group of weights is named by (phase, column, group): in phase n the first group begins with n zeros.
    """

    kernel: tuple[int, int]
    stride: int
    rows: int
    group: int

    @property
    def reads(self) -> int:
        """Rows of the image."""
        return (self.rows - 1) * self.stride + self.kernel[0]

    def weights(self, row: int) -> tuple[int, list[int]]:
        """The phase of a row of the result, and the groups of image rows it reads."""
        top = row * self.stride
        return top % self.group, list(range(top // self.group, (top + self.kernel[0] - 1) // self.group + 1))

    @cached_property
    def places(self) -> dict[tuple[int, int, int], int]:
        """Where each group of weights stands."""
        phases = {self.weights(row)[0]: len(self.weights(row)[1]) for row in range(self.rows)}
        names = [(p, t, j) for p in sorted(phases) for t in range(self.kernel[1]) for j in range(phases[p])]
        return {name: place for place, name in enumerate(names)}

    def pack(self, weight: np.ndarray, shift: int, lanes: int) -> np.ndarray:
        """i8 [C, 1, kh, kw] -> i32 [ceil(C / lanes), places + 1, lanes].

        The last place holds what the sums of inputs that are `shift` too large start from.
        """
        channels, _, height, _ = weight.shape
        bits = 32 // self.group
        packed = np.zeros((-(-channels // lanes) * lanes, len(self.places) + 1), np.int64)
        for (phase, column, group), place in self.places.items():
            for part in range(self.group):
                tap = group * self.group + part - phase
                if 0 <= tap < height:
                    value = weight[:, 0, tap, column].astype(np.int64) & ((1 << bits) - 1)
                    packed[:channels, place] |= value << part * bits
        packed[:channels, -1] = -shift * weight.sum((1, 2, 3), dtype=np.int64)
        return np.ascontiguousarray(packed.astype(np.int32).reshape(-1, lanes, len(self.places) + 1).swapaxes(1, 2))


def _match(job: Job) -> str:
    op = job.anchor
    if op.name != "conv" or op.operands[0].type.dtype not in BYTES:
        return f"{op.name} of {job.anchor.operands[0].type.dtype}"
    if not op.attrs["channels_last"] or op.operands[0].type.rank != 4:
        return "not channels-last 2-D"
    if op.result.type.numel == 0 or op.operands[0].type.numel == 0:
        return "empty"
    channels = op.operands[0].shape[3]
    if op.attrs["groups"] != channels or op.result.shape[3] != channels:
        return "not depthwise"
    if job.constant(op.operands[1]) is None:
        return "weights are not constant"
    return check_epilogue(job)


def _taps(job: Job, item: Window) -> Taps:
    """Two rows of the result together where they share what they read."""
    together = item.stride[0] == item.dilation[0] == 1 and item.out_height > 1 and item.kernel[0] > 1
    return Taps(item.kernel, item.stride[0], 2 if together else 1, 4 if _VNNI & set(job.target.features) else 2)


def _cost(job: Job) -> float:
    item = window(job)
    taps = _taps(job, item)
    products = len(taps.weights(0)[1]) * item.kernel[1] * (1 if taps.group == 4 else 2)
    vectors = -(-item.channels // job.target.lanes)
    return item.images * item.out_height * item.out_width * vectors * (products * 0.6 + 7) + 500


def _emit(job: Job) -> Kernel:
    item, op, lanes = window(job), job.anchor, job.target.lanes
    writer = _Writer(job, item, depthwise_epilogue(job))
    position, weight = job.position(op.operands[0]), job.constant(op.operands[1])
    assert position is not None and weight is not None
    args = (
        position,
        writer.taps.pack(weight, writer.shift, lanes),
        ("result", 0),
        *(p for _, p in writer.epilogue.pointers),
    )
    scratch = (item.width * item.channels + lanes) * op.operands[0].type.dtype.bytes
    note = f"{item.kernel[0]}x{item.kernel[1]} window, {writer.taps.rows} x {writer.pixels} pixels of {lanes} channels"
    return Kernel(writer.kernel(), args, item.images * writer.blocks, scratch, (), note)


class _Writer:
    def __init__(self, job: Job, item: Window, epilogue: Epilogue) -> None:
        self.job, self.item, self.epilogue = job, item, epilogue
        self.dtype = job.anchor.operands[0].type.dtype
        self.ctype = CTYPE[self.dtype]
        self.lanes = job.target.lanes
        self.into = job.result_type.dtype
        self.taps = _taps(job, item)
        self.shift = 128 if self.taps.group == 4 and self.dtype is DType.I8 else 0
        self.blocks = -(-item.out_height // self.taps.rows)
        self.pixels = self._pixels()
        # Weights stay in registers where they fit beside the sums and a few groups.
        self.pinned = len(self.taps.places) + self.pixels * self.taps.rows + 6 <= job.target.registers

    def _pixels(self) -> int:
        """Pixels of a row computed together: as many as registers hold, with few left over."""
        first, last = self.item.interior()
        choices = (6, 5, 4, 3) if self.job.target.registers >= 32 else (3, 2)
        return min(choices, key=lambda count: ((last - first) % count, -count))

    def kernel(self) -> str:
        item, rows = self.item, self.taps.rows
        row = item.width * item.channels
        lines = [
            "KERNEL(NAME) {",
            f"const {self.ctype} *x = (const {self.ctype} *)p[0];",
            "const int32_t *w = p[1];",
            f"{CTYPE[self.into]} *o = ({CTYPE[self.into]} *)p[2];",
            *self.epilogue.declare(3),
            f"{self.ctype} *const outside = ({self.ctype} *)SCRATCH;",
            f"if (PACKED) memset(outside, {self.job.anchor.attrs['pad_value']}, {row + self.lanes});",
            "PACKED = 0;",
            "for (long u = begin; u < end; u++) {",
            f"const long n = u / {self.blocks}, y = u % {self.blocks} * {rows};",
            f"const {self.ctype} *rows[{self.taps.reads}];",
            f"for (long j = 0; j < {self.taps.reads}; j++) {{",
            f"const long iy = y * {item.stride[0]} + j * {item.dilation[0]} - {item.low[0]};",
            f"rows[j] = iy >= 0 && iy < {item.height} ? x + (n * {item.height} + iy) * {row}L : outside;",
            "}",
            f"const long at0 = (n * {item.out_height} + y) * {item.out_width * item.channels}L;",
        ]
        if item.out_height % rows:
            lines += [f"if (y + {rows} > {item.out_height}) {{", *self.block(1), "continue;", "}"]
        return "\n".join([*lines, *self.block(rows), "}", "}"])

    def block(self, rows: int) -> list[str]:
        """Some rows of the result, in chunks of columns whose part of the image stays in the cache."""
        item = self.item
        fitting = CACHE // (self.taps.reads * item.channels * item.stride[1])
        chunk = min(item.out_width, max(1, fitting // self.pixels) * self.pixels)
        lines = [
            f"for (long first = 0; first < {item.out_width}; first += {chunk}) {{",
            f"const long last = first + {chunk} < {item.out_width} ? first + {chunk} : {item.out_width};",
        ]
        full, tail = divmod(item.channels, self.lanes)
        if full:
            lines += [f"for (long c = 0; c < {full * self.lanes}; c += LANES) {{", *self.channels(rows, "LANES"), "}"]
        if tail:
            lines += [f"{{ const long c = {full * self.lanes};", *self.channels(rows, str(tail)), "}"]
        return [*lines, "}"]

    def channels(self, rows: int, count: str) -> list[str]:
        """One vector of channels along a chunk: groups of pixels inside the image's width, the others one by one."""
        first, last = self.item.interior()
        lines = [f"const int32_t *k = w + c * {len(self.taps.places) + 1}L;"]
        if self.pinned:
            lines += [f"const v_i32 k{i} = load_i32(k + {i} * LANES);" for i in range(len(self.taps.places))]
        lines += [*self.start(count), *self.loads(count), "for (long px = first; px < last;) {"]
        if last - first >= self.pixels:
            inside = f"px >= {first} && px + {self.pixels} <= (last < {last} ? last : {last})"
            lines += [f"if ({inside}) {{", *self.group(rows, self.pixels, count), f"px += {self.pixels};", "} else {"]
            return [*lines, *self.group(rows, 1, count), "px++;", "}", "}"]
        return [*lines, *self.group(rows, 1, count), "px++;", "}"]

    def group(self, rows: int, pixels: int, count: str) -> list[str]:
        """`rows` x `pixels` results. A single pixel may look over the left and right edge."""
        item, (_, width) = self.item, self.item.kernel
        stride, dilation = item.stride[1], item.dilation[1]
        reads = (rows - 1) * item.stride[0] + item.kernel[0]
        sums = [f"a{o}_{q}" for o in range(rows) for q in range(pixels)]
        lines = ["v_i32 " + ", ".join(f"{name} = bias_" for name in sums) + ";"]
        lines.append(f"const long ix = px * {stride} - {item.low[1]};")
        if pixels > 1:
            lines += [f"const {self.ctype} *r{j} = rows[{j}] + ix * {item.channels}L + c;" for j in range(reads)]
        for i in range((pixels - 1) * stride + (width - 1) * dilation + 1):
            uses = [(q, t) for q in range(pixels) for t in range(width) if i == q * stride + t * dilation]
            if uses:
                lines += ["{", *self.column(i, reads, pixels > 1, count), *self.products(rows, uses), "}"]
        for o in range(rows):
            for q in range(pixels):
                lines += ["{", *self.finish(f"a{o}_{q}", o, q, count), "}"]
        return lines

    def column(self, i: int, reads: int, inside: bool, count: str) -> list[str]:
        """The groups of one column of the image."""
        lines = []
        at = [f"r{j} + {i * self.item.channels}L" for j in range(reads)]
        if not inside:
            lines.append(f"const int in = ix + {i} >= 0 && ix + {i} < {self.item.width};")
            at = [f"(in ? rows[{j}] + (ix + {i}) * {self.item.channels}L : outside) + c" for j in range(reads)]
        loads = [f"load_{self.dtype}({a})" if count == "LANES" else f"loadn_{self.dtype}({a}, {count})" for a in at]
        group = self.taps.group
        for j in range(0, reads, group):
            some = loads[j : j + group]
            value = f"CONVERT({some[0]}, v_i32)"
            if group == 4 or len(some) > 1:
                some += [f"(v_{self.dtype}){{0}}"] * (group - len(some))
                value = f"{'quads' if group == 4 else 'pairs'}_{self.dtype}({', '.join(some)})"
            lines.append(f"const v_i32 x{j // group} = {value};")
        return lines

    def products(self, rows: int, uses: list[tuple[int, int]]) -> list[str]:
        lines = []
        for o in range(rows):
            phase, groups = self.taps.weights(o)
            add = f"add_{'quads' if self.taps.group == 4 else 'pairs'}"
            for q, t in uses:
                for j, group in enumerate(groups):
                    place = self.taps.places[phase, t, j]
                    weight = f"k{place}" if self.pinned else f"load_i32(k + {place} * LANES)"
                    lines.append(f"a{o}_{q} = {add}(a{o}_{q}, x{group}, {weight});")
        return lines

    def start(self, count: str) -> list[str]:
        """What the sums begin with."""
        bias, value = self.epilogue.bias, "(v_i32){0}"
        if bias is not None:
            whole = count == "LANES" or self.epilogue.padded_channel(bias)
            value = "load_i32(bias + c)" if whole else f"loadn_i32(bias + c, {count})"
        shift = f" + load_i32(k + {len(self.taps.places)} * LANES)" if self.shift else ""
        return [f"const v_i32 bias_ = {value}{shift};"]

    def loads(self, count: str) -> list[str]:
        """The epilogue's operands that do not change along a row."""
        kinds = [kind for _, name, kind in self.epilogue.reads if name != "bias"]
        lines, _ = self.epilogue.apply("", {"channel": "c", "full": "at"}, count)
        return [line for line, kind in zip(lines, kinds) if kind != "full"]

    def finish(self, accumulator: str, row: int, pixel: int, count: str) -> list[str]:
        item = self.item
        at = f"at0 + {row * item.out_width * item.channels}L + (px + {pixel}) * {item.channels}L + c"
        kinds = [kind for _, name, kind in self.epilogue.reads if name != "bias"]
        lines, value = self.epilogue.apply(accumulator, {"channel": "c", "full": "at"}, count)
        loads = [line for line, kind in zip(lines, kinds) if kind == "full"]
        stored = to_memory(value, self.into)
        whole = f"store_{self.into}(o + at, {stored});"
        store = whole if count == "LANES" else f"storen_{self.into}(o + at, {stored}, {count});"
        return [f"const long at = {at};", *loads, *lines[len(kinds) :], store]


def _depthwise(size: int, channels: int, kernel: int, stride: int, dtype: str = "u8") -> Example:
    types = (f"{dtype}[1,{size},{size},{channels}]", f"i8[{channels},1,{kernel},{kernel}]", f"i32[{channels}]")
    attrs = {
        "stride": (stride, stride),
        "padding": (kernel // 2,) * 4,
        "dilation": (1, 1),
        "channels_last": True,
        "groups": channels,
        "pad_value": 3,
    }
    return Example("conv", types, attrs, constants=(1, 2), epilogue=("relu",))


DEPTHWISE_INTEGER = family(
    Family(
        name="depthwise_integer",
        doc="Depthwise convolution of 8-bit images, several taps a multiplication, weights in registers.",
        match=_match,
        emit=_emit,
        cost=_cost,
        examples=(
            *(_depthwise(*sizes) for sizes in ((112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 3, 1), (14, 384, 3, 1))),
            *(_depthwise(*sizes) for sizes in ((28, 240, 5, 1), (7, 960, 3, 1), (56, 96, 7, 1), (9, 35, 3, 2, "i8"))),
        ),
    )
)
