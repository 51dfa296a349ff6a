"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.ir.diagnostics import CompileError


@contextmanager
def written_beside(path: Path, marker: str) -> Iterator[Path]:
    """A fresh folder beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Args:
        path: what to write; replaced only where it is empty or holds a file `marker`, which says it is ours.

    Raises:
        CompileError: the folder cannot be written, or holds something else; before any work is done.
    """
    path = path.absolute()
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / marker).exists())):
        raise CompileError(f"{path} exists and is not a compiled artefact", hint="choose another output folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield fresh
        _take_place(fresh, path)
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _take_place(fresh: Path, path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    fresh.chmod(0o777 & ~mask)  # mkdtemp makes folders private; an artefact is as public as any other file
    if path.exists():
        shutil.rmtree(path)
    fresh.rename(path)
