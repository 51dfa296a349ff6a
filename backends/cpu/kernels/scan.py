"""Running sums and products, arg-extremes and sorting: loops along one axis."""

from __future__ import annotations

from secateur.backends.cpu.cexpr import CTYPE
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family, only, streaming_cost
from secateur.ir.types import DType, TensorType, numel


def _around(type: TensorType, axis: int) -> tuple[int, int, int]:
    """(elements outside, along and inside an axis)."""
    return numel(type.shape[:axis]), type.shape[axis], numel(type.shape[axis + 1 :])


def _get(dtype: DType, at: str) -> str:
    return f"scalar_bf16({at})" if dtype is DType.BF16 else at


def _working(dtype: DType) -> str:
    return "float" if dtype in (DType.F16, DType.BF16) else CTYPE[dtype]


def _emit_cumulative(job: Job) -> Kernel:
    op, type = job.op, job.result_type
    outer, size, inner = _around(type, op.attrs["axis"])
    start, sign = ("0", "+") if op.name == "cumsum" else ("1", "*")
    dtype, kind = type.dtype, _working(type.dtype)
    step = f"(reverse ? {size} - 1 - k : k)".replace("reverse", "1" if op.attrs["reverse"] else "0")
    store = f"{'to_bf16(total)' if dtype is DType.BF16 else 'total'}"
    add = f"total = total {sign} {_get(dtype, 'x[at]')};"
    order = [f"o[at] = {store};", add] if op.attrs["exclusive"] else [add, f"o[at] = {store};"]
    if op.attrs["exclusive"]:
        order = [f"const {kind} v = {_get(dtype, 'x[at]')};", f"o[at] = {store};", f"total = total {sign} v;"]
    lines = [
        "KERNEL(NAME) {",
        "(void)scratch;",
        f"const {CTYPE[dtype]} *x = p[0];",
        f"{CTYPE[dtype]} *o = p[1];",
        "for (long u = begin; u < end; u++) {",
        f"const long base = u / {inner} * {size * inner}L + u % {inner};",
        f"{kind} total = {start};",
        f"for (long k = 0; k < {size}; k++) {{",
        f"const long at = base + {step} * {inner}L;",
        *order,
        *["}"] * 3,
    ]
    return Kernel("\n".join(lines), (0, ("result", 0)), outer * inner if type.numel else 0, inplace=(0,))


CUMULATIVE = family(
    Family(
        name="cumulative",
        doc="Running sum or product along an axis.",
        match=only("cumsum", "cumprod"),
        emit=_emit_cumulative,
        cost=lambda job: job.result_type.numel * 4.0 + 200,
        examples=(Example("cumsum", ("f32[64,500]",), {"axis": 1}),),
    )
)


def _emit_arg(job: Job) -> Kernel:
    x = job.op.operands[0].type
    _, size, inner = _around(x, job.op.attrs["axis"])
    better = f"v {'>' if job.op.name == 'argmax' else '<'} best"
    if x.dtype.is_float:
        better = f"best == best && ({better} || v != v)"
    lines = [
        "KERNEL(NAME) {",
        "(void)scratch;",
        f"const {CTYPE[x.dtype]} *x = p[0];",
        "int64_t *o = p[1];",
        "for (long u = begin; u < end; u++) {",
        f"const {CTYPE[x.dtype]} *row = x + u / {inner} * {size * inner}L + u % {inner};",
        f"{_working(x.dtype)} best = {_get(x.dtype, 'row[0]')};",
        "long place = 0;",
        f"for (long k = 1; k < {size}; k++) {{",
        f"const {_working(x.dtype)} v = {_get(x.dtype, f'row[k * {inner}L]')};",
        f"if ({better}) {{ best = v; place = k; }}",
        "}",
        "o[u] = place;",
        *["}"] * 2,
    ]
    return Kernel("\n".join(lines), (0, ("result", 0)), job.result_type.numel)


ARG = family(
    Family(
        name="arg",
        doc="Index of the first largest or smallest element along an axis.",
        match=only("argmax", "argmin"),
        emit=_emit_arg,
        cost=lambda job: job.op.operands[0].type.numel * 2.0 + 200,
        examples=(Example("argmax", ("f32[128,1000]",), {"axis": 1}),),
    )
)

_SORT = """/* Stable merge sort of the indices 0..n-1 by NAME_before; returns whichever buffer holds the result. */
static int32_t *NAME_sort(const T *x, long step, int32_t *a, int32_t *b, long n) {
for (long i = 0; i < n; i++) a[i] = (int32_t)i;
for (long width = 1; width < n; width *= 2) {
for (long low = 0; low < n; low += 2 * width) {
long middle = low + width < n ? low + width : n, high = low + 2 * width < n ? low + 2 * width : n;
long i = low, j = middle;
for (long k = low; k < high; k++) {
int right = j < high && (i >= middle || NAME_before(GET(x[a[j] * step]), GET(x[a[i] * step])));
b[k] = right ? a[j++] : a[i++];
}
}
int32_t *t = a; a = b; b = t;
}
return a;
}"""


def _emit_sort(job: Job) -> Kernel:
    op, x = job.op, job.op.operands[0].type
    outer, size, inner = _around(x, op.attrs["axis"])
    keep = op.attrs.get("k", size)
    descending = op.attrs["largest"] if op.name == "topk" else op.attrs["descending"]
    a, b = ("a", "b") if descending else ("b", "a")
    before = f"({a} > {b})"
    if x.dtype.is_float:  # NaN is larger than everything
        before = f"({a} != {a} ? {b} == {b} : {a} > {b})"
    get = "scalar_bf16(" if x.dtype is DType.BF16 else "("
    code = _SORT.replace("const T *", f"const {CTYPE[x.dtype]} *").replace("GET(", get)
    kind = _working(x.dtype)
    lines = [
        f"INLINE int NAME_before({kind} a, {kind} b) {{ return {before}; }}",
        code,
        "KERNEL(NAME) {",
        f"const {CTYPE[x.dtype]} *x = p[0];",
        f"{CTYPE[x.dtype]} *values = p[1];",
        "int64_t *indices = p[2];",
        "int32_t *a = (int32_t *)SCRATCH;",
        "for (long u = begin; u < end; u++) {",
        f"const {CTYPE[x.dtype]} *row = x + u / {inner} * {size * inner}L + u % {inner};",
        f"const int32_t *order = NAME_sort(row, {inner}, a, a + {size}, {size});",
        f"const long to = u / {inner} * {keep * inner}L + u % {inner};",
        f"for (long k = 0; k < {keep}; k++) {{",
        f"values[to + k * {inner}L] = row[order[k] * {inner}L];",
        f"indices[to + k * {inner}L] = order[k];",
        *["}"] * 3,
    ]
    units = outer * inner if job.result_type.numel else 0
    return Kernel("\n".join(lines), (0, ("result", 0), ("result", 1)), units, scratch=8 * size + 64)


SORT = family(
    Family(
        name="sort",
        doc="Stable merge sort along an axis; topk keeps its first elements.",
        match=only("sort", "topk"),
        emit=_emit_sort,
        cost=lambda job: job.op.operands[0].type.numel * 40.0 + streaming_cost(job),
        examples=(
            Example("topk", ("f32[16,1000]",), {"k": 5, "axis": 1}),
            Example("sort", ("i32[8,100]",), {"axis": 1}),
        ),
    )
)
