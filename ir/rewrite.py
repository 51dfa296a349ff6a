"""Rewrite rules and the one driver that applies them.

A rule is a pattern over operations, and a function that builds the replacement or says why not:

    @rule("transpose(transpose(x))")
    def double_transpose(m, b):
        \"\"\"transpose(transpose(x, p), q) == transpose(x, p[q])\"\"\"
        return b.transpose(m["x"], perm=[m.op(0).attrs["perm"][axis] for axis in m.root.attrs["perm"]])

Rules are indexed by the operation at their root, and the driver keeps a worklist, so that the
cost of a run follows the number of operations and of changes, not their product.
"""

from __future__ import annotations

import ast
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.opdef import lookup
from secateur.ir.types import FLOATS
from secateur.ir.verify import verify


@dataclass(frozen=True, slots=True)
class Pattern:
    """An operation by name with a pattern, a capture name or a number for each operand.

    `name` may be "a|b" for either. With `rest`, further operands may follow. A capture that occurs
    twice must be the same value; the capture `_` matches anything and binds nothing. A number
    matches a constant whose every element is that number: integers and `True`, `False` exactly,
    fractions within a few units in the last place of the constant's type.
    """

    name: str
    operands: tuple[Pattern | str | int | float, ...] = ()
    rest: bool = False

    @property
    def names(self) -> list[str]:
        return self.name.split("|")

    @property
    def depth(self) -> int:
        """Levels of operations, the root included."""
        return 1 + max((inner.depth for inner in self.operands if isinstance(inner, Pattern)), default=0)


def pattern(text: str) -> Pattern:
    """Read `add(mul(x, y), 1)`; `conv(x, ...)` allows further operands, `"add|sub"(x, y)` is either op."""

    def convert(node: ast.AST) -> Pattern | str | int | float:
        match node:
            case ast.Name(id=name):
                return name
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.Call(func=ast.Name(id=name) | ast.Constant(value=str() as name), args=args):
                rest = bool(args) and isinstance(args[-1], ast.Constant) and args[-1].value is Ellipsis
                kept = args[:-1] if rest else args
                return Pattern(name, tuple(convert(arg) for arg in kept), rest)
        raise ValueError(f"not a pattern: {ast.unparse(node)}")

    parsed = convert(ast.parse(text, mode="eval").body)
    if not isinstance(parsed, Pattern):
        raise ValueError(f"a pattern needs an operation at its root: {text!r}")
    return parsed


@dataclass(slots=True)
class Match:
    """What a pattern matched: `m["x"]` is a captured value, `m.ops` the operations in pattern order."""

    ops: list[Op] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    @property
    def root(self) -> Op:
        return self.ops[0]

    def op(self, index: int) -> Op:
        """The operation number `index` below the root, in the order the pattern's text names them."""
        return self.ops[index + 1]

    def only_use(self, *indices: int) -> bool:
        """Whether each of these inner operations feeds nothing but this match."""
        return all(len(self.op(i).results) == 1 and len(self.op(i).result.uses) == 1 for i in indices)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rule's condition did not hold; `reason` is what a user reads."""

    reason: str


Outcome = Value | Sequence[Value] | Refusal | None
Rewrite = Callable[[Match, Builder], Outcome]


@dataclass(frozen=True, slots=True)
class Rule:
    """`pattern => rewrite(match, builder)`; the docstring of `rewrite` states the algebra.

    `tolerance` is the largest relative error in f32; 0 says that every bit is kept, but for the
    sign of a zero.
    """

    name: str
    pattern: Pattern
    rewrite: Rewrite
    doc: str = ""
    tolerance: float = 0.0


def rule(text: str, *, tolerance: float = 0.0) -> Callable[[Rewrite], Rule]:
    """Make a rule of a function: it returns the new value(s), a `Refusal`, or None to decline."""

    def wrap(function: Rewrite) -> Rule:
        return Rule(function.__name__, pattern(text), function, (function.__doc__ or "").strip(), tolerance)

    return wrap


@dataclass
class RewriteStats:
    """Per rule: how often it fired, why it declined, the seconds it took; in all: how many operations were visited."""

    fired: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    visits: int = 0

    def add(self, other: RewriteStats) -> None:
        self.fired.update(other.fired)
        self.refused.update(other.refused)
        self.visits += other.visits
        for name, seconds in other.seconds.items():
            self.seconds[name] += seconds


def match(pattern: Pattern, op: Op) -> Match | None:
    """The first match of a pattern with `op` at its root, if there is one."""
    return next(matches(pattern, op), None)


def matches(pattern: Pattern, op: Op) -> Iterator[Match]:
    """Every match of a pattern with `op` at its root; commutative ops are tried in both operand orders."""
    yield from _match_op(pattern, op, Match())


def _match_op(pattern: Pattern, op: Op, found: Match) -> Iterator[Match]:
    if op.name not in pattern.names:
        return
    count, given = len(pattern.operands), op.operands
    if len(given) < count or (len(given) > count and not pattern.rest):
        return
    here = Match([*found.ops, op], found.values)
    yield from _match_operands(pattern.operands, given, here)
    if count == 2 and given[0] is not given[1] and lookup(op.name).commutative:
        yield from _match_operands(pattern.operands, given[::-1], here)


def _match_operands(
    patterns: tuple[Pattern | str | int | float, ...], values: tuple[Value, ...], found: Match
) -> Iterator[Match]:
    """Match operands from the left; a later one that fails makes an earlier one try its other order."""
    if not patterns:
        yield found
        return
    first, value = patterns[0], values[0]
    if isinstance(first, Pattern):
        partial = _match_op(first, value.op, found) if value.op else iter(())
    else:
        partial = _match_leaf(first, value, found)
    for trial in partial:
        yield from _match_operands(patterns[1:], values[1:], trial)


def _match_leaf(leaf: str | int | float, value: Value, found: Match) -> Iterator[Match]:
    if not isinstance(leaf, str):
        if is_number(value, leaf):
            yield found
    elif leaf == "_" or found.values.get(leaf) is value:
        yield found
    elif leaf not in found.values:
        yield Match(found.ops, {**found.values, leaf: value})


def is_number(value: Value, number: int | float) -> bool:
    """Whether a value is a constant whose every element is `number` (see `Pattern`)."""
    if value.op is None or value.op.name != "constant":
        return False
    array: np.ndarray = value.op.attrs["value"]
    if not array.size or (array.dtype == np.bool_) != isinstance(number, bool):
        return False
    if isinstance(number, bool):
        return bool(np.all(array == number))
    slack = 0.0 if number == int(number) or not value.type.dtype.is_float else 4 * _EPS[value.type.dtype] * abs(number)

    def near(item: np.ndarray) -> bool:
        return bool(np.all(np.abs(item.astype(np.float64) - number) <= slack))

    return near(array.reshape(-1)[:1]) and (array.size == 1 or near(array))


_EPS = {dtype: float(ml_dtypes.finfo(dtype.numpy).eps) for dtype in FLOATS}  # type: ignore[no-untyped-call]


def apply_rules(graph: Graph, rules: Iterable[Rule], *, fuel: int | None = None) -> RewriteStats:
    """Apply rules until none fires, and remove what becomes dead.

    Args:
        fuel: the most rewrites allowed; by default 20 for each operation plus 1,000.

    Raises:
        CompileError: fuel ran out (naming the rule that fired most), or a replacement has another type.
    """
    by_root: defaultdict[str, list[Rule]] = defaultdict(list)
    depth = 1
    for item in rules:
        depth = max(depth, item.pattern.depth)
        for name in item.pattern.names:
            by_root[name].append(item)
    stats = RewriteStats()
    worklist = OrderedDict.fromkeys(graph.ops)  # an ordered set that pops from its front in constant time
    fuel = fuel if fuel is not None else 20 * len(worklist) + 1000
    while worklist:
        op, _ = worklist.popitem(last=False)
        if op.graph is not graph:
            continue
        stats.visits += 1
        changed = _rewrite_one(graph, op, by_root[op.name], stats)
        if changed is None:
            continue
        worklist.update(OrderedDict.fromkeys(_upwards(graph, changed, depth)))
        fuel -= 1
        if fuel < 0:
            name, count = stats.fired.most_common(1)[0]
            raise CompileError(f"rewriting does not end: rule {name!r} fired {count} times", span=op.span)
    return stats


def _rewrite_one(graph: Graph, op: Op, rules: list[Rule], stats: RewriteStats) -> list[Op] | None:
    """Try the rules on one operation; where one fires, returns the operations around it that changed."""
    candidates = ((rule, found) for rule in rules for found in matches(rule.pattern, op))
    for item, found in candidates:
        start = time.perf_counter()
        previous = op.prev
        outcome = item.rewrite(found, Builder(graph, op, op.span))
        stats.seconds[item.name] += time.perf_counter() - start
        if outcome is None or isinstance(outcome, Refusal):
            if outcome is not None:
                stats.refused[item.name, outcome.reason] += 1
            _erase_between(graph, previous, op)
            continue
        values = [outcome] if isinstance(outcome, Value) else list(outcome)
        if [value.type for value in values] != [value.type for value in op.results]:
            raise CompileError(f"rule {item.name!r} changes the type of {op!r}", span=op.span)
        stats.fired[item.name] += 1
        return _replace(graph, op, values, _between(graph, previous, op))
    return None


def _replace(graph: Graph, op: Op, values: list[Value], new: list[Op]) -> list[Op]:
    """Put `values` in the place of `op`; returns what the rules should look at again."""
    users = [user for value in op.results for user in value.users]
    released = op.operands
    graph.replace(op, values)
    erase_dead(graph, [*(value.op for value in released if value.op), *new])
    # A value that has lost a use may now be the only use of something: rules ask for that.
    alone = [user for value in released if len(value.uses) == 1 for user in value.users]
    sources = [value.op for value in (*values, *released) if value.op]
    return [*new, *sources, *alone, *users]


def _upwards(graph: Graph, ops: Iterable[Op], depth: int) -> Iterator[Op]:
    """The operations and, as a pattern may reach down to them, their users up to `depth` levels above."""
    seen: set[Op] = set()
    level = list(ops)
    for left in range(depth, 0, -1):
        level = [op for op in dict.fromkeys(level) if op.graph is graph and op is not graph.terminator]
        level = [op for op in level if op not in seen]
        seen.update(level)
        yield from level
        if left > 1:
            # What feeds very many users (a shared constant) did not change for all of them.
            level = [user for op in level for value in op.results if len(value.uses) <= 16 for user in value.users]


def _between(graph: Graph, previous: Op | None, op: Op) -> list[Op]:
    """The operations that a rewrite put in front of `op`."""
    new, at = [], op.prev
    while at is not None and at is not previous:
        new.append(at)
        at = at.prev
    return new[::-1]


def _erase_between(graph: Graph, previous: Op | None, op: Op) -> None:
    for new in reversed(_between(graph, previous, op)):
        graph.erase(new)


def erase_dead(graph: Graph, candidates: Iterable[Op]) -> int:
    """Erase those candidates whose results are unused, and what becomes unused by that."""
    stack, count = list(candidates), 0
    while stack:
        op = stack.pop()
        if op.graph is not graph or op is graph.terminator or any(value.uses for value in op.results):
            continue
        stack += [value.op for value in op.operands if value.op]
        graph.erase(op)
        count += 1
    return count


def check(graph: Graph) -> Graph:
    """Verify and return the graph: for the ends of pipelines and for tests."""
    verify(graph)
    return graph
