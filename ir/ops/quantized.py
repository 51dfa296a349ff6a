"""Quantisation: between real numbers and small integers, and from one integer scale to another.

A quantised tensor stands for (x - zero) * scale. Scale and zero point are operands that broadcast: a
scalar for a whole tensor, [O,1,1,1] for the output channels of a convolution's weights, [N,1] for those
of a linear layer, and [N,K/g,1] over weights reshaped to [N,K/g,g] for groups of g.

`rescale` is requantisation: its rounding (`mulshift` in ir/expr.py) and its saturation are the contract
that every backend keeps to the last bit.
"""

from __future__ import annotations

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.expr import INTERPOLATED
from secateur.ir.opdef import Attr
from secateur.ir.ops.elementwise import elementwise
from secateur.ir.types import INTS, DType, TensorType

STORED = (DType.I8, DType.U8, DType.I16, DType.I32)
TABLED = (DType.I8, DType.U8, DType.I16)


def _scales(draw: Draw, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(np.exp2(draw.rng.uniform(-8, 3, shape)), dtype=np.float32)


def _sample_quantize(draw: Draw) -> Sample:
    shape, dtype = draw.shape(), draw.choice(STORED)
    x = np.asarray(draw.tensor(DType.F32, shape) * np.float32(draw.choice([1.0, 30.0, 1e4])))
    zero = np.zeros((), dtype.numpy) if draw.bool() else draw.tensor(dtype, draw.broadcastable(shape))
    return Sample((x, _scales(draw, draw.broadcastable(shape)), zero))


def _sample_dequantize(draw: Draw) -> Sample:
    shape, dtype = draw.shape(), draw.choice(STORED)
    zero = np.zeros((), dtype.numpy) if draw.bool() else draw.tensor(dtype, draw.broadcastable(shape))
    return Sample((draw.tensor(dtype, shape), _scales(draw, draw.broadcastable(shape)), zero))


def _sample_rescale(draw: Draw) -> Sample:
    shape, dtype, shift = draw.shape(), draw.choice(STORED), draw.int(1, 62)
    x = np.asarray(draw.tensor(DType.I32, shape) * np.int32(draw.choice([1, 1000, 20_000_000])))
    most = draw.choice([2, 1 << 16, (1 << 31) - 1])
    multiplier = draw.tensor(DType.I32, draw.broadcastable(shape), -most if draw.bool() else 0, most)
    zero = draw.tensor(dtype, () if draw.bool() else draw.broadcastable(shape))
    return Sample((x, multiplier, zero), {"shift": shift})


def _sample_lookup(draw: Draw) -> Sample:
    dtype = draw.choice(TABLED)
    entries = INTERPOLATED if dtype is DType.I16 else 256
    into = draw.choice(STORED)
    limits = np.iinfo(np.int16 if into is DType.I32 else into.numpy)
    table = draw.rng.integers(limits.min, limits.max + 1, entries)
    return Sample((draw.tensor(dtype, draw.shape()),), {"table": table.tolist(), "dtype": into})


def _sample_saturate(draw: Draw) -> Sample:
    return Sample((draw.tensor(draw.choice(INTS), draw.shape()),), {"dtype": draw.choice(INTS)})


def _sample_decay(draw: Draw) -> Sample:
    x = draw.tensor(DType.I32, draw.shape(), 0, draw.choice([100, 50_000, 1 << 30]))
    return Sample((x, draw.tensor(DType.I32, (), 0, (1 << 31) - 1)), {"shift": draw.int(24, 50)})


def _check_shift(*types: TensorType, shift: int) -> None:
    if not 1 <= shift <= 62:
        raise ValueError(f"shift {shift} is not in 1..62")


def _check_table(x: TensorType, *, table: tuple[int, ...], dtype: DType) -> None:
    entries = INTERPOLATED if x.dtype is DType.I16 else 256
    if len(table) != entries:
        raise ValueError(f"a table for {x.dtype} has {entries} entries, got {len(table)}")
    if dtype not in INTS or not all(-(2**31) <= entry < 2**31 for entry in table):
        raise ValueError("a table holds 32-bit integers, and dtype is an integer type")


def _check_integer(x: TensorType, *, dtype: DType) -> None:
    if dtype not in INTS:
        raise ValueError(f"{dtype} is no integer type")


def _check_same(x: TensorType, scale: TensorType, zero: TensorType) -> None:
    if x.dtype is not zero.dtype:
        raise ValueError(f"zero must be {x.dtype}, as x is, got {zero.dtype}")


elementwise(
    "quantize",
    "x scale zero",
    "saturate(round(x / scale) + cast(zero, f32), zero)",
    {"x": (DType.F32,), "scale": (DType.F32,), "zero": STORED},
    result="zero",
    draws=_sample_quantize,
    doc="x / scale to the nearest integer (halves to even) plus zero, saturated to zero's element type; NaN gives 0.",
)
elementwise(
    "dequantize",
    "x scale zero",
    "(cast(x, f32) - cast(zero, f32)) * scale",
    {"x": STORED, "scale": (DType.F32,), "zero": STORED},
    result=DType.F32,
    draws=_sample_dequantize,
    check=_check_same,
    doc="(x - zero) * scale, the real numbers that quantised ones stand for.",
)
elementwise(
    "rescale",
    "x multiplier zero",
    "saturate(mulshift(x, multiplier, shift) + cast(zero, i32), zero)",
    {"x": (DType.I32,), "multiplier": (DType.I32,), "zero": STORED},
    result="zero",
    attrs={"shift": Attr("int")},
    draws=_sample_rescale,
    check=_check_shift,
    doc="Requantisation in integers: (x * multiplier + 2^(shift-1)) >> shift, plus zero, saturated to zero's element "
    "type. Exact in 64 bits, the shifted product modulo 2^32; shift is 1..62.",
)
elementwise(
    "saturate",
    "x",
    "saturate(x, dtype)",
    INTS,
    attrs={"dtype": Attr("dtype")},
    draws=_sample_saturate,
    check=_check_integer,
    doc="To another integer type, clipped to its limits.",
)
elementwise(
    "lookup",
    "x",
    "saturate(lookup(x, table), dtype)",
    TABLED,
    attrs={"table": Attr("ints"), "dtype": Attr("dtype")},
    draws=_sample_lookup,
    check=_check_table,
    doc="A function by table. 8-bit x: 256 entries, the one for the lowest x first. i16: 129 entries, one every 512 "
    "steps, interpolated linearly (ir/expr.py).",
)
# 32767 * 2^-f over one octave in steps of 1/256 by a cubic polynomial in integers (least squares; off by less than 5).
_OCTAVE = "32767 - ((F * (22670 - ((F * (7607 - ((F * 1325 + 128) >> 8)) + 128) >> 8)) + 128) >> 8)"
_EXPONENT = "mulshift(x, multiplier, shift)"
elementwise(
    "decay",
    "x multiplier",
    f"select({_EXPONENT} > 3839, 0, ({_OCTAVE.replace('F', f'({_EXPONENT} & 255)')}) >> ({_EXPONENT} >> 8))",
    {"x": (DType.I32,), "multiplier": (DType.I32,)},
    attrs={"shift": Attr("int")},
    draws=_sample_decay,
    check=_check_shift,
    doc="The exponential of softmax in fixed point: 32767 * 2^(-y/256) for y = mulshift(x, multiplier, shift), x and "
    "multiplier >= 0, to within 5; 0 from 15 octaves on.",
)
