"""Items -> scene: boxes within boxes, and in each box layers from top to bottom with the order inside each.

Only ranks and orders are found here, sizes and coordinates are the page's: so a box that opens or closes there needs
no new layering. Each box is laid out by itself. A value that enters or leaves one does so through a port on its edge,
and a line that passes layers bends in each, after Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of
Hierarchical System Structures", 1981. Which order crosses least is what fast-sugiyama finds.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.ir.diagnostics import CompileError
from secateur.tools.viewer.flatten import Frame, Item

SWEEPS = 4
End = tuple[int, float, int, float]  # a segment: upper cell and place on its edge, lower cell and place
LEAF, BOX, BEND = 0, 1, 2  # what a cell holds, as the remainder of its code by 3


@dataclass
class Box:
    """A box: its children in order, and the range of leaves inside it."""

    frame: Frame
    children: list[Box | int] = field(default_factory=list)
    low: int = 0
    high: int = 0
    ins: dict[int, float] = field(default_factory=dict)
    outs: dict[int, float] = field(default_factory=dict)


@dataclass
class Flow:
    """The values of a scene: the leaf that makes each, and the last one that reads it."""

    number: dict[Hashable, int]
    made_by: list[int]
    made_as: list[int]
    last_use: list[int]
    reads: list[list[int]]
    writes: list[list[int]]


def arrange(items: Sequence[Item]) -> tuple[dict[str, Any], list[Item]]:
    """A scene as plain data, and the items in the order of its leaves."""
    ordered = schedule(items)
    flow = _flow(ordered)
    boxes: list[dict[str, Any]] = []
    root = Box(Frame("graph", "", ""), _nest(ordered, range(len(ordered)), 0), 0, len(ordered))
    _emit(root, flow, boxes)
    leaves = [
        {"record": item.record, "reads": flow.reads[i], "writes": flow.writes[i]} for i, item in enumerate(ordered)
    ]
    return {"leaves": leaves, "boxes": boxes, "values": list(zip(flow.made_by, flow.made_as))}, ordered


# Order --------------------------------------------------------------------------------------------


def schedule(items: Sequence[Item]) -> list[Item]:
    """A topological order that stays inside a module as long as it can, so that each module is one box.

    Where the items depend on each other in a circle (operations of two graphs in one picture), the first goes first.
    """
    units: dict[Hashable, list[Item]] = {}
    for item in items:
        units.setdefault(item.unit, []).append(item)
    maker = {value: item.unit for item in items for value in item.writes}
    waiting = {
        unit: {maker[v] for item in members for v in item.reads if v in maker and maker[v] != unit}
        for unit, members in units.items()
    }
    users: dict[Hashable, list[Hashable]] = {}
    for unit, needed in waiting.items():
        for other in needed:
            users.setdefault(other, []).append(unit)
    position = {unit: i for i, unit in enumerate(units)}
    ready = [unit for unit, needed in waiting.items() if not needed]
    done: list[Item] = []
    path: tuple[Frame, ...] = ()
    while waiting:
        if not ready:
            ready.append(min(waiting, key=lambda unit: position[unit]))
        best = min(ready, key=lambda unit: (-_shared(units[unit][0].frames, path), position[unit]))
        ready.remove(best)
        del waiting[best]
        done += units[best]
        path = units[best][0].frames
        for user in users.get(best, ()):
            if user in waiting and best in waiting[user]:
                waiting[user].discard(best)
                if not waiting[user] and user not in ready:
                    ready.append(user)
    return done


def _shared(a: Sequence[Frame], b: Sequence[Frame]) -> int:
    """How many boxes two items have in common."""
    count = 0
    for left, right in zip(a, b):
        if left.key != right.key:
            break
        count += 1
    return count


def _flow(items: Sequence[Item]) -> Flow:
    flow = Flow({}, [], [], [], [], [])
    for index, item in enumerate(items):
        for result, value in enumerate(item.writes):
            flow.number[value] = len(flow.made_by)
            flow.made_by.append(index)
            flow.made_as.append(result)
            flow.last_use.append(index)
        flow.writes.append([flow.number[value] for value in item.writes])
    for index, item in enumerate(items):
        known = [flow.number[value] for value in dict.fromkeys(item.reads) if value in flow.number]
        flow.reads.append([value for value in known if flow.made_by[value] < index])
        for value in flow.reads[-1]:
            flow.last_use[value] = index
    return flow


# Boxes --------------------------------------------------------------------------------------------


def _nest(items: Sequence[Item], span: range, depth: int) -> list[Box | int]:
    """Neighbours in the same box become one; a module with one thing in it is that thing."""
    children: list[Box | int] = []
    start = span.start
    while start < span.stop:
        frames = items[start].frames
        if len(frames) <= depth:
            children.append(start)
            start += 1
            continue
        stop = start + 1
        while stop < span.stop and len(items[stop].frames) > depth and items[stop].frames[depth] == frames[depth]:
            stop += 1
        inside = _nest(items, range(start, stop), depth + 1)
        children.append(_box(frames[depth], inside, start, stop))
        start = stop
    return children


def _box(frame: Frame, inside: list[Box | int], low: int, high: int) -> Box | int:
    if frame.kind == "module" and len(inside) == 1:
        only = inside[0]
        if isinstance(only, Box) and only.frame.kind == "module":
            label = f"{frame.label}.{only.frame.label}"
            return Box(Frame("module", only.frame.key, label), only.children, low, high)
        return only
    return Box(frame, inside, low, high)


def _emit(box: Box, flow: Flow, boxes: list[dict[str, Any]]) -> int:
    """Lay out a box and what is in it; returns its number. A parent's number is below its children's."""
    number = len(boxes)
    data: dict[str, Any] = {"kind": box.frame.kind, "key": box.frame.key, "label": box.frame.label}
    if box.frame.record >= 0:
        data["record"] = box.frame.record
    boxes.append(data)
    codes = [3 * c + LEAF if isinstance(c, int) else 3 * _emit(c, flow, boxes) + BOX for c in box.children]
    data |= _Layers(box, flow, codes).data()
    return number


class _Layers:
    """The layers of one box. A cell's code is 3 * number + LEAF, BOX or BEND (the number of a value)."""

    def __init__(self, box: Box, flow: Flow, codes: Sequence[int]) -> None:
        self.box, self.flow = box, flow
        self.cells = list(codes)
        self.ranks = [0] * len(codes)
        self.segments: list[tuple[int, int, int]] = []  # upper cell, lower cell, value
        self.sources: dict[int, int] = {}  # value -> the cell it comes from
        self.users: dict[int, list[int]] = {}
        self.build()

    def build(self) -> None:
        ranges = [(c, c + 1) if isinstance(c, int) else (c.low, c.high) for c in self.box.children]
        above: list[set[int]] = []
        for child, (low, high) in enumerate(ranges):
            read = {v for leaf in range(low, high) for v in self.flow.reads[leaf] if self.flow.made_by[v] < low}
            above.append(read)
            for value in sorted(read):
                self.users.setdefault(value, []).append(child)
                self.port(value)
            made = {v for leaf in range(low, high) for v in self.flow.writes[leaf]}
            self.sources.update(dict.fromkeys(sorted(made), child))
        self.rank(above)
        self.leave()
        for value, users in self.users.items():
            self.line(value, users)

    def port(self, value: int) -> None:
        """A value from outside comes in at the top."""
        if value not in self.sources:
            self.sources[value] = self.cell(value, 0)

    def cell(self, value: int, rank: int) -> int:
        self.cells.append(3 * value + BEND)
        self.ranks.append(rank)
        return len(self.cells) - 1

    def rank(self, above: Sequence[set[int]]) -> None:
        """Each child below what it reads; one that reads nothing here goes close to who reads it."""
        for child, read in enumerate(above):
            self.ranks[child] = max((self.ranks[self.sources[value]] + 1 for value in read), default=0)
        lowest: dict[int, int] = {}
        for value, users in self.users.items():
            source, least = self.sources[value], min(self.ranks[user] for user in users)
            lowest[source] = min(lowest.get(source, least), least)
        for child, read in enumerate(above):
            if not read and child in lowest:
                self.ranks[child] = lowest[child] - 1

    def leave(self) -> None:
        """A value that is read outside goes out at the bottom."""
        bottom = max(self.ranks, default=0) + 1
        for value, source in list(self.sources.items()):
            if source < len(self.box.children) and self.flow.last_use[value] >= self.box.high:
                self.users.setdefault(value, []).append(self.cell(value, bottom))

    def line(self, value: int, users: Sequence[int]) -> None:
        """One chain of bends for all who read a value: it branches where they are."""
        at, rank = self.sources[value], self.ranks[self.sources[value]]
        for user in sorted(users, key=lambda user: self.ranks[user]):
            while rank < self.ranks[user] - 1:
                rank += 1
                below = self.cell(value, rank)
                self.segments.append((at, below, value))
                at = below
            self.segments.append((at, user, value))

    def ends(self) -> list[End]:
        """The segments with the places on the edges of boxes where they start and end."""
        ends = []
        for a, b, value in self.segments:
            upper, lower = self.child(a), self.child(b)
            ends.append(
                (a, upper.outs.get(value, 0.5) if upper else 0.5, b, lower.ins.get(value, 0.5) if lower else 0.5)
            )
        return ends

    def child(self, cell: int) -> Box | None:
        found = self.box.children[cell] if cell < len(self.box.children) else None
        return found if isinstance(found, Box) else None

    def note_ports(self, layers: Sequence[Sequence[int]]) -> None:
        """Where values enter and leave this box, as shares of its width, for the layers around it."""
        for layer, ports in ((layers[0], self.box.ins), (layers[-1], self.box.outs)) if layers else ():
            for position, cell in enumerate(layer):
                if self.cells[cell] % 3 == BEND:
                    ports[self.cells[cell] // 3] = (position + 0.5) / len(layer)

    def data(self) -> dict[str, Any]:
        layers: list[list[int]] = [[] for _ in range(max(self.ranks, default=-1) + 1)]
        places = _places(len(self.cells), [(a, b) for a, b, _ in self.segments])
        for cell in sorted(range(len(self.cells)), key=lambda cell: places[cell]):
            layers[self.ranks[cell]].append(cell)
        layers = uncross([layer for layer in layers if layer], self.ends())
        self.note_ports(layers)
        flat = [number for segment in self.segments for number in segment]
        return {"cells": self.cells, "layers": layers, "segments": flat}


def _places(count: int, edges: Sequence[tuple[int, int]]) -> list[float]:
    """Left to right: a position for each cell such that lines between neighbouring layers cross little."""
    try:
        from fast_sugiyama import from_edges
    except ImportError:
        raise CompileError(
            "the HTML view needs the package fast-sugiyama", hint="pip install 'secateur[view]'"
        ) from None
    places = [0.0] * count
    left, alone = 0.0, set(range(count))
    unique = list(dict.fromkeys(edges))
    if unique:
        for positions, width, *_ in sorted(
            from_edges(unique, check_layout=False), key=lambda part: min(cell for cell, _ in part[0])
        ):
            for cell, (x, _) in positions:
                places[int(cell)] = left + x
                alone.discard(cell)
            left += width + 100.0
    for cell in sorted(alone):
        places[cell] = left = left + 100.0
    return places


def uncross(layers: list[list[int]], ends: Sequence[End]) -> list[list[int]]:
    """A better order where lines end at ports, of which the library knows nothing: barycentres, if less crosses."""
    above: dict[int, list[End]] = {}
    below: dict[int, list[End]] = {}
    for end in ends:
        below.setdefault(end[0], []).append(end)
        above.setdefault(end[2], []).append(end)
    at = {cell: float(place) for layer in layers for place, cell in enumerate(layer)}
    best, least = layers, _all_crossings(layers, below, at)
    fresh = [list(layer) for layer in layers]
    for sweep in range(SWEEPS if least else 0):
        down = sweep % 2 == 0
        for layer in fresh[1:] if down else fresh[-2::-1]:
            centre = {cell: _centre(cell, (above if down else below).get(cell, ()), at, down) for cell in layer}
            layer.sort(key=centre.__getitem__)
            at.update((cell, float(place)) for place, cell in enumerate(layer))
        crossings = _all_crossings(fresh, below, at)
        if crossings < least:
            best, least = [list(layer) for layer in fresh], crossings
    return best


def _all_crossings(layers: Sequence[Sequence[int]], below: dict[int, list[End]], at: dict[int, float]) -> int:
    return sum(_crossings([end for cell in layer for end in below.get(cell, ())], at) for layer in layers)


def _centre(cell: int, ends: Sequence[End], at: dict[int, float], downwards: bool) -> float:
    """The mean place of what a cell hangs on, less where on its own edge the lines end."""
    if not ends:
        return at[cell]
    places = [at[a] + x - y if downwards else at[b] + y - x for a, x, b, y in ends]
    return sum(places) / len(places)


def _crossings(ends: Sequence[End], at: dict[int, float]) -> int:
    """How many of these lines, all between the same two layers, cross."""
    lines = sorted((at[a] + x, at[b] + y) for a, x, b, y in ends)
    seen: list[float] = []
    count = 0
    for _, lower in lines:
        count += len(seen) - bisect_right(seen, lower)
        insort(seen, lower)
    return count
