"""Gather and scatter. An index below zero counts from the end, and is then held inside the range."""

from __future__ import annotations

from secateur.backends.cpu.cexpr import CTYPE
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family, only, streaming_cost
from secateur.ir.types import DType, numel

_INDEX = """#undef PLACE
#define PLACE(i, size)                                                                             \\
    ({                                                                                             \\
        long i_ = (i);                                                                             \\
        i_ += i_ < 0 ? (size) : 0;                                                                 \\
        i_ < 0 ? 0 : i_ >= (size) ? (size) - 1 : i_;                                               \\
    })"""


def _emit_gather(job: Job) -> Kernel:
    x, indices = job.op.operands
    axis = job.op.attrs["axis"]
    outer, size, inner = numel(x.shape[:axis]), x.shape[axis], numel(x.shape[axis + 1 :])
    count = indices.type.numel
    ctype, itype = CTYPE[x.type.dtype], CTYPE[indices.type.dtype]
    # Slices of one element come in rows of indices, longer ones one by one.
    units = outer if inner == 1 else outer * count
    lines = [
        _INDEX,
        "KERNEL(NAME) {",
        "(void)scratch;",
        f"const {ctype} *x = p[0];",
        f"const {itype} *at = p[1];",
        f"{ctype} *o = p[2];",
    ]
    lines.append("for (long u = begin; u < end; u++) {")
    if inner == 1:
        lines.append(
            f"for (long i = 0; i < {count}; i++) o[u * {count} + i] = x[u * {size}L + PLACE((long)at[i], {size}L)];"
        )
    else:
        lines.append(f"const long i = at[u % {count}];")
        source = f"x + (u / {count} * {size}L + PLACE(i, {size}L)) * {inner}L"
        lines.append(f"memcpy(o + u * {inner}L, {source}, {inner}L * sizeof *o);")
    return Kernel("\n".join([*lines, "}", "}"]), (0, 1, ("result", 0)), units if job.result_type.numel else 0)


GATHER = family(
    Family(
        name="gather",
        doc="Slices at run-time indices, copied whole.",
        match=only("gather"),
        emit=_emit_gather,
        cost=lambda job: job.result_type.bytes / 4.0 + 200.0,
        examples=(
            Example("gather", ("f32[30522,384]", "i64[1,128]"), {"axis": 0}, (0,)),
            Example("gather", ("f32[12,128]", "i32[40]"), {"axis": 1}),
        ),
    )
)


def _assign(dtype: DType, reduction: str, target: str, value: str) -> str:
    """One element of a scatter: NaN wins in max and min, narrow floats are widened and rounded."""
    if reduction == "none":
        return f"{target} = {value};"
    if dtype is DType.BF16:
        old, new, store = f"scalar_bf16({target})", f"scalar_bf16({value})", f"{target} = to_bf16(r);"
    else:
        old, new, store = target, value, f"{target} = r;"
    kind = "float" if dtype in (DType.F16, DType.BF16) else CTYPE[dtype]
    text = {
        "add": "a + b",
        "mul": "a * b",
        "max": "b > a || b != b ? b : a",
        "min": "b < a || b != b ? b : a",
    }[reduction]
    return f"{{ const {kind} a = {old}, b = {new}; const {kind} r = {text}; {store} }}"


def _emit_scatter(job: Job) -> Kernel:
    x, indices, _ = job.op.operands
    ctype, itype = CTYPE[x.type.dtype], CTYPE[indices.type.dtype]
    lines = [
        _INDEX,
        "KERNEL(NAME) {",
        "(void)scratch;",
        "if (begin >= end) return;",
        f"const {itype} *at = p[1];",
        f"const {ctype} *from = p[2];",
        f"{ctype} *o = p[3];",
        f"if (o != (const {ctype} *)p[0]) memcpy(o, p[0], {x.type.bytes}L);",
    ]
    reduction, dtype = job.op.attrs["reduction"], x.type.dtype
    if job.op.name == "scatter_elements":
        axis = job.op.attrs["axis"]
        lines += [f"for (long i = 0; i < {indices.type.numel}; i++) {{", "long r = i, place = 0;"]
        for dim in reversed(range(x.type.rank)):
            index = f"PLACE((long)at[i], {x.shape[dim]}L)" if dim == axis else f"r % {indices.shape[dim]}"
            lines.append(f"place += {index} * {numel(x.shape[dim + 1 :])}L; r /= {indices.shape[dim]};")
        lines += [_assign(dtype, reduction, "o[place]", "from[i]"), "}"]
    else:
        depth = indices.shape[-1]
        inner = numel(x.shape[depth:])
        lines += [f"for (long i = 0; i < {numel(indices.shape[:-1])}; i++) {{", "long place = 0;"]
        for dim in range(depth):
            step = numel(x.shape[dim + 1 :])
            lines.append(f"place += PLACE((long)at[i * {depth} + {dim}], {x.shape[dim]}L) * {step}L;")
        lines.append(f"for (long j = 0; j < {inner}; j++)")
        lines += [_assign(dtype, reduction, "o[place + j]", f"from[i * {inner}L + j]"), "}"]
    # One unit: updates may meet, and their order is part of the result.
    return Kernel("\n".join([*lines, "}"]), (0, 1, 2, ("result", 0)), 1, inplace=(0,))


SCATTER = family(
    Family(
        name="scatter",
        doc="Elements or slices written to, or combined at, run-time indices, in order.",
        match=only("scatter_elements", "scatter_nd"),
        emit=_emit_scatter,
        cost=streaming_cost,
        examples=(Example("scatter_elements", ("f32[64,9]", "i64[8,9]", "f32[8,9]"), {"axis": 0, "reduction": "add"}),),
    )
)
