"""Reductions along any axes, vectorised along whichever axis is innermost.

Elementwise operations in front of a reduction are applied to what is loaded, those behind it to what is
stored, as long as all their other operands are single numbers.
"""

from __future__ import annotations

import numpy as np

from secateur.backends.cpu.cexpr import CTYPE, BodyWriter, from_memory, literal, register_type, to_memory, vector_type
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family, streaming_cost
from secateur.backends.cpu.views import View, collapse
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import lookup
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
    anchor = job.anchor
    if anchor.name not in _REDUCTIONS:
        return f"{anchor.name} is no reduction"
    if len(job.op.results) != 1:
        return "several results"
    if len(job.ops) > 1 and 0 in anchor.operands[0].shape:
        return "empty, with operations around it"
    before, after = _around(job)
    for op in (*before, *after):
        if op.name == "constant":
            if op.attrs["value"].size != 1:
                return "holds a constant that is not a scalar"
        elif not lookup(op.name).elementwise:
            return f"{op.name} is not elementwise"
    return _check_before(job, before) or _check_after(job, after)


def _around(job: Job) -> tuple[list[Op], list[Op]]:
    """The operations in front of the reduction and behind it; scalar constants are in both."""
    at = job.ops.index(job.anchor)
    constants = [op for op in job.ops if op.name == "constant"]
    before = [op for op in job.ops[:at] if op.name != "constant"]
    after = [op for op in job.ops[at + 1 :] if op.name != "constant"]
    return [*constants, *before], [*constants, *after]


def _check_before(job: Job, ops: list[Op]) -> str:
    """Why the operations in front do not turn one operand into what is reduced, or the empty string."""
    shape = job.anchor.operands[0].shape
    if any(op.result.shape != shape and op.result.type.numel != 1 for op in ops):
        return "what is in front of it changes the shape"
    if sum(value.type.numel != 1 for value in _given(ops)) > 1:
        return "what is in front of it has several operands"
    return "" if _source(job).shape == shape else "its operand is broadcast"


def _check_after(job: Job, ops: list[Op]) -> str:
    """Why the operations behind do not just change what is stored, or the empty string."""
    shape = job.anchor.result.shape
    if any(op.result.shape != shape and op.result.type.numel != 1 for op in ops):
        return "what is behind it changes the shape"
    if any(value.type.numel != 1 for value in _given(ops) if value is not job.anchor.result):
        return "what is behind it has other operands"
    if any(value.op is not None for value in _given(ops) if value is not job.anchor.result):
        return "what is behind it reads what is in front"
    inside = {op.result for op in ops} | {job.anchor.result}
    return "" if (job.body.outputs if job.body else job.op.results)[0] in inside else "its result is not used"


def _given(ops: list[Op]) -> list[Value]:
    """What operations read besides their own results."""
    inside = {op.result for op in ops}
    return list(dict.fromkeys(value for op in ops for value in op.operands if value not in inside))


def _source(job: Job) -> Value:
    """The operand that is walked."""
    before, _ = _around(job)
    if job.anchor.operands[0] not in {op.result for op in before}:
        return job.anchor.operands[0]
    given = _given(before)
    return next((value for value in given if value.type.numel != 1), given[0])


def _split_axes(view: View, axes: tuple[int, ...]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(size, stride) of the collapsed kept and reduced dimensions, outermost first."""
    kept = [axis for axis in range(len(view.shape)) if axis not in axes]

    def dims(order: list[int] | tuple[int, ...]) -> list[tuple[int, int]]:
        shape = tuple(view.shape[axis] for axis in order)
        sizes, (walk,) = collapse(shape, tuple(view.strides[axis] for axis in order))
        return list(zip(sizes, walk, strict=True))

    return dims(kept), dims(sorted(axes))


def _emit(job: Job) -> Kernel:
    source = _source(job)
    view = job.view(source)
    kept, reduced = _split_axes(view, job.anchor.attrs["axes"])
    if 0 in view.shape:
        return _constant(job)
    code = _Code(job)
    across = kept[-1][1] == 1 and kept[-1][0] > 1 and not (reduced[-1][1] == 1 and reduced[-1][0] > kept[-1][0])
    body, units = _across(code, kept, reduced) if across else _along(code, kept, reduced)
    positions = [job.position(value) for value in (source, *code.numbers)]
    head = [
        "KERNEL(NAME) {",
        "(void)scratch;",
        f"const {CTYPE[view.dtype]} *x = (const {CTYPE[view.dtype]} *)p[0];",
        f"{CTYPE[code.into]} *o = ({CTYPE[code.into]} *)p[1];",
        *code.declare(2),
        "for (long u = begin; u < end; u++) {",
    ]
    args = (positions[0], ("result", 0), *positions[1:])
    return Kernel("\n".join([*head, *body, "}", "}"]), args, units)  # type: ignore[arg-type]


class _Code:
    """What is loaded, combined and stored, with the operations around the reduction."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.before, self.after = _around(job)
        self.source = _source(job)
        self.taken = self.source.type.dtype
        self.dtype = job.anchor.result.type.dtype
        self.into = job.result_type.dtype
        given = [*_given(self.before), *_given(self.after)] if job.body else []
        self.numbers = [v for v in dict.fromkeys(given) if v not in (self.source, job.anchor.result)]
        self.used = 0

    def declare(self, first: int) -> list[str]:
        """Operands that are single numbers, in registers."""
        lines = []
        for i, value in enumerate(self.numbers):
            dtype = value.type.dtype
            loaded = from_memory(f"gather_{dtype}((const {CTYPE[dtype]} *)p[{first + i}], 0, LANES)", dtype)
            lines.append(f"const __auto_type n{i} = {loaded};")
        return lines

    def write(self, ops: list[Op], names: dict[Value, str], wanted: Value) -> tuple[list[str], str]:
        known = {value: f"n{i}" for i, value in enumerate(self.numbers)}
        self.used += 1
        writer = BodyWriter({**known, **names}, prefix=f"t{self.used}_")
        for op in ops:
            writer.op(op)
        return writer.lines, writer.names[wanted]

    def load(self, at: str, count: str, stride: int = 1) -> tuple[list[str], str]:
        """Statements that load elements and apply what is in front, and the value."""
        if stride != 1:
            text = f"gather_{self.taken}({at}, {stride}L, {count})"
        else:
            text = f"load_{self.taken}({at})" if count == "LANES" else f"loadn_{self.taken}({at}, {count})"
        text = from_memory(text, self.taken)
        operand = self.job.anchor.operands[0]
        if operand is self.source:
            return [], text
        self.used += 1
        name = f"x{self.used}_"
        lines, value = self.write(self.before, {self.source: name}, operand)
        return [f"const __auto_type {name} = {text};", *lines], value

    def combine(self, accumulator: str, value: str) -> str:
        text = _REDUCTIONS[self.job.anchor.name][0]
        return f"{accumulator} = {text.format(a=accumulator, v=value, t=register_type(self.dtype))};"

    def add(self, accumulator: str, at: str, count: str, stride: int = 1) -> list[str]:
        lines, value = self.load(at, count, stride)
        return [*lines, self.combine(accumulator, value)]

    def store(self, value: str, count: int, at: str, valid: str) -> list[str]:
        """Statements that divide a mean, apply what is behind, and store in the result's own type."""
        if self.job.anchor.name == "reduce_mean":
            value = f"({value} / {literal(count, self.dtype)})"
        result = self.job.anchor.result
        wanted = self.job.body.outputs[0] if self.job.body else result
        lines: list[str] = []
        if self.job.body:
            self.used += 1
            name = f"r{self.used}_"
            rounded = from_memory(to_memory(value, self.dtype), self.dtype)
            written, final = self.write(self.after, {result: name}, wanted)
            lines, value = [f"const __auto_type {name} = {rounded};", *written], final
        stored = to_memory(value, self.into)
        whole = f"store_{self.into}({at}, {stored});"
        return [*lines, whole if valid == "LANES" else f"storen_{self.into}({at}, {stored}, {valid});"]


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


def _across(code: _Code, kept: list[tuple[int, int]], reduced: list[tuple[int, int]]) -> tuple[list[str], int]:
    """The innermost axis is kept: accumulate whole vectors, walking the reduced axes outside."""
    lanes, taken = code.job.target.lanes, CTYPE[code.taken]
    inner, outer = kept[-1][0], kept[:-1]
    width = min(_ACCUMULATORS, -(-inner // lanes)) * lanes
    chunks = -(-inner // width)
    count = numel(tuple(size for size, _ in reduced))
    lines = [f"const long c = u % {chunks} * {width};", *_offset(outer, f"u / {chunks}")]

    def block(vectors: int, tail: int) -> list[str]:
        counts = ["LANES"] * vectors + ([str(tail)] if tail else [])
        neutral = f"splat_{_splat(code.dtype)}({_neutral(code.job.anchor.name, code.dtype)})"
        text = [f"{vector_type(code.dtype)} a{j} = {neutral};" for j in range(len(counts))]
        for depth, (size, stride) in enumerate(reduced):
            source = f"r{depth - 1}_" if depth else "x + at + c"
            text.append(f"for (long y{depth} = 0; y{depth} < {size}; y{depth}++) {{")
            text.append(f"const {taken} *r{depth}_ = {source} + y{depth} * {stride}L;")
        pointer = f"r{len(reduced) - 1}_"
        for j, n in enumerate(counts):
            text += code.add(f"a{j}", f"{pointer} + {j} * LANES", n)
        text += ["}"] * len(reduced)
        for j, n in enumerate(counts):
            text += code.store(f"a{j}", count, f"o + u / {chunks} * {inner} + c + {j} * LANES", n)
        return text

    whole, rest = divmod(inner, width)
    if whole:
        lines += [f"if (c + {width} <= {inner}) {{", *block(width // lanes, 0), "}"]
    if rest:
        lines += [f"{'else ' if whole else ''}{{", *block(rest // lanes, rest % lanes), "}"]
    return lines, numel(tuple(size for size, _ in outer)) * chunks


def _splat(dtype: DType) -> str:
    return "i32" if dtype is DType.BOOL else str(register_type(dtype))


def _along(code: _Code, kept: list[tuple[int, int]], reduced: list[tuple[int, int]]) -> tuple[list[str], int]:
    """The innermost axis is reduced: several vector accumulators along it, combined at the end."""
    name, dtype, lanes, taken = code.job.anchor.name, code.dtype, code.job.target.lanes, CTYPE[code.taken]
    inner, stride = reduced[-1]
    count = numel(tuple(size for size, _ in reduced))
    splat = f"splat_{_splat(dtype)}({_neutral(name, dtype)})"
    used = max(1, min(_ACCUMULATORS, inner // lanes))
    lines = [*_offset(kept, "u"), *(f"{vector_type(dtype)} a{j} = {splat};" for j in range(used))]
    for depth, (size, step) in enumerate(reduced[:-1]):
        source = f"r{depth - 1}_" if depth else "x + at"
        lines.append(f"for (long y{depth} = 0; y{depth} < {size}; y{depth}++) {{")
        lines.append(f"const {taken} *r{depth}_ = {source} + y{depth} * {step}L;")
    base = f"r{len(reduced) - 2}_" if len(reduced) > 1 else "x + at"
    lines.append(f"const {taken} *row = {base};")

    def at(index: str) -> str:
        return f"row + {index}" if stride == 1 else f"row + ({index}) * {stride}L"

    lines.append("long i = 0;")
    if inner >= used * lanes:
        lines.append(f"for (; i + {used} * LANES <= {inner}; i += {used} * LANES) {{")
        for j in range(used):
            lines += code.add(f"a{j}", at(f"i + {j} * LANES"), "LANES", stride)
        lines.append("}")
    if used > 1 and inner % (used * lanes) >= lanes:
        lines += [f"for (; i + LANES <= {inner}; i += LANES) {{", *code.add("a0", at("i"), "LANES", stride), "}"]
    if inner % lanes:
        # Lanes beyond the end must not count: they get the neutral element.
        loaded, value = code.load(at("i"), str(inner % lanes), stride)
        kept_lanes = f"select_{_splat(dtype)}(lane < {inner % lanes}, {value}, {splat})"
        lines += ["{", "vbool lane;", "for (int l = 0; l < LANES; l++) lane[l] = l;", *loaded]
        lines += [code.combine("a0", kept_lanes), "}"]
    lines += ["}"] * (len(reduced) - 1)
    lines += [code.combine("a0", f"a{j}") for j in range(1, used)]
    total = f"{_REDUCTIONS[name][1]}_lanes_{_splat(dtype)}(a0)"
    lines += code.store(f"splat_{_splat(dtype)}({total})", count, "o + u", "1")
    return lines, numel(tuple(size for size, _ in kept))


REDUCE = family(
    Family(
        name="reduce",
        doc="Sums, means, products, extremes, any and all, along any axes.",
        match=_match,
        emit=_emit,
        cost=streaming_cost,
        accepts=lambda job, position, view: position == job.position(_source(job)) or 0 in view.shape,
        examples=(
            Example("reduce_mean", ("f32[1,7,7,2048]",), {"axes": (1, 2), "keepdims": True}),
            Example("reduce_sum", ("f32[512,1000]",), {"axes": (1,)}),
            Example("reduce_max", ("i32[33,50,17]",), {"axes": (0, 2)}),
            Example("reduce_max", ("f32[33,50]",), {"axes": (1,)}, epilogue=("neg", "exp")),
        ),
    )
)
