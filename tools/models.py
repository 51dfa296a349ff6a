"""How commands find their model, and the tensors they feed it."""

from __future__ import annotations

import importlib
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.frontends.open import ACCEPTED, import_model
from secateur.ir.diagnostics import CompileError, nearest
from secateur.ir.graph import Graph
from secateur.ir.text import parse
from secateur.ir.types import DType, TensorType
from secateur.tools.console import Ui

MODEL_HELP = (
    f"{ACCEPTED}, `zoo:NAME` for a built-in model, `module:function` for "
    "a Python function that returns (model, example_inputs), or - for IR text on standard input"
)

INPUTS_HELP = "tensors by the names of the model's inputs, or in order where none of the file's names is one"

Specs = Sequence[tuple[str, TensorType]]


def open_graph(name: str, ui: Ui) -> Graph:
    """The graph of a model given on the command line."""
    if name == "-":
        return parse(sys.stdin.read(), file="<stdin>")
    if not is_python(name):
        with ui.stage(f"importing {name}"):
            return import_model(Path(name))
    with ui.stage(f"building {name}"):
        model, inputs = build_python(name)
    with ui.stage(f"importing {name}"):
        graph = import_model(model, inputs)
    graph.name = name.partition(":")[2]
    return graph


def is_python(name: str) -> bool:
    """Whether a model's name means Python code: `zoo:NAME` or `module:function`."""
    return name == "zoo:" or re.fullmatch(r"[A-Za-z_][\w.]*:\w[\w.-]*", name) is not None


def build_python(name: str) -> tuple[Any, tuple[Any, ...]]:
    """The torch module behind `zoo:NAME` or `module:function`, and its example inputs.

    Raises:
        CompileError: there is no such module or function, or PyTorch is missing.
    """
    home, _, function = name.partition(":")
    try:
        if home == "zoo":
            from secateur.tools.zoo import build

            return build(function)
        found = getattr(importlib.import_module(home), function, None)
    except ModuleNotFoundError as error:
        raise CompileError(f"{name} needs the Python package {error.name!r}, which is not installed") from None
    if found is None:
        raise CompileError(
            f"module {home} has no function {function!r}", hint=nearest(function, dir(sys.modules[home]))
        )
    model, inputs = found()
    return model, tuple(inputs)


def input_specs(graph: Graph) -> list[tuple[str, TensorType]]:
    """Name and type of each input of a graph; an unnamed one is called `input0`, `input1`, ..."""
    return [(value.hint or f"input{index}", value.type) for index, value in enumerate(graph.inputs)]


def manifest_specs(manifest: Mapping[str, Any]) -> list[tuple[str, TensorType]]:
    """Name and type of each input of a compiled artefact."""
    return [
        (name, TensorType(DType(item["dtype"]), tuple(item["shape"])))
        for name, item in named(manifest["inputs"], "input")
    ]


def named(items: Sequence[dict[str, Any]], kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Inputs or outputs of a manifest with a name for each: their own where it is unique, else `input0`, ..."""
    names = [item["name"] for item in items]
    return [
        (name if name and names.count(name) == 1 else f"{kind}{index}", item)
        for index, (name, item) in enumerate(zip(names, items))
    ]


def random_inputs(specs: Specs, seed: int) -> list[np.ndarray]:
    """Random tensors: floats are normal, integers 0 or 1 (valid in any index or token table), booleans either.

    Integers and booleans whose name has `mask` in it are all ones: a row of an attention mask that
    lets nothing through makes NaN of a result, which hides everything behind it.
    """
    rng = np.random.default_rng(seed)
    made = []
    for name, type in specs:
        if type.dtype.is_float:
            made.append(rng.standard_normal(type.shape).astype(type.dtype.numpy))
        elif "mask" in name:
            made.append(np.ones(type.shape, type.dtype.numpy))
        elif type.dtype is DType.BOOL:
            made.append(np.asarray(rng.random(type.shape) < 0.5))
        else:
            made.append(rng.integers(0, 2, type.shape).astype(type.dtype.numpy))
    return made


def read_inputs(path: str, specs: Specs) -> list[np.ndarray]:
    """Input tensors from a .npz file: by name, or in the file's order where none of its names is an input's.

    Raises:
        CompileError: not a .npz file, one that lacks an input, or holds something else besides.
    """
    if not Path(path).exists():
        raise CompileError(f"there is no file {path}", hint="numpy.savez writes one")
    if not zipfile.is_zipfile(path):
        raise CompileError(f"cannot read {path} as a .npz file: it is no archive", hint="numpy.savez writes one")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CompileError(f"cannot read {path} as a .npz file: {reason}") from None
    names = [name for name, _ in specs]
    if not arrays.keys() & set(names) and len(arrays) == len(names):
        return list(arrays.values())
    for name, type in specs:
        if name not in arrays:
            raise CompileError(f"{path} has no tensor {name!r} ({type})", hint=nearest(name, arrays))
    extra = sorted(arrays.keys() - set(names))
    if extra:
        raise CompileError(f"{path} holds {extra[0]!r}, which is not an input", hint=f"inputs are {', '.join(names)}")
    return [arrays[name] for name in names]


def write_npz(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write tensors to a .npz file; raises `CompileError` where that is not possible."""
    try:
        np.savez(path, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror}") from None


def summary(array: np.ndarray) -> dict[str, float | int]:
    """Minimum, mean, maximum of the finite elements, and how many are not finite."""
    values = np.asarray(array, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return {"min": float("nan"), "mean": float("nan"), "max": float("nan"), "nonfinite": int(values.size)}
    return {
        "min": float(finite.min()),
        "mean": float(finite.mean()),
        "max": float(finite.max()),
        "nonfinite": int(values.size - finite.size),
    }
