"""What quantisation does to each operation, found again in graphs and artefacts by where an operation comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Errors = Mapping[tuple[str, str], dict[str, Any]]

# What operations are called once they work in integers.
_BEFORE = {
    "standardize": ("layer_norm", "rms_norm"),
    "attention_integer": ("attention",),
    "lookup": ("gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "hard_swish", "elu", "mish", "softplus", "erf", "exp"),
}


def errors_of(rows: Sequence[Mapping[str, Any]]) -> Errors:
    """Facts for the page by source and operation, from the key `ops` of a report of quantisation.

    An operation that is the only one of its source in the report gives its facts to whatever else came to be there.
    """
    alone = Counter(row["source"] for row in rows)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        facts = _facts(row)
        if not row["source"] or not facts:
            continue
        found[row["source"], row["op"]] = facts
        if alone[row["source"]] == 1:
            found[row["source"], ""] = facts
    return found


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """`error` is relative: the norm of what is wrong over that of what is right."""
    if row["sqnr"] is None:
        return {"float": row["reason"]} if row["reason"] else {}
    return {"error": 10 ** (-float(row["sqnr"]) / 20)}


def error_at(errors: Errors, source: str, op: str) -> dict[str, Any]:
    """The facts of an operation, or none."""
    for name in (op, *_BEFORE.get(op, ()), ""):
        if (source, name) in errors:
            return errors[source, name]
    return {}
