"""Draws random instances of a pattern: small graphs that it matches, with data to run them on.

Leaves come first: an operation over leaves alone is drawn from its own sample (`OpDef.sample`), one
over other operations gets attributes and further operands that fit what they give. Where a draw does
not fit after all, another one is made; the caller asks the real matcher whether the pattern matches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.draw import Draw
from secateur.ir.formula import Formula, FormulaError, member
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.opdef import OpDef, lookup
from secateur.ir.pattern import Capture, Equals, Node, Number, Pattern, Typing
from secateur.ir.types import DType, TensorType

Attrs = dict[str, Any]
NUMBERS = (0.0, 1.0, -1.0, 0.5, 2.0, 3.0, -2.5, 6.0, 1e-5, 0.1, -np.inf)


class Unfit(Exception):
    """This draw led nowhere; make another."""


class Small(Draw):
    """Draws sizes that a person can read."""

    SIZES = (1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3)


class Instance:
    """One drawn graph: the operation that the pattern is to match at, and the arrays of the inputs.

    Raises:
        Unfit: types, attributes or operands did not fit together.
    """

    def __init__(self, pattern: Pattern, draw: Draw, given: Mapping[str, tuple[float, float]]) -> None:
        self.draw = draw
        self.given = given
        self.b = Builder.graph("instance")
        self.arrays: list[np.ndarray] = []
        self.values: dict[str, Value] = {}
        self.data: dict[str, Any] = {}
        self.recent: dict[str, Attrs] = {}
        self.constants = draw.choice([0.0, 0.4, 1.0])
        try:
            with np.errstate(all="ignore"):
                self.root = self.op(pattern)
        except (CompileError, FormulaError, LookupError, ValueError) as error:
            raise Unfit(str(error)) from None
        self.b.into.outputs = self.root.results

    @property
    def graph(self) -> Graph:
        return self.b.into

    # Operations ---------------------------------------------------------------------------------

    def op(self, pattern: Pattern) -> Op:
        opdef = lookup(self.draw.choice(pattern.names))
        operands: list[Value | None] = [self.inner(node) for node in pattern.operands]
        first = pattern.operands[0] if pattern.operands else None
        if isinstance(first, Capture) and not any(operands) and self.draw.bool(0.3):
            # More variety than the operation's own sample has: its first operand, with attributes that fit that.
            array = self.sample(opdef, pattern, {})[1][0]
            if array is not None:
                operands[0] = self.leaf(first, TensorType.of(array), array, 0)
        fixed = {key: value for key, formula in pattern.attrs if (value := self.computed(formula)) is not None}
        if any(value is not None for value in operands):
            types = [value.type if value is not None else None for value in operands]
            attrs = {**structure(self.draw, opdef, types), **self.remembered(opdef.name), **fixed}
            types += [None] * self.extra(opdef, pattern)
            wanted = _complete(self.draw, opdef, types, attrs)
            arrays: list[np.ndarray | None] = [None] * len(wanted)
        else:
            attrs, arrays = self.sample(opdef, pattern, fixed)
            wanted = [TensorType.of(array) for array in arrays if array is not None]
        for at, type in enumerate(wanted):
            node = pattern.operands[at] if at < len(pattern.operands) else Capture("_")
            if at >= len(operands):
                operands.append(None)
            operands[at] = operands[at] or self.leaf(node, type, arrays[at], at)
        made = self.b.op(opdef.name, [value for value in operands if value is not None], attrs)
        self.bind(pattern, made)
        return made

    def bind(self, pattern: Pattern, op: Op) -> None:
        self.recent[op.name] = dict(op.attrs)
        if pattern.label:
            self.data[pattern.label] = op
        if pattern.rest:
            self.data[pattern.rest] = op.operands[len(pattern.operands) :]
        for key, formula in pattern.attrs:
            if formula.text in formula.names:
                self.data.setdefault(formula.text, member(op, key))

    def inner(self, node: Node) -> Value | None:
        """The value of an operand that does not depend on its neighbours."""
        if isinstance(node, Pattern):
            return self.op(node).results[node.result]
        if isinstance(node, Capture) and node.name in self.values:
            return self.values[node.name]
        if isinstance(node, Capture) and node.type and node.type.dims and self.draw.bool(0.8):
            return self.leaf(node, self.typed(node.type), None, 0)
        return None

    def typed(self, typing: Typing) -> TensorType:
        """A type that an annotation describes; names of dimensions that are known keep their size."""
        shape: list[int] = []
        for dim in typing.dims or ():
            if isinstance(dim, int):
                shape.append(dim)
            elif dim.endswith("..."):
                shape += self.data.get(dim[:-3]) or self.draw.shape(0, 2, empty=False)
            else:
                shape.append(self.data.get(dim) or self.draw.size(9))
                if dim != "_":
                    self.data.setdefault(dim, shape[-1])
        return TensorType(self.draw.choice(typing.dtypes), tuple(shape))

    def computed(self, formula: Formula) -> Any:
        scope = {**self.values, **self.data}
        return formula(scope) if formula.names <= set(scope) else None

    def remembered(self, name: str) -> Attrs:
        """Often the attributes of the last operation of this name: pieces of one thing agree."""
        return self.recent[name] if name in self.recent and self.draw.bool(0.7) else {}

    def extra(self, opdef: OpDef, pattern: Pattern) -> int:
        """How many operands follow those of the pattern."""
        most = len(opdef.operands) - len(pattern.operands)
        least = sum(not (spec.optional or spec.variadic) for spec in opdef.operands) - len(pattern.operands)
        return (
            self.draw.int(max(least, 0), max(most, 1 if opdef.operands[-1].variadic else 0))
            if pattern.rest is not None
            else 0
        )

    def sample(self, opdef: OpDef, pattern: Pattern, fixed: Attrs) -> tuple[Attrs, list[np.ndarray | None]]:
        """Attributes and operands from the operation's own sample, of the types that the pattern asks for."""
        for _ in range(40):
            sample = opdef.sample(self.draw)
            count = len(sample.operands)
            if count < len(pattern.operands) or (count > len(pattern.operands) and pattern.rest is None):
                continue
            if all(_may_be(node, TensorType.of(array)) for node, array in zip(pattern.operands, sample.operands)):
                return {**sample.attrs, **fixed}, list(sample.operands)
        raise Unfit(f"no sample of {opdef.name} fits")

    # Leaves -------------------------------------------------------------------------------------

    def leaf(self, node: Node, type: TensorType, array: np.ndarray | None, position: int) -> Value:
        if isinstance(node, (Number, Equals)):
            number = node.value if isinstance(node, Number) else self.computed(node.formula)
            return self.b.constant(np.full(self.number_shape(type), number).astype(type.dtype.numpy))
        assert isinstance(node, Capture)
        if node.name in self.values:
            return self.values[node.name]
        typing = node.type or Typing()
        if typing.kind == "number":
            low, high = self.given.get(node.name, (None, None))
            number = self.draw.choice(NUMBERS) if low is None or high is None else self.draw.float(low, high)
            shape = self.draw.choice([(), (1,), (1,) * type.rank])
            value = self.b.constant(np.full(shape, number).astype(type.dtype.numpy))
            self.data[node.name] = value.op.attrs["value"].reshape(-1)[0].item() if value.op else None
        else:
            if array is None or node.name in self.given:
                array = self.draw.tensor(type.dtype, type.shape, *self.given.get(node.name, (None, None)))
            constant = typing.kind == "const" or (position > 0 and self.draw.bool(self.constants))
            value = self.b.constant(array) if constant else self.input(array, node.name)
        if node.name != "_":
            self.values[node.name] = value
        return value

    def input(self, array: np.ndarray, name: str) -> Value:
        self.arrays.append(array)
        return self.graph.add_input(TensorType.of(array), name.strip("_"))

    def number_shape(self, type: TensorType) -> tuple[int, ...]:
        return self.draw.choice([(), (1,), (1,) * type.rank, type.shape, self.draw.broadcastable(type.shape)])


def instances(
    pattern: Pattern, seed: int, *, tries: int, small: bool = False, finite: bool = False, given: Any = None
) -> Iterator[Instance]:
    """What `tries` draws give."""
    for number in range(tries):
        draw = (Small if small else Draw)(seed + number, specials=not (finite or given))
        try:
            yield Instance(pattern, draw, given or {})
        except Unfit:
            continue


def _may_be(node: Node, type: TensorType) -> bool:
    """Whether a leaf can be of a type, as far as its annotation says."""
    if isinstance(node, Number):
        return (type.dtype is DType.BOOL) == isinstance(node.value, bool)
    typing = getattr(node, "type", None)
    if typing is None:
        return True
    dims = typing.dims
    loose = dims is None or any(isinstance(dim, str) and dim.endswith("...") for dim in dims)
    fits = loose or (len(dims) == type.rank and all(not isinstance(d, int) or d == n for d, n in zip(dims, type.shape)))
    return fits and type.dtype in typing.dtypes


# What fits operands that are known ----------------------------------------------------------------


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


def _complete(draw: Draw, opdef: OpDef, types: list[TensorType | None], attrs: Attrs) -> list[TensorType]:
    """Types for the operands that are not known yet."""
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
        type or TensorType(DType.BOOL if is_condition else dtype, draw.choice([shape, draw.broadcastable(shape)]))
        for type, is_condition in zip(types, condition)
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
