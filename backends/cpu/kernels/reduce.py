"""Reductions along any axes, vectorised along whichever axis is innermost."""

from __future__ import annotations

import numpy as np

from secateur.backends.cpu.cexpr import CTYPE, from_memory, literal, register_type, to_memory, vector_type
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family, streaming_cost
from secateur.backends.cpu.views import View, collapse
from secateur.ir.types import DType, numel

# name -> (C that combines vector accumulator A with value V; horizontal combination; neutral element)
_REDUCTIONS: dict[str, tuple[str, str]] = {
    "reduce_sum": ("{a} + {v}", "sum"),
    "reduce_mean": ("{a} + {v}", "sum"),
    "reduce_prod": ("{a} * {v}", "prod"),
    "reduce_max": ("max_{t}({v}, {a})", "max"),
    "reduce_min": ("min_{t}({v}, {a})", "min"),
    "reduce_any": ("{a} | {v}", "min"),  # masks are 0 or -1: the smallest lane says whether one is set
    "reduce_all": ("{a} & {v}", "max"),
}
_ACCUMULATORS = 4


def _neutral(op: str, dtype: DType) -> str:
    into = register_type(dtype)
    if op in ("reduce_max", "reduce_min") and into.is_float:
        return "-INFINITY" if op == "reduce_max" else "INFINITY"
    if op in ("reduce_max", "reduce_min"):
        limits = np.iinfo(into.numpy)
        return literal(limits.min if op == "reduce_max" else limits.max, into)
    return {"reduce_prod": "1", "reduce_all": "-1"}.get(op, "0")


def _match(job: Job) -> str:
    if len(job.ops) != 1 or job.anchor.name not in _REDUCTIONS:
        return f"{job.anchor.name} is not a plain reduction"
    return ""


def _split_axes(view: View, axes: tuple[int, ...]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(size, stride) of the collapsed kept and reduced dimensions, outermost first."""
    kept = [axis for axis in range(len(view.shape)) if axis not in axes]

    def dims(order: list[int] | tuple[int, ...]) -> list[tuple[int, int]]:
        shape = tuple(view.shape[axis] for axis in order)
        sizes, (walk,) = collapse(shape, tuple(view.strides[axis] for axis in order))
        return list(zip(sizes, walk, strict=True))

    return dims(kept), dims(sorted(axes))


def _emit(job: Job) -> Kernel:
    view = job.view(job.anchor.operands[0])
    kept, reduced = _split_axes(view, job.anchor.attrs["axes"])
    if 0 in view.shape:
        return _constant(job)
    across = kept[-1][1] == 1 and kept[-1][0] > 1 and not (reduced[-1][1] == 1 and reduced[-1][0] > kept[-1][0])
    body, units = _across(job, kept, reduced) if across else _along(job, kept, reduced)
    dtype = view.dtype
    head = [
        "KERNEL(NAME) {",
        "(void)scratch;",
        f"const {CTYPE[dtype]} *x = (const {CTYPE[dtype]} *)p[0];",
        f"{CTYPE[dtype]} *o = ({CTYPE[dtype]} *)p[1];",
        "for (long u = begin; u < end; u++) {",
    ]
    return Kernel("\n".join([*head, *body, "}", "}"]), (0, ("result", 0)), units)


def _constant(job: Job) -> Kernel:
    """The result where there are no elements to reduce."""
    op, type = job.anchor.name, job.result_type
    value = "NAN" if op == "reduce_mean" else {"reduce_prod": "1", "reduce_all": "1"}.get(op, "0")
    if type.dtype is DType.BF16:
        value = f"to_bf16({value})"
    if type.dtype is DType.F16:
        value = f"(f16_t){value}"
    code = f"for (long i = begin; i < end; i++) (({CTYPE[type.dtype]} *)p[1])[i] = {value};"
    return Kernel(f"KERNEL(NAME) {{\n(void)scratch;\n{code}\n}}", (0, ("result", 0)), type.numel)


def _offset(dims: list[tuple[int, int]], index: str) -> list[str]:
    """Statements that add the offset of unit `index` over `dims` to `at`."""
    lines = ["long at = 0;", f"long r = {index}; (void)r;"]
    for number, (size, stride) in enumerate(reversed(dims)):
        last = number == len(dims) - 1
        lines.append(f"at += r{'' if last else f' % {size}'} * {stride}L;" + ("" if last else f" r /= {size};"))
    return lines


def _combine(job: Job, accumulator: str, value: str) -> str:
    text = _REDUCTIONS[job.anchor.name][0]
    name = str(register_type(job.result_type.dtype))
    return f"{accumulator} = {text.format(a=accumulator, v=value, t=name)};"


def _final(job: Job, value: str, count: int) -> str:
    """A mean divides at the end; everything is stored in its own type."""
    dtype = job.result_type.dtype
    if job.anchor.name == "reduce_mean":
        value = f"({value} / {literal(count, dtype)})"
    return to_memory(value, dtype)


def _across(job: Job, kept: list[tuple[int, int]], reduced: list[tuple[int, int]]) -> tuple[list[str], int]:
    """The innermost axis is kept: accumulate whole vectors, walking the reduced axes outside."""
    dtype, lanes = job.result_type.dtype, job.target.lanes
    vector = vector_type(dtype)
    inner, outer = kept[-1][0], kept[:-1]
    width = min(_ACCUMULATORS, -(-inner // lanes)) * lanes
    chunks = -(-inner // width)
    count = numel(tuple(size for size, _ in reduced))
    lines = [f"const long c = u % {chunks} * {width};", *_offset(outer, f"u / {chunks}")]

    def block(vectors: int, tail: int) -> list[str]:
        counts = ["LANES"] * vectors + ([str(tail)] if tail else [])
        neutral = f"splat_{_splat(dtype)}({_neutral(job.anchor.name, dtype)})"
        text = [f"{vector} a{j} = {neutral};" for j in range(len(counts))]
        for depth, (size, stride) in enumerate(reduced):
            source = f"r{depth - 1}_" if depth else "x + at + c"
            text.append(f"for (long y{depth} = 0; y{depth} < {size}; y{depth}++) {{")
            text.append(f"const {CTYPE[dtype]} *r{depth}_ = {source} + y{depth} * {stride}L;")
        pointer = f"r{len(reduced) - 1}_"
        for j, n in enumerate(counts):
            load = (
                f"load_{dtype}({pointer} + {j} * LANES)"
                if n == "LANES"
                else f"loadn_{dtype}({pointer} + {j} * LANES, {n})"
            )
            text.append(_combine(job, f"a{j}", from_memory(load, dtype)))
        text += ["}"] * len(reduced)
        for j, n in enumerate(counts):
            target, value = f"o + u / {chunks} * {inner} + c + {j} * LANES", _final(job, f"a{j}", count)
            text.append(
                f"store_{dtype}({target}, {value});" if n == "LANES" else f"storen_{dtype}({target}, {value}, {n});"
            )
        return text

    whole, rest = divmod(inner, width)
    if whole:
        lines += [f"if (c + {width} <= {inner}) {{", *block(width // lanes, 0), "}"]
    if rest:
        lines += [f"{'else ' if whole else ''}{{", *block(rest // lanes, rest % lanes), "}"]
    return lines, numel(tuple(size for size, _ in outer)) * chunks


def _splat(dtype: DType) -> str:
    return "i32" if dtype is DType.BOOL else str(register_type(dtype))


def _along(job: Job, kept: list[tuple[int, int]], reduced: list[tuple[int, int]]) -> tuple[list[str], int]:
    """The innermost axis is reduced: several vector accumulators along it, combined at the end."""
    dtype, lanes = job.result_type.dtype, job.target.lanes
    vector = vector_type(dtype)
    inner, stride = reduced[-1]
    count = numel(tuple(size for size, _ in reduced))
    splat = f"splat_{_splat(dtype)}({_neutral(job.anchor.name, dtype)})"
    used = max(1, min(_ACCUMULATORS, inner // lanes))
    lines = [*_offset(kept, "u"), *(f"{vector} a{j} = {splat};" for j in range(used))]
    for depth, (size, step) in enumerate(reduced[:-1]):
        source = f"r{depth - 1}_" if depth else "x + at"
        lines.append(f"for (long y{depth} = 0; y{depth} < {size}; y{depth}++) {{")
        lines.append(f"const {CTYPE[dtype]} *r{depth}_ = {source} + y{depth} * {step}L;")
    base = f"r{len(reduced) - 2}_" if len(reduced) > 1 else "x + at"
    lines.append(f"const {CTYPE[dtype]} *row = {base};")

    def load(at: str, n: str) -> str:
        if stride != 1:
            return from_memory(f"gather_{dtype}(row + ({at}) * {stride}L, {stride}L, {n})", dtype)
        text = f"load_{dtype}(row + {at})" if n == "LANES" else f"loadn_{dtype}(row + {at}, {n})"
        return from_memory(text, dtype)

    lines.append("long i = 0;")
    if inner >= used * lanes:
        lines.append(f"for (; i + {used} * LANES <= {inner}; i += {used} * LANES) {{")
        lines += [_combine(job, f"a{j}", load(f"i + {j} * LANES", "LANES")) for j in range(used)]
        lines.append("}")
    if used > 1 and inner % (used * lanes) >= lanes:
        lines += [f"for (; i + LANES <= {inner}; i += LANES) {{", _combine(job, "a0", load("i", "LANES")), "}"]
    if inner % lanes:
        # Lanes beyond the end must not count: they get the neutral element.
        tail = f"select_{_splat(dtype)}(lane < {inner % lanes}, {load('i', str(inner % lanes))}, {splat})"
        lines += ["vbool lane;", "for (int l = 0; l < LANES; l++) lane[l] = l;", _combine(job, "a0", tail)]
    lines += ["}"] * (len(reduced) - 1)
    lines += [_combine(job, "a0", f"a{j}") for j in range(1, used)]
    total = f"{_REDUCTIONS[job.anchor.name][1]}_lanes_{_splat(dtype)}(a0)"
    final = _final(job, f"splat_{_splat(dtype)}({total})", count)
    lines.append(f"storen_{dtype}(o + u, {final}, 1);")
    return lines, numel(tuple(size for size, _ in kept))


REDUCE = family(
    Family(
        name="reduce",
        doc="Sums, means, products, extremes, any and all, along any axes.",
        match=_match,
        emit=_emit,
        cost=streaming_cost,
        accepts=lambda job, position, view: True,
        examples=(
            Example("reduce_mean", ("f32[1,7,7,2048]",), {"axes": (1, 2), "keepdims": True}),
            Example("reduce_sum", ("f32[512,1000]",), {"axes": (1,)}),
            Example("reduce_max", ("i32[33,50,17]",), {"axes": (0, 2)}),
        ),
    )
)
