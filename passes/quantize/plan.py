"""What will be quantised, and how: from a graph, a recipe and the table to forms for single uses of values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secateur.ir.graph import Graph, Op, Value
from secateur.ir.types import DType
from secateur.passes.quantize.names import labels, required
from secateur.passes.quantize.recipe import SCHEMES, Recipe, Scheme
from secateur.passes.quantize.table import ANCHORS, BOUNDED, EIGHT, TABLE

FLOAT = "float"  # what an operation that is not quantised wants
FUSED = ""  # what one wants that takes the accumulator of a product as it is
Use = tuple[Op, int]


@dataclass(frozen=True, slots=True)
class Site:
    """One scale and zero point: the form (a word of the table) and the value whose range decides them.

    Whatever only moves that value, and whatever is concatenated into it, has the same site.
    """

    source: Value
    word: str


@dataclass
class Plan:
    """The decision for each operation and each use of a value.

    Attributes:
        named: the label of every operation.
        uses: operand positions (of `return` too) that read the value after a quantize and a dequantize.
        weights: how the weights of each product with constant weights are quantised.
        whole: operations that work in integers.
        reasons: why an operation of the table stays float.
    """

    named: dict[Op, str]
    uses: dict[Use, Site] = field(default_factory=dict)
    weights: dict[Op, Scheme] = field(default_factory=dict)
    whole: list[Op] = field(default_factory=list)
    reasons: dict[Op, str] = field(default_factory=dict)

    def readers(self) -> dict[Site, list[Use]]:
        """The uses of each site by operations that compute, in order."""
        found: dict[Site, list[Use]] = {}
        for (op, position), site in self.uses.items():
            uses = found.setdefault(site, [])
            if op.name in TABLE and TABLE[op.name].kind != "move":
                uses.append((op, position))
        return found


def make_plan(graph: Graph, recipe: Recipe, excluded: Mapping[Op, str] | None = None) -> Plan:
    """Plan a graph; `excluded` are more operations that stay float, with the reason.

    Raises:
        CompileError: an override or a pattern to keep float names nothing.
    """
    plan = Plan(labels(graph))
    schemes = _schemes(recipe, plan.named, excluded or {})
    _choose(graph, schemes, plan)
    _Demands(plan, graph).run()
    return plan


def _schemes(recipe: Recipe, named: dict[Op, str], excluded: Mapping[Op, str]) -> dict[Op, tuple[Scheme, str]]:
    """Scheme of each operation of the table, and why, where something said so."""
    found = {op: (recipe.scheme, "") for op in named if op.name in TABLE}
    for pattern, name in recipe.overrides.items():
        for op in required(pattern, named) & found.keys():
            scheme = SCHEMES[name]
            if not scheme.activations and recipe.group:
                scheme = Scheme(scheme.weights, False, True, recipe.group)
            found[op] = (scheme, f"override {pattern!r}")
    for pattern in recipe.keep_float:
        found.update({op: (SCHEMES["float"], f"kept by {pattern!r}") for op in required(pattern, named) if op in found})
    products = [op for op in found if TABLE[op.name].kind == "product"]
    for op, wanted, place in [(op, recipe.first, "first") for op in products[:1]] + [
        (op, recipe.last, "last") for op in products[-1:]
    ]:
        if not wanted:
            found[op] = (SCHEMES["float"], f"it is the {place} product")
    found.update({op: (SCHEMES["float"], why) for op, why in excluded.items() if op in found})
    return found


def _choose(graph: Graph, schemes: dict[Op, tuple[Scheme, str]], plan: Plan) -> None:
    """Which operations work in integers: anchors, and what reads their results."""
    fed: set[Value] = set()  # values that integer operations make
    for op, (scheme, why) in schemes.items():
        row = TABLE[op.name]
        if row.kind == "move":
            if any(value in fed for value in op.operands):
                fed.update(op.results)
            continue
        reason = _refusal(op, scheme, why)
        if not reason and not scheme.activations:
            if op.name == "linear":
                plan.weights[op] = scheme
                continue
            reason = "only the weights of linear layers are quantised"
        if not reason and row.kind not in ANCHORS and not any(value in fed for value in op.operands):
            reason = "nothing in front of it is in integers"
        if reason:
            plan.reasons[op] = reason
            continue
        plan.whole.append(op)
        fed.update(op.results)
        if "w" in row.words:
            plan.weights[op] = scheme


def _refusal(op: Op, scheme: Scheme, why: str) -> str:
    if scheme.weights == "float":
        return why
    types = [value.type for value in (*op.operands, *op.results)]
    if any(type.dtype.is_float and type.dtype is not DType.F32 for type in types):
        return f"it computes in {op.results[0].type.dtype}"
    if op.results[0].type.numel == 0:
        return "it computes nothing"
    return TABLE[op.name].refuse(op)


class _Demands:
    """Goes through a graph from the back and notes which form each operand is wanted in."""

    def __init__(self, plan: Plan, graph: Graph) -> None:
        self.plan = plan
        self.graph = graph
        self.whole = set(plan.whole)
        self.order = {op: index for index, op in enumerate(graph.ops)}
        self.same: dict[Site, Site] = {}  # sites behind movements, and the ones in front
        self.wanted: dict[Value, dict[Use, Site | str]] = {}

    def run(self) -> None:
        for position in range(len(self.graph.outputs)):
            self._want(self.graph.terminator, position, FLOAT)
        for op in reversed(list(self.graph.ops)):
            if op.name in TABLE and TABLE[op.name].kind == "move":
                self._move(op)
            else:
                for position, _ in enumerate(op.operands):
                    self._want(op, position, self._word(op, position))
        self._settle()

    def _want(self, op: Op, position: int, word: Site | str) -> None:
        value = op.operands[position]
        if isinstance(word, str) and word not in (FLOAT, FUSED):
            word = Site(value, word)
        self.wanted.setdefault(value, {})[op, position] = word

    def _results(self, op: Op) -> set[Site | str]:
        """What the results of an operation are wanted as, by what takes them in as they are too."""
        found: set[Site | str] = set()
        for value in op.results:
            for (user, _), word in self.wanted.get(value, {}).items():
                found |= self._results(user) if word == FUSED else {word}
        return found

    def _word(self, op: Op, position: int) -> str:
        value = op.operands[position]
        if op not in self.whole or value.type.dtype is not DType.F32:
            return FLOAT
        row = TABLE[op.name]
        word = row.word(position)
        if word in ("w", ""):
            return FLOAT
        if row.kind in ("join", "bend") and self._fuses(op, position):
            return FUSED
        if word == "mul":
            shapes = {operand.shape for operand in op.operands}
            return "s16" if len(shapes) == 1 else "a8"
        if word != "out":
            return word
        words = {site.word for site in self._results(op) if isinstance(site, Site)}
        return "s16" if "s16" in words or not words & set(EIGHT) else "a8"

    def _fuses(self, op: Op, position: int) -> bool:
        """Whether an operand stays the accumulator it is: of a join, the one that is computed last."""
        able = [i for i, value in enumerate(op.operands) if value.shape == op.result.shape and self._open(value)]
        return bool(able) and position == max(able, key=lambda i: self.order[self._maker(op.operands[i])])

    def _maker(self, value: Value) -> Op:
        assert value.op is not None
        return value.op

    def _open(self, value: Value) -> bool:
        """Whether a value is a product or what fuses with one, and has one use."""
        if value.op not in self.whole or len(value.uses) != 1:
            return False
        kind = TABLE[value.op.name].kind
        return kind in ("product", "join") or (kind == "bend" and self._open(value.op.operands[0]))

    def _move(self, op: Op) -> None:
        """A movement wants what its result is wanted as, if that is one thing, and the site is the same."""
        wanted = self._results(op)
        only = next(iter(wanted)) if len(wanted) == 1 else FLOAT
        split = op.name == "slice" and len(op.operands[0].uses) > 1  # its parts have ranges of their own
        if isinstance(only, str) or split or op.operands[0].type.dtype is not DType.F32:
            only = FLOAT
        for position, value in enumerate(op.operands):
            if isinstance(only, Site) and only.source is op.result and op.name != "concat":
                self.same[only] = Site(value, only.word)
                self._want(op, position, self.same[only])
            else:
                self._want(op, position, only)

    def _settle(self) -> None:
        for wanted in reversed(self.wanted.values()):
            for (op, position), word in wanted.items():
                value = op.operands[position]
                if word == FLOAT and op not in self.whole and self._bounded(value):
                    word = Site(value, "s16")
                if isinstance(word, Site):
                    while word in self.same:
                        word = self.same[word]
                    self.plan.uses[op, position] = word

    def _bounded(self, value: Value) -> bool:
        """Whether a value comes out of integers that are no product's accumulator."""
        if value.op not in self.whole:
            return False
        kind = TABLE[value.op.name].kind
        return kind in BOUNDED or (kind == "bend" and self._bounded(value.op.operands[0]))
