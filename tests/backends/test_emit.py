"""The C text: nothing of the model's own names in it, equal kernels and weights once, any name for the library."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from secateur.backends.artifact import MANIFEST, load
from secateur.backends.cpu.compile import Options, compile_graph, compile_to
from secateur.backends.cpu.emit import indent
from secateur.backends.cpu.plan import ALIGNMENT
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.graph import Graph, Op
from secateur.ir.interpret import interpret
from secateur.ir.text import parse
from secateur.ir.types import TensorType

SEED = int(np.random.default_rng().integers(1 << 30))
HOSTILE = [
    'quote " quote',
    "*/ int main(void) { return 1; } /*",
    "back\\slash\\",
    "new\nline\r\n#error gotcha",
    "??/ trigraph %s %n {0} {name}",
    "<b>&lt;html&gt;</b> | {dot} -> [label]",
    "NAME KERNEL(x) ARENA(0)",
    "naïve ∑ 名前 \u202e",
    '"; __asm__(".incbin /etc/passwd"); //',
    "'; DROP TABLE models; --",
    "nul\0byte",
    "\ud800 lone surrogate",
]
MARK = "zzhostile"  # in front of every hostile name: no file may hold it


def hostile_graph(text: str) -> Graph:
    """A network whose every name, of graph, inputs, weights, fusion and source, is the text."""
    name = MARK + text
    rng = np.random.default_rng(SEED)
    b = Builder.graph(name)
    b.span = Span(name, 3, 4, name)
    x = b.into.add_input(TensorType.parse("f32[8,16]"), name)
    weight = b.constant(rng.standard_normal((32, 16), dtype=np.float32), name=f"{name}.weight")
    hidden = b.linear(x, weight)
    body = Builder.graph(name, h=hidden.type)
    body.span = b.span
    inner = body.returns(body.silu(body.square(body["h"])))
    hidden = b.fusion(hidden, body=inner, kind=name)
    hidden.hint = name
    joined = b.concat(hidden, hidden, axis=1)
    joined.hint = name
    return b.returns(joined, b.softmax(hidden, axis=1))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("pipeline", ["none", "default"])
def test_names_of_the_model_stay_out_of_the_c_files(text: str, pipeline: str) -> None:
    graph = hostile_graph(text)
    x = np.random.default_rng(SEED).standard_normal((8, 16), dtype=np.float32)
    program = compile_graph(graph, Options(pipeline=pipeline))
    for actual, expected in zip(program(x), interpret(graph, x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    for path in program.folder.iterdir():
        if path.name != MANIFEST:
            assert MARK.encode() not in path.read_bytes(), path.name
    manifest = json.loads((program.folder / MANIFEST).read_text())
    assert manifest["inputs"][0]["name"] == MARK + text
    str(program.report())
    with pytest.raises(CompileError, match="takes 1 inputs, got 0"):
        program()
    with pytest.raises(CompileError, match="input 0"):
        program(x[:1])


def functions(folder: Path) -> list[str]:
    """The kernels that the C files define."""
    text = "".join(path.read_text() for path in folder.glob("kernels_*.c"))
    return re.findall(r"^KERNEL\((\w+)\) \{", text, re.MULTILINE)


def test_equal_kernels_are_emitted_once() -> None:
    rng = np.random.default_rng(SEED)
    b = Builder.graph("m", x="f32[16,32]")
    value = b["x"]
    for _ in range(6):
        value = b.linear(b.softmax(value, axis=1), rng.standard_normal((32, 32), dtype=np.float32))
    program = compile_graph(b.returns(value))
    rows = program.manifest["kernels"]
    assert len(rows) == 12
    defined = functions(program.folder)
    assert len(defined) == len(set(defined)) == len({row["function"] for row in rows}) <= 3
    assert {row["function"] for row in rows} == set(defined)
    assert all(re.fullmatch(r"model_[a-z_]+_\d+", name) for name in defined)


def test_equal_weights_are_stored_once() -> None:
    rng = np.random.default_rng(SEED)
    table = rng.standard_normal((40, 32), dtype=np.float32)
    sizes = []
    for copies in (1, 5):
        b = Builder.graph("m", x="i64[4]")
        rows = [b.gather(b.constant(table.copy(), name=f"t{i}"), b["x"], axis=0) for i in range(copies)]
        graph = b.returns(b.concat(*rows, axis=0))
        program = compile_graph(graph, Options(pipeline="none"))
        sizes.append((program.folder / "weights.bin").stat().st_size)
        assert program.manifest["weights_bytes"] == sizes[-1] and sizes[-1] % ALIGNMENT == 0
        indices = np.array([3, 0, 39, 3])
        np.testing.assert_array_equal(program(indices), np.tile(table[indices], (copies, 1)))
    assert sizes[0] == sizes[1] >= table.nbytes


def test_source_is_the_same_at_every_compile(tmp_path: Path) -> None:
    """Neither times, nor paths, nor the order of a set reach what is emitted."""
    texts = []
    for attempt in ("a", "b"):
        (tmp_path / attempt).mkdir()
        compile_to(tmp_path / attempt, hostile_graph("x"))
        files = [path for path in sorted((tmp_path / attempt).iterdir()) if path.name != MANIFEST]
        texts.append({path.name: path.read_bytes() for path in files})
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["m", "resnet_50", "math", "string", "stdio", "main", "kernel", "a" * 41])
def test_the_name_prefixes_files_and_functions(tmp_path: Path, name: str) -> None:
    b = Builder.graph("m", x="f32[4]")
    compile_to(tmp_path, b.returns(b.tanh(b["x"])), Options(name=name))
    files = {path.name for path in tmp_path.iterdir()}
    assert {f"{name}.c", f"{name}.h", f"lib{name}.so", "secateur.h", "program.h", "pool.c"} <= files
    header = (tmp_path / f"{name}.h").read_text()
    for verb in ("create", "run", "destroy"):
        assert f" {name}_{verb}(struct {name} *" in header
    x = np.linspace(-1, 1, 4, dtype=np.float32)
    np.testing.assert_allclose(load(tmp_path)(x), np.tanh(x), rtol=1e-6)


@pytest.mark.parametrize("name", ["", "M", "7up", "a-b", "a b", "ä", "a" * 42, "a\n"])
def test_names_that_are_no_prefix(tmp_path: Path, name: str) -> None:
    b = Builder.graph("m", x="f32[4]")
    with pytest.raises(CompileError, match="must be lower-case letters, digits and underscores"):
        compile_to(tmp_path, b.returns(b.tanh(b["x"])), Options(name=name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["int", "struct", "program", "pool", "secateur", "kernels_0", "pthread"])
def test_names_that_are_taken(tmp_path: Path, name: str) -> None:
    b = Builder.graph("m", x="f32[4]")
    with pytest.raises(CompileError, match=f"the name '{name}' means something else in C or in the artefact"):
        compile_to(tmp_path, b.returns(b.tanh(b["x"])), Options(name=name))
    assert not list(tmp_path.iterdir())


def test_programs_without_inputs_and_without_work() -> None:
    b = Builder.graph("constant")
    program = compile_graph(b.returns(b.constant(np.arange(5, dtype=np.float32))))
    np.testing.assert_array_equal(program(), np.arange(5))
    b = Builder.graph("identity", x="f32[3]", y="i8[0,4]")
    x, y = np.ones(3, np.float32), np.zeros((0, 4), np.int8)
    results = compile_graph(b.returns(b["x"], b["y"], b["x"]))(x, y)
    assert [(r.shape, r.dtype) for r in results] == [(x.shape, x.dtype), (y.shape, y.dtype), (x.shape, x.dtype)]
    np.testing.assert_array_equal(results[0], x)
    b = Builder.graph("nothing", x="f32[3]")
    assert compile_graph(b.returns())(x) == ()


def test_all_that_an_op_without_a_kernel_says() -> None:
    graph = parse("graph @m(%x: f32[2]) -> (f32[2]) {\n  %0 = relu(%x) : f32[2]\n  return %0\n}\n")
    op: Op = next(graph.ops)
    op.name = "frobnicate"
    with pytest.raises(CompileError, match="frobnicate"):
        compile_graph(graph, Options(pipeline="none"))


def test_generated_code_is_indented_by_its_braces() -> None:
    assert indent("a {\nb;\n} else {\n#pragma x\nif (c) { d; }\n}\n\ne;") == (
        "a {\n    b;\n} else {\n#pragma x\n    if (c) { d; }\n}\n\ne;"
    )
    rng = np.random.default_rng(SEED)
    b = Builder.graph("m", x="f32[1,8,8,16]")
    weight = rng.standard_normal((16, 16, 3, 3), dtype=np.float32)
    conv = b.conv(b["x"], weight, stride=(1, 1), padding=(1,) * 4, dilation=(1, 1), channels_last=True)
    program = compile_graph(b.returns(b.silu(conv)))
    for path in program.folder.glob("*.c"):
        depth = 0
        for line in path.read_text().splitlines():
            depth += line.count("{") - line.count("}")
            assert depth >= 0
        assert depth == 0, path.name
