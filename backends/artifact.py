"""The artefact: a folder with C source, library, weights and manifest; and the program it holds.

Opening and running one needs NumPy and ctypes, nothing else of this package's dependencies.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.ir.diagnostics import CompileError

FORMAT = 1
MANIFEST = "manifest.json"
STORED = {"bf16": "uint16", "bool": "bool", "f16": "float16", "f32": "float32", "f64": "float64"}
STORED |= {name: f"{'u' if name[0] == 'u' else ''}int{name[1:]}" for name in ("i8", "u8", "i16", "i32", "i64")}
_opened: dict[Path, list[str]] = {}  # hashes of the libraries that were loaded from a path so far


class Report(dict[str, Any]):
    """A report: a dict for programs, a table when printed."""

    def __str__(self) -> str:
        head = [f"{key:>16}: {value}" for key, value in self.items() if not isinstance(value, (list, dict))]
        if "quantization" in self:
            counts, conversions = self["quantization"]["products"], self["quantization"]["conversions"]
            told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
            head.append(f"{'products':>16}: {told}; {conversions} conversions")
        rows = [("step", "kernel", "op", "result", "MFLOP", "KiB", "why")]
        for row in self["kernels"]:
            numbers = (f"{row['flops'] / 1e6:.2f}", f"{row['bytes'] / 1024:.0f}")
            rows.append((str(row["step"]), row["family"], row["op"], row["result"], *numbers, row["why"]))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([*head, "", *lines])


class Program:
    """A compiled network, ready to run.

    `program(*inputs)` takes NumPy arrays or torch tensors and returns the same kind: one result
    bare, several as a tuple. bf16 results are uint16 where ml_dtypes is not installed. An instance
    computes one call at a time; calls from several threads wait for each other. After a fork the
    child starts threads of its own.

    Attributes:
        folder: the artefact.
        manifest: what `manifest.json` says.
        library, handle: the loaded library and the instance in it.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None, keep: Any = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self._keep = keep  # a temporary folder that lives as long as the program
        self._threads = threads
        name = manifest["name"]
        self.library = library = _open_library(folder, manifest)
        try:
            self._run, self._create, self._destroy = (
                library[f"{name}_{verb}"] for verb in ("run", "create", "destroy")
            )
        except AttributeError as error:
            raise CompileError(f"{folder} cannot be loaded: {error}") from None
        self._run.argtypes = [ctypes.c_void_p] * 3
        self._create.argtypes, self._destroy.argtypes = [ctypes.c_void_p, ctypes.c_int], [ctypes.c_void_p]
        self._destroy.restype = None
        self._start()

    def _start(self) -> None:
        """Allocate the arena and start the threads."""
        handle = ctypes.c_void_p()
        status = self._create(ctypes.byref(handle), self._threads or 0)
        if status:
            reasons = {-1: f"{self._threads} threads are not possible", -2: "not enough memory"}
            reasons[-4] = "the system does not let it use AMX registers; compile with --target x86-64-v4-vnni"
            reason = reasons.get(status, "no thread to be had")
            raise CompileError(f"cannot start the program in {self.folder}: {reason}")
        self.handle = handle
        self._process = os.getpid()
        self._finalizer = weakref.finalize(self, _stop, self._destroy, handle, self._process)

    def __call__(self, *inputs: Any) -> Any:
        """Run once.

        Raises:
            CompileError: number, shape or element type of the inputs do not fit.
        """
        as_torch = any(type(item).__module__.partition(".")[0] == "torch" for item in inputs)
        arrays = self._check(inputs)
        outputs = [np.empty(o["shape"], STORED[o["dtype"]]) for o in self.manifest["outputs"]]
        self.run_into(arrays, outputs)
        results = tuple(_as_caller(array, o["dtype"], as_torch) for array, o in zip(outputs, self.manifest["outputs"]))
        return results[0] if len(results) == 1 else results

    def run_into(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Run on contiguous arrays that are known to fit, into arrays that exist: nothing is allocated."""
        if os.getpid() != self._process:  # a fork copies memory, but not threads
            self._start()
        ins = (ctypes.c_void_p * max(1, len(inputs)))(*(array.ctypes.data for array in inputs))
        outs = (ctypes.c_void_p * max(1, len(outputs)))(*(array.ctypes.data for array in outputs))
        self._run(self.handle, ins, outs)

    def _check(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        wanted = self.manifest["inputs"]
        if len(inputs) != len(wanted):
            raise CompileError(f"the program takes {len(wanted)} inputs, got {len(inputs)}")
        arrays = []
        for position, (item, spec) in enumerate(zip(inputs, wanted, strict=True)):
            name = f"input {position}" + (f" ({spec['name']})" if spec["name"] else "")
            try:
                array, dtype = _as_numpy(item)
            except (TypeError, ValueError, RuntimeError) as error:
                raise CompileError(f"{name} is not a tensor: {error}") from None
            stored = STORED[spec["dtype"]]
            if dtype not in (spec["dtype"], stored) or list(array.shape) != spec["shape"]:
                shape, given = ",".join(map(str, spec["shape"])), ",".join(map(str, array.shape))
                raise CompileError(f"{name} must be {spec['dtype']}[{shape}], got {dtype}[{given}]")
            arrays.append(np.require(array, stored, ["C_CONTIGUOUS", "ALIGNED"]))
        return arrays

    def save(self, folder: str | Path) -> Path:
        """Copy the artefact to `folder`: written beside and renamed, so that no half of it is ever seen.

        Raises:
            CompileError: the folder cannot be written, or holds something that is not an artefact.
        """
        target = Path(folder)
        install(self.folder, target)
        return target

    def report(self) -> Report:
        """What runs: arena and weight bytes, and for each step its kernel, FLOPs, bytes and reason."""
        return make_report(self.manifest)


def make_report(manifest: dict[str, Any]) -> Report:
    """The report of an artefact, which does not have to run on this machine."""
    keys = ("target", "threads", "arena_bytes", "weights_bytes", "scratch_bytes", "compile_seconds")
    optional = {key: manifest[key] for key in ("quantization",) if key in manifest}
    return Report({key: manifest[key] for key in keys} | optional | {"kernels": manifest["kernels"]})


def _as_numpy(item: Any) -> tuple[np.ndarray, str]:
    """An input as a NumPy array of its stored type, and the name of its element type."""
    if type(item).__module__.partition(".")[0] == "torch":
        import torch

        tensor = item.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.uint16).numpy(), "bf16"
        item = tensor.numpy()
    array = np.asarray(item)
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16), "bf16"
    names = {stored: name for name, stored in STORED.items() if name != "bf16"}
    return array, names.get(array.dtype.name, array.dtype.name)


def _as_caller(array: np.ndarray, dtype: str, as_torch: bool) -> Any:
    if as_torch:
        import torch

        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if dtype == "bf16" else tensor
    if dtype == "bf16":
        try:
            import ml_dtypes
        except ImportError:
            return array
        return array.view(ml_dtypes.bfloat16)
    return array


def _stop(destroy: Any, handle: ctypes.c_void_p, process: int) -> None:
    """Stop a program's threads, which are only there in the process that started them."""
    if os.getpid() == process:
        destroy(handle)


def _open_library(folder: Path, manifest: dict[str, Any]) -> ctypes.CDLL:
    """The artefact's library.

    The dynamic loader knows what it has loaded by its path and does not look into the file again,
    so another library that came to lie at the same path needs the path spelt differently.
    """
    path = folder.absolute() / manifest["library"]
    hashes = _opened.setdefault(path, [])
    digest = manifest["files"][manifest["library"]]["sha256"]
    if digest not in hashes:
        hashes.append(digest)
    try:
        return ctypes.CDLL(f"{path.parent}{'/' * (1 + hashes.index(digest))}{path.name}")
    except OSError as error:
        raise CompileError(f"{path} cannot be loaded: {error}") from None


# Files --------------------------------------------------------------------------------------------


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json` with the size and SHA-256 of every other file of the folder, and its own hash."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    listed = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files}
    content = {"format": FORMAT, **manifest, "files": listed}
    (folder / MANIFEST).write_text(json.dumps({**content, "sha256": _seal(content)}, indent=1) + "\n")


def _seal(content: dict[str, Any]) -> str:
    """The hash of what a manifest says."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def install(source: Path, target: Path) -> None:
    """Copy an artefact beside `target`, then put it there in one rename."""
    target = target.absolute()
    beside = None
    try:
        if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise CompileError(
                f"{target} exists and is not an artefact", hint="choose another folder, or remove it first"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        fresh, old = beside / "new", beside / "old"
        shutil.copytree(source, fresh)
        mask = os.umask(0)
        os.umask(mask)
        fresh.chmod(0o777 & ~mask)  # the source may be a private temporary folder
        if target.exists():
            os.rename(target, old)
        os.rename(fresh, target)
    except OSError as error:
        raise CompileError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        if beside:
            if not target.exists() and (beside / "old").exists():
                os.rename(beside / "old", target)
            shutil.rmtree(beside, ignore_errors=True)


def load(folder: str | Path, threads: int | None = None) -> Program:
    """Open an artefact: checks format, sizes, hashes, machine and CPU features before anything runs.

    Args:
        folder: what `Program.save` or `secateur compile` wrote.
        threads: instead of the number chosen at compile time.

    Raises:
        CompileError: says which check failed, and on which file.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        _check_file(folder, name, entry)
    if manifest["machine"] != platform.machine():
        raise CompileError(f"{folder} is for {manifest['machine']}, this machine is {platform.machine()}")
    missing = [feature for feature in manifest["features"] if feature not in _running_features()]
    if missing:
        raise CompileError(
            f"{folder} needs CPU features this machine lacks: {', '.join(missing)}",
            hint="compile with --target x86-64-v2 or --target generic",
        )
    if threads is not None and not 1 <= threads <= 256:
        raise CompileError(f"threads must be 1 to 256, got {threads}")
    return Program(folder, manifest, threads)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artefact, checked for the fields that running it needs."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CompileError(f"{folder} is not an artefact: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise CompileError(f"{path} has format {manifest['format']}, this version reads {FORMAT}")
        if manifest.pop("sha256") != _seal(manifest):
            raise ValueError("it does not match its own hash: it was changed or is damaged")
        _check_fields(manifest)
    except KeyError as error:
        raise CompileError(f"{path} is not a readable manifest: {error} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CompileError(f"{path} is not a readable manifest: {error}") from None
    return dict(manifest)


def _check_fields(manifest: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError where what running relies on is missing or wrong."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", manifest["name"]):
        raise ValueError(f"the name {manifest['name']!r} is not an identifier")
    for entry in (*manifest["inputs"], *manifest["outputs"]):
        if entry["dtype"] not in STORED:
            raise ValueError(f"the element type {entry['dtype']!r} is not known")
        if not all(isinstance(size, int) and size >= 0 for size in entry["shape"]):
            raise ValueError(f"{entry['shape']} is not a shape")
    texts = [
        manifest["machine"],
        *manifest["features"],
        *(t["name"] for t in (*manifest["inputs"], *manifest["outputs"])),
    ]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a name is not a text")
    for name, entry in manifest["files"].items():
        if Path(name).name != name:
            raise ValueError(f"the file {name!r} is not in the folder itself")
        if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
            raise ValueError(f"size or hash of {name!r} are wrong")
    if manifest["library"] not in manifest["files"]:
        raise ValueError("the library is not among the files")


def _check_file(folder: Path, name: str, entry: dict[str, Any]) -> None:
    path = folder / name
    if not path.is_file() or path.is_symlink():
        raise CompileError(f"{folder}: file {name!r} is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise CompileError(f"{path} has {size} bytes, the manifest says {entry['bytes']}: it is damaged or incomplete")
    if _digest(path) != entry["sha256"]:
        raise CompileError(f"{path} does not match its hash in the manifest: it was changed or is damaged")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _running_features() -> set[str]:
    from secateur.backends.cpu.target import cpu_features

    return set(cpu_features())
