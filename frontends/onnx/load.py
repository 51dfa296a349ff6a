"""Reads model files: what is checked before anything in them is believed."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from secateur.frontends.onnx.protobuf import onnx_module
from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.types import DType, numel

MAX_FILE_BYTES = 2**31 - 1  # the limit of protobuf itself
MAX_TENSOR_BYTES = 2**36
OLDEST_OPSET = 7
EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})

# TensorProto.DataType -> element type; every other one is refused by name.
DTYPES = {
    1: DType.F32,
    2: DType.U8,
    3: DType.I8,
    5: DType.I16,
    6: DType.I32,
    7: DType.I64,
    9: DType.BOOL,
    10: DType.F16,
    11: DType.F64,
    16: DType.BF16,
}


def element_type(number: int, span: Span | None = None) -> DType:
    """The element type of a TensorProto.DataType number; raises `CompileError` for one the IR does not have."""
    if number not in DTYPES:
        known = onnx_module().TensorProto.DataType
        name = known.Name(number) if number in known.values() else str(number)
        raise CompileError(f"element type {name} is not supported", span=span)
    return DTYPES[number]


def load_model(source: str | os.PathLike[str] | Any) -> tuple[Any, Path | None]:
    """(ModelProto, path or None). Raises `CompileError` for a file that is not a whole ONNX model."""
    onnx = onnx_module()
    if isinstance(source, onnx.ModelProto):
        check_model(source, Span(file=source.graph.name))
        return source, None
    path = Path(source)
    span = Span(file=str(path))
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CompileError(
                f"the file has {size} bytes; a protobuf holds at most {MAX_FILE_BYTES}",
                span=span,
                hint="save the weights as external data",
            )
        data = path.read_bytes()
    except OSError as error:
        raise CompileError(f"cannot read the model: {error.strerror}", span=span) from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's own DecodeError differs between its implementations
        raise CompileError(
            f"not an ONNX model, or truncated ({type(error).__name__})", span=span, hint="export the model again"
        ) from None
    check_model(model, span)
    return model, path


def check_model(model: Any, span: Span) -> None:
    """Raises `CompileError` for a protobuf that parses but is no model we can read."""
    if not model.HasField("graph") or not model.ir_version or not model.opset_import:
        raise CompileError("not an ONNX model: it has no graph, IR version or opset", span=span)
    newest = onnx_module().defs.onnx_opset_version()
    for item in model.opset_import:
        if item.domain in ("", "ai.onnx") and not OLDEST_OPSET <= item.version <= newest:
            raise CompileError(
                f"opset {item.version} is outside {OLDEST_OPSET}..{newest}",
                span=span,
                hint="convert the model with onnx.version_converter, or update the onnx package",
            )


def tensor_array(tensor: Any, folder: Path | None, span: Span) -> np.ndarray:
    """The NumPy array of a TensorProto; raw data is viewed, not converted.

    Raises:
        CompileError: an unsupported element type, a size that does not fit the shape, or unsafe external data.
    """
    onnx = onnx_module()
    dtype = element_type(tensor.data_type, span)
    shape = tuple(tensor.dims)
    check_size(dtype, shape, span)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return read_external(tensor, dtype, shape, folder, span)
    try:
        if tensor.HasField("raw_data"):
            array = np.frombuffer(tensor.raw_data, dtype=dtype.numpy.newbyteorder("<")).reshape(shape)
        else:
            array = onnx.numpy_helper.to_array(tensor)
    except ValueError as error:
        raise CompileError(f"the data do not fit shape {list(shape)}: {error}", span=span) from None
    if array.dtype == dtype.numpy:
        return array
    # An older onnx package hands out bfloat16 as its bits or widened to f32.
    return array.view(dtype.numpy) if array.dtype.itemsize == dtype.bytes else array.astype(dtype.numpy)


def check_size(dtype: DType, shape: tuple[int, ...], span: Span | None) -> None:
    """Raises `CompileError` for a negative dimension or a tensor no machine holds."""
    if any(dim < 0 for dim in shape):
        raise CompileError(f"negative dimension in shape {list(shape)}", span=span)
    if numel(shape) * dtype.bytes > MAX_TENSOR_BYTES:
        raise CompileError(
            f"a tensor of shape {list(shape)} has more than the limit of {MAX_TENSOR_BYTES} bytes", span=span
        )


def read_external(tensor: Any, dtype: DType, shape: tuple[int, ...], folder: Path | None, span: Span) -> np.ndarray:
    """Data from a file beside the model.

    The file must lie, without any link on the way, in the model's own folder: a model must not be
    able to read other files of the machine it is compiled on.
    """
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key not in EXTERNAL_KEYS or entry.key in entries:
            raise CompileError(f"unknown or repeated external data key {entry.key!r}", span=span)
        entries[entry.key] = entry.value
    if folder is None:
        raise CompileError(
            "the model keeps data in external files, so it must be imported by its path",
            span=span,
            hint="pass the path of the .onnx file, or load the data with onnx.load",
        )
    wanted = numel(shape) * dtype.bytes
    offset = _count(entries.get("offset", "0"), span)
    if _count(entries.get("length", str(wanted)), span) != wanted:
        raise CompileError(f"external data of {entries['length']} bytes, its shape needs {wanted}", span=span)
    path = _contained(folder, entries.get("location", ""), span)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise CompileError(f"external data {path.name!r} is not a plain file, or is hard-linked", span=span)
            if offset + wanted > status.st_size:
                raise CompileError(
                    f"external data {path.name!r} has {status.st_size} bytes, the tensor ends at {offset + wanted}",
                    span=span,
                )
            file.seek(offset)
            return np.fromfile(file, dtype=dtype.numpy, count=numel(shape)).reshape(shape)
    except OSError as error:
        raise CompileError(f"cannot read external data {path.name!r}: {error.strerror}", span=span) from None


def _count(text: str, span: Span) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise CompileError(f"external data: {text!r} is not a byte count", span=span)
    return int(text)


def _contained(folder: Path, location: str, span: Span) -> Path:
    """The file a location names; its path must be free of links, `..` and absolute parts."""
    base = folder.resolve()
    path = base / location
    parts = Path(location).parts
    if (
        not parts
        or "\0" in location
        or ".." in parts
        or Path(location).is_absolute()
        or path.resolve() != path
        or not path.is_relative_to(base)
    ):
        raise CompileError(
            f"external data location {location!r} leaves the model's folder, or goes through a link", span=span
        )
    return path
