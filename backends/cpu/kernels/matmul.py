"""Matrix products whose right side is only known at run time: packed per unit into scratch memory."""

from __future__ import annotations

from secateur.backends.cpu.cexpr import CTYPE
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.kernels.gemm import DTYPES
from secateur.backends.cpu.tile import Epilogue, TileCode, Tiling, check_epilogue, choose_tiling, row_stride_conflicts
from secateur.backends.cpu.views import View
from secateur.ir.graph import Op
from secateur.ir.types import numel

UNITS = 16


def _match(job: Job) -> str:
    op = job.anchor
    if op.name not in ("matmul", "linear"):
        return f"{op.name} is no product"
    if op.result.type.dtype not in DTYPES:
        return f"element type {op.result.type.dtype}"
    if op.result.type.numel == 0 or op.operands[0].type.numel == 0:
        return "empty"
    return check_epilogue(job)


def _sizes(op: Op) -> tuple[tuple[int, ...], int, int, int]:
    """(batch shape, M, K, N)."""
    a, result = op.operands[0].shape, op.result.shape
    if op.name == "linear":
        return (), numel(result[:-1]), a[-1], result[-1]
    return result[:-2], result[-2], a[-1], result[-1]


def _tiling(job: Job) -> Tiling:
    _, m, k, n = _sizes(job.anchor)
    return choose_tiling(m, n, k, job.target, job.anchor.result.type.dtype)


def _cost(job: Job) -> float:
    batch, _, k, n = _sizes(job.anchor)
    return numel(batch) * (_tiling(job).cycles + k * n * 0.3) + 400.0


def strided_offset(batch: tuple[int, ...], walks: dict[str, tuple[int, ...]], index: str) -> list[str]:
    """Statements that define, for unit `index` of `batch`, each named operand's offset."""
    lines = [f"long i_ = {index}; (void)i_;", *(f"long {name} = 0;" for name in walks)]
    for axis in reversed(range(len(batch))):
        lines.append(f"{{ const long d_ = i_ % {batch[axis]}; (void)d_; i_ /= {batch[axis]};")
        lines += [f"{name} += d_ * {walk[axis]}L;" for name, walk in walks.items() if walk[axis]]
        lines.append("}")
    return lines


def pack_panel(
    ctype: str, into: str, source: str, depth: int, columns: int, width: int, row: int, column: int
) -> list[str]:
    """Statements that pack columns `c * width`.. of a strided [depth, columns] matrix as one panel."""
    partial = columns % width
    valid = f"({columns} - c * {width} < {width} ? {partial} : {width})" if partial else str(width)
    lines = [f"const {ctype} *from_ = {source} + c * {width * column}L;", f"const int valid_ = {valid};"]
    if partial:
        lines.append(f"if (valid_ < {width}) memset({into}, 0, sizeof({ctype}) * {depth * width}L);")
    if column == 1 or columns == 1:
        copy = f"memcpy({into} + k_ * {width}, from_ + k_ * {row}L, (size_t)valid_ * sizeof({ctype}));"
        return [*lines, f"for (long k_ = 0; k_ < {depth}; k_++) {copy}"]
    lines.append(f"for (long j_ = 0; j_ < valid_; j_++) for (long k_ = 0; k_ < {depth}; k_++)")
    return [*lines, f"{into}[k_ * {width} + j_] = from_[j_ * {column}L + k_ * {row}L];"]


def _right(job: Job, batch: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """The right side's strides over the batch, along K and along N."""
    view = job.view(job.anchor.operands[1])
    if job.anchor.name == "linear":
        return (), view.strides[1], view.strides[0]
    spread = view.broadcast((*batch, *view.shape[-2:]))
    return spread.strides[:-2], view.strides[-2], view.strides[-1]


def _emit(job: Job) -> Kernel:
    op, target = job.anchor, job.target
    batch, m, k, n = _sizes(op)
    tiling = _tiling(job)
    dtype, ctype = op.result.type.dtype, CTYPE[op.result.type.dtype]
    width = tiling.vectors * target.lanes
    left = job.view(op.operands[0])
    if op.name == "linear":
        left = left.reshape((m, k)) or left
    left_walk = left.broadcast((*batch, m, k)).strides
    right_walk, row, column = _right(job, batch)
    unit = k == 1 or left_walk[-1] == 1
    direct = unit and not row_stride_conflicts(left_walk[-2] * dtype.bytes, max(tiling.heights))
    spread = 16 if row_stride_conflicts(k * dtype.bytes, max(tiling.heights)) else 0
    lda = left_walk[-2] if direct else k + spread
    bias = op.operands[2] if len(op.operands) > 2 else None
    epilogue = Epilogue(job, n, tiling.panels * width, bias, pack=False)
    code = TileCode(dtype, tiling.vectors, (), k, lda, width, n, epilogue, job.result_type.dtype)
    functions = code.functions(tiling, n, target.lanes)
    groups = min(tiling.panels, max(1, UNITS // max(1, numel(batch))))
    result = CTYPE[job.result_type.dtype]
    lines = [
        "KERNEL(NAME) {",
        f"const {ctype} *x = (const {ctype} *)p[0];",
        f"const {ctype} *y = (const {ctype} *)p[1];",
        f"{result} *o = p[2];",
        *epilogue.declare(3),
        f"{ctype} *const b = ({ctype} *)SCRATCH;",
        f"{ctype} *const rows = b + {k * width}L; (void)rows;",
        "for (long u = begin; u < end; u++) {",
        f"const long q = u % {groups}, part = u / {groups};",
        *strided_offset(batch, {"ao": left_walk[:-2], "bo": right_walk}, "part"),
    ]
    start = f"{'x + ao' if direct else 'rows'} + m * {lda}L"
    if not direct:
        lines += _pack_rows(m, k, lda, left_walk)
    lines.append(f"for (long c = q * {tiling.panels} / {groups}; c < (q + 1) * {tiling.panels} / {groups}; c++) {{")
    lines += pack_panel(ctype, "b", "y + bo", k, n, width, row, column)
    lines += [
        f"const long column = c * {width};",
        f"for (long t = 0; t < {tiling.count}; t++) {{",
        f"const long m = {tiling.start('t')};",
        f"const long at = (part * {m} + m) * {n}L + column;",
        *tiling.calls(f"({start}, b, o + at{epilogue.arguments('at', 'column')});", n % width != 0),
        *["}"] * 4,
    ]
    args = (
        job.position(op.operands[0]),
        job.position(op.operands[1]),
        ("result", 0),
        *(q for _, q in epilogue.pointers),
    )
    scratch = (k * width + (0 if direct else m * lda) + 64) * dtype.bytes
    note = f"{max(tiling.heights)}x{width} tiles, K {k}, right side packed at run time"
    return Kernel("\n\n".join([*functions, "\n".join(lines)]), args, numel(batch) * groups, scratch, note=note)  # type: ignore[arg-type]


def _pack_rows(rows: int, depth: int, lda: int, walk: tuple[int, ...]) -> list[str]:
    """Copy the left side of a batch to scratch memory, once, whatever its strides."""
    return [
        "if (PACKED != part) {",
        "PACKED = part;",
        f"for (long i = 0; i < {rows}; i++) for (long k = 0; k < {depth}; k++)",
        f"rows[i * {lda}L + k] = x[ao + i * {walk[-2]}L + k * {walk[-1]}L];",
        "}",
    ]


def _accepts(job: Job, position: int, view: View) -> bool:
    if not job.reads_once(position):
        return False
    if position == job.position(job.anchor.operands[1]):
        return True
    if position != job.position(job.anchor.operands[0]):
        return False
    if job.anchor.name == "matmul":
        return True
    return view.reshape((numel(view.shape[:-1]), view.shape[-1])) is not None


MATMUL = family(
    Family(
        name="matmul",
        doc="Product of two run-time matrices; batches, broadcasting and any strides.",
        match=_match,
        emit=_emit,
        cost=_cost,
        accepts=_accepts,
        examples=(
            Example("matmul", ("f32[12,128,64]", "f32[12,64,128]")),
            Example("matmul", ("f32[197,768]", "f32[768,197]"), epilogue=("relu",)),
            Example("linear", ("f32[5,33,70]", "f32[30,70]", "f32[30]")),
        ),
    )
)
