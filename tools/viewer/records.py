"""What the page says of an operation or a constant, each kept once however many passes leave it as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur.ir.graph import Graph, Op
from secateur.ir.opdef import lookup
from secateur.tools.picture import constant_label, family
from secateur.tools.viewer.errors import Errors, error_at

BINS = 48
SAMPLED = 200_000  # a histogram of more elements is drawn from an even sample of them
MOST_TEXT = 2_000


@dataclass
class Records:
    """Interned records: `ops` and `constants` go into the page, and graphs refer to them by number.

    Attributes:
        errors: what is known of quantisation, see `errors_of`.
    """

    ops: list[dict[str, Any]] = field(default_factory=list)
    constants: list[dict[str, Any]] = field(default_factory=list)
    errors: Errors = field(default_factory=dict)
    _ops: dict[str, int] = field(default_factory=dict)
    _constants: dict[tuple[str, bytes], int] = field(default_factory=dict)
    _digests: dict[int, tuple[np.ndarray, bytes]] = field(default_factory=dict)  # by id; the array keeps its id taken

    def add(self, record: dict[str, Any]) -> int:
        """The number of a record, which is stored when it is new."""
        key = json.dumps(record, sort_keys=True, default=str)
        if key not in self._ops:
            self._ops[key] = len(self.ops)
            self.ops.append(record)
        return self._ops[key]

    def op(self, op: Op, constants: Sequence[Op | None]) -> int:
        """The record of an operation; `constants` holds, for each operand, the constant behind it or None."""
        opdef = lookup(op.name)
        flops, moved = opdef.cost(op)
        names = [spec.name for spec in opdef.operands]
        held = [
            (names[min(i, len(names) - 1)], self.constant(item)) for i, item in enumerate(constants) if item is not None
        ]
        span = op.span
        return self.add(
            {
                "name": op.name,
                "family": family(op.name),
                "doc": opdef.doc,
                "detail": _detail(op, constants),
                "types": [str(value.type) for value in op.results],
                "operands": [[names[min(i, len(names) - 1)], str(v.type)] for i, v in enumerate(op.operands)],
                "attrs": [[key, _text(value)] for key, value in op.attrs.items() if not isinstance(value, np.ndarray)],
                "module": span.module if span else "",
                "source": f"{span.file}:{span.line}" if span and span.file else "",
                "flops": int(flops),
                "bytes": int(moved),
                "constants": held,
                **error_at(self.errors, str(span or ""), op.name),
            }
        )

    def constant(self, op: Op) -> int:
        """The number of a constant, which is measured when it is first seen."""
        key = op.attrs["name"], self.digest(op)
        if key not in self._constants:
            self._constants[key] = len(self.constants)
            self.constants.append({"name": key[0], "type": str(op.result.type), **measured(op.attrs["value"])})
        return self._constants[key]

    def digest(self, op: Op) -> bytes:
        """What tells a constant's value from others: passes share arrays, so each is read once."""
        array: np.ndarray = op.attrs["value"]
        if id(array) not in self._digests:
            hashed = hashlib.blake2b(str(op.result.type).encode(), digest_size=12)
            hashed.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._digests[id(array)] = array, hashed.digest()
        return self._digests[id(array)][1]


def measured(array: np.ndarray) -> dict[str, Any]:
    """Size, share of elements that are not zero, range, and a histogram of a constant."""
    found: dict[str, Any] = {"bytes": int(array.nbytes), "elements": int(array.size)}
    if not array.size:
        return found
    found["density"] = round(float(np.count_nonzero(array)) / array.size, 6)
    if array.size <= 8:
        found["values"] = [_number(item) for item in array.reshape(-1).tolist()]
    if array.dtype == np.bool_:
        return found
    flat = array.reshape(-1)
    sample = flat[:: -(-array.size // SAMPLED)].astype(np.float64)
    finite = sample[np.isfinite(sample)]
    if finite.size:
        counts, _ = np.histogram(finite, bins=BINS)
        statistics = {"low": finite.min(), "high": finite.max(), "mean": finite.mean(), "deviation": finite.std()}
        found |= {key: _number(value) for key, value in statistics.items()}
        found["histogram"] = [int(count) for count in counts] if array.size > 8 else []
    found["nonfinite"] = int(sample.size - finite.size)
    found["sampled"] = int(sample.size)
    return found


def _number(value: Any) -> Any:
    """A number that JSON can hold, with six digits; what is not finite is text."""
    if isinstance(value, (bool, int)):
        return value
    number = float(value)
    return float(f"{number:.6g}") if np.isfinite(number) else str(number)


def _detail(op: Op, constants: Sequence[Op | None]) -> str:
    """The little that fits beside the name: a kernel's size, or the numbers an operation works with."""
    if op.name in ("conv", "conv_transpose"):
        kernel = "×".join(map(str, op.operands[1].shape[2:]))
        stride = max(op.attrs["stride"], default=1)
        return kernel + (f" /{stride}" if stride > 1 else "")
    if op.name in ("max_pool", "avg_pool"):
        return "×".join(map(str, op.attrs["kernel"]))
    small = [constant_label(item) for item in constants if item is not None and item.attrs["value"].size == 1]
    return ", ".join(small)[:24]


def _text(value: Any) -> str:
    if isinstance(value, Graph):
        return f"{len(value)} operations"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_text, value))}]"
    return (f"{value:.6g}" if isinstance(value, float) else str(value))[:MOST_TEXT]
