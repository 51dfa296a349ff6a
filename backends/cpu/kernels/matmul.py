"""Matrix products whose right side is only known at run time: packed per unit into scratch memory."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.backends.cpu.band import LINE, copy_elements
from secateur.backends.cpu.cexpr import CTYPE
from secateur.backends.cpu.dot import Dot, choose_dot
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.kernels.gemm import DTYPES
from secateur.backends.cpu.tile import Epilogue, TileCode, check_epilogue
from secateur.backends.cpu.tiling import Tiling, choose_tiling, row_stride_conflicts
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


def _dot(job: Job) -> Dot:
    op = job.anchor
    return choose_dot(job.target, op.operands[0].type.dtype, op.operands[1].type.dtype, op.result.type.dtype)


def _tiling(job: Job) -> Tiling:
    _, m, k, n = _sizes(job.anchor)
    return choose_tiling(m, n, _dot(job).steps(k), job.target, _dot(job))


def _cost(job: Job) -> float:
    batch, _, k, n = _sizes(job.anchor)
    dot = _dot(job)
    converted = 0 if dot.left is dot.source else job.anchor.operands[0].type.numel
    return numel(batch) * (_tiling(job).cycles + k * n * 0.3) + converted / job.target.lanes + 400.0


def strided_offset(batch: tuple[int, ...], walks: dict[str, tuple[int, ...]], index: str) -> list[str]:
    """Statements that define, for unit `index` of `batch`, each named operand's offset."""
    lines = [f"long i_ = {index}; (void)i_;", *(f"long {name} = 0;" for name in walks)]
    for axis in reversed(range(len(batch))):
        lines.append(f"{{ const long d_ = i_ % {batch[axis]}; (void)d_; i_ /= {batch[axis]};")
        lines += [f"{name} += d_ * {walk[axis]}L;" for name, walk in walks.items() if walk[axis]]
        lines.append("}")
    return lines


def pack_panel(
    dot: Dot, into: str, source: str, depth: int, columns: int, width: int, row: int, column: int
) -> list[str]:
    """Statements that pack columns `c * width`.. of a strided [depth, columns] matrix as one panel."""
    ctype, group = CTYPE[dot.right], dot.group
    partial, size = columns % width, dot.steps(depth) * group * width
    valid = f"({columns} - c * {width} < {width} ? {partial} : {width})" if partial else str(width)
    lines = [f"const {ctype} *from_ = {source} + c * {width * column}L;", f"const int valid_ = {valid};"]
    clear = f"memset({into}, 0, sizeof({ctype}) * {size}L);"
    if depth % group or partial:
        lines.append(clear if depth % group else f"if (valid_ < {width}) {clear}")
    along, across = f"for (long k_ = 0; k_ < {depth}; k_++)", "for (long j_ = 0; j_ < valid_; j_++)"
    if group == 1 and (column == 1 or columns == 1):
        copy = f"memcpy({into} + k_ * {width}, from_ + k_ * {row}L, (size_t)valid_ * sizeof({ctype}));"
        return [*lines, f"{along} {copy}"]
    if group == 1:
        return [*lines, f"{across} {along}", f"{into}[k_ * {width} + j_] = from_[j_ * {column}L + k_ * {row}L];"]
    whole = depth // group * group
    place = f"{into}[k_ * {width}L + j_ * {group} + i_]"
    element = f"{place} = from_[j_ * {column}L + (k_ + i_) * {row}L];"
    inner = f"UNROLL for (int i_ = 0; i_ < {group}; i_++) {element}"
    if row == 1:  # neighbours along K lie side by side
        inner = f"memcpy({into} + k_ * {width}L + j_ * {group}, from_ + j_ * {column}L + k_, {group});"
    if whole:
        lines.append(f"for (long k_ = 0; k_ < {whole}; k_ += {group}) {across} {inner}")
    if depth % group:
        rest = f"for (int i_ = 0; i_ < {depth % group}; i_++) {element}"
        lines.append(f"{{ const long k_ = {whole}; {across} {rest} }}")
    return lines


def _right(job: Job, batch: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """The right side's strides over the batch, along K and along N."""
    view = job.view(job.anchor.operands[1])
    if job.anchor.name == "linear":
        return (), view.strides[1], view.strides[0]
    spread = view.broadcast((*batch, *view.shape[-2:]))
    return spread.strides[:-2], view.strides[-2], view.strides[-1]


@dataclass(frozen=True)
class _Plan:
    """Where everything is: strides of the operands, and byte offsets in scratch memory behind the packed panel."""

    dot: Dot
    tiling: Tiling
    batch: tuple[int, ...]
    m: int
    k: int
    n: int
    left: tuple[int, ...]  # strides over batch, M and K
    right: tuple[tuple[int, ...], int, int]  # strides over batch, along K and along N
    width: int
    groups: int  # of panels, for each element of the batch

    @property
    def tallest(self) -> int:
        return max(self.tiling.heights)

    @property
    def direct(self) -> bool:
        """Whether the tile reads the left side where it lies."""
        unit = self.k == 1 or self.left[-1] == 1
        suits = self.dot.left is self.dot.source and self.k % self.dot.group == 0
        return unit and suits and not row_stride_conflicts(self.left[-2] * self.dot.left.bytes, self.tallest)

    @property
    def lda(self) -> int:
        size = self.dot.left.bytes
        spread = row_stride_conflicts(self.k * size, self.tallest)
        return self.left[-2] if self.direct else self.k + LINE // size * spread

    @property
    def steps(self) -> int:
        return self.dot.steps(self.k)

    @property
    def start(self) -> int:
        """Byte offset of what the sums start from."""
        return _aligned(self.steps * self.dot.group * self.width * self.dot.right.bytes)

    @property
    def rows(self) -> int:
        """Byte offset of the copy of the left side."""
        return self.start + (_aligned(4 * self.tiling.panels * self.width) if self.dot.shift else 0)

    @property
    def scratch(self) -> int:
        return self.rows + (0 if self.direct else self.m * self.lda * self.dot.left.bytes) + LINE


def _aligned(size: int) -> int:
    return -(-size // LINE) * LINE


def _plan(job: Job) -> _Plan:
    op = job.anchor
    batch, m, k, n = _sizes(op)
    tiling = _tiling(job)
    left = job.view(op.operands[0])
    if op.name == "linear":
        left = left.reshape((m, k)) or left
    walk = left.broadcast((*batch, m, k)).strides
    groups = min(tiling.panels, max(1, UNITS // max(1, numel(batch))))
    return _Plan(_dot(job), tiling, batch, m, k, n, walk, _right(job, batch), tiling.vectors * job.target.lanes, groups)


def _emit(job: Job) -> Kernel:
    op, plan = job.anchor, _plan(job)
    dot, tiling, result = plan.dot, plan.tiling, job.result_type.dtype
    bias = op.operands[2] if len(op.operands) > 2 else None
    epilogue = Epilogue(job, plan.n, tiling.panels * plan.width, bias, pack=False, computed=dot.shift != 0)
    ldb = plan.width * dot.group
    code = TileCode(dot, tiling.vectors, (), plan.k, plan.lda, ldb, plan.n, epilogue, result)
    functions = code.functions(tiling, plan.n, job.target.lanes)
    lines = ["KERNEL(NAME) {", *_pointers(plan, CTYPE[result]), *epilogue.declare(3)]
    given = [job.position(value) for value in op.operands]
    args = [*given[:2], ("result", 0), *(q for _, q in epilogue.pointers)]
    if dot.shift:
        lines.append(f"int32_t *const bias = (int32_t *)(SCRATCH + {plan.start});")
        if bias:
            lines.append(f"const int32_t *const given = p[{len(args)}];")
            args.append(given[2])
    lines += _loops(plan, epilogue, bias is not None)
    note = f"{plan.tallest}x{plan.width} tiles, K {plan.k}, right side packed at run time"
    units = numel(plan.batch) * plan.groups
    return Kernel("\n\n".join([*functions, "\n".join(lines)]), tuple(args), units, plan.scratch, note=note)  # type: ignore[arg-type]


def _pointers(plan: _Plan, result: str) -> list[str]:
    source, left, right = (CTYPE[t] for t in (plan.dot.source, plan.dot.left, plan.dot.right))
    return [
        f"const {source} *x = (const {source} *)p[0];",
        f"const {right} *y = (const {right} *)p[1];",
        f"{result} *o = p[2];",
        f"{right} *const b = ({right} *)SCRATCH;",
        f"{left} *const rows = ({left} *)(SCRATCH + {plan.rows}); (void)rows;",
    ]


def _loops(plan: _Plan, epilogue: Epilogue, biased: bool) -> list[str]:
    """The loops over units, panels and row tiles."""
    walk, row, column = plan.right
    count, panels = plan.tiling.count, plan.tiling.panels
    lines = [
        "for (long u = begin; u < end; u++) {",
        f"const long q = u % {plan.groups}, part = u / {plan.groups};",
        *strided_offset(plan.batch, {"ao": plan.left[:-2], "bo": walk}, "part"),
    ]
    if not plan.direct:
        lines += _pack_rows(plan)
    lines += [
        f"for (long c = q * {panels} / {plan.groups}; c < (q + 1) * {panels} / {plan.groups}; c++) {{",
        *pack_panel(plan.dot, "b", "y + bo", plan.k, plan.n, plan.width, row, column),
        f"const long column = c * {plan.width};",
    ]
    if plan.dot.shift:
        bias = "given + column" if biased else "0"
        lines.append(f"start_sums(bias + column, {bias}, valid_, b, {plan.steps}, {plan.width}, {plan.dot.shift});")
    start = f"{'x + ao' if plan.direct else 'rows'} + m * {plan.lda}L"
    return [
        *lines,
        f"for (long t = 0; t < {count}; t++) {{",
        f"const long m = {plan.tiling.start('t')};",
        f"const long at = (part * {plan.m} + m) * {plan.n}L + column;",
        *plan.tiling.calls(f"({start}, b, o + at{epilogue.arguments('at', 'column')});", plan.n % plan.width != 0),
        *["}"] * 4,
    ]


def _pack_rows(plan: _Plan) -> list[str]:
    """Copy the left side of a batch to scratch memory, once, whatever its strides."""
    walk = plan.left
    return [
        "if (PACKED != part) {",
        "PACKED = part;",
        f"for (long i = 0; i < {plan.m}; i++) {{",
        f"{CTYPE[plan.dot.left]} *const to = rows + i * {plan.lda}L;",
        f"const {CTYPE[plan.dot.source]} *const from = x + ao + i * {walk[-2]}L;",
        copy_elements(plan.dot, plan.k, 1 if plan.k == 1 else walk[-1]),
        *["}"] * 2,
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
            Example("matmul", ("i8[12,128,64]", "i8[12,64,128]")),
            Example("matmul", ("u8[12,128,128]", "i8[12,128,64]")),
            Example("matmul", ("u8[4,33,35]", "u8[35,30]")),
        ),
    )
)
