"""Functions of the user's own, given on the command line as FILE:FUNCTION."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.ir.diagnostics import CompileError, nearest


def load_function(text: str) -> Callable[..., Any]:
    """The function behind `FILE:FUNCTION`; the file's folder can be imported from.

    Raises:
        CompileError: there is no such file or function, or the file fails when it is run.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not name:
        raise CompileError(f"{text!r} is not FILE:FUNCTION", hint="e.g. data.py:batches")
    path = Path(file)
    if not path.is_file():
        raise CompileError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CompileError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with blaming(file):
        spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        raise CompileError(f"{file} has no function {name!r}", hint=nearest(name, vars(module)))
    return found


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Failures of the user's code in this block are told as such, with the line they come from.

    Raises:
        CompileError: whatever was raised, but for a `CompileError`, which stays.
    """
    try:
        yield
    except CompileError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise CompileError(f"{what} failed: {reason} ({frame.filename}:{frame.lineno})") from error
