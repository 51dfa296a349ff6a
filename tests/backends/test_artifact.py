"""The artefact: what is saved runs elsewhere, from C and from Python; what is damaged says so."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import secateur
from secateur.backends.artifact import MANIFEST, Program, _seal, load, write_manifest
from secateur.backends.cpu import lower
from secateur.backends.cpu.compile import Options, compile_graph
from secateur.backends.cpu.target import find_target
from secateur.backends.cpu.toolchain import find_compiler
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.ir.interpret import interpret

SEED = int(np.random.default_rng().integers(1 << 30))
DATA_FILES = ["libmodel.so", "model.c", "model.h", "secateur.h", "program.h", "pool.c", "weights.bin"]


@pytest.fixture
def rng() -> np.random.Generator:
    print("seed", SEED)
    return np.random.default_rng(SEED)


def network(seed: int) -> Graph:
    """Two inputs of different types, two results of different types, weights, and work for several threads."""
    rng = np.random.default_rng(seed)
    b = Builder.graph("net", x="f32[64,48]", rows="i64[5]")
    hidden = b.gelu(b.linear(b["x"], rng.standard_normal((96, 48), dtype=np.float32), np.zeros(96, np.float32)))
    hidden = b.softmax(b.linear(hidden, rng.standard_normal((32, 96), dtype=np.float32)), axis=1)
    return b.returns(b.gather(hidden, b["rows"], axis=0), b.argmax(hidden, axis=1, keepdims=False))


def network_inputs(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal((64, 48), dtype=np.float32), rng.integers(0, 64, 5)]


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_graph(network(SEED), Options(threads=2))


@pytest.fixture
def folder(program: Program, tmp_path: Path) -> Path:
    """A copy of the artefact to break."""
    return program.save(tmp_path / "saved")


def assert_equal(actual: Any, expected: Any) -> None:
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


# Saving and loading -------------------------------------------------------------------------------


def test_save_and_load(program: Program, folder: Path, rng: np.random.Generator) -> None:
    inputs = network_inputs(rng)
    results = program(*inputs)
    expected = interpret(network(SEED), *inputs)
    np.testing.assert_allclose(results[0], expected[0], rtol=1e-4, atol=1e-6)
    assert_equal(load(folder)(*inputs), results)
    assert {item.name for item in folder.iterdir()} >= {*DATA_FILES, MANIFEST}
    assert [item.name for item in folder.parent.iterdir()] == ["saved"]
    assert load(folder).report() == program.report()
    assert "gelu" in str(program.report()) or "linear" in str(program.report())


def test_a_saved_folder_is_as_public_as_any_other(folder: Path) -> None:
    (folder.parent / "plain").mkdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((folder.parent / "plain").stat().st_mode)


def test_saving_replaces_an_artefact_and_fills_an_empty_folder(program: Program, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for _ in range(2):
        program.save(tmp_path / "m")
        load(tmp_path / "m")
    loaded = load(tmp_path / "m")
    loaded.save(tmp_path / "m")  # onto itself
    program.save(tmp_path / "made" / "on" / "the" / "way")
    load(tmp_path / "made" / "on" / "the" / "way")


def test_an_artefact_replaced_by_another_is_loaded_afresh(tmp_path: Path) -> None:
    """The dynamic loader remembers libraries by path, even when nobody uses them any more."""
    for value in (1.0, 2.0, 3.0, 1.0):
        b = Builder.graph("m", x="f32[4]")
        compile_graph(b.returns(b.mul(b["x"], np.array(value, np.float32)))).save(tmp_path / "m")
        loaded = load(tmp_path / "m")
        np.testing.assert_array_equal(loaded(np.ones(4, np.float32)), np.full(4, value, np.float32))


def test_a_relative_path_and_the_current_folder(
    folder: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = network_inputs(rng)
    expected = load(folder)(*inputs)
    monkeypatch.chdir(folder)
    assert_equal(load(".")(*inputs), expected)
    monkeypatch.chdir(folder.parent)
    assert_equal(load("saved")(*inputs), expected)


def test_a_deleted_artefact_keeps_running(folder: Path, rng: np.random.Generator) -> None:
    inputs = network_inputs(rng)
    loaded = load(folder)
    expected = loaded(*inputs)
    shutil.rmtree(folder)
    assert_equal(loaded(*inputs), expected)


# From C -------------------------------------------------------------------------------------------

CALLER = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "model.h"

int main(int count, char **arguments) {
    static float x[64 * 48], y[5 * 32];
    static int64_t rows[5], best[64];
    FILE *file = fopen(arguments[1], "rb");
    if (count != 2 || fread(x, sizeof x, 1, file) != 1 || fread(rows, sizeof rows, 1, file) != 1) return 10;
    const void *const inputs[MODEL_INPUTS] = {x, rows};
    void *const outputs[MODEL_OUTPUTS] = {y, best};
    struct model *m;
    if (model_create(&m, 0)) return 11;
    for (int i = 0; i < 3; i++) if (model_run(m, inputs, outputs)) return 12;
    model_destroy(m);
    model_destroy(NULL);
    for (int i = 0; i < 5 * 32; i++) printf("%.9g\n", y[i]);
    for (int i = 0; i < 64; i++) printf("%lld\n", (long long)best[i]);
    return 0;
}
"""


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def from_c(program: Path, folder: Path, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """What the C program prints for the inputs."""
    (folder / "inputs.bin").write_bytes(b"".join(array.tobytes() for array in inputs))
    numbers = run([str(program), "inputs.bin"], folder).split()
    return [np.array(numbers[:160], np.float32).reshape(5, 32), np.array(numbers[160:], np.int64)]


def test_a_c_program_links_the_library(program: Program, folder: Path, rng: np.random.Generator) -> None:
    inputs = network_inputs(rng)
    (folder.parent / "caller.c").write_text(CALLER)
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    link = ["-Isaved", "-Lsaved", "-lmodel", "-Wl,-rpath,$ORIGIN/saved", "-o", "caller"]
    run([*find_compiler().command, *strict, "caller.c", *link], folder.parent)
    assert_equal(from_c(folder.parent / "caller", folder.parent, inputs), program(*inputs))


def test_the_source_is_sufficient(program: Program, folder: Path, rng: np.random.Generator) -> None:
    """The .c files beside the header, compiled by hand with the manifest's flags."""
    inputs = network_inputs(rng)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / "libmodel.so").unlink()
    (folder / "caller.c").write_text(CALLER)
    compiler = find_compiler()
    extra = compiler.target_flags(find_target(manifest["target"])) if compiler.zig else []
    flags = [flag for flag in manifest["flags"] if not (compiler.zig and flag.startswith("-march"))]
    sources = ["caller.c", *manifest["sources"]]
    run([*compiler.command, *flags, *extra, *sources, "-lm", "-lpthread", "-o", "caller"], folder)
    assert_equal(from_c(folder / "caller", folder, inputs), program(*inputs))


def test_the_library_needs_nothing_and_exports_three_functions(folder: Path) -> None:
    library = (folder / "libmodel.so").read_bytes()
    assert b"libc.so" in library
    for name in (b"libstdc++", b"libgomp", b"libomp", b"libpython"):
        assert name not in library
    opened = ctypes.CDLL(str(folder / "libmodel.so"))
    for name in ("model_create", "model_run", "model_destroy"):
        assert hasattr(opened, name)
    for name in ("model_program_run", "program_run", "program_steps", "model_program_weights", "program_weights"):
        assert not hasattr(opened, name)


MEASURE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "model.h"

int main(void) {
    const void *const inputs[] = {calloc(256 * 2048, sizeof(float))};
    void *const outputs[] = {malloc(256 * 2048 * sizeof(float))};
    struct model *m;
    if (model_create(&m, 2)) return 1;
    for (int i = 0; i < 3; i++) model_run(m, inputs, outputs);
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, status)) if (!strncmp(line, "VmHWM:", 6)) printf("%s", line + 6);
    model_destroy(m);
    return 0;
}
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_running_needs_weights_and_arena_and_little_else(tmp_path: Path, rng: np.random.Generator) -> None:
    b = Builder.graph("m", x="f32[256,2048]")
    value = b["x"]
    for _ in range(3):
        value = b.relu(b.linear(value, rng.standard_normal((2048, 2048), dtype=np.float32)))
    program = compile_graph(b.returns(value))
    program.save(tmp_path / "saved")
    (tmp_path / "measure.c").write_text(MEASURE)
    link = ["-Isaved", "-Lsaved", "-lmodel", "-Wl,-rpath,$ORIGIN/saved", "-o", "measure"]
    run([*find_compiler().command, "measure.c", *link], tmp_path)
    resident = int(run([str(tmp_path / "measure")], tmp_path).split()[0]) << 10
    report, tensors = program.report(), 2 * 256 * 2048 * 4
    assert report["weights_bytes"] >= 3 * 2048 * 2048 * 4
    assert resident <= report["weights_bytes"] + report["arena_bytes"] + tensors + (16 << 20)


# With nothing but NumPy ---------------------------------------------------------------------------

ALONE = """
import sys
from importlib.abc import MetaPathFinder

class OnlyNumPy(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("numpy", "secateur") or top.startswith("__editable__"):
            return None
        raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, OnlyNumPy())
for name in ("torch", "lark", "ml_dtypes"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is there after all")

import numpy as np
import secateur

program = secateur.load(sys.argv[1])
data = np.load(sys.argv[2])
results = program(*(data[name] for name in sorted(data)))
np.savez(sys.argv[3], *results)
program.report()
try:
    program()
except secateur.CompileError as error:
    print(error)
"""


def test_numpy_is_all_that_running_needs(program: Program, folder: Path, rng: np.random.Generator) -> None:
    inputs = network_inputs(rng)
    np.savez(folder.parent / "in.npz", *inputs)
    printed = run([sys.executable, "-c", ALONE, str(folder), "in.npz", "out.npz"], folder.parent)
    assert printed == "the program takes 2 inputs, got 0\n"
    with np.load(folder.parent / "out.npz") as results:
        assert_equal([results["arr_0"], results["arr_1"]], program(*inputs))


# Damage -------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGE = {flip: "does not match its hash", truncate: "the manifest says", empty: "has 0 bytes"}
DAMAGE |= {Path.unlink: "is missing", replace_by_link: "is missing"}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", DATA_FILES)
def test_a_damaged_file_is_named(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    with pytest.raises(CompileError, match=DAMAGE[damage]) as caught:
        load(folder)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_any_flipped_bit_of_the_manifest_is_noticed(folder: Path, rng: np.random.Generator) -> None:
    whole = (folder / MANIFEST).read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged) - 1)] ^= 1 << rng.integers(8)
        (folder / MANIFEST).write_bytes(damaged)
        if damaged.isspace() or _means_the_same(damaged, whole):
            continue
        with pytest.raises(CompileError):
            load(folder)


def _means_the_same(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "{}", "[" * 100_000, '{"format": 1}', "\udcff"])
def test_what_is_no_manifest(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CompileError, match="is not a readable manifest"):
        load(folder)


def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.update(fields)


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.pop(name)


def change_input(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["inputs"][0].update(fields)


MANIFESTS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (change(format=99), "has format 99, this version reads 1"),
    (change(machine="pdp11"), f"is for pdp11, this machine is {platform.machine()}"),
    (change(features=["avx1024", "telepathy"]), "CPU features this machine lacks: avx1024, telepathy"),
    (change(features="avx"), "CPU features|not a readable manifest"),
    (change(features=3), "not a readable manifest"),
    (change(features=[[]]), "a name is not a text"),
    (change(machine=3), "a name is not a text"),
    (change(name="a; system()"), "is not an identifier"),
    (change(name=3), "not a readable manifest"),
    (change(name="other"), "cannot be loaded: .*other_run"),
    (change(library="../../libc.so"), "the library is not among the files"),
    (change(library="model.h"), "model.h cannot be loaded"),
    (change(library=[]), "not a readable manifest"),
    (change(inputs=None), "not a readable manifest"),
    (change_input(dtype="f33"), "the element type 'f33' is not known"),
    (change_input(dtype=["f32"]), "not a readable manifest"),
    (change_input(shape=[-1, 48]), "is not a shape"),
    (change_input(shape=["64", 48]), "is not a shape"),
    (change_input(shape=64), "not a readable manifest"),
    (change_input(name=None), "a name is not a text"),
    *((drop(name), f"'{name}' is missing") for name in ("format", "name", "inputs", "outputs", "library", "machine")),
]


@pytest.mark.parametrize(("edit", "message"), MANIFESTS, ids=[str(number) for number in range(len(MANIFESTS))])
def test_a_manifest_that_does_not_fit(folder: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    """Sealed anew, as another version of the compiler or a forger would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"], manifest["files"]
    edit(manifest)
    if "format" in manifest:
        write_manifest(folder, manifest)
    else:
        (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CompileError, match=message) as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) <= 2  # one line, and perhaps a hint


@pytest.mark.parametrize("name", ["../saved/model.h", "/etc/passwd", "..", ".", "", "a/b", "a\0b"])
def test_names_that_lead_out_of_the_folder(folder: Path, name: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"]["model.h"]
    del manifest["sha256"]
    (folder / MANIFEST).write_text(json.dumps({**manifest, "sha256": _seal(manifest)}))
    with pytest.raises(CompileError, match=r"is not in the folder itself|is missing"):
        load(folder)


def test_what_is_no_artefact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(CompileError, match="is not an artefact"):
            load(path)


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_impossible_threads(folder: Path, threads: int) -> None:
    with pytest.raises(CompileError, match=f"threads must be 1 to 256, got {threads}"):
        load(folder, threads)
    with pytest.raises(CompileError, match=f"threads must be 1 to 256, got {threads}"):
        compile_graph(network(1), Options(threads=threads))


# Folders that cannot be written -------------------------------------------------------------------


def test_what_is_not_an_artefact_is_not_overwritten(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    for name in ("file", "full"):
        with pytest.raises(CompileError, match=f"{name} exists and is not an artefact"):
            program.save(tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "thesis.txt").read_text() == "precious"


def test_a_folder_that_cannot_be_written(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "m", Path("/proc/secateur/m"), tmp_path / ("long" * 100)):
        with pytest.raises(CompileError, match=r"cannot write .*: \w+"):
            program.save(place)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("old", [False, True])
def test_a_copy_that_fails_midway_leaves_nothing(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    if old:
        compile_graph(network(SEED + 1)).save(tmp_path / "m")
        before = (tmp_path / "m" / MANIFEST).read_bytes()
    real = shutil.copytree

    def copytree(source: Path, into: Path) -> None:
        real(source, into)
        (into / MANIFEST).unlink()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", copytree)
    with pytest.raises(CompileError, match=r"cannot write .*: No space left on device"):
        program.save(tmp_path / "m")
    assert [item.name for item in tmp_path.iterdir()] == (["m"] if old else [])
    if old:
        assert (tmp_path / "m" / MANIFEST).read_bytes() == before
        load(tmp_path / "m")


def test_a_rename_that_fails_puts_the_old_artefact_back(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def rename(source: Path, into: Path) -> None:
        if Path(source).name == "new":
            raise OSError(16, "Device or resource busy")
        real(source, into)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(CompileError, match="Device or resource busy"):
        program.save(folder)
    assert [item.name for item in folder.parent.iterdir()] == ["saved"]
    load(folder)


# Inputs -------------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit(program: Program) -> None:
    x, rows = np.zeros((64, 48), np.float32), np.zeros(5, np.int64)
    bad: list[tuple[tuple[Any, ...], str]] = [
        ((), "takes 2 inputs, got 0"),
        ((x, rows, x), "takes 2 inputs, got 3"),
        ((x.T, rows), r"input 0 \(x\) must be f32\[64,48\], got f32\[48,64\]"),
        ((x.astype(np.float64), rows), r"input 0 \(x\) must be f32\[64,48\], got f64\[64,48\]"),
        ((x, rows.astype(np.int32)), r"input 1 \(rows\) must be i64\[5\], got i32\[5\]"),
        ((x, rows.astype(np.complex64)), r"got complex64\[5\]"),
        ((x, 3), r"got i64\[\]"),
        ((x, [[1], [2, 3]]), r"input 1 \(rows\) is not a tensor"),
        ((x, None), r"got object\[\]"),
        ((x, "text"), r"got str"),
        ((x[None], rows), r"got f32\[1,64,48\]"),
    ]
    for inputs, message in bad:
        with pytest.raises(CompileError, match=message):
            program(*inputs)


def test_inputs_of_any_layout(program: Program, rng: np.random.Generator) -> None:
    x, rows = network_inputs(rng)
    expected = program(x, rows)
    shifted = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not shifted.flags.aligned
    readonly = x.copy()
    readonly.flags.writeable = False
    for same in (np.asfortranarray(x), x[::-1].copy()[::-1], x.astype(">f4"), shifted, readonly, x.tolist()):
        given = np.array(same, np.float32) if isinstance(same, list) else same
        assert_equal(program(given, rows), expected)
    assert_equal(program(x, rows.astype(">i8")), expected)


def test_torch_tensors_in_torch_tensors_out(program: Program, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x, rows = network_inputs(rng)
    expected = program(x, rows)
    tensors = torch.from_numpy(x), torch.from_numpy(rows)
    results = program(*tensors)
    assert all(isinstance(result, torch.Tensor) for result in results)
    assert_equal([result.numpy() for result in results], expected)
    assert_equal([result.numpy() for result in program(tensors[0].clone().requires_grad_(), rows)], expected)
    assert_equal([result.numpy() for result in program(tensors[0].T.contiguous().T, tensors[1])], expected)
    with pytest.raises(CompileError, match=r"must be f32\[64,48\], got f64"):
        program(tensors[0].double(), rows)


def test_every_element_type_goes_through(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    names = ["f32", "f64", "f16", "bf16", "i8", "u8", "i16", "i32", "i64", "bool"]
    b = Builder.graph("m", **{f"x{name}": f"{name}[3]" for name in names}, empty="f32[0,2]", scalar="f32[]")
    graph = b.returns(*(b.reshape(value, shape=(*value.shape, 1)) for value in b.into.inputs))
    program = compile_graph(graph)
    inputs = [np.array([0, 1, 1]).astype(value.type.dtype.numpy) for value in graph.inputs[:-2]]
    inputs += [np.zeros((0, 2), np.float32), np.array(2.5, np.float32)]
    for given, result in zip(inputs, program(*inputs), strict=True):
        assert result.dtype == given.dtype and result.shape == (*given.shape, 1)
        np.testing.assert_array_equal(result[..., 0], given)
    assert program(*inputs)[3].dtype == ml_dtypes.bfloat16
    tensors = [torch.tensor([0, 1, 1]).to(torch.bfloat16) if i == 3 else torch.tensor(x) for i, x in enumerate(inputs)]
    for given, result in zip(tensors, program(*tensors), strict=True):
        assert result.dtype == given.dtype and torch.equal(result[..., 0], given)


# Running ------------------------------------------------------------------------------------------


def test_threads_and_repetition_change_no_bit(folder: Path, rng: np.random.Generator) -> None:
    inputs = network_inputs(rng)
    expected = load(folder, 1)(*inputs)
    for threads in (1, 2, 3, 8):
        loaded = load(folder, threads)
        for _ in range(5):
            assert_equal(loaded(*inputs), expected)


def test_many_programs_at_once(folder: Path, rng: np.random.Generator) -> None:
    inputs = network_inputs(rng)
    expected = load(folder)(*inputs)
    programs = [load(folder, 1 + number % 3) for number in range(12)]
    others = [compile_graph(network(SEED + 1), Options(threads=1))]
    different = others[0](*inputs)
    assert not np.array_equal(different[0], expected[0])
    for each in programs:
        assert_equal(each(*inputs), expected)
        assert_equal(others[0](*inputs), different)


def test_one_program_called_from_many_threads(program: Program, rng: np.random.Generator) -> None:
    cases = [network_inputs(rng) for _ in range(6)]
    expected = [program(*inputs) for inputs in cases]
    failures: list[int] = []

    def call(number: int) -> None:
        for _ in range(40):
            results = program(*cases[number])
            if any(not np.array_equal(a, e) for a, e in zip(results, expected[number], strict=True)):
                failures.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)


FORK = """
import os, sys
import numpy as np
import secateur

program = secateur.load(sys.argv[1], 3)
data = np.load(sys.argv[2])
inputs = [data[name] for name in sorted(data)]
expected = program(*inputs)
child = os.fork()
results = program(*inputs)
assert all(map(np.array_equal, results, expected))
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
"""


def test_a_forked_child_runs_and_ends(folder: Path, rng: np.random.Generator) -> None:
    np.savez(folder.parent / "in.npz", *network_inputs(rng))
    command = [sys.executable, "-c", FORK, str(folder), "in.npz"]
    subprocess.run(command, cwd=folder.parent, check=True, timeout=60)


def test_programs_give_their_threads_back(folder: Path, rng: np.random.Generator) -> None:
    inputs = network_inputs(rng)
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("no /proc")
    before = len(list(tasks.iterdir()))
    for _ in range(20):
        load(folder, 4)(*inputs)
    assert len(list(tasks.iterdir())) <= before


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "convnext_tiny", "vit_b16", "llama"])
def test_threads_change_no_bit_of_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    zoo = pytest.importorskip("secateur.tools.zoo", reason="needs transformers")
    module, inputs = zoo.SMALL[name].build()
    monkeypatch.setattr(lower, "SERIAL_CYCLES", 0)  # every step is shared out, however small
    program = secateur.compile(module, inputs, threads=1)
    expected = program(*inputs).numpy()
    for threads in (1, 2, 3, 5):
        loaded = load(program.folder, threads)
        for _ in range(3):
            np.testing.assert_array_equal(loaded(*inputs).numpy(), expected)


# NaN and infinity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b16"])
def test_nan_and_infinity_as_in_pytorch(name: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    zoo = pytest.importorskip("secateur.tools.zoo", reason="needs transformers")
    module, (image,) = zoo.SMALL[name].build()
    images = torch.cat([image, image, image, image])
    compiled = secateur.compile(module, (images,))
    for special, row in ((float("nan"), 1), (float("inf"), 2), (float("-inf"), 3)):
        y, x = rng.integers(0, image.shape[2], 2)
        images[row, int(rng.integers(3)), y, x] = special
    with torch.no_grad():
        expected = module(images).numpy()
    actual = compiled(images).numpy()
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    np.testing.assert_array_equal(np.isposinf(actual), np.isposinf(expected))
    finite = np.isfinite(expected)
    assert finite[0].all()  # the clean picture
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=1e-3, atol=1e-3 * np.abs(expected[finite]).max())
