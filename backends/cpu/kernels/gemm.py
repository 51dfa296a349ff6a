"""Matrix products and convolutions with constant weights, packed at compile time.

A convolution is a product without im2col: for a tile of output pixels in one row, the input
pixels they read under one filter row lie a constant stride apart, so the register tile walks
filter rows ("taps") and, inside each, one contiguous run of filter columns x channels. Where the
input needs padding, or its layout or stride does not suit, a band of it is copied into scratch
memory first, which stays in the second-level cache while all columns are computed from it.
"""

from __future__ import annotations

import numpy as np

from secateur.backends.cpu.band import Problem, Source, copy_band, copy_row, problem, source_of
from secateur.backends.cpu.cexpr import CTYPE
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.target import Target
from secateur.backends.cpu.tile import Epilogue, TileCode, check_epilogue
from secateur.backends.cpu.tiling import Tiling
from secateur.backends.cpu.views import View
from secateur.ir.graph import Value
from secateur.ir.types import DType

DTYPES = (DType.F32, DType.F64, DType.I32, DType.I64)
BAND_BYTES = 192 << 10  # of the input, copied or read, that one unit works on
_RUN = 50.0  # cycles around the tiles of a row of the image
UNITS = 16  # units wanted, so that threads share evenly


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
    runs = 1 if item.flat else item.images * item.groups * (1 if tiling.unit else item.out_height)
    converted = 0 if item.dot.left is item.dot.source else job.anchor.operands[0].type.numel
    return (tiling.cycles + _RUN) * runs + converted / job.target.lanes + 300.0


def _epilogue(job: Job, item: Problem, tiling: Tiling) -> Epilogue:
    columns = job.anchor.result.shape[-1]
    padded = max(columns, tiling.panels * tiling.vectors * job.target.lanes) + 8 * job.target.lanes
    bias = job.anchor.operands[2] if len(job.anchor.operands) > 2 else None
    return Epilogue(job, columns, padded, bias, start=_compensated(job, item, bias))


def _compensated(job: Job, item: Problem, bias: Value | None) -> np.ndarray | None:
    """The bias less what a shifted left side adds to every sum, or None where nothing is shifted."""
    if not item.dot.shift:
        return None
    weight, known = job.constant(weight_operand(job)), job.constant(bias) if bias else None
    assert weight is not None
    if job.anchor.name == "matmul":
        weight = weight.reshape(weight.shape[-2:]).T
    sums = weight.reshape(len(weight), -1).sum(-1, dtype=np.int64)
    return np.asarray((0 if known is None else known) - item.dot.shift * sums).astype(np.int32)


def weight_matrices(job: Job, item: Problem, run: int, padded: int) -> list[np.ndarray]:
    """[K, N] for each group, K in the order filter row, filter column, channel; zeros fill each run up to `padded`."""
    weight = job.constant(weight_operand(job))
    assert weight is not None
    if job.anchor.name == "conv":
        matrices = [g.transpose(2, 3, 1, 0).reshape(item.depth, -1) for g in np.split(weight, item.groups)]
    else:
        matrices = [weight.T if job.anchor.name == "linear" else weight.reshape(weight.shape[-2:])]
    if padded == run:
        return matrices
    runs = [m.reshape(-1, run, m.shape[-1]) for m in matrices]
    return [np.pad(r, ((0, 0), (0, padded - run), (0, 0))).reshape(-1, r.shape[-1]) for r in runs]


def pack_weights(job: Job, item: Problem, source: Source, width: int) -> np.ndarray:
    """[groups, panels, steps, width, group of dot]; each run is read in whole groups."""
    padded = item.dot.steps(source.run) * item.dot.group
    return np.stack([item.dot.pack(matrix, width) for matrix in weight_matrices(job, item, source.run, padded)])


def split_units(item: Problem, rows: int, panels: int, target: Target) -> tuple[int, int]:
    """(bands of one image, groups of column panels): by whichever side is cheaper to read twice.

    Args:
        rows: what bands are made of, tiles or rows of the image.
    """
    weights = item.depth * item.columns * item.dot.right.bytes
    activations = item.images * item.height * item.width * item.group_channels * item.dot.left.bytes
    images = 1 if item.flat else item.images
    if weights > max(activations, target.l2_bytes // 4) and panels > 1:
        # Many panels stay whole units; few rows of them still have to give every thread some.
        return 1, min(panels, UNITS)
    wanted = max(UNITS // (images * item.groups), -(-activations // images // BAND_BYTES), 1)
    bands = min(rows, wanted + wanted % 2)
    columns = 1 if bands * images * item.groups >= 4 else min(panels, 4)
    return bands, columns


def _emit(job: Job) -> Kernel:
    item = problem(job)
    tiling = item.tiling(job.target)
    source = source_of(job, item, max(tiling.heights))
    epilogue = _epilogue(job, item, tiling)
    width = tiling.vectors * job.target.lanes
    weights = pack_weights(job, item, source, width)
    rows = tiling.count if item.flat or tiling.unit else item.out_height
    bands, column_groups = split_units(item, rows, tiling.panels, job.target)
    lda = source.pixel * (1 if item.flat else item.stride[1])
    result = job.result_type.dtype
    wrap = (tiling.unit, item.stride[0] * source.row - tiling.unit * lda) if tiling.unit else None
    ldb, ldo = width * item.dot.group, item.columns * item.groups
    code = TileCode(item.dot, tiling.vectors, source.taps, source.run, lda, ldb, ldo, epilogue, result, wrap)
    functions = code.functions(tiling, item.columns, job.target.lanes)
    writer = _Loops(job, item, tiling, source, epilogue, width, weights[0, 0].size, bands, column_groups)
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
        panel: int,
        bands: int,
        column_groups: int,
    ) -> None:
        self.job, self.item, self.tiling, self.source, self.epilogue = job, item, tiling, source, epilogue
        self.width, self.panel, self.bands, self.column_groups = width, panel, bands, column_groups
        self.partial = item.columns % width != 0
        self.view: View = job.view(job.anchor.operands[0])
        self.input, self.left, self.right = (CTYPE[t] for t in (item.dot.source, item.dot.left, item.dot.right))

    def scratch(self) -> int:
        """Bytes of the packed band of the largest unit."""
        if not self.source.packed:
            return 0
        item = self.item
        if item.flat:
            tiles = -(-self.tiling.count // self.bands)
            elements = tiles * max(self.tiling.heights) * self.source.pixel
        else:
            lines = -(-self.tiling.count // self.bands) * max(self.tiling.heights) // max(self.tiling.unit, 1)
            rows = lines if self.tiling.unit else -(-item.out_height // self.bands)
            elements = ((rows - 1) * item.stride[0] + (item.kernel[0] - 1) * item.dilation[0] + 1) * self.source.row
        return (elements + 64) * item.dot.left.bytes

    def kernel(self) -> str:
        item, result = self.item, CTYPE[self.job.result_type.dtype]
        lines = [
            "KERNEL(NAME) {",
            f"const {self.input} *x = (const {self.input} *)p[0];",
            f"const {self.right} *w = p[1];",
            f"{result} *o = ({result} *)p[2];",
            *self.epilogue.declare(3),
            "(void)scratch;",
        ]
        if self.source.packed:
            lines.append(f"{self.left} *const band = ({self.left} *)SCRATCH;")
        lines.append("for (long u = begin; u < end; u++) {")
        lines.append(f"const long q = u % {self.column_groups}, part = u / {self.column_groups};")
        lines += self._flat() if item.flat else self._spatial()
        return "\n".join([*lines, "}", "}"])

    def _panels(self, inner: list[str], group: str) -> list[str]:
        """The loop over column panels around `inner`, which uses `b` and `column`."""
        count, step = self.tiling.panels, self.panel
        several = self.item.groups > 1
        base = f"{group} * {count * step}L + " if several else ""
        shift = f"{group} * {self.item.columns} + " if several else ""
        return [
            f"for (long c = q * {count} / {self.column_groups}; c < (q + 1) * {count} / {self.column_groups}; c++) {{",
            f"const {self.right} *b = w + {base}c * {step}L;",
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
                f"{self.left} *to = band + (m - m0) * {source.pixel};",
                *copy_row(item, self.view),
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

    def _spatial(self) -> list[str]:
        item, source, view = self.item, self.source, self.view
        images, bands, height = item.images, self.bands, item.out_height
        lines = [
            f"const long g = part / {bands * images}, n = part / {bands} % {images}, s = part % {bands};",
            *self._rows(),
            f"const {self.input} *image = x + n * {view.strides[0]}L + g * {item.group_channels * view.strides[3]}L;",
        ]
        if source.packed:
            lines += ["if (PACKED != part) {", "PACKED = part;", *copy_band(item, source, view), "}"]
            start = f"band + (y - y0) * {item.stride[0] * source.row}L"
        else:
            start = f"image + y * {item.stride[0] * source.row}L"
        step = item.stride[1] * source.pixel
        total = item.columns * item.groups
        row = f"(n * {height} + y) * {item.out_width * total}L + column"
        if self.tiling.unit:
            inner = [
                "for (long t = t0; t < t1; t++) {",
                f"const long y = {self.tiling.start('t')}, at = {row};",
                *self._call(start, "at"),
                "}",
            ]
            return [*lines, *self._panels(inner, "g")]
        inner = [
            "for (long y = y0; y < y1; y++) {",
            f"const {self.left} *a = {start};",
            f"const long row = {row};",
            f"for (long t = 0; t < {self.tiling.count}; t++) {{",
            f"const long px = {self.tiling.start('t')}, at = row + px * {total};",
            *self._call(f"a + px * {step}L", "at"),
            "}",
            "}",
        ]
        return [*lines, *self._panels(inner, "g")]

    def _rows(self) -> list[str]:
        """The rows of the result, and with tiles of whole rows these tiles, that part `s` of an image computes."""
        if not self.tiling.unit:
            height = self.item.out_height
            return [f"const long y0 = s * {height} / {self.bands}, y1 = (s + 1) * {height} / {self.bands};"]
        count, start = self.tiling.count, self.tiling.start
        return [
            f"const long t0 = s * {count} / {self.bands}, t1 = (s + 1) * {count} / {self.bands};",
            f"const long y0 = {start('t0')}, y1 = {start('t1')};",
        ]


def _convolution(size: int, channels: int, outs: int, kernel: int, stride: int, dtype: str = "f32") -> Example:
    attrs = {"stride": (stride, stride), "padding": (kernel // 2,) * 4, "dilation": (1, 1), "channels_last": True}
    x, w = f"[1,{size},{size},{channels}]", f"[{outs},{channels},{kernel},{kernel}]"
    if dtype == "f32":
        return Example("conv", (f"f32{x}", f"f32{w}", f"f32[{outs}]"), attrs, constants=(1, 2), epilogue=("relu",))
    return Example("conv", (f"{dtype}{x}", f"i8{w}", f"i32[{outs}]"), {**attrs, "pad_value": 3}, constants=(1,))


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
            # In 8 bits, with a bias of run time, which the tile registers of AMX leave to this family.
            _convolution(28, 64, 64, 3, 1, "u8"),
            Example("linear", ("u8[128,768]", "i8[768,768]", "i32[768]"), constants=(1,)),
            Example("linear", ("i8[1,2048]", "i8[1000,2048]", "i32[1000]"), constants=(1,)),
        ),
    )
)
