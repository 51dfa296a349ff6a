"""Depthwise convolution and pooling over channels-last images: windows, vectorised over channels.

Weights stay in registers along a row of pixels; input rows outside the image are read from a row
of padding in scratch memory, so that only the columns need a border case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.backends.cpu.cexpr import CTYPE, literal, to_memory
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.tile import Epilogue, check_epilogue
from secateur.ir.types import DType

DTYPES = (DType.F32, DType.F64, DType.I32, DType.I64, DType.I8, DType.U8, DType.I16)
PIXELS = 4  # output pixels computed together, sharing the columns their windows have in common


@dataclass(frozen=True)
class Window:
    """A sliding window over [images, height, width, channels]."""

    images: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    low: tuple[int, int]

    def interior(self) -> tuple[int, int]:
        """The output columns whose windows lie inside the image's width."""
        stride, reach = self.stride[1], (self.kernel[1] - 1) * self.dilation[1]
        first = -(-self.low[1] // stride)
        last = (self.width - 1 - reach + self.low[1]) // stride + 1
        first = min(first, self.out_width)
        return first, max(first, min(last, self.out_width))


def window(job: Job) -> Window:
    op = job.anchor
    x, result, attrs = op.operands[0].type, op.result.type, op.attrs
    kernel: tuple[int, int] = op.operands[1].shape[2:] if op.name == "conv" else attrs["kernel"]  # type: ignore[assignment]
    images, height, width, channels = x.shape
    return Window(
        images=images,
        height=height,
        width=width,
        channels=channels,
        out_height=result.shape[1],
        out_width=result.shape[2],
        kernel=kernel,
        stride=attrs["stride"],
        dilation=attrs.get("dilation", (1, 1)),
        low=attrs["padding"][:2],
    )


def _match(job: Job) -> str:
    op = job.anchor
    if op.name not in ("conv", "max_pool", "avg_pool"):
        return f"{op.name} has no window"
    if not op.attrs["channels_last"] or op.operands[0].type.rank != 4:
        return "not channels-last 2-D"
    if op.result.type.dtype not in DTYPES or (op.name == "avg_pool" and not op.result.type.dtype.is_float):
        return f"element type {op.result.type.dtype}"
    if op.operands[0].type.dtype is not op.result.type.dtype:
        return f"{op.operands[0].type.dtype} into {op.result.type.dtype}"
    if op.result.type.numel == 0 or op.operands[0].type.numel == 0:
        return "empty"
    if op.name == "conv":
        channels = op.operands[0].shape[3]
        if op.attrs["groups"] != channels or op.result.shape[3] != channels:
            return "not depthwise"
        if job.constant(op.operands[1]) is None:
            return "weights are not constant"
    return check_epilogue(job)


def _cost(job: Job) -> float:
    item = window(job)
    vectors = -(-item.channels // job.target.lanes)
    pixels = item.images * item.out_height * item.out_width
    return pixels * vectors * (item.kernel[0] * item.kernel[1] * 1.5 + 6) + 500.0


def depthwise_epilogue(job: Job) -> Epilogue:
    op = job.anchor
    channels = op.result.shape[3]
    bias = op.operands[2] if op.name == "conv" and len(op.operands) > 2 else None
    return Epilogue(job, channels, channels + 2 * job.target.lanes, bias)


def _emit(job: Job) -> Kernel:
    item, op, lanes = window(job), job.anchor, job.target.lanes
    epilogue = depthwise_epilogue(job)
    writer = _Writer(job, item, epilogue)
    args: list[int | tuple[str, int] | np.ndarray] = []
    position = job.position(op.operands[0])
    assert position is not None
    args.append(position)
    if op.name == "conv":
        weight = job.constant(op.operands[1])
        assert weight is not None
        taps = weight.reshape(item.channels, -1).T
        args.append(np.ascontiguousarray(np.pad(taps, ((0, 0), (0, -item.channels % lanes)))))
    else:
        args.append(position)  # keeps the numbering of pointers
    args.append(("result", 0))
    args += [pointer for _, pointer in epilogue.pointers]
    bands = min(item.out_height, max(1, 32 // item.images))
    scratch = (item.width * item.channels + 2 * lanes) * op.operands[0].type.dtype.bytes
    note = f"{item.kernel[0]}x{item.kernel[1]} window, {lanes} channels a vector"
    return Kernel(writer.kernel(bands), tuple(args), item.images * bands, scratch, (), note)


class _Writer:
    def __init__(self, job: Job, item: Window, epilogue: Epilogue) -> None:
        self.job, self.item, self.epilogue = job, item, epilogue
        self.op = job.anchor
        self.dtype = self.op.operands[0].type.dtype
        self.ctype = CTYPE[self.dtype]
        self.lanes = job.target.lanes
        self.into = job.result_type.dtype
        self.view = job.view(self.op.operands[0])
        self.padding = self._padding()

    def _padding(self) -> str:
        """What lies outside the image: the identity of the window's operation."""
        if self.op.name != "max_pool":
            return "0"
        if self.dtype.is_float:
            return "-INFINITY"
        return literal(np.iinfo(self.dtype.numpy).min, self.dtype)

    def kernel(self, bands: int) -> str:
        item = self.item
        kh, row = item.kernel[0], item.width * item.channels
        first, last = item.interior()
        lines = [
            "KERNEL(NAME) {",
            f"const {self.ctype} *x = (const {self.ctype} *)p[0];",
            f"const {self.ctype} *w = p[1]; (void)w;",
            f"{CTYPE[self.into]} *o = ({CTYPE[self.into]} *)p[2];",
            *self.epilogue.declare(3),
            f"{self.ctype} *const outside = ({self.ctype} *)SCRATCH;",
            f"for (long i = 0; PACKED && i < {row + self.lanes}; i++) outside[i] = ({self.ctype})({self.padding});",
            "PACKED = 0;",
            "for (long u = begin; u < end; u++) {",
            f"const long n = u / {bands}, s = u % {bands};",
            f"for (long y = s * {item.out_height} / {bands}; y < (s + 1) * {item.out_height} / {bands}; y++) {{",
            f"const {self.ctype} *rows[{kh}];",
            "long valid = 0; (void)valid;",
            f"for (long j = 0; j < {kh}; j++) {{",
            f"const long iy = y * {item.stride[0]} + j * {item.dilation[0]} - {item.low[0]};",
            f"const int in = iy >= 0 && iy < {item.height};",
            f"rows[j] = in ? x + (n * {item.height} + iy) * {row}L : outside; valid += in;",
            "}",
            f"const long at0 = (n * {item.out_height} + y) * {item.out_width * item.channels}L;",
        ]
        full, tail = divmod(item.channels, self.lanes)
        if full:
            lines += [
                f"for (long c = 0; c < {full * self.lanes}; c += LANES) {{",
                *self.channels(first, last, "LANES"),
                "}",
            ]
        if tail:
            lines += [f"{{ const long c = {full * self.lanes};", *self.channels(first, last, str(tail)), "}"]
        return "\n".join([*lines, "}", "}", "}"])

    def channels(self, first: int, last: int, count: str) -> list[str]:
        """All pixels of a row for one vector of channels."""
        item = self.item
        taps = item.kernel[0] * item.kernel[1]
        lines = []
        if self.op.name == "conv":
            padded = item.channels + -item.channels % self.lanes
            lines.append(f"v_{self.dtype} k[{taps}];")
            lines.append(f"UNROLL for (int t = 0; t < {taps}; t++) k[t] = load_{self.dtype}(w + t * {padded}L + c);")
        steps = (last - first) // PIXELS * PIXELS + first
        lines += [f"for (long px = 0; px < {first}; px++) {{", *self.border(count), "}"] if first else []
        if steps > first:
            lines += [f"for (long px = {first}; px < {steps}; px += {PIXELS}) {{", *self.inner(PIXELS, count), "}"]
        if last > steps:
            lines += [f"for (long px = {steps}; px < {last}; px++) {{", *self.inner(1, count), "}"]
        if item.out_width > last:
            lines += [f"for (long px = {last}; px < {item.out_width}; px++) {{", *self.border(count), "}"]
        return lines

    def inner(self, pixels: int, count: str) -> list[str]:
        """`pixels` pixels whose windows are inside the image's width."""
        item = self.item
        kh, kw = item.kernel
        lines = [f"v_{self.dtype} a[{pixels}];", *self.start(pixels)]
        lines.append(f"const long ix = px * {item.stride[1]} - {item.low[1]};")
        lines.append(f"UNROLL for (int j = 0; j < {kh}; j++) {{")
        lines.append(f"const {self.ctype} *r = rows[j] + ix * {item.channels}L + c;")
        lines.append(f"UNROLL for (int i = 0; i < {kw}; i++) {{")
        lines.append(f"UNROLL for (int q = 0; q < {pixels}; q++) {{")
        at = f"r + (q * {item.stride[1]} + i * {item.dilation[1]}) * {item.channels}L"
        lines.append(f"const v_{self.dtype} v = {self.load(at, count)};")
        lines += [self.combine("a[q]", "v", f"k[j * {kw} + i]"), "}", "}", "}"]
        lines.append(f"const long across = {kw}; (void)across;")
        lines.append(f"UNROLL for (int q = 0; q < {pixels}; q++) {{")
        return [*lines, *self.finish("a[q]", "px + q", count), "}"]

    def border(self, count: str) -> list[str]:
        """One pixel whose window reaches over the left or right edge."""
        item = self.item
        kh, kw = item.kernel
        return [
            f"v_{self.dtype} a[1];",
            *self.start(1),
            "long across = 0; (void)across;",
            f"for (int i = 0; i < {kw}; i++) {{",
            f"const long ix = px * {item.stride[1]} + i * {item.dilation[1]} - {item.low[1]};",
            f"if (ix < 0 || ix >= {item.width}) continue;",
            "across++;",
            f"UNROLL for (int j = 0; j < {kh}; j++) {{",
            f"const v_{self.dtype} v = {self.load(f'rows[j] + ix * {item.channels}L + c', count)};",
            self.combine("a[0]", "v", f"k[j * {kw} + i]"),
            "}",
            "}",
            *self.finish("a[0]", "px", count),
        ]

    def load(self, at: str, count: str) -> str:
        return f"load_{self.dtype}({at})" if count == "LANES" else f"loadn_{self.dtype}({at}, {count})"

    def start(self, pixels: int) -> list[str]:
        initial = f"(v_{self.dtype}){{0}}"
        bias = self.epilogue.bias
        if self.op.name == "max_pool":
            initial = f"splat_{self.dtype}({self.padding})"
        elif bias is not None:
            whole = self.epilogue.padded_channel(bias)
            tail = self.item.channels % self.lanes
            initial = f"load_{self.dtype}(bias + c)"
            if tail and not whole:
                initial = f"(c + LANES <= {self.item.channels} ? {initial} : loadn_{self.dtype}(bias + c, {tail}))"
        return [f"UNROLL for (int q = 0; q < {pixels}; q++) a[q] = {initial};"]

    def combine(self, accumulator: str, value: str, weight: str) -> str:
        if self.op.name == "conv":
            return f"{accumulator} += {value} * {weight};"
        if self.op.name == "max_pool":
            return f"{accumulator} = max_{self.dtype}({value}, {accumulator});"
        return f"{accumulator} += {value};"

    def finish(self, accumulator: str, pixel: str, count: str) -> list[str]:
        item = self.item
        value = accumulator
        if self.op.name == "avg_pool":
            value = f"{accumulator} / ({self.ctype})({self.divisor(pixel)})"
        at = f"({pixel}) * {item.channels}L + c"
        lines = [f"const v_{self.dtype} r0 = {value};", f"const long at = at0 + {at}; (void)at;"]
        written, result = self.epilogue.apply("r0", {"channel": "c", "full": "at"}, count)
        stored = to_memory(result, self.into)
        call = (
            f"store_{self.into}(o + at, {stored});"
            if count == "LANES"
            else f"storen_{self.into}(o + at, {stored}, {count});"
        )
        return [*lines, *written, call]

    def divisor(self, pixel: str) -> str:
        """How many elements an average pooling window divides by."""
        item, attrs = self.item, self.op.attrs
        if not attrs["count_include_pad"]:
            return "valid * across"
        size = (item.height, item.width)
        parts = []
        for axis, name in ((0, "y"), (1, f"({pixel})")):
            low, high = attrs["padding"][axis], attrs["padding"][axis + 2]
            start = f"{name} * {item.stride[axis]} - {low}"
            end, most = f"{start} + {item.kernel[axis]}", size[axis] + high
            parts.append(f"(({end} < {most} ? {end} : {most}) - ({start}))")
        return " * ".join(parts)


def _depthwise(size: int, channels: int, kernel: int, stride: int) -> Example:
    padding = (kernel // 2,) * 4
    attrs = {"stride": (stride, stride), "padding": padding, "dilation": (1, 1), "channels_last": True}
    types = (f"f32[1,{size},{size},{channels}]", f"f32[{channels},1,{kernel},{kernel}]", f"f32[{channels}]")
    return Example("conv", types, {**attrs, "groups": channels}, constants=(1, 2), epilogue=("relu",))


_POOL = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1), "channels_last": True}

DEPTHWISE = family(
    Family(
        name="depthwise",
        doc="Depthwise convolution and pooling, channels last, weights in registers.",
        match=_match,
        emit=_emit,
        cost=_cost,
        examples=(
            *(_depthwise(*sizes) for sizes in ((112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 3, 1), (14, 384, 3, 1))),
            *(_depthwise(*sizes) for sizes in ((28, 240, 5, 1), (7, 960, 3, 1), (56, 96, 7, 1), (9, 35, 3, 2))),
            Example("max_pool", ("f32[1,112,112,64]",), {**_POOL, "dilation": (1, 1)}),
            Example("avg_pool", ("f32[1,56,56,64]",), _POOL),
        ),
    )
)
