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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.opdef import lookup
from secateur.ir.verify import verify


@dataclass(frozen=True, slots=True)
class Pattern:
    """An operation by name with a pattern or a capture name for each operand.

    `name` may be "a|b" for either. With `rest`, further operands may follow. A capture that occurs
    twice must be the same value; the capture `_` matches anything and binds nothing.
    """

    name: str
    operands: tuple[Pattern | str, ...] = ()
    rest: bool = False

    @property
    def names(self) -> list[str]:
        return self.name.split("|")


def pattern(text: str) -> Pattern:
    """Read `add(mul(x, y), x)`; `conv(x, ...)` allows further operands, `("add|sub")(x, y)` either op."""

    def convert(node: ast.AST) -> Pattern | str:
        match node:
            case ast.Name(id=name):
                return name
            case ast.Call(func=ast.Name(id=name) | ast.Constant(value=str() as name), args=args):
                rest = bool(args) and isinstance(args[-1], ast.Constant) and args[-1].value is Ellipsis
                kept = args[:-1] if rest else args
                return Pattern(name, tuple(convert(arg) for arg in kept), rest)
        raise ValueError(f"not a pattern: {ast.unparse(node)}")

    parsed = convert(ast.parse(text, mode="eval").body)
    if isinstance(parsed, str):
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
    """`pattern => rewrite(match, builder)`; the docstring of `rewrite` states the algebra."""

    name: str
    pattern: Pattern
    rewrite: Rewrite
    doc: str = ""


def rule(text: str) -> Callable[[Rewrite], Rule]:
    """Make a rule of a function: it returns the new value(s), a `Refusal`, or None to decline."""

    def wrap(function: Rewrite) -> Rule:
        return Rule(function.__name__, pattern(text), function, (function.__doc__ or "").strip())

    return wrap


@dataclass
class RewriteStats:
    """Per rule: how often it fired, why it declined, and the seconds it took."""

    fired: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: RewriteStats) -> None:
        self.fired.update(other.fired)
        self.refused.update(other.refused)
        for name, seconds in other.seconds.items():
            self.seconds[name] += seconds


def match(pattern: Pattern, op: Op) -> Match | None:
    """Match a pattern with `op` at its root. Commutative ops are tried in both operand orders."""
    found = Match()
    return found if _match(pattern, op, found) else None


def _match(pattern: Pattern, op: Op, found: Match) -> bool:
    if op.name not in pattern.names:
        return False
    count = len(pattern.operands)
    if len(op.operands) < count or (len(op.operands) > count and not pattern.rest):
        return False
    orders = [op.operands]
    if count == 2 and lookup(op.name).commutative:
        orders.append(op.operands[::-1])
    for order in orders:
        trial = Match([*found.ops, op], dict(found.values))
        if all(_match_operand(p, value, trial) for p, value in zip(pattern.operands, order, strict=False)):
            found.ops, found.values = trial.ops, trial.values
            return True
    return False


def _match_operand(pattern: Pattern | str, value: Value, found: Match) -> bool:
    if isinstance(pattern, Pattern):
        return value.op is not None and _match(pattern, value.op, found)
    return pattern == "_" or found.values.setdefault(pattern, value) is value


def apply_rules(graph: Graph, rules: Iterable[Rule], *, fuel: int | None = None) -> RewriteStats:
    """Apply rules until none fires, and remove what becomes dead.

    Args:
        fuel: the most rewrites allowed; by default 20 for each operation plus 1,000.

    Raises:
        CompileError: fuel ran out (naming the rule that fired most), or a replacement has another type.
    """
    by_root: defaultdict[str, list[Rule]] = defaultdict(list)
    for item in rules:
        for name in item.pattern.names:
            by_root[name].append(item)
    stats = RewriteStats()
    worklist = dict.fromkeys(graph.ops)  # an ordered set
    fuel = fuel if fuel is not None else 20 * len(worklist) + 1000
    while worklist:
        op = next(iter(worklist))
        del worklist[op]
        if op.graph is not graph:
            continue
        touched = _rewrite_one(graph, op, by_root[op.name], stats)
        worklist.update(dict.fromkeys(touched))
        fuel -= bool(touched)
        if fuel < 0:
            name, count = stats.fired.most_common(1)[0]
            raise CompileError(f"rewriting does not end: rule {name!r} fired {count} times", span=op.span)
    return stats


def _rewrite_one(graph: Graph, op: Op, rules: list[Rule], stats: RewriteStats) -> list[Op]:
    """Try the rules on one operation; returns the operations to look at again when one fired."""
    for item in rules:
        found = match(item.pattern, op)
        if found is None:
            continue
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
        new = _between(graph, previous, op)
        operands = [value.op for value in op.operands if value.op]
        graph.replace(op, values)
        users = [user for value in values for user in value.users]
        neighbours = [value.op for o in new for value in o.operands if value.op]
        sources = [value.op for value in values if value.op]
        erase_dead(graph, [*operands, *new])
        return [o for o in [*new, *sources, *neighbours, *operands, *users] if o.graph is graph and o.next]
    return []


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
