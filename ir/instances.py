"""Draws random instances of a pattern: small graphs that it matches, with data to run them on.

Leaves come first: an operation over leaves alone is drawn from its own sample (`OpDef.sample`), one
over other operations gets attributes and further operands that fit what they give. Where a draw does
not fit after all, another one is made; the caller asks the real matcher whether the pattern matches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.draw import Draw
from secateur.ir.fitting import Attrs, Unfit, complete, structure
from secateur.ir.formula import Formula, FormulaError, member
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.opdef import OpDef, lookup
from secateur.ir.pattern import Capture, Equals, Node, Number, Pattern, Typing
from secateur.ir.types import DType, TensorType

NUMBERS = (0.0, 1.0, -1.0, 0.5, 2.0, 3.0, -2.5, 6.0, 1e-5, 0.1, -np.inf)
LARGE = 64.0  # makes of common numbers such as overflow when they are raised to a power, or e to them
OFTEN = 0.1  # of the float tensors are made large


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
            wanted = complete(self.draw, opdef, types, attrs)
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
            if type.dtype.is_float and self.draw.specials and node.name not in self.given and self.draw.bool(OFTEN):
                array = np.asarray(array.astype(np.float64) * LARGE).astype(type.dtype.numpy)
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
