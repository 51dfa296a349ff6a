"""Operator fusion: draws boxes around operations that a backend runs as one kernel."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op, Value, copy_ops
from secateur.ir.opdef import lookup
from secateur.passes.base import Pass
from secateur.passes.dce import DeadCode

REDUCTIONS = tuple(f"reduce_{kind}" for kind in ("sum", "mean", "max", "min", "prod"))
NORMS = ("softmax", "log_softmax", "layer_norm", "rms_norm", "standardize")
CONTRACTIONS = ("conv", "conv_transpose", "linear", "linear_grouped", "matmul")
CHEAP = 3  # operations that are computed again rather than stored
LOOKAHEAD = 12  # operations by which a branch that has not come together again may grow


@dataclass(frozen=True)
class Fuse(Pass):
    """Puts an anchor and the elementwise operations around it into one `fusion`; then what is left pointwise.

    before:  %0 = conv(%x, %w);  %1 = add(%0, %r);  %2 = relu(%1)
    after:   %2 = fusion(%x, %w, %r) {kind = "conv"} graph @conv_add_relu(...) {...}

    Exact: the body holds the same operations. An anchor takes the elementwise operations behind it
    as far as they keep its result's shape, no value in between is used elsewhere, and elements do not
    get wider again for another box: a quantised result leaves as bytes. It takes those that only make other operands of
    these too, and one in `prologues` those in front of its first operand. Elementwise operations that no
    anchor took are boxed where they form a cone to one result of their common shape. Scalar constants of elementwise
    operations move into the body; others, an anchor's parameters among them, stay operands.

    Attributes:
        anchors: operations that take an epilogue; `kind` is the anchor's name.
        prologues: anchors that take a prologue too.
        limit: the most operations in one box.
    """

    anchors: tuple[str, ...] = (*CONTRACTIONS, "attention_integer", *REDUCTIONS, *NORMS)
    prologues: tuple[str, ...] = (*REDUCTIONS, *NORMS)
    limit: int = 64

    def run(self, graph: Graph) -> None:
        DeadCode().run(graph)  # a result that nobody uses would keep a value from having one user
        split_widening(graph)
        order = list(graph.ops)
        state = _State({op: float(index) for index, op in enumerate(order)}, self.limit, self.prologues)
        groups: list[tuple[str, set[Op]]] = []
        # From the back, so that a residual joins the later of its two producers: the earlier is done by then.
        for op in reversed(order):
            if op.name in self.anchors and len(op.results) == 1:
                groups.append((op.name, state.epilogue(op)))
        for kind, group in groups:
            anchor = next(op for op in group if op.name == kind)
            beside = state.cone(group - {anchor}, anchor.result.shape) - group
            state.move_behind(graph, anchor, beside)
            if kind in self.prologues:
                group |= state.cone({anchor}, anchor.operands[0].shape)
            group |= beside
        for op in reversed(order):
            if is_elementwise(op) and op not in state.taken:
                groups.append(("pointwise", state.cone({op}, op.result.shape)))
        for kind, group in groups:
            if len(group) > 1:
                box(graph, sorted(group, key=state.position.__getitem__), kind)


def split_widening(graph: Graph) -> None:
    """Let every user make wide elements of narrow ones itself, where little is computed on the way.

    before:  %1 = cast(%x: u8);  %2 = reduce_sum(%1);  %3 = mul(%1, %y)
    after:   %1 = cast(%x);  %2 = reduce_sum(%1);  %4 = cast(%x);  %3 = mul(%4, %y)
    """
    for op in reversed(list(graph.ops)):
        if not is_elementwise(op) or len(op.result.users) < 2 or not _widens(op, CHEAP):
            continue
        for user in op.result.users[1:]:
            b = Builder(graph, user, op.span)
            own = b.op(op.name, op.operands, op.attrs).result
            for position, value in enumerate(user.operands):
                if value is op.result:
                    user.set_operand(position, own)


def _widens(op: Op | None, steps: int) -> bool:
    """Whether at most `steps` operations with single numbers make wider elements of one narrower tensor."""
    if op is None or not steps or not is_elementwise(op):
        return False
    tensors = [value for value in op.operands if _number(value) is None]
    if len(tensors) != 1 or tensors[0].shape != op.result.shape:
        return False
    before, after = tensors[0].type.dtype.bytes, op.result.type.dtype.bytes
    return before < after or (before == after and _widens(tensors[0].op, steps - 1))


def is_elementwise(op: Op) -> bool:
    return op.name != "return" and lookup(op.name).elementwise


@dataclass
class _State:
    """Program positions, and which operations are in a group already."""

    position: dict[Op, float]
    limit: int
    prologues: tuple[str, ...]

    def __post_init__(self) -> None:
        self.taken: set[Op] = set()

    def free(self, op: Op | None) -> bool:
        return op is not None and op in self.position and op not in self.taken and is_elementwise(op)

    def epilogue(self, anchor: Op) -> set[Op]:
        """The anchor and the elementwise operations behind it that end in one value.

        A branch (x * sigmoid(x)) is followed in program order and accepted where it has come together.
        """
        shape = anchor.result.shape
        group, best, width = {anchor}, {anchor}, anchor.result.type.dtype.bytes
        users = _Queue(self.position, 1)
        users.push(anchor.result.users)
        while (op := users.pop()) is not None and len(group) < min(self.limit, len(best) + LOOKAHEAD):
            if not self.free(op) or op.result.shape != shape:
                break
            group.add(op)
            users.push(op.result.users)
            if len(out := escaping(group)) == 1 and not (out[0].type.dtype.bytes > width and self.continues(out[0])):
                best, width = set(group), out[0].type.dtype.bytes
        self.taken |= best
        return best

    def continues(self, value: Value) -> bool:
        """Whether some other box will compute with a value's elements, and may as well make them itself."""
        return any(is_elementwise(user) or user.name in self.prologues for user in value.users)

    def cone(self, roots: set[Op], shape: tuple[int, ...]) -> set[Op]:
        """The roots and the elementwise operations of that shape whose results nothing else uses."""
        group = set(roots)
        producers = _Queue(self.position, -1)
        producers.push(value.op for root in sorted(roots, key=self.position.__getitem__) for value in root.operands)
        while (op := producers.pop()) is not None and len(group) < self.limit:
            # Producers come last first, so every user that could still join has been looked at.
            if self.free(op) and op.result.shape == shape and all(user in group for user in op.result.users):
                group.add(op)
                producers.push(value.op for value in op.operands)
        self.taken |= group
        return group

    def move_behind(self, graph: Graph, anchor: Op, ops: set[Op]) -> None:
        """Put operations that an anchor's epilogue alone needs between the two: bodies begin with their anchor."""
        for count, op in enumerate(sorted(ops, key=self.position.__getitem__, reverse=True), 1):
            if self.position[op] < self.position[anchor]:
                graph.move(op, anchor.next or graph.terminator)
                self.position[op] = self.position[anchor] + 1 / (count + 1)


class _Queue:
    """Distinct operations by program position, first first (`sign` 1) or last first (-1)."""

    def __init__(self, position: dict[Op, float], sign: int) -> None:
        self.position = position
        self.sign = sign
        self.heap: list[tuple[float, Op]] = []
        self.seen: set[Op] = set()

    def push(self, ops: Iterable[Op | None]) -> None:
        for op in ops:
            if op is not None and op not in self.seen:
                self.seen.add(op)
                heapq.heappush(self.heap, (self.sign * self.position.get(op, len(self.position)), op))

    def pop(self) -> Op | None:
        return heapq.heappop(self.heap)[1] if self.heap else None


def escaping(group: set[Op]) -> list[Value]:
    """The results of a group of operations that something outside it uses."""
    return [value for op in group for value in op.results if any(user not in group for user in value.users)]


def is_convex(ops: Sequence[Op]) -> bool:
    """Whether no path leaves the operations (given in program order) and comes back: a box would close a cycle.

    Looks only at the program between the first and the last of them. Where nothing but the last one's
    results escapes there is nothing to look at.
    """
    group = set(ops)
    reached = {value for value in escaping(group) if value.op is not ops[-1]}
    op: Op | None = ops[0] if reached else None
    while op is not None and op is not ops[-1]:
        op = op.next
        if op is None or not any(value in reached for value in op.operands):
            continue
        if op not in group:
            reached.update(op.results)
        elif any(value in reached and value.op not in group for value in op.operands):
            return False
    return True


def box(graph: Graph, ops: Sequence[Op], kind: str) -> Op:
    """Replace operations (given in program order) by one `fusion` with them as its body.

    The box stands where the last of them stood; every value used outside becomes a result.

    Raises:
        ValueError: they are not convex, or a value escapes to an operation in front of the last one.
    """
    group = set(ops)
    outputs = [value for op in ops for value in op.results if value in set(escaping(group))]
    if not is_convex(ops) or _used_before(ops[-1], group, outputs):
        raise ValueError(f"{len(ops)} operations around {ops[0]!r} cannot become one")
    body = Graph("_".join(op.name for op in ops[:6]))
    mapping: dict[Value, Value] = {}
    inputs: list[Value] = []
    for value in (value for op in ops for value in op.operands):
        if value in mapping or value.op in group:
            continue
        number = _number(value)
        if number and all(is_elementwise(op) for op in ops if value in op.operands):
            copy_ops([number], body, mapping)
        else:
            mapping[value] = body.add_input(value.type, value.hint)
            inputs.append(value)
    copy_ops(ops, body, mapping)
    body.outputs = [mapping[value] for value in outputs]
    anchor = next((op for op in ops if op.name == kind), ops[-1])
    fusion = Builder(graph, ops[-1], anchor.span).op("fusion", inputs, {"body": body, "kind": kind})
    for old, new in zip(outputs, fusion.results, strict=True):
        new.hint = old.hint
        old.replace_uses(new)
    for op in reversed(ops):
        graph.erase(op)
    return fusion


def _number(value: Value) -> Op | None:
    """The constant behind a value, where that is a single number."""
    return value.op if value.op is not None and value.op.name == "constant" and value.type.numel == 1 else None


def _used_before(last: Op, group: set[Op], outputs: Sequence[Value]) -> bool:
    """Whether an operation outside the group that stands before `last` uses one of the outputs."""
    early = {user for value in outputs if value.op is not last for user in value.users} - group
    at = last.next
    while early and at is not None:
        early.discard(at)
        at = at.next
    return bool(early)
