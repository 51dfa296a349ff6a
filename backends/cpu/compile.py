"""The CPU backend from graph to artefact."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur.backends.artifact import Program, load, write_manifest
from secateur.backends.cpu.emit import emit
from secateur.backends.cpu.legalize import legalize
from secateur.backends.cpu.lower import Lowered, Step, lower
from secateur.backends.cpu.plan import plan
from secateur.backends.cpu.prefer import keep_float
from secateur.backends.cpu.quantized import check_request, executor, lowered, quantized
from secateur.backends.cpu.target import Target, find_target
from secateur.backends.cpu.toolchain import FLAGS, build, find_compiler
from secateur.backends.cpu.views import ARENA, WEIGHT, Buffer
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Value
from secateur.ir.opdef import lookup
from secateur.passes.base import Pass
from secateur.passes.manager import PassManager, PassRecord, resolve
from secateur.passes.quantize import Recipe

PIPELINE = "cpu"
Progress = Callable[[str, float], None]
# Words of C, and files and functions that every artefact has.
_WORDS = """asm auto break case char const continue default do double else enum extern float for goto if inline int
    long register restrict return short signed sizeof static struct switch typedef typeof union unsigned void volatile
    while pool program pthread secateur"""
_TAKEN = frozenset(_WORDS.split())


@dataclass(frozen=True)
class Options:
    """How a graph is compiled.

    Attributes:
        target: a name of `TARGETS`, or `native`.
        pipeline: what runs before the backend's own passes: a pipeline's name, or a list of passes.
        threads: fixed number of threads; by default chosen when the program is loaded: one for each
            processor that the process may use.
        cc: the C compiler.
        name: prefix of all C symbols, lower-case letters, digits and underscores.
        quantize: how a float graph is quantised first: a recipe, or the name of one.
        calibration: for that: what real inputs look like, in any form that `open_batches` takes.
        integers: where quantised products work in integers: `auto` where floats are not estimated to be faster on
            the target, `always` wherever they can, which gives the same bits on every target.

    Raises:
        CompileError: a name, a recipe or a number of threads that cannot be; calibration data with nothing to
            quantise, or none where activations are quantised.
    """

    target: str = "native"
    pipeline: str | Sequence[str | Pass] = "default"
    threads: int | None = None
    cc: str | None = None
    name: str = "model"
    quantize: str | Recipe | None = None
    calibration: Any = None
    integers: str = "auto"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", self.name):
            raise CompileError(f"name {self.name!r} must be lower-case letters, digits and underscores")
        if self.name in _TAKEN or self.name.startswith("kernels_"):
            raise CompileError(f"the name {self.name!r} means something else in C or in the artefact")
        if self.threads is not None and not 1 <= self.threads <= 256:
            raise CompileError(f"threads must be 1 to 256, got {self.threads}")
        if self.integers not in ("auto", "always"):
            raise CompileError(f"integers must be 'auto' or 'always', got {self.integers!r}")
        check_request(self.quantize, self.calibration)


DEFAULTS = Options()


def compile_graph(graph: Graph, options: Options = DEFAULTS, progress: Progress | None = None) -> Program:
    """Compile a graph to native code in a temporary folder and open it.

    Args:
        graph: left as it is.
        progress: called with a stage and its share done, 0..1.

    Raises:
        CompileError: an op without a kernel, an unknown target or pass, a failing C compiler.
    """
    folder = tempfile.TemporaryDirectory(prefix="secateur-", ignore_cleanup_errors=True)
    try:
        compile_to(Path(folder.name), graph, options, progress)
        program = load(folder.name)
    except CompileError as error:
        if "the C compiler failed" not in error.message:
            folder.cleanup()
        else:
            folder._finalizer.detach()  # type: ignore[attr-defined]  # the source is kept for a look
        raise
    program._keep = folder
    return program


def compile_to(folder: Path, graph: Graph, options: Options = DEFAULTS, progress: Progress | None = None) -> None:
    """Write the artefact of a graph into an existing folder. Arguments and errors as `compile_graph`."""
    start = time.perf_counter()
    report = progress or (lambda stage, share: None)
    name, count = options.name, options.threads or 0
    machine, compiler = find_target(options.target), find_compiler(options.cc)
    inputs, outputs = _describe(graph.inputs), _describe(graph.outputs)
    optimized, passes, record = _prepared(graph, options, machine, report)
    report("passes", 1.0)
    legalize(optimized, machine)
    program = lower(optimized, machine, lambda share: report("kernels", share))
    arena_bytes = plan(program)
    kernels, buffers = _kernels(program), _memory(program)
    written = emit(program, folder, name, arena_bytes, count)
    report("kernels", 1.0)
    build(folder, written.sources, f"lib{name}.so", machine, compiler, lambda share: report("C compiler", share))
    report("C compiler", 1.0)
    write_manifest(
        folder,
        {
            "name": name,
            "library": f"lib{name}.so",
            "inputs": inputs,
            "outputs": outputs,
            "target": machine.name,
            "machine": machine.machine,
            "features": list(machine.features),
            "threads": count,
            "arena_bytes": arena_bytes,
            "scratch_bytes": written.scratch_bytes,
            "weights_bytes": written.weights_bytes,
            "compile_seconds": round(time.perf_counter() - start, 3),
            "compiler": compiler.version(),
            "flags": [*FLAGS, *machine.flags],
            "sources": written.sources,
            "passes": [{"name": r.name, "seconds": round(r.seconds, 4), "ops": r.ops_after} for r in passes],
            "kernels": [{**row, "function": fn} for row, fn in zip(kernels, written.kernels, strict=True)],
            "buffers": buffers,
            **({"quantization": record} if record else {}),
        },
    )


def _prepared(
    graph: Graph, options: Options, machine: Target, report: Progress
) -> tuple[Graph, list[PassRecord], dict[str, Any]]:
    """All that happens to a graph before kernels are chosen: passes, quantisation, the backend's own passes.

    Returns:
        A new graph, what each pass did, and what the manifest says of quantisation; nothing for a float graph.
    """
    passes, backend = PassManager(resolve(options.pipeline)), PassManager(resolve(PIPELINE))
    result = passes.run(graph.clone())
    record: dict[str, Any] = {}
    if options.quantize is not None:
        plain = replace(options, pipeline="none", quantize=None, calibration=None)
        run = executor(lambda part: compile_graph(part, plain))
        result, record = quantized(result, options.quantize, options.calibration, run, report)
    has_integers = any(op.name in ("quantize", "dequantize") for op in result.walk())
    kept = []
    if has_integers and options.integers == "auto":
        kept = [
            {"op": str(item.op.span or item.op.name), "reason": item.reason} for item in keep_float(result, machine)
        ]
    result = backend.run(result)
    if has_integers:
        record |= lowered(result) | {"kept_float": kept}
    return result, [*passes.records, *backend.records], record


def _describe(values: Sequence[Value]) -> list[dict[str, Any]]:
    return [{"name": v.hint, "dtype": v.type.dtype.value, "shape": list(v.type.shape)} for v in values]


def _kernels(program: Lowered) -> list[dict[str, Any]]:
    """A row for each step: what it computes, where that came from, why this kernel, and the buffers it touches."""
    rows = []
    numbers = {buffer: number for number, buffer in enumerate(_placed(program))}
    for number, step in enumerate(program.steps):
        flops = moved = 0
        name, result, module = "copy", "", ""
        if step.op:
            flops, moved = lookup(step.op.name).cost(step.op)
            name = step.op.attrs["kind"] if step.op.name == "fusion" else step.op.name
            result = str(step.op.results[0].type)
            module = str(step.op.span) if step.op.span else ""
        rows.append(
            {
                "step": number,
                "family": step.family,
                "op": name,
                "result": result,
                "flops": flops,
                "bytes": moved,
                "source": module,
                "why": step.kernel.note or step.why,
                **_touched(step, numbers),
            }
        )
    return rows


def _placed(program: Lowered) -> list[Buffer]:
    """The buffers of the memory plan, in order: arena, inputs and outputs, but no weights."""
    return [buffer for buffer in program.buffers if buffer.kind != WEIGHT and buffer.first >= 0]


def _memory(program: Lowered) -> list[dict[str, Any]]:
    """The memory plan: where each buffer lies (`offset` in the arena, or `index` of the input or output), and when."""
    return [
        {
            "kind": b.root.kind,
            **({"offset": b.root.offset} if b.root.kind == ARENA else {"index": b.root.index}),
            "bytes": b.bytes,
            "first": b.first,
            "last": b.last,
        }
        for b in _placed(program)
    ]


def _touched(step: Step, numbers: dict[Buffer, int]) -> dict[str, list[int]]:
    """Which buffers a step reads and writes, by their numbers in the memory plan."""
    touched: dict[str, list[int]] = {"reads": [], "writes": []}
    for view, item in zip(step.args, step.kernel.args, strict=True):
        if view.buffer in numbers:
            touched["writes" if isinstance(item, tuple) else "reads"].append(numbers[view.buffer])
    return touched
