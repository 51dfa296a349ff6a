"""Data goes one way: frontends -> ir -> passes -> backends. Read from the imports of every file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Room -> the rooms it may import, besides itself.
MAY_IMPORT = {
    "ir": set(),
    "passes": {"ir"},
    "backends": {"ir", "passes"},
    "frontends": {"ir"},
    "tools": {"ir", "passes", "backends", "frontends"},
}
# Packages that only some files may need; the key is the start of a path.
HEAVY = {
    "torch": (
        "frontends/torch_",
        "frontends/aten/",
        "frontends/open.py",
        "backends/torch/",
        "backends/artifact.py",
        "tools/",
    ),
    "transformers": ("tools/",),
    "onnx": (),
    "onnxruntime": ("tools/contenders.py", "tools/static_onnx.py"),
    "openvino": ("tools/contenders.py",),
    "rich": ("tools/",),
    "graphviz": ("tools/",),
    "lark": ("ir/",),
}


def files() -> list[Path]:
    return sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The dotted names a file imports, anywhere in it, type checking included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below_it(path: Path) -> None:
    relative = path.relative_to(ROOT)
    room = relative.parts[0]
    allowed = MAY_IMPORT[room] | {room}
    for name in imports(path):
        if not name.startswith("secateur."):
            continue
        target = name.split(".")[1]
        # The tools are the users of the public face; nobody else may come in from above.
        assert target in allowed or (room == "tools" and target not in MAY_IMPORT), f"{relative} imports {name}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_stay_where_they_belong(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    for name in imports(path):
        package = name.partition(".")[0]
        if package in HEAVY:
            assert relative.startswith(tuple(HEAVY[package])), f"{relative} imports {name}"


def test_every_folder_with_code_is_packaged() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(("secateur", *path.parent.relative_to(ROOT).parts)) for path in files()}
    assert folders | {"secateur"} == set(listed)
