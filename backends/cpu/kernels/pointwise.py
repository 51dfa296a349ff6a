"""Elementwise operations and chains of them over strided, broadcast operands; and plain copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from secateur.backends.cpu.cexpr import CTYPE, BodyWriter, from_memory, to_memory
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family, streaming_cost
from secateur.backends.cpu.views import View, collapse
from secateur.ir.graph import Value
from secateur.ir.opdef import lookup
from secateur.ir.types import DType, numel

CHUNK = 8192  # elements of a row that make one unit when rows are long

Write = Callable[[list[str]], tuple[list[str], list[str]]]  # operand registers -> (lines, result registers)


def emit_loop(
    inputs: Sequence[View],
    outputs: Sequence[View],
    shape: tuple[int, ...],
    lanes: int,
    write: Write,
    *,
    raw: bool = False,
) -> tuple[str, int]:
    """C of a loop nest over `shape`, and its number of units.

    `p[0..]` are the inputs, then the outputs. `raw` moves elements without converting them to
    their register form.
    """
    walks = [view.broadcast(shape).strides for view in inputs] + [view.strides for view in outputs]
    dims, strides = collapse(shape, *walks)
    views = [*inputs, *outputs]
    inner = dims[-1]
    chunk = CHUNK if inner >= 2 * CHUNK else inner
    chunks = -(-inner // max(chunk, 1))
    lines = []
    for i, view in enumerate(views):
        const = "const " if i < len(inputs) else ""
        lines.append(f"{const}{CTYPE[view.dtype]} *a{i} = ({const}{CTYPE[view.dtype]} *)p[{i}];")
    lines.append("for (long u = begin; u < end; u++) {")
    lines += [f"long r = u / {chunks}, first = u % {chunks} * {chunk};"] if chunks > 1 else ["long r = u;"]
    indices = [f"d{axis}" for axis in range(len(dims) - 1)]
    for axis in reversed(range(len(indices))):
        lines.append(f"const long {indices[axis]} = r{'' if axis == 0 else f' % {dims[axis]}'};")
        if axis:
            lines.append(f"r /= {dims[axis]};")
    if not indices:
        lines.append("(void)r;")
    for i, view in enumerate(views):
        const = "const " if i < len(inputs) else ""
        terms = [f"{d} * {s}" for d, s in zip(indices, strides[i]) if s]
        terms += [f"first * {strides[i][-1]}"] if chunks > 1 and strides[i][-1] else []
        lines.append(f"{const}{CTYPE[view.dtype]} *x{i} = a{i}{''.join(f' + {t}' for t in terms)};")
    for i, view in enumerate(inputs):
        if strides[i][-1] == 0:
            loaded = f"gather_{view.dtype}(x{i}, 0, LANES)"
            lines.append(f"const __auto_type s{i} = {loaded if raw else from_memory(loaded, view.dtype)};")

    def body(count: str) -> list[str]:
        text = []
        for i, view in enumerate(inputs):
            stride = strides[i][-1]
            if stride:
                loaded = _load(view.dtype, f"x{i}", stride, count)
                text.append(f"const __auto_type s{i} = {loaded if raw else from_memory(loaded, view.dtype)};")
        written, results = write([f"s{i}" for i in range(len(inputs))])
        text += written
        for i, (view, name) in enumerate(zip(outputs, results, strict=True), len(inputs)):
            stored = name if raw else to_memory(name, view.dtype)
            text.append(_store(view.dtype, f"x{i}", strides[i][-1], stored, count))
        return text

    limit = inner if chunks == 1 else f"(first + {chunk} <= {inner} ? {chunk} : {inner % chunk})"
    tail = inner % lanes
    if chunks > 1:
        lines.append(f"const long n = {limit};")
        limit = "n"
    if chunks > 1 or inner >= lanes:
        lines += [f"long i = 0; for (; i + LANES <= {limit}; i += LANES) {{", *body("LANES"), "}"]
    else:
        lines.append("const long i = 0;")
    if tail:
        lines += ["if (i < n) {" if chunks > 1 else "{", *body(str(tail)), "}"]
    lines.append("}")
    units = numel(tuple(dims[:-1])) * chunks if inner else 0
    return "\n".join(lines), units


def _load(dtype: DType, pointer: str, stride: int, count: str) -> str:
    if stride != 1:
        return f"gather_{dtype}({pointer} + i * {stride}, {stride}, {count})"
    return f"load_{dtype}({pointer} + i)" if count == "LANES" else f"loadn_{dtype}({pointer} + i, {count})"


def _store(dtype: DType, pointer: str, stride: int, value: str, count: str) -> str:
    if stride != 1:
        return f"scatter_{dtype}({pointer} + i * {stride}, {stride}, {value}, {count});"
    if count == "LANES":
        return f"store_{dtype}({pointer} + i, {value});"
    return f"storen_{dtype}({pointer} + i, {value}, {count});"


def copy_kernel(source: View, into: View, lanes: int) -> Kernel:
    """Copy one view to another of the same shape and element type."""
    code, units = emit_loop([source], [into], into.shape, lanes, lambda names: ([], names), raw=True)
    return Kernel(f"KERNEL(NAME) {{\n(void)scratch;\n{code}\n}}", (0, ("result", 0)), units)


def _match(job: Job) -> str:
    for op in job.ops:
        if op.name == "constant":
            if op.attrs["value"].size != 1:
                return "holds a constant that is not a scalar"
        elif not lookup(op.name).elementwise:
            return f"{op.name} is not elementwise"
    if len({value.shape for value in job.op.results}) != 1:
        return "results have different shapes"
    return ""


def operand_values(job: Job) -> list[Value]:
    """The operands as the values that the operations inside see."""
    return list(job.body.inputs) if job.body else list(dict.fromkeys(job.op.operands))


def _emit(job: Job) -> Kernel:
    shape = job.result_type.shape
    values = operand_values(job)
    views = [job.view(value) for value in values]

    def write(names: list[str]) -> tuple[list[str], list[str]]:
        writer = BodyWriter(dict(zip(values, names, strict=True)))
        for op in job.ops:
            writer.op(op)
        outputs = job.body.outputs if job.body else job.op.results
        return writer.lines, [writer.names[value] for value in outputs]

    code, units = emit_loop(views, job.results, shape, job.target.lanes, write)
    positions = [job.position(value) for value in values]
    operands = tuple(p for p in positions if p is not None)
    results = tuple(("result", i) for i in range(len(job.results)))
    first = job.results[0]
    inplace = tuple(
        p
        for p, view in zip(positions, views, strict=True)
        if p is not None
        and len(job.results) == 1
        and view.shape == shape
        and view.contiguous
        and first.contiguous
        and view.dtype.bytes == first.dtype.bytes
    )
    return Kernel(f"KERNEL(NAME) {{\n(void)scratch;\n{code}\n}}", (*operands, *results), units, inplace=inplace)


POINTWISE = family(
    Family(
        name="pointwise",
        doc="One pass over elementwise operations, vectorised along the innermost dimension.",
        match=_match,
        emit=_emit,
        cost=streaming_cost,
        accepts=lambda job, position, view: True,
        examples=(
            Example("add", ("f32[1,56,56,256]",) * 2, epilogue=("relu",)),
            Example("mul", ("f32[1,56,56,144]", "f32[1,1,1,144]")),
            Example("gelu", ("f32[128,3072]",)),
            Example("add", ("f32[128,768]", "f32[768]"), epilogue=("silu", "tanh")),
        ),
    )
)
