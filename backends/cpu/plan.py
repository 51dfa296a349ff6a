"""The static memory plan: which buffers share memory in place, and where each lies in the arena."""

from __future__ import annotations

from bisect import insort

from secateur.backends.cpu.lower import Lowered
from secateur.backends.cpu.views import ARENA, Buffer

ALIGNMENT = 64


def plan(program: Lowered) -> int:
    """Give every arena buffer its offset; returns the bytes of the arena.

    Buffers whose lifetimes do not overlap share memory. They are placed largest first, each at the
    lowest offset that is free during its life (greedy by size, as in Pisarchyk and Lee,
    "Efficient Memory Management for Deep Neural Net Inference", 2020).
    """
    _share_in_place(program)
    groups: dict[Buffer, list[Buffer]] = {}
    for buffer in program.buffers:
        if buffer.root.kind == ARENA and buffer.first >= 0:
            groups.setdefault(buffer.root, []).append(buffer)
    lives = {root: (min(b.first for b in g), max(b.last for b in g)) for root, g in groups.items()}
    placed: list[Buffer] = []
    top = 0
    for root in sorted(groups, key=lambda b: (-b.bytes, b.first)):
        first, last = lives[root]
        offset = 0
        for other in placed:  # in order of offset
            if lives[other][0] <= last and first <= lives[other][1]:
                if offset + root.bytes <= other.offset:
                    break
                offset = max(offset, _aligned(other.offset + other.bytes))
        root.offset = offset
        insort(placed, root, key=lambda b: b.offset)
        top = max(top, _aligned(offset + root.bytes))
    for root, group in groups.items():
        for buffer in group:
            buffer.offset = root.offset
    return top


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _share_in_place(program: Lowered) -> None:
    """Let a result take over an operand's memory where the kernel allows it and nobody reads it later."""
    last_use: dict[Buffer, int] = {}
    for number, step in enumerate(program.steps):
        for view in step.args:
            last_use[view.buffer.root] = number
    for number, step in enumerate(program.steps):
        result = next((i for i, a in enumerate(step.kernel.args) if isinstance(a, tuple) and a[1] == 0), None)
        if result is None or not step.kernel.inplace:
            continue
        target = step.args[result].buffer
        if target.kind != ARENA or target.shares or target.first != number:
            continue
        for position in step.kernel.inplace:
            at = next(i for i, a in enumerate(step.kernel.args) if isinstance(a, int) and a == position)
            source = step.args[at].buffer
            others = [view.buffer.root for i, view in enumerate(step.args) if i not in (at, result)]
            free = last_use[source.root] == number and source.root not in others
            if source.root.kind == ARENA and free and source.root.bytes == target.bytes and step.args[at].offset == 0:
                target.shares = source.root
                last_use[source.root] = max(last_use[source.root], last_use[target])
                break
