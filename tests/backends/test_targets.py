"""Every target this machine runs, every C compiler it has, and what is said where one is missing."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secateur
from secateur.backends.artifact import MANIFEST, load
from secateur.backends.cpu import target as targets
from secateur.backends.cpu.compile import Options, compile_graph, compile_to
from secateur.backends.cpu.target import TARGETS, find_target, missing_features, native_target
from secateur.backends.cpu.toolchain import find_compiler
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.ir.interpret import interpret
from secateur.ir.opdef import all_ops

SEED = int(np.random.default_rng().integers(1 << 30))
NAMES = [name for name in all_ops() if name != "constant"]
HERE = [t.name for t in TARGETS.values() if t.machine == platform.machine() and not missing_features(t.features)]
OTHERS = [name for name in HERE if name != native_target().name]  # the native one has tests of its own
MODELS = ["mobilenet_v2", "convnext_tiny", "vit_b16", "llama"]


def small_graph() -> Graph:
    rng = np.random.default_rng(SEED)
    b = Builder.graph("m", x="f32[8,16]")
    return b.returns(b.relu(b.linear(b["x"], rng.standard_normal((24, 16), dtype=np.float32))))


# Targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", OTHERS)
def test_ops_agree_with_their_references(target: str, assert_ops_agree: Callable[..., None]) -> None:
    print("seed", SEED)
    assert_ops_agree(NAMES, 3, SEED, target=target)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Graph, inputs and eager PyTorch's result of a few small networks."""
    torch = pytest.importorskip("torch")
    zoo = pytest.importorskip("secateur.tools.zoo", reason="needs transformers")
    found = {}
    for name in MODELS:
        module, inputs = zoo.SMALL[name].build()
        with torch.no_grad():
            found[name] = secateur.import_model(module, inputs), inputs, module(*inputs)
    return found


def check_models(models: dict[str, Any], **options: Any) -> None:
    for name, (graph, inputs, expected) in models.items():
        actual = secateur.compile(graph, **options)(*inputs)
        assert (actual - expected).norm() < 1e-4 * expected.norm(), name


@pytest.mark.parametrize("target", OTHERS)
def test_models_agree_with_pytorch(target: str, models: dict[str, Any]) -> None:
    check_models(models, target=target)


def test_native_is_a_target_that_runs_here() -> None:
    assert native_target().name in HERE
    assert find_target("native") is native_target()
    assert compile_graph(small_graph()).manifest["target"] == native_target().name


@pytest.mark.parametrize(
    ("name", "hint"), [("x86-64-v5", "did you mean 'x86-64-v4'?"), ("nativ", "'native'"), ("?", "secateur targets")]
)
def test_an_unknown_target(name: str, hint: str) -> None:
    with pytest.raises(CompileError, match=f"unknown target '{re.escape(name)}'") as caught:
        secateur.compile(small_graph(), target=name)
    assert hint in caught.value.hint


@pytest.fixture
def bare_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor without any optional feature."""
    native_target.cache_clear()
    monkeypatch.setattr(targets, "cpu_features", frozenset)
    yield
    native_target.cache_clear()


def test_without_features_native_is_generic(bare_processor: None) -> None:
    assert native_target().name == "generic"
    assert compile_graph(small_graph()).manifest["target"] == "generic"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="features of x86-64")
def test_a_program_for_features_this_machine_lacks(tmp_path: Path, bare_processor: None) -> None:
    compile_to(tmp_path, small_graph(), Options(target="x86-64-v3"))
    with pytest.raises(CompileError, match=r"needs CPU features this machine lacks: avx, avx2, .*fma") as caught:
        load(tmp_path)
    assert "--target generic" in caught.value.hint


@pytest.mark.parametrize(("name", "machine", "number"), [("aarch64", "aarch64", 183), ("x86-64-v2", "x86_64", 62)])
def test_cross_compilation(tmp_path: Path, name: str, machine: str, number: int) -> None:
    if not importlib.util.find_spec("ziglang"):
        pytest.skip("needs ziglang's clang")
    compile_to(tmp_path, small_graph(), Options(target=name))
    header = (tmp_path / "libmodel.so").read_bytes()[:20]
    assert header[:4] == b"\x7fELF" and int.from_bytes(header[18:20], "little") == number
    if machine != platform.machine():
        with pytest.raises(CompileError, match=f"is for {machine}, this machine is {platform.machine()}"):
            load(tmp_path)


# C compilers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_other_compilers(cc: str, assert_ops_agree: Callable[..., None]) -> None:
    if not shutil.which(cc):
        pytest.skip(f"no {cc}")
    print("seed", SEED)
    for target in ("generic", "native"):
        assert_ops_agree(NAMES, 1, SEED, target=target, cc=cc)


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc")
def test_models_compiled_by_gcc(models: dict[str, Any]) -> None:
    name = "mobilenet_v2"
    check_models({name: models[name]}, cc="gcc")


def test_the_manifest_names_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("SECATEUR_CC", raising=False)
    assert "clang" in compile_graph(small_graph()).manifest["compiler"]
    if shutil.which("gcc"):
        monkeypatch.setenv("CC", "gcc")
        manifest = compile_graph(small_graph()).manifest
        assert "gcc" in manifest["compiler"] and "-O3" in manifest["flags"]


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def kept_folder(error: CompileError) -> Path:
    match = re.fullmatch(r"the source is kept in (.+)", error.hint)
    assert match
    return Path(match[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#!/bin/sh\necho 'kernels_0.c:7: out of paper' >&2\nexit 1\n", "kernels_0.c:7: out of paper"),
        ("#!/bin/sh\nexit 3\n", "exit code 3"),
        ("#!/bin/sh\nkill -9 $$\n", "exit code -9"),
        ("#!/bin/sh\nexit 0\n", "there is no"),  # claims to have worked, writes nothing
        ("\x7fELF no program at all", "Exec format error"),
    ],
)
def test_a_failing_compiler_is_quoted_and_the_source_kept(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CompileError, match="the C compiler failed") as caught:
        compile_graph(small_graph(), Options(cc=script(tmp_path / "cc", text)))
    assert message in caught.value.message
    folder = kept_folder(caught.value)
    try:
        assert {"model.c", "model.h", "pool.c", "weights.bin"} <= {item.name for item in folder.iterdir()}
        assert not (folder / MANIFEST).exists()
    finally:
        shutil.rmtree(folder)


def test_a_flood_of_messages_is_cut(tmp_path: Path) -> None:
    cc = script(tmp_path / "cc", "#!/bin/sh\nfor i in $(seq 500); do echo line $i >&2; done\nexit 1\n")
    with pytest.raises(CompileError) as caught:
        compile_graph(small_graph(), Options(cc=cc))
    shutil.rmtree(kept_folder(caught.value))
    assert "line 1\n" in caught.value.message and len(caught.value.message.splitlines()) < 40


def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError, match="C compiler 'no-such-cc' is not on the PATH"):
        compile_graph(small_graph(), Options(cc="no-such-cc -O9"))
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(CompileError, match="C compiler '/nowhere/cc' is not on the PATH"):
        compile_graph(small_graph())


def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("SECATEUR_CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/opt/bin/{name}" if name == "gcc" else None)
    assert find_compiler().command == ("/opt/bin/gcc",)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CompileError, match="no C compiler found") as caught:
        find_compiler()
    assert "pip install ziglang" in caught.value.hint


def test_a_named_compiler_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("SECATEUR_CC", "true -x")
    assert find_compiler().command == ("true", "-x")
    assert find_compiler("env").command == ("env",)
    monkeypatch.delenv("SECATEUR_CC")
    assert find_compiler().command == ("false",)


def test_progress_goes_from_nothing_to_all() -> None:
    seen: list[tuple[str, float]] = []
    program = compile_graph(small_graph(), progress=lambda stage, share: seen.append((stage, share)))
    for stage in ("passes", "kernels", "C compiler"):
        shares = [share for name, share in seen if name == stage]
        assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] == 1.0
    x = np.random.default_rng(SEED).standard_normal((8, 16), dtype=np.float32)
    np.testing.assert_allclose(program(x), interpret(small_graph(), x)[0], rtol=1e-4, atol=1e-5)
    assert json.loads((program.folder / MANIFEST).read_text())["target"] == native_target().name
