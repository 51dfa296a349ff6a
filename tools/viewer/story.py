"""A model's way through the passes, as the data of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.ir.graph import Graph
from secateur.passes.base import Pass
from secateur.passes.manager import PassManager, PassRecord
from secateur.tools.viewer.arrange import arrange
from secateur.tools.viewer.changes import Changes, compare, overlay
from secateur.tools.viewer.errors import Errors
from secateur.tools.viewer.flatten import Item, flatten
from secateur.tools.viewer.records import Records


@dataclass
class Story:
    """Scenes, and the stages (the graph as it came, then each pass) that show them.

    A pass that changes nothing shows the scene before it. `overlay` is a scene with what was removed still in it.
    """

    title: str
    records: Records = field(default_factory=Records)
    scenes: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # what only an artefact has: `functions` and `memory`

    def start(self, items: Sequence[Item], name: str) -> list[Item]:
        """The first stage; returns its items as they are drawn."""
        scene, ordered = arrange(items)
        self.scenes.append(scene)
        count = sum(_is_op(self.records, item) for item in items)
        self.stages.append({"name": name, "scene": 0, "overlay": -1, "ops": count, "marks": [], "removed": []})
        return ordered

    def add(self, before: Sequence[Item], after: Sequence[Item], record: PassRecord) -> list[Item]:
        """A stage for a pass; returns its items as they are drawn."""
        changes = compare(before, after, self.records)
        stage: dict[str, Any] = {
            "name": record.name,
            "seconds": record.seconds,
            "rules": dict(record.rules.fired) if record.rules else {},
            "ops": sum(_is_op(self.records, item) for item in after),
        }
        self.stages.append(stage)
        boxed = _boxes(before) != _boxes(after)
        if not (changes.added or changes.removed or changes.why or boxed):
            stage |= {"scene": self.stages[-2]["scene"], "overlay": -1, "marks": [], "removed": []}
            return list(before)
        scene, ordered = arrange(after)
        self.scenes.append(scene)
        was = {item: index for index, item in enumerate(before)}
        stage |= {
            "scene": len(self.scenes) - 1,
            "overlay": -1,
            "marks": _marks(ordered, changes),
            "match": [was[changes.old[item]] if item in changes.old else -1 for item in ordered],
            "removed": [was[item] for item in changes.removed],
            "boxed": boxed,
        }
        if changes.removed:
            stage["overlay"] = len(self.scenes)
            self.scenes.append(_both(ordered, changes, was))
        return ordered

    def data(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "ops": self.records.ops,
            "constants": self.records.constants,
            "scenes": self.scenes,
            "stages": self.stages,
            **self.extra,
        }


def tell(graph: Graph, passes: Sequence[Pass], title: str, errors: Errors | None = None) -> Story:
    """Run passes over `graph` (in place) and keep what each did; `errors` are those of quantisation."""
    story = Story(title, Records(errors=errors or {}))
    items = story.start(flatten(graph.clone(), story.records), "as imported")
    manager = PassManager(passes, snapshots=True)
    manager.run(graph)
    for record in manager.records:
        assert record.snapshot is not None
        items = story.add(items, flatten(record.snapshot, story.records), record)
    return story


def _marks(ordered: Sequence[Item], changes: Changes) -> list[list[Any]]:
    """What is new or different, by leaf."""
    added = set(changes.added)
    marks: list[list[Any]] = []
    for index, item in enumerate(ordered):
        if item in added:
            marks.append([index, "added", ""])
        elif item in changes.why:
            marks.append([index, "changed", changes.why[item]])
    return marks


def _both(ordered: Sequence[Item], changes: Changes, was: dict[Item, int]) -> dict[str, Any]:
    """The scene of both graphs. `base` leads to the leaf of the graph after, `ghost` to that of the graph before."""
    both = overlay(ordered, changes)
    scene, drawn = arrange(both)
    base = {id(item): index for index, item in enumerate(both[: len(ordered)])}
    ghost = {id(item): was[old] for item, old in zip(both[len(ordered) :], changes.removed, strict=True)}
    scene["base"] = [base.get(id(item), -1) for item in drawn]
    scene["ghost"] = [ghost.get(id(item), -1) for item in drawn]
    return scene


def _boxes(items: Sequence[Item]) -> list[tuple[str, ...]]:
    boxes = [tuple(frame.key for frame in item.frames if frame.kind == "fusion") for item in items]
    return sorted(box for box in boxes if box)


def _is_op(records: Records, item: Item) -> bool:
    return records.ops[item.record]["family"] not in ("input", "output")
