"""The `onnx` package, imported when it is first needed."""

from __future__ import annotations

import importlib
from typing import Any

from secateur.ir.diagnostics import CompileError


def onnx_module() -> Any:
    """The `onnx` package; raises `CompileError` saying how to install it."""
    try:
        for part in ("numpy_helper", "helper", "defs"):
            importlib.import_module(f"onnx.{part}")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise CompileError(
            f"reading ONNX models needs the 'onnx' package ({error})", hint="pip install 'secateur[onnx]'"
        ) from None
