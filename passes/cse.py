"""Common subexpression elimination."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from secateur.ir.graph import Graph, Op, Value, bodies
from secateur.ir.opdef import lookup
from secateur.ir.text import print_graph
from secateur.passes.base import Pass

SAMPLE = 64  # elements of a constant looked at before all of them are


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Computes what is written twice once: same operation, operands and attributes; same constants.

    before:  %0 = exp(%x);  %1 = exp(%x);  %2 = add(%0, %1)
    after:   %0 = exp(%x);  %2 = add(%0, %0)

    Exact. Constants are compared by content, and hashed whole only where another one of the same
    type has the same sample of elements.
    """

    def run(self, graph: Graph) -> None:
        number: dict[Value, int] = {}
        samples = {op: _sample(op) for op in graph.find("constant")}
        alike = Counter(samples.values())
        seen: dict[Hashable, Op] = {}
        for op in graph.ops:
            if op.name == "constant" and alike[samples[op]] == 1:
                continue
            first = seen.setdefault(_key(op, number), op)
            if first is not op:
                graph.replace(op, first.results)


def _sample(op: Op) -> Hashable:
    """A constant's type and the bytes of some of its elements."""
    array: np.ndarray = op.attrs["value"]
    some = array.flat[:: max(array.size // SAMPLE, 1)] if array.size else array
    return (op.result.type, some.tobytes())


def _key(op: Op, number: dict[Value, int]) -> Hashable:
    if op.name == "constant":
        return (op.name, op.result.type, content_hash(op.attrs["value"]))
    operands = [number.setdefault(value, len(number)) for value in op.operands]
    if lookup(op.name).commutative:
        operands.sort()
    # repr, because 0.0 == -0.0 and 1 == True, yet they are not the same attribute.
    attrs = tuple((key, repr(value)) for key, value in sorted(op.attrs.items()) if key not in ("body",))
    return (op.name, tuple(operands), attrs, tuple(map(_body_key, bodies(op))))


def _body_key(body: Graph) -> Hashable:
    held = tuple(content_hash(op.attrs["value"]) for op in body.walk() if op.name == "constant")
    return (print_graph(body), held)


def content_hash(array: np.ndarray) -> bytes:
    """A digest of an array's bytes in row-major order."""
    return hashlib.blake2b(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data, digest_size=16).digest()
