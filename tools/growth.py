"""Random graphs: each step takes a value that is there and puts an operation, or a known cluster of them, behind it.

Fresh operands are graph inputs or constants. Shapes stay small, and so do most values, so that results say something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.draw import Draw
from secateur.ir.graph import Graph, Value
from secateur.ir.opdef import all_ops, lookup
from secateur.ir.types import ALL, FLOATS, DType, TensorType, numel

MOST = 6000  # elements of one value
TAME = (
    *("add", "sub", "mul", "maximum", "minimum", "relu", "sigmoid", "tanh", "neg", "abs", "silu", "gelu", "clamp"),
    *("where", "cast", "erf", "leaky_relu", "hard_swish", "square", "div", "eq", "lt", "bit_and", "bit_not"),
)
NUMBERS = (0.0, 1.0, -1.0, 2.0, 0.5, 3.0, 6.0, -0.25)
LIKELY = (DType.F32,) * 6 + (DType.F64, DType.F16, DType.BF16, DType.I32, DType.I64, DType.I8, DType.U8, DType.BOOL)


@dataclass
class Growth:
    """A graph while it grows.

    Attributes:
        inputs: an array for each graph input.
        pool: the values that further operations may take.
    """

    draw: Draw
    b: Builder
    inputs: list[np.ndarray] = field(default_factory=list)
    pool: list[Value] = field(default_factory=list)

    def fresh(self, dtype: DType, shape: Sequence[int], *, constant: float = 0.5) -> Value:
        """A new operand: a constant with this chance, else a graph input."""
        array = self.draw.tensor(dtype, shape)
        if dtype.is_float and self.draw.bool(0.1):
            array = np.full(shape, self.draw.choice(NUMBERS)).astype(dtype.numpy)
        return self.hold(array, constant=constant)

    def hold(self, array: np.ndarray, *, constant: float = 0.5) -> Value:
        if self.draw.bool(constant):
            return self.b.constant(array)
        self.inputs.append(array)
        return self.b.into.add_input(TensorType.of(array))

    def weight(self, dtype: DType, shape: Sequence[int]) -> Value:
        """Weights of a contraction: mostly constant, and small enough that its result keeps its size."""
        array = self.draw.tensor(dtype, shape, specials=False)
        if dtype.is_float:
            array = (array / np.sqrt(max(1, numel(tuple(shape[1:]))))).astype(dtype.numpy)
        return self.hold(array, constant=0.75)

    def pick(self, fits: Callable[[Value], bool] = lambda value: True) -> Value | None:
        """A value of the pool, more often a late one."""
        fitting = [value for value in self.pool if fits(value)]
        if not fitting:
            return None
        return fitting[max(self.draw.int(0, len(fitting) - 1), self.draw.int(0, len(fitting) - 1))]

    def as_type(self, value: Value, dtypes: Sequence[DType]) -> Value:
        """The value itself, or cast to a type that is allowed."""
        if value.type.dtype in dtypes:
            return value
        likely = [dtype for dtype in LIKELY if dtype in dtypes] or list(dtypes)
        return self.b.op("cast", [value], {"dtype": self.draw.choice(likely)}).result

    def partner(self, x: Value) -> Value:
        """A second operand that broadcasts with `x`: itself, another value, a number, a vector or anything."""
        shape, dtype = x.shape, x.type.dtype

        def broadcasts(value: Value) -> bool:
            try:
                whole = np.broadcast_shapes(value.shape, shape)
            except ValueError:
                return False
            return value.type.dtype is dtype and numel(whole) <= MOST

        kind = self.draw.int(0, 9)
        if kind < 5 and (other := self.pick(broadcasts)) is not None:
            return other
        if kind < 7:
            number = np.asarray(self.draw.choice(NUMBERS)).astype(dtype.numpy)
            return self.b.constant(number.reshape((1,) * self.draw.int(0, len(shape))))
        if kind < 8 and shape:
            return self.fresh(dtype, shape[-1:], constant=0.8)
        return self.fresh(dtype, self.draw.broadcastable(shape))

    def ranked(self, x: Value, rank: int) -> Value:
        """`x` with `rank` dimensions, as a reshape where it has another number of them."""
        if x.type.rank == rank:
            return x
        return self.b.op("reshape", [x], {"shape": _factors(self.draw, x.type.numel, rank)}).result


def _factors(draw: Draw, size: int, rank: int | None = None) -> tuple[int, ...]:
    """A random shape of `size` elements."""
    if size == 0:
        return (0, *[draw.int(0, 3) for _ in range((rank or 2) - 1)])
    rank = draw.int(1, 5) if rank is None else rank
    shape = [1] * rank
    left = size
    for prime in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31):
        while left % prime == 0:
            shape[draw.int(0, rank - 1)] *= prime
            left //= prime
    shape[draw.int(0, rank - 1)] *= left
    return tuple(shape)


Made: TypeAlias = Any  # a value, several, or None where this cannot be; the builder's methods are not typed
Step = Callable[[Growth, Value], Made]


def _elementwise(g: Growth, x: Value) -> Made:
    names = [name for name, op in all_ops().items() if op.elementwise]
    name = g.draw.choice(TAME) if g.draw.bool(0.8) else g.draw.choice(names)
    opdef = lookup(name)
    x = g.as_type(x, opdef.operands[-1].dtypes)
    attrs = dict(opdef.sample(g.draw).attrs)
    if len(opdef.operands) == 1:
        return g.b.op(name, [x], attrs).result
    operands = [x, g.partner(x)]
    if g.draw.bool(0.3):
        operands.reverse()
    if name == "where":
        condition = g.b.lt(*operands) if g.draw.bool() else g.fresh(DType.BOOL, g.draw.broadcastable(x.shape))
        operands.insert(0, condition)
    return g.b.op(name, operands, attrs).result


def _reshape(g: Growth, x: Value) -> Made:
    return g.b.reshape(x, shape=_factors(g.draw, x.type.numel))


def _transpose(g: Growth, x: Value) -> Made:
    return g.b.transpose(x, perm=g.draw.permutation(x.type.rank))


def _slice(g: Growth, x: Value) -> Made:
    starts = [g.draw.int(0, size // 2) for size in x.shape]
    stops = [g.draw.int(min(start + 1, size), size) for start, size in zip(starts, x.shape, strict=True)]
    steps = [g.draw.choice([1, 1, 2, 3]) for _ in x.shape]
    return g.b.slice(x, starts=starts, stops=stops, steps=steps)


def _flip(g: Growth, x: Value) -> Made:
    axes = [axis for axis in range(x.type.rank) if g.draw.bool()]
    return g.b.flip(x, axes=axes) if axes else None


def _pad(g: Growth, x: Value) -> Made:
    low, high = ([g.draw.choice([0, 0, 1, 2]) for _ in x.shape] for _ in range(2))
    interior = [g.draw.choice([0, 0, 0, 1]) for _ in x.shape]
    return g.b.pad(x, low=low, high=high, interior=interior, value=g.draw.choice([0.0, 1.0]))


def _broadcast(g: Growth, x: Value) -> Made:
    shape = [g.draw.choice([size, 1, 2, 3]) if size == 1 else size for size in x.shape]
    if g.draw.bool():
        shape.insert(0, g.draw.int(1, 3))
    return g.b.broadcast_to(x, shape=shape) if numel(tuple(shape)) <= MOST else None


def _concat(g: Growth, x: Value) -> Made:
    if not x.type.rank:
        return None
    axis = g.draw.int(0, x.type.rank - 1)

    def fits(value: Value) -> bool:
        rest = [[size for at, size in enumerate(v.shape) if at != axis] for v in (value, x)]
        return value.type.dtype is x.type.dtype and value.type.rank == x.type.rank and rest[0] == rest[1]

    others = [g.pick(fits) or x for _ in range(g.draw.int(1, 2))]
    return g.b.concat(x, *others, axis=axis)


def _linear(g: Growth, x: Value) -> Made:
    x = g.ranked(x, g.draw.choice([1, 2, 2, 3])) if not x.type.rank else x
    outs = g.draw.choice([x.shape[-1], g.draw.size()])
    x = g.b.relu(x) if g.draw.bool(0.2) and x.type.dtype is not DType.BOOL else x
    w = g.weight(x.type.dtype, (outs, x.shape[-1]))
    bias = [g.fresh(x.type.dtype, (outs,), constant=0.7)] if g.draw.bool() else []
    return g.b.linear(x, w, *bias)


def _linears(g: Growth, x: Value) -> Made:
    """Several layers over one value, as query, key and value are."""
    return [_linear(g, x) for _ in range(g.draw.int(2, 3))]


def _matmul(g: Growth, x: Value) -> Made:
    x = x if x.type.rank >= 2 else g.ranked(x, 2)
    inner, outs, dtype = x.shape[-1], g.draw.size(), x.type.dtype
    y = g.pick(lambda v: v.type.dtype is dtype and v.type.rank >= 2 and v.shape[-2] == inner)
    if y is None or g.draw.bool():
        lead = g.draw.broadcastable(x.shape[:-2]) if g.draw.bool() else ()
        y = g.weight(dtype, (*lead, inner, outs))
    return g.b.matmul(x, y)


def _conv(g: Growth, x: Value) -> Made:
    x = g.ranked(x, 4)
    channels, sides = x.shape[1], x.shape[2:]
    groups = g.draw.choice([1, 1, channels, *(n for n in (2, 3, 4) if channels % n == 0)]) or 1
    outs = groups * g.draw.choice([1, 1, 2, 5, 8, max(1, 17 // groups)])
    kernel = [g.draw.choice([1, 2, 3, 5]) for _ in sides]
    attrs = {
        "stride": [g.draw.choice([1, 1, 2, 3]) for _ in sides],
        "padding": [g.draw.choice([0, size // 2]) for size in (*kernel, *kernel)],
        "dilation": [g.draw.choice([1, 1, 2]) for _ in sides],
        "groups": groups,
    }
    w = g.weight(x.type.dtype, (outs, channels // groups, *kernel))
    bias = [g.fresh(x.type.dtype, (outs,), constant=0.8)] if g.draw.bool() else []
    return g.b.conv(x, w, *bias, **attrs)


def _pool(g: Growth, x: Value) -> Made:
    name = g.draw.choice(["max_pool", "avg_pool"])
    x = g.ranked(g.as_type(x, lookup(name).operands[0].dtypes), 4)
    kernel = [g.draw.choice([1, 2, 3]) for _ in range(2)]
    attrs: dict[str, Any] = {"kernel": kernel, "stride": [g.draw.int(1, 3) for _ in range(2)]}
    attrs["padding"] = [g.draw.choice([0, size // 2]) for size in (*kernel, *kernel)]
    attrs["ceil_mode"] = g.draw.bool(0.3)
    attrs |= {"dilation": [1, 1]} if name == "max_pool" else {"count_include_pad": g.draw.bool()}
    return g.b.op(name, [x], attrs).result


def _batch_norm(g: Growth, x: Value) -> Made:
    x = g.as_type(x, FLOATS)
    if x.type.rank < 2:
        return None
    count, dtype = x.shape[1], x.type.dtype.numpy
    arrays = [g.draw.tensor(x.type.dtype, (count,), specials=False) for _ in range(3)]
    variance = g.draw.rng.uniform(0.5, 2.0, count).astype(dtype)
    return g.b.batch_norm(x, *(g.b.constant(array) for array in (*arrays, variance)), eps=1e-5, axis=1)


def _norm(g: Growth, x: Value) -> Made:
    if not x.type.rank:
        return None
    x = g.as_type(x, FLOATS)
    name = g.draw.choice(["softmax", "log_softmax", "layer_norm", "rms_norm"])
    if name.endswith("softmax"):
        return g.b.op(name, [x], {"axis": g.draw.choice([x.type.rank - 1, g.draw.int(0, x.type.rank - 1)])}).result
    dims = g.draw.choice([1, 1, g.draw.int(1, x.type.rank)])
    count = g.draw.int(0, 2 if name == "layer_norm" else 1)
    extra = [g.fresh(x.type.dtype, x.shape[x.type.rank - dims :], constant=0.8) for _ in range(count)]
    return g.b.op(name, [x, *extra], {"dims": dims, "eps": 1e-5}).result


def _norm_parts(g: Growth, x: Value) -> Made:
    """Layer normalisation, RMS normalisation or softmax as it comes in pieces."""
    if not x.type.rank:
        return None
    b, x, axes = g.b, g.as_type(x, FLOATS), (x.type.rank - 1,)
    if g.draw.bool(0.3):
        e = b.exp(b.sub(x, b.reduce_max(x, axes=axes, keepdims=True)))
        return b.div(e, b.reduce_sum(e, axes=axes, keepdims=True))
    centred = b.sub(x, b.reduce_mean(x, axes=axes, keepdims=True)) if g.draw.bool() else x
    eps = b.constant(np.asarray(1e-5).astype(x.type.dtype.numpy))
    variance = b.add(b.reduce_mean(b.mul(centred, centred), axes=axes, keepdims=True), eps)
    normal = b.mul(centred, b.rsqrt(variance))
    return b.mul(normal, g.partner(normal)) if g.draw.bool() else normal


def _reduce(g: Growth, x: Value) -> Made:
    name = g.draw.choice([*(f"reduce_{kind}" for kind in ("sum", "mean", "max", "min", "prod", "any", "all"))])
    x = g.as_type(x, lookup(name).operands[0].dtypes)
    axes = [axis for axis in range(x.type.rank) if g.draw.bool()]
    return g.b.op(name, [x], {"axes": axes, "keepdims": g.draw.bool()}).result if axes else None


def _along(g: Growth, x: Value) -> Made:
    if not x.type.rank:
        return None
    name = g.draw.choice(["argmax", "argmin", "cumsum", "cumprod", "sort", "topk"])
    x, axis = g.as_type(x, lookup(name).operands[0].dtypes), g.draw.int(0, x.type.rank - 1)
    attrs: dict[str, Any] = {"axis": axis}
    if name.startswith("arg"):
        attrs["keepdims"] = g.draw.bool()
    elif name == "topk":
        attrs |= {"k": g.draw.int(min(1, x.shape[axis]), x.shape[axis]), "largest": g.draw.bool()}
    elif name.startswith("cum"):
        attrs |= {"exclusive": g.draw.bool(), "reverse": g.draw.bool()}
    return g.b.op(name, [x], attrs).results


def _gather(g: Growth, x: Value) -> Made:
    if not x.type.numel or not x.type.rank:
        return None
    axis = g.draw.int(0, x.type.rank - 1)
    size = x.shape[axis]
    array = g.draw.tensor(DType.I64, g.draw.shape(0, 2, numel=12), -size, size - 1)
    if g.draw.bool(0.3):
        array = np.arange(0, size, g.draw.int(1, 3))
    return g.b.gather(x, g.hold(array), axis=axis)


def _attention(g: Growth, x: Value) -> Made:
    """Attention over one value or several, whole or in pieces."""
    b, x = g.b, g.ranked(g.as_type(x, FLOATS), 4)
    if not x.type.numel:
        return None
    lead, (heads, length, size), dtype = x.shape[:-3], x.shape[-3:], x.type.dtype
    keys = g.draw.choice([length, g.draw.int(1, 12)])
    k = x if keys == length and g.draw.bool() else g.fresh(dtype, (*lead, heads, keys, size), constant=0.2)
    v = k if g.draw.bool(0.3) else g.fresh(dtype, (*lead, heads, keys, g.draw.size(9)), constant=0.2)
    if g.draw.bool():
        mask = [g.fresh(dtype, g.draw.broadcastable((heads, length, keys)))] if g.draw.bool(0.4) else []
        return b.attention(x, k, v, *mask, scale=0.3, causal=g.draw.bool(0.3))
    turned = b.transpose(k, perm=(0, 1, 3, 2))
    scores = b.mul(b.matmul(x, turned), b.constant(np.asarray(0.3).astype(dtype.numpy)))
    if g.draw.bool():
        scores = b.add(scores, g.fresh(dtype, (length, keys)))
    return b.matmul(b.softmax(scores, axis=3), v)


def _any(g: Growth, x: Value) -> Made:
    """An operation's own sample; its operands are cut out of what is there where only the type matters."""
    name = g.draw.choice([name for name in all_ops() if name not in ("constant", "fusion")])
    sample = lookup(name).sample(g.draw)
    operands = []
    for array in sample.operands:
        type = TensorType.of(array)
        fits = type.dtype.is_float and x.type.numel >= type.numel > 0 and not lookup(name).elementwise
        operands.append(_cut(g, x, type) if fits and g.draw.bool() else g.hold(array))
    return g.b.op(name, operands, dict(sample.attrs)).results


def _cut(g: Growth, x: Value, type: TensorType) -> Made:
    flat = g.b.reshape(x if x.type.dtype is type.dtype else g.b.cast(x, dtype=type.dtype), shape=(x.type.numel,))
    start = g.draw.int(0, x.type.numel - type.numel)
    part = g.b.slice(flat, starts=(start,), stops=(start + type.numel,), steps=(1,))
    return g.b.reshape(part, shape=type.shape)


# How often each is tried. One that does not fit its value raises `CompileError`, and another has its turn.
STEPS: dict[Step, int] = {
    _elementwise: 36,
    _reshape: 6,
    _transpose: 7,
    _slice: 4,
    _flip: 2,
    _pad: 3,
    _broadcast: 3,
    _concat: 4,
    _linear: 6,
    _linears: 1,
    _matmul: 4,
    _conv: 7,
    _pool: 3,
    _batch_norm: 3,
    _norm: 5,
    _norm_parts: 3,
    _reduce: 5,
    _along: 2,
    _gather: 3,
    _attention: 3,
    _any: 4,
}


def grow(seed: int, steps: int) -> tuple[Graph, list[np.ndarray]]:
    """A random graph of about that many operations or clusters of them, and its inputs."""
    draw = Draw(seed, specials=seed % 8 == 0)
    g = Growth(draw, Builder.graph(f"fuzz{seed}"))
    g.pool.append(g.fresh(draw.choice(LIKELY), _first_shape(draw), constant=0.0))
    kinds, weights = list(STEPS), np.array(list(STEPS.values()), float)
    for _ in range(steps):
        x = g.pick()
        assert x is not None
        kind = kinds[int(draw.rng.choice(len(kinds), p=weights / weights.sum()))]
        try:
            made = kind(g, x)
        except CompileError:
            continue
        results = [made] if isinstance(made, Value) else list(made or ())
        g.pool += [value for value in results if value.type.numel <= MOST]
        if draw.bool(0.1):
            g.pool.append(g.fresh(draw.choice(ALL), draw.shape(0, 4, numel=500)))
    return g.b.returns(*_outputs(g)), g.inputs


def _first_shape(draw: Draw) -> tuple[int, ...]:
    """An image, a sequence of vectors, or anything."""
    kind = draw.int(0, 2)
    if kind == 0:
        return (draw.int(1, 2), draw.choice([3, 4, 8, 16, 17]), draw.int(5, 13), draw.int(5, 13))
    if kind == 1:
        return (draw.int(1, 2), draw.int(2, 20), draw.choice([8, 16, 24, 32, 33]))
    return draw.shape(1, 4, numel=2000)


def _outputs(g: Growth) -> list[Value]:
    """Most values that nothing uses, now and then others too, and some of them twice."""
    made = [value for value in g.pool if value.op is not None and value.op.name != "constant"]
    chosen = [value for value in g.pool if not value.uses and g.draw.bool(0.9)]
    chosen += [value for value in g.pool if g.draw.bool(0.1)]
    return chosen or made[-1:] or g.pool[-1:]
