"""Softmax and the normalisations.

Their dimension links couple the normalised dimensions too: such a result index stands for the same
feature as the operand index, though its value depends on all the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import Attr, DimLink, OpDef, define, operands
from secateur.ir.ops._common import check_axis, check_same_dtype, draw_axis, identity_links, in_f32, scalar, wide
from secateur.ir.types import FLOATS, TensorType

if TYPE_CHECKING:
    from secateur.ir.builder import Builder


# softmax, log_softmax -----------------------------------------------------------------------------


def _infer_softmax(x: TensorType, *, axis: int) -> TensorType:
    check_axis(axis, x.rank)
    return x


def _softmax(x: np.ndarray, *, axis: int) -> np.ndarray:
    if x.size == 0:
        return x
    work = wide(x)
    powers = np.exp(work - work.max(axis, keepdims=True))
    return (powers / powers.sum(axis, keepdims=True)).astype(x.dtype)


def _log_softmax(x: np.ndarray, *, axis: int) -> np.ndarray:
    if x.size == 0:
        return x
    work = wide(x)
    shifted = work - work.max(axis, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))).astype(x.dtype)


def _decompose_softmax(b: Builder, op: Op) -> list[Value] | None:
    """exp(x - max) / sum(exp(x - max))"""
    axes = [op.attrs["axis"]]

    def build(x: Value) -> Value:
        powers = b.exp(b.sub(x, b.reduce_max(x, axes=axes, keepdims=True)))
        return b.div(powers, b.reduce_sum(powers, axes=axes, keepdims=True))

    return in_f32(b, op, build) if op.results[0].type.numel else [op.operands[0]]


def _decompose_log_softmax(b: Builder, op: Op) -> list[Value] | None:
    """s - log(sum(exp(s))) with s = x - max"""
    axes = [op.attrs["axis"]]

    def build(x: Value) -> Value:
        shifted = b.sub(x, b.reduce_max(x, axes=axes, keepdims=True))
        total = b.reduce_sum(b.exp(shifted), axes=axes, keepdims=True)
        return b.sub(shifted, b.log(total))

    return in_f32(b, op, build) if op.results[0].type.numel else [op.operands[0]]


def _sample_softmax(draw: Draw) -> Sample:
    shape = draw.shape(1)
    return Sample((draw.tensor(draw.choice(FLOATS), shape),), {"axis": draw_axis(draw, len(shape))})


for _name, _reference, _decompose, _doc in (
    ("softmax", _softmax, _decompose_softmax, "exp(x) over its sum along `axis`, computed from x - max(x)."),
    (
        "log_softmax",
        _log_softmax,
        _decompose_log_softmax,
        "Logarithm of softmax along `axis`, computed without overflow.",
    ),
):
    define(
        OpDef(
            name=_name,
            doc=_doc,
            operands=operands("x", x=FLOATS),
            attrs={"axis": Attr("int")},
            infer=_infer_softmax,
            reference=_reference,
            sample=_sample_softmax,
            flops=lambda op: 5 * op.results[0].type.numel,
            dim_links=identity_links,
            decompose=_decompose,
        )
    )


# layer_norm, rms_norm -----------------------------------------------------------------------------


def _infer_trailing(x: TensorType, *params: TensorType, dims: int, eps: float) -> TensorType:
    check_same_dtype([x, *params])
    if not 1 <= dims <= x.rank:
        raise ValueError(f"dims = {dims} is not in 1..{x.rank}")
    for param in params:
        if param.shape != x.shape[x.rank - dims :]:
            raise ValueError(f"weight and bias must be {list(x.shape[x.rank - dims :])}, got {list(param.shape)}")
    return x


def _affine(work: np.ndarray, params: Sequence[np.ndarray]) -> np.ndarray:
    """work * weight + bias, as far as given; the parameters are shaped to broadcast."""
    for param, ufunc in zip(params, (np.multiply, np.add), strict=False):
        work = ufunc(work, wide(param))
    return work


def _standardise(work: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    centred = work - work.mean(axes, keepdims=True)
    return np.asarray(centred / np.sqrt(np.square(centred).mean(axes, keepdims=True) + work.dtype.type(eps)))


def _layer_norm(x: np.ndarray, *params: np.ndarray, dims: int, eps: float) -> np.ndarray:
    if x.size == 0:
        return x
    return _affine(_standardise(wide(x), tuple(range(-dims, 0)), eps), params).astype(x.dtype)


def _rms_norm(x: np.ndarray, *params: np.ndarray, dims: int, eps: float) -> np.ndarray:
    if x.size == 0:
        return x
    work = wide(x)
    mean = np.square(work).mean(tuple(range(-dims, 0)), keepdims=True)
    return _affine(work / np.sqrt(mean + work.dtype.type(eps)), params).astype(x.dtype)


def _trailing_links(op: Op) -> list[DimLink]:
    rank, dims = op.results[0].type.rank, op.attrs["dims"]
    shared = [DimLink(p, dim, rank - dims + dim) for p in range(1, len(op.operands)) for dim in range(dims)]
    return identity_links(op) + shared


def _build_affine(b: Builder, x: Value, params: Sequence[Value]) -> Value:
    for param, build in zip(params, (b.mul, b.add), strict=False):
        x = build(x, param)
    return x


def _build_scaled(b: Builder, x: Value, axes: list[int], eps: float) -> Value:
    """x / sqrt(mean(x^2) + eps)"""
    mean = b.reduce_mean(b.square(x), axes=axes, keepdims=True)
    return b.mul(x, b.rsqrt(b.add(mean, scalar(b, eps, x.type.dtype))))


def _build_centred(b: Builder, x: Value, axes: list[int]) -> Value:
    return b.sub(x, b.reduce_mean(x, axes=axes, keepdims=True))


def _decompose_trailing(b: Builder, op: Op) -> list[Value]:
    """The mean (not for rms_norm), the mean square, a product with its inverse root, then weight and bias."""
    rank = op.results[0].type.rank
    axes = list(range(rank - op.attrs["dims"], rank))

    def build(x: Value, *params: Value) -> Value:
        centred = _build_centred(b, x, axes) if op.name == "layer_norm" else x
        return _build_affine(b, _build_scaled(b, centred, axes, op.attrs["eps"]), params)

    return in_f32(b, op, build)


def _draw_eps(draw: Draw) -> float:
    return draw.choice([1e-5, 1e-3, 1e-2])


def _sample_trailing(most_params: int, draw: Draw) -> Sample:
    shape, dtype = draw.shape(1), draw.choice(FLOATS)
    dims = draw.int(1, len(shape))
    params = [draw.tensor(dtype, shape[-dims:], specials=False) for _ in range(draw.int(0, most_params))]
    return Sample((draw.tensor(dtype, shape), *params), {"dims": dims, "eps": _draw_eps(draw)})


for _name, _norm, _names, _doc in (
    (
        "layer_norm",
        _layer_norm,
        "x weight? bias?",
        "(x - mean) / sqrt(variance + eps) * weight + bias over the last `dims` dimensions; the variance is biased.",
    ),
    ("rms_norm", _rms_norm, "x weight?", "x / sqrt(mean(x^2) + eps) * weight over the last `dims` dimensions."),
):
    define(
        OpDef(
            name=_name,
            doc=_doc,
            operands=operands(_names, **{name.rstrip("?"): FLOATS for name in _names.split()}),
            attrs={"dims": Attr("int", 1), "eps": Attr("float", 1e-5)},
            infer=_infer_trailing,
            reference=_norm,
            sample=(lambda most: lambda draw: _sample_trailing(most, draw))(len(_names.split()) - 1),
            flops=lambda op: 8 * op.results[0].type.numel,
            dim_links=_trailing_links,
            decompose=_decompose_trailing,
        )
    )


# group_norm, batch_norm ---------------------------------------------------------------------------


def _infer_group_norm(x: TensorType, *params: TensorType, groups: int, eps: float) -> TensorType:
    check_same_dtype([x, *params])
    if x.rank < 2:
        raise ValueError("x must be [N, C, ...]")
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels do not divide into {groups} groups")
    _check_channels(x.shape[1], params)
    return x


def _check_channels(channels: int, params: Sequence[TensorType]) -> None:
    for param in params:
        if param.shape != (channels,):
            raise ValueError(f"parameters must be [{channels}], got {list(param.shape)}")


def _group_norm(x: np.ndarray, *params: np.ndarray, groups: int, eps: float) -> np.ndarray:
    if x.size == 0:
        return x
    work = _standardise(wide(x).reshape(x.shape[0], groups, -1), (2,), eps).reshape(x.shape)
    own = [-1] + [1] * (x.ndim - 2)
    return _affine(work, [param.reshape(own) for param in params]).astype(x.dtype)


def _channel_links(op: Op, axis: int) -> list[DimLink]:
    return identity_links(op) + [DimLink(position, 0, axis) for position in range(1, len(op.operands))]


def _group_norm_links(op: Op) -> list[DimLink]:
    """Channels stay coupled only where removing one leaves the other groups as they are."""
    if op.attrs["groups"] in (1, op.results[0].shape[1]):
        return _channel_links(op, 1)
    return identity_links(op, without=[1])


def _decompose_group_norm(b: Builder, op: Op) -> list[Value]:
    """Each group as one row of [N, groups, rest], normalised along the row."""
    if op.results[0].type.numel == 0:
        return [op.operands[0]]

    def build(x: Value, *params: Value) -> Value:
        groups = op.attrs["groups"]
        rows = b.reshape(x, shape=[x.shape[0], groups, x.type.numel // (x.shape[0] * groups)])
        rows = _build_scaled(b, _build_centred(b, rows, [2]), [2], op.attrs["eps"])
        return _build_affine(b, b.reshape(rows, shape=x.shape), [_as_channel(b, p, x.type, 1) for p in params])

    return in_f32(b, op, build)


def _as_channel(b: Builder, param: Value, x: TensorType, axis: int) -> Value:
    """[C] shaped so that it broadcasts along dimension `axis` of x."""
    return b.reshape(param, shape=[param.shape[0]] + [1] * (x.rank - 1 - axis))


def _sample_group_norm(draw: Draw) -> Sample:
    dtype, groups = draw.choice(FLOATS), draw.choice([1, 2, 3, 4])
    shape = (draw.size(4), groups * draw.choice([1, 2, 4]), *draw.shape(0, 3, numel=64))
    params = [draw.tensor(dtype, shape[1:2], specials=False) for _ in range(draw.int(0, 2))]
    return Sample((draw.tensor(dtype, shape), *params), {"groups": groups, "eps": _draw_eps(draw)})


define(
    OpDef(
        name="group_norm",
        doc="(x - mean) / sqrt(variance + eps) * weight + bias over each of `groups` equal groups of the channels of "
        "x [N, C, ...] and all behind them; weight and bias are [C].",
        operands=operands("x weight? bias?", x=FLOATS, weight=FLOATS, bias=FLOATS),
        attrs={"groups": Attr("int"), "eps": Attr("float", 1e-5)},
        infer=_infer_group_norm,
        reference=_group_norm,
        sample=_sample_group_norm,
        flops=lambda op: 8 * op.results[0].type.numel,
        dim_links=_group_norm_links,
        decompose=_decompose_group_norm,
    )
)


def _infer_batch_norm(x: TensorType, *params: TensorType, eps: float, axis: int) -> TensorType:
    check_same_dtype([x, *params])
    check_axis(axis, x.rank)
    _check_channels(x.shape[axis], params)
    return x


def _batch_norm(x: np.ndarray, *params: np.ndarray, eps: float, axis: int) -> np.ndarray:
    own = [-1 if dim == axis else 1 for dim in range(x.ndim)]
    weight, bias, mean, var = (wide(param).reshape(own) for param in params)
    return ((wide(x) - mean) / np.sqrt(var + var.dtype.type(eps)) * weight + bias).astype(x.dtype)


def _decompose_batch_norm(b: Builder, op: Op) -> list[Value]:
    """x * s + (bias - mean * s) with s = weight / sqrt(var + eps): one product and one sum once constants fold."""
    axis = op.attrs["axis"]

    def build(x: Value, weight: Value, bias: Value, mean: Value, var: Value) -> Value:
        scale = b.mul(weight, b.rsqrt(b.add(var, scalar(b, op.attrs["eps"], x.type.dtype))))
        shift = b.sub(bias, b.mul(mean, scale))
        return b.add(b.mul(x, _as_channel(b, scale, x.type, axis)), _as_channel(b, shift, x.type, axis))

    return in_f32(b, op, build)


def _sample_batch_norm(draw: Draw) -> Sample:
    dtype, shape = draw.choice(FLOATS), draw.shape(1)
    axis = draw.choice([min(1, len(shape) - 1), draw_axis(draw, len(shape))])
    weight, bias, mean = (draw.tensor(dtype, shape[axis : axis + 1], specials=False) for _ in range(3))
    var = draw.tensor(dtype, shape[axis : axis + 1], 0.1, 3.0)
    return Sample((draw.tensor(dtype, shape), weight, bias, mean, var), {"axis": axis, "eps": _draw_eps(draw)})


define(
    OpDef(
        name="batch_norm",
        doc="(x - mean) / sqrt(var + eps) * weight + bias with given statistics, all [C], along dimension `axis`.",
        operands=operands("x weight bias mean var", **dict.fromkeys(["x", "weight", "bias", "mean", "var"], FLOATS)),
        attrs={"eps": Attr("float", 1e-5), "axis": Attr("int", 1)},
        infer=_infer_batch_norm,
        reference=_batch_norm,
        sample=_sample_batch_norm,
        flops=lambda op: 2 * op.results[0].type.numel,
        dim_links=lambda op: _channel_links(op, op.attrs["axis"]),
        decompose=_decompose_batch_norm,
    )
)
