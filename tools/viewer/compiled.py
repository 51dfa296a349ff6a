"""An artefact as the data of a page: its steps, the C function of each, and the plan of its memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from secateur.backends.artifact import read_manifest
from secateur.ir.diagnostics import CompileError
from secateur.ir.opdef import all_ops
from secateur.tools.picture import family
from secateur.tools.viewer.errors import error_at, errors_of
from secateur.tools.viewer.flatten import Item, modules
from secateur.tools.viewer.records import Records
from secateur.tools.viewer.story import Story

_KERNEL = re.compile(r"KERNEL\((\w+)\) \{")


def tell_artifact(folder: Path, profile: dict[str, Any] | None = None) -> Story:
    """The story of an artefact, which does not have to run here: one stage, with code and memory.

    Args:
        folder: the artefact.
        profile: `rows` with the `step`, its `seconds`, and the `share` of the machine's limit it reached.

    Raises:
        CompileError: not an artefact, one without a memory plan, or a profile of another one.
    """
    manifest = read_manifest(folder)
    if "buffers" not in manifest:
        raise CompileError(f"{folder} does not say where its buffers lie", hint="compile the model again")
    errors = errors_of(manifest.get("quantization", {}).get("ops", ()))
    story = Story(f"{folder.absolute().name} for {manifest['target']}", Records(errors=errors))
    measured = {int(row["step"]): row for row in (profile or {}).get("rows", ())}
    if measured and measured.keys() != set(range(len(manifest["kernels"]))):
        raise CompileError("the profile is of another artefact: its steps are not those of this one")
    items = story.start(_items(manifest, measured, story), "kernels")
    steps = {item.unit: index for index, item in enumerate(items)}
    memory = {
        "arena": manifest["arena_bytes"],
        "weights": manifest["weights_bytes"],
        "scratch": manifest["scratch_bytes"],
        "steps": len(manifest["kernels"]),
        "leaves": [steps[number] for number in range(len(manifest["kernels"]))],
        "buffers": [
            [b["offset"], b["bytes"], b["first"], b["last"]] for b in manifest["buffers"] if b["kind"] == "arena"
        ],
    }
    story.extra = {"functions": functions(folder, manifest["sources"]), "memory": memory}
    return story


def _items(manifest: dict[str, Any], measured: dict[int, dict[str, Any]], story: Story) -> list[Item]:
    """Inputs, steps, outputs. A step reads all that was written into its buffers: some are written part by part."""
    items = []
    written: dict[int, list[tuple[int, int]]] = {}
    buffers = manifest["buffers"]
    for number, buffer in enumerate(buffers):
        if buffer["kind"] == "input":
            items.append(_border(story, manifest["inputs"], buffer["index"], "input", [], [(number, -1)]))
            written[number] = [(number, -1)]
    for row in manifest["kernels"]:
        reads = [value for buffer in row["reads"] for value in written.get(buffer, ())]
        made = [(buffer, row["step"]) for buffer in dict.fromkeys(row["writes"])]
        for value in made:
            written.setdefault(value[0], []).append(value)
        items.append(_step(row, measured.get(row["step"], {}), story, reads, made))
    for number, buffer in enumerate(buffers):
        if buffer["kind"] == "output":
            items.append(_border(story, manifest["outputs"], buffer["index"], "output", written.get(number, []), []))
    return items


def _border(
    story: Story,
    described: Sequence[dict[str, Any]],
    index: int,
    kind: str,
    reads: Sequence[tuple[int, int]],
    writes: Sequence[tuple[int, int]],
) -> Item:
    entry = described[index]
    shape = ",".join(map(str, entry["shape"]))
    label = entry["name"] or (f"{kind} {index}" if kind == "input" or len(described) > 1 else "result")
    record = {"name": label, "family": kind, "types": [f"{entry['dtype']}[{shape}]"]}
    return Item(story.records.add(record), (), tuple(reads), tuple(writes), unit=(kind, index))


def _step(
    row: dict[str, Any],
    measured: dict[str, Any],
    story: Story,
    reads: Sequence[tuple[int, int]],
    made: Sequence[tuple[int, int]],
) -> Item:
    module, place = _source(row["source"])
    record = {
        "name": row["op"],
        "family": family(row["op"]) if row["op"] in all_ops() else "other",
        "detail": row["family"] if row["family"] != row["op"] else "",
        "types": [row["result"]] if row["result"] else [],
        "attrs": [["kernel", row["family"]], ["why", row["why"]], ["step", str(row["step"])]],
        "module": module,
        "source": place,
        "flops": row["flops"],
        "bytes": row["bytes"],
        "function": row["function"],
        "step": row["step"],
        **{key: measured[key] for key in ("seconds", "share") if measured.get(key) is not None},
        **error_at(story.records.errors, row["source"], row["op"]),
    }
    return Item(story.records.add(record), modules(module), tuple(reads), tuple(made), unit=row["step"])


def _source(text: str) -> tuple[str, str]:
    """A span's text as module and file: `a.b (file.py:3)`, or only one of them."""
    found = re.fullmatch(r"(.*) \((.*)\)", text)
    if found:
        return found[1], found[2]
    return ("", text) if re.search(r":\d+$", text) else (text, "")


def functions(folder: Path, sources: Sequence[str]) -> dict[str, str]:
    """The C of each kernel by name, with the helper functions in front of it.

    Raises:
        CompileError: a source file is not there, or is not in the folder itself.
    """
    found: dict[str, str] = {}
    for name in sources:
        if Path(name).name != name:
            raise CompileError(f"{folder}: the source {name!r} is not in the folder itself")
        try:
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise CompileError(f"cannot read {folder / name}: {error.strerror}") from None
        found.update(_split(text))
    return found


def _split(text: str) -> Iterator[tuple[str, str]]:
    """Kernels with what precedes each, as the emitter writes them."""
    lines: list[str] = []
    name = ""
    for line in text.splitlines():
        if line.startswith("#include"):
            continue
        opening = _KERNEL.match(line)
        name = opening[1] if opening else name
        lines.append(line)
        if line == "}" and name:
            yield name, "\n".join(lines).strip()
            lines, name = [], ""
