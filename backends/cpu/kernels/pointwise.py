"""Elementwise operations and chains of them over strided, broadcast operands; and plain copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    chunk = CHUNK if dims[-1] >= 2 * CHUNK else dims[-1]
    nest = _Nest(inputs, outputs, dims, strides, chunk, -(-dims[-1] // max(chunk, 1)), lanes, write, raw)
    lines = [
        *nest.pointers(),
        "for (long u = begin; u < end; u++) {",
        *nest.indices(),
        *nest.rows(),
        *nest.inner(),
        "}",
    ]
    return "\n".join(lines), numel(tuple(dims[:-1])) * nest.chunks if dims[-1] else 0


@dataclass(frozen=True)
class _Nest:
    """A loop nest: a unit is one row of the innermost dimension, or one of the `chunks` of a long row."""

    inputs: Sequence[View]
    outputs: Sequence[View]
    dims: list[int]
    strides: list[list[int]]
    chunk: int
    chunks: int
    lanes: int
    write: Write
    raw: bool

    def _typed(self) -> list[tuple[int, str]]:
        """Every operand's number and pointer type."""
        views = [*self.inputs, *self.outputs]
        return [(i, f"{'const ' * (i < len(self.inputs))}{CTYPE[view.dtype]} *") for i, view in enumerate(views)]

    def pointers(self) -> list[str]:
        return [f"{pointer}a{i} = ({pointer})p[{i}];" for i, pointer in self._typed()]

    def indices(self) -> list[str]:
        """Unit number -> index of each outer dimension, and the first element of the chunk."""
        outer = range(len(self.dims) - 1)
        if self.chunks > 1:
            lines = [f"long r = u / {self.chunks}, first = u % {self.chunks} * {self.chunk};"]
        else:
            lines = ["long r = u;"]
        for axis in reversed(outer):
            divide = f" r /= {self.dims[axis]};" if axis else ""
            lines.append(f"const long d{axis} = r{f' % {self.dims[axis]}' if axis else ''};{divide}")
        return lines if outer else [*lines, "(void)r;"]

    def rows(self) -> list[str]:
        """Where each operand's row begins; operands that do not change along it are loaded here."""
        lines = []
        for i, pointer in self._typed():
            *outer, inner = self.strides[i]
            terms = [f" + d{axis} * {stride}" for axis, stride in enumerate(outer) if stride]
            terms += [f" + first * {inner}"] if self.chunks > 1 and inner else []
            lines.append(f"{pointer}x{i} = a{i}{''.join(terms)};")
        for i, view in enumerate(self.inputs):
            if self.strides[i][-1] == 0:
                lines.append(self._register(i, view, f"gather_{view.dtype}(x{i}, 0, LANES)"))
        return lines

    def inner(self) -> list[str]:
        """The loop along a row: whole vectors, then what is left."""
        size, tail = self.dims[-1], self.dims[-1] % self.lanes
        lines, limit = [], str(size)
        if self.chunks > 1:
            lines.append(f"const long n = first + {self.chunk} <= {size} ? {self.chunk} : {size % self.chunk};")
            limit = "n"
        if self.raw and all(walk[-1] == 1 for walk in self.strides):
            return [*lines, f"memcpy(x1, x0, (size_t){limit} * sizeof *x1);"]
        if size >= self.lanes:
            lines += [f"long i = 0; for (; i + LANES <= {limit}; i += LANES) {{", *self._body("LANES"), "}"]
        else:
            lines.append("const long i = 0;")
        if tail:
            lines += ["if (i < n) {" if self.chunks > 1 else "{", *self._body(str(tail)), "}"]
        return lines

    def _register(self, i: int, view: View, loaded: str) -> str:
        return f"const __auto_type s{i} = {loaded if self.raw else from_memory(loaded, view.dtype)};"

    def _body(self, count: str) -> list[str]:
        lines = []
        for i, view in enumerate(self.inputs):
            stride = self.strides[i][-1]
            if stride:
                lines.append(self._register(i, view, _load(view.dtype, f"x{i}", stride, count)))
        written, results = self.write([f"s{i}" for i in range(len(self.inputs))])
        lines += written
        for i, (view, name) in enumerate(zip(self.outputs, results, strict=True), len(self.inputs)):
            stored = name if self.raw else to_memory(name, view.dtype)
            lines.append(_store(view.dtype, f"x{i}", self.strides[i][-1], stored, count))
        return lines


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
