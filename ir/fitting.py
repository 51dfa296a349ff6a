"""What fits operands that are known: random attributes and further operands, for instances of patterns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from secateur.ir.draw import Draw
from secateur.ir.opdef import OpDef
from secateur.ir.types import DType, TensorType

Attrs = dict[str, Any]


class Unfit(Exception):
    """This draw led nowhere; make another."""


def structure(draw: Draw, opdef: OpDef, types: list[TensorType | None]) -> Attrs:
    """Attributes for an operation whose operands are partly known: as its sample has them, but of the right rank."""
    attrs = dict(opdef.sample(draw).attrs)
    x = next(type for type in types if type is not None)
    rank = x.rank
    for key in opdef.attrs:
        if key == "axis":
            attrs[key] = draw.int(0, rank - 1) if rank else 0
        elif key == "axes":
            attrs[key] = tuple(sorted(draw.permutation(rank)[: draw.int(min(1, rank), rank)]))
        elif key == "perm":
            attrs[key] = draw.permutation(rank)
        elif key == "dims":
            attrs[key] = draw.int(1, max(rank, 1))
    return {**attrs, **(_STRUCTURE[opdef.name](draw, x) if opdef.name in _STRUCTURE else {})}


def _reshape(draw: Draw, x: TensorType) -> Attrs:
    """Some dimensions merged, some split, ones put in between; often back to what a matrix product left."""
    shape = list(x.shape)
    for _ in range(draw.int(0, 3)):
        at = draw.int(0, len(shape)) if shape else 0
        change = draw.int(0, 3)
        if change == 0:
            shape.insert(at, 1)
        elif change == 1 and at + 1 < len(shape):
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
        elif at < len(shape) and shape[at]:
            divisor = draw.choice([d for d in range(1, shape[at] + 1) if shape[at] % d == 0])
            shape[at : at + 1] = [divisor, shape[at] // divisor]
    return {"shape": tuple(shape)}


def _broadcast(draw: Draw, x: TensorType) -> Attrs:
    lead = draw.shape(0, 2, numel=16, empty=False) if draw.bool(0.4) else ()
    return {"shape": (*lead, *(draw.choice([1, 2, 3]) if size == 1 else size for size in x.shape))}


def _slice(draw: Draw, x: TensorType) -> Attrs:
    whole = draw.bool(0.2)
    starts = tuple(0 if whole else draw.int(0, size) for size in x.shape)
    stops = tuple(size if whole else draw.int(start, size) for start, size in zip(starts, x.shape))
    return {"starts": starts, "stops": stops, "steps": tuple(1 if whole else draw.int(1, 3) for _ in starts)}


def _pad(draw: Draw, x: TensorType) -> Attrs:
    def counts(most: int) -> tuple[int, ...]:
        return tuple(draw.int(0, most) if draw.bool(0.4) else 0 for _ in x.shape)

    return {"low": counts(2), "high": counts(2), "interior": counts(1) if draw.bool(0.3) else (0,) * x.rank}


def _resize(draw: Draw, x: TensorType) -> Attrs:
    return {"size": tuple(draw.int(1, 5) if draw.bool() else n for n in x.shape), "scales": (0.0,) * x.rank}


def _window(draw: Draw, x: TensorType) -> Attrs:
    """Attributes of convolutions and pools, one for each spatial dimension."""
    last = draw.bool(0.3)
    spatial = x.shape[1:-1] if last else x.shape[2:]
    kernel = tuple(draw.int(1, max(1, min(size, 3))) for size in spatial)
    if draw.bool(0.3):
        kernel = spatial
    ones = (1,) * len(spatial)
    padding = tuple(draw.int(0, size // 2) for size in kernel) * 2 if draw.bool() else (0, 0) * len(spatial)
    stride = tuple(draw.int(1, 2) for _ in spatial)
    return {"kernel": kernel, "stride": stride, "padding": padding, "dilation": ones, "channels_last": last}


def _conv(draw: Draw, x: TensorType) -> Attrs:
    window = _window(draw, x)
    channels = x.shape[-1 if window["channels_last"] else 1] if x.rank > 2 else 1
    del window["kernel"]
    return {**window, "groups": draw.choice([d for d in range(1, channels + 1) if channels % d == 0] or [1])}


def _conv_transpose(draw: Draw, x: TensorType) -> Attrs:
    attrs = {**_conv(draw, x), "output_padding": (0,) * (x.rank - 2), "groups": 1}
    del attrs["channels_last"]
    return attrs


_STRUCTURE: dict[str, Callable[[Draw, TensorType], Attrs]] = {
    "reshape": _reshape,
    "broadcast_to": _broadcast,
    "slice": _slice,
    "pad": _pad,
    "resize": _resize,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _window,
    "avg_pool": lambda draw, x: {key: value for key, value in _window(draw, x).items() if key != "dilation"},
    "topk": lambda draw, x: {"k": draw.int(0, min(x.shape, default=0))},
}


def complete(draw: Draw, opdef: OpDef, types: list[TensorType | None], attrs: Attrs) -> list[TensorType]:
    """Types for all operands, those given among them; raises `Unfit` where there is no way to draw the others."""
    if all(types):
        return [type for type in types if type is not None]
    if opdef.elementwise:
        return _elementwise(draw, opdef, types)
    if opdef.name not in _OPERANDS:
        raise Unfit(f"no way to draw further operands of {opdef.name}")
    drawn = _OPERANDS[opdef.name](draw, types, attrs)
    return [known or other for known, other in zip(types, drawn)]


def _elementwise(draw: Draw, opdef: OpDef, types: list[TensorType | None]) -> list[TensorType]:
    known = [type for type in types if type is not None]
    shape = np.broadcast_shapes(*(type.shape for type in known))
    condition = [spec.dtypes == (DType.BOOL,) for spec in opdef.operands]
    dtypes = [type.dtype for type, is_condition in zip(types, condition) if type is not None and not is_condition]
    dtype = dtypes[0] if dtypes else draw.choice(opdef.operands[-1].dtypes)
    if draw.bool(0.1):
        shape = (draw.size(3), *(draw.size(3) if size == 1 else size for size in shape))
    return [
        type
        or TensorType(
            dtype if dtype in spec.dtypes else draw.choice(spec.dtypes),
            draw.choice([shape, draw.broadcastable(shape)]),
        )
        for type, spec in zip(types, opdef.operands)
    ]


def _linear(draw: Draw, types: list[TensorType | None], attrs: Attrs) -> list[TensorType]:
    known = next(type for type in types if type is not None)
    depth, wide = known.shape[-1], types[1].shape[0] if types[1] else draw.size(9)
    x = known.with_shape((*draw.shape(1, 2, empty=False), depth))
    return [x, known.with_shape((wide, depth)), known.with_shape((wide,))]


def _matmul(draw: Draw, types: list[TensorType | None], attrs: Attrs) -> list[TensorType]:
    known = next(type for type in types if type is not None)
    a = known.with_shape((*known.shape[:-2], draw.size(5), known.shape[-2]))
    lead = known.shape[:-2] if draw.bool() else ()
    return [a, known.with_shape((*lead, known.shape[-1], draw.size(5)))]


def _conv_operands(draw: Draw, types: list[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    if x is None:
        raise Unfit("a convolution is drawn from its first operand")
    last = attrs.get("channels_last", False)
    channels, spatial = (x.shape[-1], x.shape[1:-1]) if last else (x.shape[1], x.shape[2:])
    kernel = tuple(draw.int(1, max(1, min(size, 3))) for size in spatial)
    out = attrs["groups"] * draw.int(1, 3)
    if "output_padding" in attrs:
        return [x, x.with_shape((channels, out, *kernel)), x.with_shape((out,))]
    return [x, x.with_shape((out, channels // attrs["groups"], *kernel)), x.with_shape((out,))]


def _norm(draw: Draw, types: list[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    if x is None:
        raise Unfit("a normalisation is drawn from its first operand")
    own = x.with_shape(x.shape[x.rank - attrs["dims"] :])
    return [x, own, own]


def _channels(draw: Draw, types: list[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    if x is None:
        raise Unfit("a normalisation is drawn from its first operand")
    return [x] + 4 * [x.with_shape((x.shape[attrs.get("axis", 1)],))]


def _concat(draw: Draw, types: list[TensorType | None], attrs: Attrs) -> list[TensorType]:
    known = next(type for type in types if type is not None)
    shape = list(known.shape)
    shape[attrs["axis"]] = draw.size(5)
    return [known.with_shape(shape)] * len(types)


def _attention(draw: Draw, types: list[TensorType | None], attrs: Attrs) -> list[TensorType]:
    q, k, v, mask = (types[at] if at < len(types) else None for at in range(4))
    known = q or k or v
    dtype = known.dtype if known else mask.dtype if mask and mask.dtype.is_float else DType.F32
    lead = known.shape[:-2] if known else (mask.shape[:-2] if mask and mask.rank > 2 else (1, 2))
    deep, length = known.shape[-1] if known else draw.size(5), q.shape[-2] if q else draw.size(5)
    keys = k.shape[-2] if k else v.shape[-2] if v else draw.size(5)
    if mask and mask.rank:
        keys = mask.shape[-1]
        length = mask.shape[-2] if mask.rank > 1 else length
    full = TensorType(draw.choice([dtype, DType.BOOL]), draw.broadcastable((*lead, length, keys)))
    kv = TensorType(dtype, (*lead, keys, deep))
    return [TensorType(dtype, (*lead, length, deep)), kv, kv, full][: len(types)]


def _gather(draw: Draw, types: list[TensorType | None], attrs: Attrs) -> list[TensorType]:
    if types[0] is None:
        raise Unfit("a gather is drawn from its first operand")
    return [types[0], TensorType(DType.I64, draw.shape(0, 2, empty=False))]


_OPERANDS: dict[str, Callable[[Draw, list[TensorType | None], Attrs], list[TensorType]]] = {
    "linear": _linear,
    "matmul": _matmul,
    "conv": _conv_operands,
    "conv_transpose": _conv_operands,
    "layer_norm": _norm,
    "rms_norm": _norm,
    "batch_norm": _channels,
    "group_norm": _channels,
    "concat": _concat,
    "attention": _attention,
    "gather": _gather,
}
