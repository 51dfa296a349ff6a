"""Constants, and ops whose result is known from shapes alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.frontends.onnx.load import check_size, element_type, tensor_array
from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value
from secateur.ir.types import DType


@row("Constant")
def constant(n: Node) -> Value:
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for name, dtype in kinds.items():
        if name in n.attrs:
            return n.b.constant(np.asarray(n.attrs[name], dtype=dtype))
    return n.b.constant(attribute_tensor(n, n.need("value")))


def attribute_tensor(n: Node, tensor: Any) -> np.ndarray:
    """The array of a tensor attribute."""
    if not hasattr(tensor, "data_type"):
        raise n.fail("a tensor attribute is missing or of another kind")
    assert n.span is not None
    return tensor_array(tensor, n.importer.folder, n.span)


@row("ConstantOfShape")
def constant_of_shape(n: Node) -> Value:
    shape = n.ints(0)
    value = attribute_tensor(n, n.attrs["value"]) if "value" in n.attrs else np.zeros(1, dtype=np.float32)
    check_size(DType.of(value.dtype), shape, n.span)
    return n.expand(n.b.constant(value.reshape(())), shape)


@row("Shape")
def shape(n: Node) -> Value:
    dims = n.x().shape
    return n.b.constant(np.asarray(dims[slice(n.attr("start", 0), n.attr("end", len(dims)))], dtype=np.int64))


@row("Size")
def size(n: Node) -> Value:
    return n.b.constant(np.asarray(n.x().type.numel, dtype=np.int64))


@row("Range")
def range_(n: Node) -> Value:
    start, limit, delta = (n.scalar(index) for index in range(3))
    dtype = n.x().type.dtype
    if delta == 0:
        raise n.fail("the step is 0")
    count = max(0, int(np.ceil((limit - start) / delta)))
    n.bound(count)
    steps = np.arange(count, dtype=np.float64 if dtype.is_float else np.int64)
    return n.b.constant((start + steps * delta).astype(dtype.numpy))


@row("EyeLike")
def eye_like(n: Node) -> Value:
    x = n.x()
    dtype = element_type(n.attrs["dtype"], n.span) if "dtype" in n.attrs else x.type.dtype
    rows, columns = x.shape
    n.bound(rows * columns)
    return n.b.constant(np.eye(rows, columns, n.attr("k", 0), dtype=dtype.numpy))


@row("Trilu")
def trilu(n: Node) -> Value:
    """Keeps the upper (or lower) triangle of the last two dimensions, from diagonal k on."""
    x = n.x()
    k = int(n.scalar(1)) if n.has(1) else 0
    n.bound(x.shape[-2] * x.shape[-1])
    ones = np.ones(x.shape[-2:], dtype=bool)
    keep = np.triu(ones, k) if n.attr("upper", 1) else np.tril(ones, k)
    return n.b.where(n.b.constant(keep), x, n.scalar_like(0, x))


@row("OneHot")
def one_hot(n: Node) -> Value:
    """Indices outside -depth..depth-1 give a row of off-values."""
    indices, depth, values = n.x(0), int(n.scalar(1)), n.x(2)
    rank = indices.type.rank + 1
    axis = n.axis(n.attr("axis", -1), rank)
    at = n.cast(indices, DType.I64)
    at = n.b.where(n.b.lt(at, n.scalar_like(0, at)), n.b.add(at, n.scalar_like(depth, at)), at)
    at = n.reshape(at, (*indices.shape[:axis], 1, *indices.shape[axis:]))
    counting = n.counting(depth, axis, rank)
    off, on = (n.reshape(n.cut(values, 0, index, index + 1), ()) for index in (0, 1))
    return n.b.where(n.b.eq(at, counting), on, off)


@row("NonZero")
def non_zero(n: Node) -> Value:
    """Only of a constant: otherwise the shape depends on the data."""
    return n.b.constant(np.asarray(np.nonzero(np.atleast_1d(n.const(0))), dtype=np.int64))


@row("Identity")
def identity(n: Node) -> Any:
    return n.inputs[0]


@row("Dropout")
def dropout(n: Node) -> list[Value]:
    """As in inference: x itself, and a mask that keeps everything."""
    x = n.x()
    if n.has(2) and bool(n.scalar(2)) and not (n.has(1) and n.scalar(1) == 0):
        raise n.fail("training mode is not supported", hint="export the model for inference")
    dtype = DType.BOOL if n.version >= 10 else x.type.dtype
    return [x, n.expand(n.b.constant(np.ones((), dtype.numpy)), x.shape)] if any(n.wanted[1:]) else [x]
