"""Steps -> C: the list of steps, the kernels in files that compile in parallel, the header, the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.backends.cpu.lower import Lowered, Step
from secateur.backends.cpu.plan import ALIGNMENT
from secateur.backends.cpu.views import ARENA, INPUT, OUTPUT, WEIGHT, View
from secateur.ir.types import TensorType

RUNTIME = Path(__file__).parent / "runtime"
HEADERS = ("integer.h", "dot.h", "amx.h")  # what kernels include besides secateur.h and program.h
PARTS = 4  # files the kernels are spread over
_VERBS = ("create", "run", "destroy", "barrier", "claim", "steps", "weights")
_INTERNAL = tuple(f"program_{verb}" for verb in _VERBS)


@dataclass(frozen=True)
class Emitted:
    """What was written: C sources in the folder, the weights' size, the kernels' names by step."""

    sources: list[str]
    weights_bytes: int
    scratch_bytes: int
    kernels: list[str]


def emit(program: Lowered, folder: Path, name: str, arena_bytes: int, threads: int) -> Emitted:
    """Write everything a C compiler needs into `folder`. `name` is a C identifier and prefixes all symbols."""
    weights_bytes = write_weights(program, folder / "weights.bin")
    kernels, names = _name_kernels(program.steps, name)
    scratch = max((step.kernel.scratch for step in program.steps), default=0)
    (folder / "secateur.h").write_text(_prelude(program) + (RUNTIME / "secateur.h").read_text())
    for header in HEADERS:
        (folder / header).write_text((RUNTIME / header).read_text())
    renames = "".join(f"#define {symbol} {name}_{symbol}\n" for symbol in _INTERNAL)
    (folder / "program.h").write_text(renames + (RUNTIME / "program.h").read_text())
    (folder / "pool.c").write_text((RUNTIME / "pool.c").read_text())
    (folder / f"{name}.h").write_text(_header(program, name))
    (folder / f"{name}.c").write_text(_main(program, names, kernels, name, arena_bytes, scratch, threads))
    sources = [f"{name}.c", "pool.c"]
    for number, part in enumerate(_balance(kernels)):
        file = f"kernels_{number}.c"
        text = "\n\n".join(code.replace("NAME", kernel) for kernel, code in part)
        includes = "".join(f'#include "{header}"\n' for header in ("secateur.h", *HEADERS, "program.h"))
        (folder / file).write_text(f"{includes}\n{indent(text)}\n")
        sources.append(file)
    return Emitted(sources, weights_bytes, scratch, names)


def write_weights(program: Lowered, path: Path) -> int:
    """Lay the weight buffers out in one file, equal ones once; returns its size."""
    seen: dict[bytes, int] = {}
    offset = 0
    with path.open("wb") as file:
        for buffer in program.buffers:
            if buffer.kind != WEIGHT or buffer.data is None or buffer.first < 0:
                continue
            data = np.ascontiguousarray(buffer.data)
            raw = data.reshape(-1).view(np.uint8).data if data.size else b""
            key = hashlib.blake2b(raw, digest_size=16).digest()
            if key not in seen:
                seen[key] = offset
                file.write(raw)
                padded = -(-data.nbytes // ALIGNMENT) * ALIGNMENT
                file.write(b"\0" * (padded - data.nbytes))
                offset += padded
            buffer.offset = seen[key]
            buffer.data = None  # written: the program needs it no more
    return offset


def _name_kernels(steps: Sequence[Step], name: str) -> tuple[dict[str, str], list[str]]:
    """Distinct kernel code by name, and each step's kernel name."""
    by_code: dict[str, str] = {}
    names = []
    for step in steps:
        code = step.kernel.code
        if code not in by_code:
            by_code[code] = f"{name}_{step.family}_{len(by_code)}"
        names.append(by_code[code])
    return {kernel: code for code, kernel in by_code.items()}, names


def _balance(kernels: dict[str, str]) -> list[list[tuple[str, str]]]:
    """Spread kernels over at most PARTS files of about equal length."""
    parts: list[list[tuple[str, str]]] = [[] for _ in range(min(PARTS, len(kernels)))]
    sizes = [0] * len(parts)
    for kernel, code in sorted(kernels.items(), key=lambda item: -len(item[1])):
        smallest = sizes.index(min(sizes))
        parts[smallest].append((kernel, code))
        sizes[smallest] += len(code)
    return parts


def _prelude(program: Lowered) -> str:
    return f"#define VECTOR_BYTES {program.target.vector_bytes}\n"


def _header(program: Lowered, name: str) -> str:
    graph = program.graph
    guard = f"{name.upper()}_H"

    def describe(values: Sequence[TensorType]) -> str:
        return "".join(f" *   [{i}] {type}, row-major, {type.bytes} bytes\n" for i, type in enumerate(values))

    return f"""/* A compiled neural network. Link lib{name}.so, or compile the .c files beside this header
 * with the flags in manifest.json; nothing but libc, libm and threads is needed.
 *
 * Inputs:
{describe([v.type for v in graph.inputs])} * Outputs:
{describe([v.type for v in graph.outputs])} */
#ifndef {guard}
#define {guard}

#ifdef __cplusplus
extern "C" {{
#endif

#define {name.upper()}_INPUTS {len(graph.inputs)}
#define {name.upper()}_OUTPUTS {len(graph.outputs)}

struct {name};

/* Allocate all memory and start the threads; `threads` of 0 takes the number fixed at compile time or,
 * where none was, that of the processors this process may use. The processor must have the features
 * that manifest.json lists: nothing checks them here.
 * Returns 0, -1 for a bad number of threads, -2 when memory, -3 when a thread cannot be had, -4 when the
 * system refuses the AMX registers that the code uses. */
int {name}_create(struct {name} **m, int threads);

/* Compute the outputs. Nothing is allocated. Outputs must not overlap inputs or each other.
 * Calls on one instance from several threads wait for each other; use an instance each to overlap.
 * Returns 0. */
int {name}_run(struct {name} *m, const void *const inputs[], void *const outputs[]);

/* Stop the threads and free everything. NULL is allowed. */
void {name}_destroy(struct {name} *m);

#ifdef __cplusplus
}}
#endif
#endif
"""


def _main(
    program: Lowered,
    names: list[str],
    kernels: dict[str, str],
    name: str,
    arena_bytes: int,
    scratch_bytes: int,
    threads: int,
) -> str:
    declarations = "\n".join(f"KERNEL({kernel});" for kernel in kernels)
    lines = []
    for step, kernel in zip(program.steps, names, strict=True):
        call = "STEP_SERIAL" if step.serial else "STEP"
        pointers = ", ".join(_pointer(view) for view in step.args)
        shown = f"    /* {_describe(step)} */\n" if step.op else ""
        lines.append(f"{shown}    {call}({kernel}, {step.kernel.tasks}, {pointers});")
    steps = "\n".join(lines)
    # Where every step runs on one thread, others would only be woken and waited for.
    parallel = any(not step.serial for step in program.steps)
    choice = (f"threads ? threads : {threads}" if threads else "threads") if parallel else "threads < 0 ? threads : 1"
    return f"""#include "{name}.h"

#include "program.h"

#define EXPORT __attribute__((visibility("default")))
#define ARENA(offset) (void *)(m->memory + (offset))
#define WEIGHTS(offset) (void *)(program_weights + (offset))
#define INPUT(index) (void *)m->inputs[index]
#define OUTPUT(index) (void *)m->outputs[index]

/* weights.bin, placed in the read-only data of the library. */
__asm__(
    ".pushsection .rodata\\n"
    ".hidden {name}_program_weights\\n"
    ".globl {name}_program_weights\\n"
    ".balign 64\\n"
    "{name}_program_weights:\\n"
    ".incbin \\"weights.bin\\"\\n"
    ".zero 64\\n"
    ".popsection\\n"
);
extern const char program_weights[] __attribute__((visibility("hidden")));

{declarations}

void program_steps(struct program *m, int thread) {{
    char *const scratch = m->scratch + (size_t)thread * m->scratch_bytes;
    (void)scratch;
{steps}
}}

EXPORT int {name}_create(struct {name} **m, int threads) {{
    return program_create((struct program **)m, {choice}, {arena_bytes}, {scratch_bytes});
}}

EXPORT int {name}_run(struct {name} *m, const void *const inputs[], void *const outputs[]) {{
    return program_run((struct program *)m, inputs, outputs);
}}

#ifdef PROFILE
/* Where the next runs write their seconds: when they began, each step's end, and their own end. */
EXPORT void {name}_stamps(struct {name} *m, double *stamps) {{
    ((struct program *)m)->stamps = stamps;
}}
#endif

EXPORT void {name}_destroy(struct {name} *m) {{
    program_destroy((struct program *)m);
}}
"""


def _pointer(view: View) -> str:
    """C for the address of a view's first element."""
    root, shift = view.buffer.root, view.offset * view.dtype.bytes
    if root.kind in (INPUT, OUTPUT):
        return f"{root.kind.upper()}({root.index})" + (f" + {shift}" if shift else "")
    return f"{'ARENA' if root.kind == ARENA else 'WEIGHTS'}({view.buffer.offset + shift})"


def _describe(step: Step) -> str:
    """What a step computes, in names of our own only: nothing from the model reaches the C text."""
    op = step.op
    assert op is not None
    inner = [o.name for o in op.attrs["body"].ops if o.name != "constant"] if op.name == "fusion" else [op.name]
    return f"{' + '.join(inner)} -> {', '.join(str(value.type) for value in op.results)}"


def indent(code: str) -> str:
    """Indent C by its braces: generated code is meant to be read."""
    depth, lines = 0, []
    for raw in code.splitlines():
        line = raw.strip()
        depth -= line.startswith("}")
        lines.append("    " * depth + line if line and not line.startswith("#") else line)
        depth += line.count("{") - line.count("}") + line.startswith("}")
    return "\n".join(lines)
