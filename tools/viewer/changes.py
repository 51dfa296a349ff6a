"""What a pass did: which operation of the graph before is which of the graph after."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from secateur.tools.viewer.flatten import Item
from secateur.tools.viewer.records import Records

Key = Callable[[Item], Hashable]


@dataclass
class Changes:
    """`old` leads from an item after to the one before; `why` says how a pair differs."""

    old: dict[Item, Item] = field(default_factory=dict)
    added: list[Item] = field(default_factory=list)
    removed: list[Item] = field(default_factory=list)
    why: dict[Item, str] = field(default_factory=dict)


def compare(before: Sequence[Item], after: Sequence[Item], records: Records) -> Changes:
    """Pair items: first those equal with equal neighbours, then equal ones, then those from the same place.

    What is left is paired where operations of one name read the same.
    """
    found = Changes()
    left, right = list(before), list(after)
    near_before, near_after = _neighbourhoods(before), _neighbourhoods(after)
    keys: tuple[tuple[Key, Key], ...] = (
        (near_before.__getitem__, near_after.__getitem__),
        (_identity, _identity),
        (_place, _place),
    )
    for old_key, new_key in keys:
        left, right = _pair(left, right, old_key, new_key, found)
    left, right = _pair_by_operands(before, after, left, right, records, found)
    found.removed, found.added = left, right
    for new, old in found.old.items():
        why = _difference(old, new, records)
        if why:
            found.why[new] = why
    return found


def _identity(item: Item) -> Hashable:
    return item.identity


def _place(item: Item) -> Hashable:
    return item.place


def _pair(
    left: Sequence[Item], right: Sequence[Item], old_key: Key, new_key: Key, found: Changes
) -> tuple[list[Item], list[Item]]:
    """Pair what has equal keys, in order; returns what is left over on both sides."""
    waiting: defaultdict[Hashable, deque[Item]] = defaultdict(deque)
    for item in left:
        waiting[old_key(item)].append(item)
    rest = []
    taken = set()
    for item in right:
        queue = waiting.get(new_key(item))
        if queue:
            found.old[item] = queue.popleft()
            taken.add(found.old[item])
        else:
            rest.append(item)
    return [item for item in left if item not in taken], rest


def _pair_by_operands(
    before: Sequence[Item],
    after: Sequence[Item],
    left: Sequence[Item],
    right: Sequence[Item],
    records: Records,
    found: Changes,
) -> tuple[list[Item], list[Item]]:
    """From top to bottom: an operation that reads what one of its name read is that one.

    What cannot be paired, because nothing of its name is left, is looked through to what it read itself.
    """
    old_maker = {value: item for item in before for value in item.writes}
    new_maker = {value: item for item in after for value in item.writes}
    names = {records.ops[item.record]["name"] for item in right}
    gone = {item for item in left if records.ops[item.record]["name"] not in names}

    def source(value: Hashable) -> Item | None:
        maker = old_maker.get(value)
        while maker in gone and maker.reads:
            maker = old_maker.get(maker.reads[0])
        return maker

    def old_key(item: Item) -> Hashable:
        return records.ops[item.record]["name"], tuple(source(value) for value in item.reads)

    def new_key(item: Item) -> Hashable:
        makers = [new_maker.get(value) for value in item.reads]
        return records.ops[item.record]["name"], tuple(found.old.get(maker) if maker else None for maker in makers)

    return _pair(left, right, old_key, new_key, found)


def _neighbourhoods(items: Sequence[Item]) -> dict[Item, Hashable]:
    """The identity and place of each item with those of all who make what it reads and read what it makes."""
    maker = {value: item for item in items for value in item.writes}
    users: defaultdict[Item, list[Item]] = defaultdict(list)
    for item in items:
        for value in item.reads:
            if value in maker:
                users[maker[value]].append(item)
    own = {item: hash((item.identity, item.place)) for item in items}
    return {
        item: (own[item], tuple(own[maker[v]] for v in item.reads if v in maker), tuple(own[u] for u in users[item]))
        for item in items
    }


def _difference(old: Item, new: Item, records: Records) -> str:
    """In words: what differs between two records of the same operation, or nothing."""
    if old.identity == new.identity or old.record == new.record:
        return ""
    a, b = records.ops[old.record], records.ops[new.record]
    told = [f"result {_listed(a['types'])} → {_listed(b['types'])}"] if a["types"] != b["types"] else []
    attrs = dict(a.get("attrs", ()))
    told += [f"{key} {attrs.get(key)} → {value}" for key, value in b.get("attrs", ()) if attrs.get(key) != value]
    if a.get("operands") != b.get("operands"):
        told.append(f"operands {_types(a)} → {_types(b)}")
    elif a.get("constants") != b.get("constants"):
        told.append("constants")
    return "; ".join(told)


def _listed(types: Sequence[str]) -> str:
    return ", ".join(types)


def _types(record: dict[str, Any]) -> str:
    return f"({', '.join(type for _, type in record.get('operands', ()))})"


def overlay(after: Sequence[Item], changes: Changes) -> list[Item]:
    """Both graphs in one: the graph after, and what was removed where it stood before."""
    values = {old: new for item, was in changes.old.items() for old, new in zip(was.writes, item.writes)}
    ghosts = []
    for item in changes.removed:
        frames = tuple(frame for frame in item.frames if frame.kind == "module")
        reads = tuple(values.get(value, value) for value in item.reads)
        ghosts.append(replace(item, frames=frames, reads=reads, unit=("removed", id(item))))
    lost = {value for item in changes.removed for value in item.writes}
    both = [_reading(item, changes.old.get(item), lost) for item in after]
    return [*both, *ghosts]


def _reading(item: Item, was: Item | None, lost: set[Hashable]) -> Item:
    """An item that read something removed is drawn below it."""
    extra = tuple(value for value in was.reads if value in lost) if was else ()
    return replace(item, reads=(*item.reads, *extra)) if extra else item
