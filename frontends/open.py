"""The door that every model comes in through: tells by type, or by a file's name, which importer reads it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

from secateur.ir.diagnostics import CompileError, nearest
from secateur.ir.graph import Graph
from secateur.ir.text import read_ir

ACCEPTED = "an ONNX file (.onnx), a torch.export archive (.pt2) or IR text (.ir)"

# What files that are often mistaken for models begin with, and what helps then.
_LOOKALIKES = [
    (b"\x80", "a pickle, such as an old PyTorch checkpoint", "export the model: torch.export.save(program, 'm.pt2')"),
    (b"GGUF", "a GGUF file", "weights without a program; export the model from PyTorch"),
    (b"\x89HDF", "an HDF5 file, such as a Keras model", "convert it to ONNX"),
    (b"\x89PNG", "a picture", ""),
    (b"\x7fELF", "a program or shared library", ""),
    (b"<", "a web page or XML", ""),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for", "fetch it: git lfs pull"),
]


def import_model(model: Any, example_inputs: Any = None) -> Graph:
    """Turn a model into a graph.

    Args:
        model: a torch.nn.Module, ExportedProgram or torch.fx.GraphModule, or the path of a .onnx, .pt2 or .ir file.
        example_inputs: a tensor, or a tuple of them, of the shapes to compile for; needed for a Module or GraphModule.

    Raises:
        CompileError: not a model, or one that uses operations that are not supported (all are listed).
    """
    if isinstance(model, Graph):
        return model
    if isinstance(model, (str, Path)):
        try:
            return _from_file(Path(model))
        except OSError as error:
            raise CompileError(f"cannot read {model}: {error.strerror or error}") from None
    # A torch object can only exist where torch is loaded already, so nothing is imported to find out.
    torch = sys.modules.get("torch")
    if torch is None:
        raise _not_a_model(model)
    if isinstance(model, torch.export.ExportedProgram):
        from secateur.frontends.torch_export import import_exported

        return import_exported(model)
    if not isinstance(model, torch.nn.Module):
        raise _not_a_model(model)
    if example_inputs is None:
        raise CompileError(
            f"{type(model).__name__} has no shapes of its own",
            hint="pass example_inputs=(tensor, ...) of the shapes to compile for",
        )
    if isinstance(model, torch.fx.GraphModule):
        from secateur.frontends.torch_fx import import_fx

        return import_fx(model, example_inputs)
    from secateur.frontends.torch_export import import_module

    return import_module(model, example_inputs)


def _not_a_model(model: Any) -> CompileError:
    return CompileError(
        f"a {type(model).__name__} is not a model",
        hint=f"accepted are a torch.nn.Module, ExportedProgram or GraphModule, and the path of {ACCEPTED}",
    )


def _from_file(path: Path) -> Graph:
    if not path.exists():
        if path.name.startswith("zoo:"):
            how = f"from secateur.tools.zoo import build; secateur.compile(*build({path.name[4:]!r}))"
            raise CompileError(f"{path} is a name for the command line, not a file", hint=f"in Python: {how}")
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CompileError(f"there is no file {path}", hint=nearest(path.name, siblings))
    if path.is_dir():
        is_artefact = (path / "manifest.json").exists()
        what = "a compiled artefact (`secateur run` runs it)" if is_artefact else "a folder"
        raise CompileError(f"{path} is {what}, not a model", hint=f"a model is {ACCEPTED}")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        what, hint = _describe(path)
        raise CompileError(f"{path} is not a model: it looks like {what}", hint=hint or f"a model is {ACCEPTED}")
    return _READERS[suffix](path)


def _describe(path: Path) -> tuple[str, str]:
    """What a file seems to be, by its first bytes, and what would help."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return "a PyTorch checkpoint: weights without a program", "export the model with torch.export.save"
        return "a zip archive", ""
    if path.suffix == ".safetensors":  # before the magic numbers: it begins with a length, which may look like one
        return "weights without a program", "export the model they belong to"
    with path.open("rb") as file:
        head = file.read(512)
    for magic, what, hint in _LOOKALIKES:
        if head.lstrip().startswith(magic):
            return what, hint
    if not head:
        return "an empty file", ""
    return ("text" if b"\0" not in head else "unknown binary data"), ""


def _from_onnx(path: Path) -> Graph:
    from secateur.frontends.onnx import import_onnx

    return import_onnx(path)


def _from_pt2(path: Path) -> Graph:
    try:
        from secateur.frontends.torch_export import import_exported, load_exported
    except ImportError:
        raise CompileError(
            f"{path} is read by PyTorch, which is not installed", hint="pip install 'secateur[torch]'"
        ) from None
    return import_exported(load_exported(path), path.stem)


_READERS = {".onnx": _from_onnx, ".pt2": _from_pt2, ".ir": read_ir}
