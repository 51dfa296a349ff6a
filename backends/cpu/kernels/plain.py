"""Convolution and products in any element type with run-time weights: correct, simple, rarely needed."""

from __future__ import annotations

from secateur.backends.cpu.cexpr import CTYPE
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.views import contiguous_strides
from secateur.ir.types import DType, numel

_NARROW = (DType.F16, DType.BF16, DType.BOOL)


def _match(job: Job) -> str:
    op = job.op
    if op.name not in ("conv", "matmul", "linear"):
        return f"{op.name} is neither convolution nor product"
    if op.result.type.dtype in _NARROW:
        return f"element type {op.result.type.dtype}"
    if op.name == "conv" and (not op.attrs["channels_last"] or op.operands[0].type.rank != 4):
        return "not a channels-last 2-D convolution"
    return ""


def _emit(job: Job) -> Kernel:
    return _emit_conv(job) if job.op.name == "conv" else _emit_product(job)


def _emit_product(job: Job) -> Kernel:
    op, result = job.op, job.op.result
    a = op.operands[0]
    ctype, depth, columns = CTYPE[result.type.dtype], a.shape[-1], result.shape[-1]
    left, right = (CTYPE[value.type.dtype] for value in op.operands[:2])
    if op.name == "linear":
        batch: tuple[int, ...] = ()
        rows = numel(result.shape[:-1])
        walk_a: tuple[int, ...] = (depth, 1)
        walk_b: tuple[int, ...] = (1, depth)
    else:
        batch, rows = result.shape[:-2], result.shape[-2]
        walk_a = job.views[0].broadcast((*batch, rows, depth)).strides
        walk_b = job.views[1].broadcast((*batch, depth, columns)).strides
    start = f"((const {ctype} *)p[2])[n]" if len(op.operands) > 2 else "0"
    lines = [
        "KERNEL(NAME) {",
        "(void)scratch;",
        f"{ctype} *o = p[{len(op.operands)}];",
        "for (long u = begin; u < end; u++) {",
        f"const long m = u % {rows}; long r = u / {rows}; (void)r;",
        f"const {left} *a = (const {left} *)p[0] + m * {walk_a[-2]}L;",
        f"const {right} *b = p[1];",
    ]
    for axis in reversed(range(len(batch))):
        lines.append(
            f"a += r % {batch[axis]} * {walk_a[axis]}L; b += r % {batch[axis]} * {walk_b[axis]}L; r /= {batch[axis]};"
        )
    lines += [
        f"for (long n = 0; n < {columns}; n++) {{",
        f"{ctype} total = {start};",
        f"for (long k = 0; k < {depth}; k++) "
        f"total += ({ctype})a[k * {walk_a[-1]}L] * b[k * {walk_b[-2]}L + n * {walk_b[-1]}L];",
        f"o[u * {columns}L + n] = total;",
        *["}"] * 3,
    ]
    units = numel(batch) * rows if result.type.numel else 0
    return Kernel("\n".join(lines), (*range(len(op.operands)), ("result", 0)), units)


def _emit_conv(job: Job) -> Kernel:
    op = job.op
    x, w, result = op.operands[0].type, op.operands[1].type, op.result.type
    attrs, ctype, left, right = op.attrs, CTYPE[result.dtype], CTYPE[x.dtype], CTYPE[w.dtype]
    (_, height, width, _), (outs, depth, kh, kw) = x.shape, w.shape
    sx, sw = contiguous_strides(x.shape), contiguous_strides(w.shape)
    group = outs // attrs["groups"]
    start = f"((const {ctype} *)p[2])[c]" if len(op.operands) > 2 else "0"
    outside = f"for (long k = 0; k < {depth}; k++) total += ({attrs['pad_value']}) * b[k * {sw[1]}L];"
    padding = outside if attrs["pad_value"] else ""
    lines = [
        "KERNEL(NAME) {",
        "(void)scratch;",
        f"const {left} *x = p[0];",
        f"const {right} *w = p[1];",
        f"{ctype} *o = p[{len(op.operands)}];",
        "for (long u = begin; u < end; u++) {",
        f"const long px = u % {result.shape[2]}, py = u / {result.shape[2]} % {result.shape[1]};",
        f"const long n = u / {result.shape[1] * result.shape[2]};",
        f"for (long c = 0; c < {outs}; c++) {{",
        f"{ctype} total = {start};",
        f"for (long i = 0; i < {kh}; i++) for (long j = 0; j < {kw}; j++) {{",
        f"const long y = py * {attrs['stride'][0]} + i * {attrs['dilation'][0]} - {attrs['padding'][0]};",
        f"const long z = px * {attrs['stride'][1]} + j * {attrs['dilation'][1]} - {attrs['padding'][1]};",
        f"const {right} *b = w + c * {sw[0]}L + i * {sw[2]}L + j;",
        f"if (y < 0 || y >= {height} || z < 0 || z >= {width}) {{ {padding} continue; }}",
        f"const {left} *a = x + n * {sx[0]}L + y * {sx[1]}L + z * {sx[2]}L + c / {group} * {depth};",
        f"for (long k = 0; k < {depth}; k++) total += ({ctype})a[k] * b[k * {sw[1]}L];",
        "}",
        f"o[u * {outs}L + c] = total;",
        *["}"] * 3,
    ]
    units = numel(result.shape[:3]) if result.numel else 0
    return Kernel("\n".join(lines), (*range(len(op.operands)), ("result", 0)), units)


_STRIDES = {"stride": (2, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1)}

PLAIN = family(
    Family(
        name="plain",
        doc="Scalar loops for convolutions and products that no tiled kernel takes.",
        match=_match,
        emit=_emit,
        cost=lambda job: job.op.result.type.numel * numel(job.op.operands[1].shape[1:]) * 4.0 + 1000.0,
        accepts=lambda job, position, view: job.op.name == "matmul" and position < 2,
        examples=(Example("conv", ("f32[1,9,9,6]", "f32[8,3,3,3]"), {**_STRIDES, "groups": 2, "channels_last": True}),),
    )
)
