"""Quantised linear layers over one value, computed as one: query, key and value."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.opdef import lookup
from secateur.ir.rewrite import erase_dead
from secateur.ir.types import DType
from secateur.passes.integer.leaves import Weights, known, leaf, parameters, weights


def merge_layers(graph: Graph) -> None:
    """Stack the weights of layers that read one value and are quantised to one type, each with its own scale.

    before:  %0 = linear(%x, %w);  %q = quantize(%0, %s, %z);  %1 = linear(%x, %v);  %k = quantize(%1, %t, %y)
    after:   %0 = linear(%x, %wv);  %1 = quantize(%0, [%s.., %t..], ...);  %q = slice(%1);  %k = slice(%1)

    Exact. A layer whose quantised result an elementwise operation takes stays alone: the two become one kernel.
    """
    groups: defaultdict[tuple[Value, DType], list[Op]] = defaultdict(list)
    for op in graph.find("linear"):
        if _mergeable(op):
            groups[op.operands[0], op.result.users[0].result.type.dtype].append(op)
    for ops in groups.values():
        if len(ops) > 1:
            _merge(graph, ops)


def _mergeable(op: Op) -> bool:
    users = op.result.users
    if leaf(op.operands[0]) is None or len(op.result.uses) != 1 or users[0].name != "quantize":
        return False
    given = parameters(users[0])
    if given is None or any(item.size != 1 for item in given) or not isinstance(weights(op.operands[1]), Weights):
        return False
    if len(op.operands) > 2 and known(op.operands[2]) is None:
        return False
    readers = [reader for user in users[0].result.users for reader in _behind(user)]
    return bool(readers) and not any(reader.name != "return" and lookup(reader.name).elementwise for reader in readers)


def _behind(user: Op) -> list[Op]:
    return user.result.users if user.name == "dequantize" else [user]


def _merge(graph: Graph, ops: list[Op]) -> None:
    """Compute all where the first of them stands: what they read is there, and constants are made anew."""
    b = Builder(graph, ops[0], ops[0].span)
    stored = [found for op in ops if isinstance(found := weights(op.operands[1]), Weights)]
    sizes = [len(item.integers) for item in stored]
    biases = [_bias(op) for op in ops]
    w = b.dequantize(
        b.constant(np.concatenate([item.integers for item in stored]), name=_name(ops[0])),
        b.constant(np.concatenate([item.scale for item in stored]).astype(np.float32).reshape(-1, 1)),
        b.constant(np.zeros((), np.int8)),
    )
    merged = b.linear(ops[0].operands[0], w, b.constant(np.concatenate(biases)))
    closing = [op.result.users[0] for op in ops]
    given = [[np.asarray(known(value)).reshape(()) for value in op.operands[1:]] for op in closing]
    scale, zero = (
        np.concatenate([np.full(size, each[i]) for size, each in zip(sizes, given, strict=True)]) for i in (0, 1)
    )
    whole = b.quantize(merged, b.constant(scale), b.constant(zero))
    parts = []
    for size, stop in zip(sizes, np.cumsum(sizes), strict=True):
        starts, stops = [0] * whole.type.rank, list(whole.shape)
        starts[-1], stops[-1] = int(stop) - size, int(stop)
        parts.append(b.slice(whole, starts=starts, stops=stops, steps=[1] * whole.type.rank))
    for layer, quantized, part in zip(ops, closing, parts, strict=True):
        graph.replace(quantized, [part])
        erase_dead(graph, [layer])


def _bias(op: Op) -> np.ndarray:
    found = known(op.operands[2]) if len(op.operands) > 2 else None
    return np.zeros(op.result.shape[-1], np.float32) if found is None else found


def _name(op: Op) -> str:
    made = op.operands[1].op.operands[0].op if op.operands[1].op is not None else None
    name = str(made.attrs["name"]) if made is not None and made.name == "constant" else ""
    return f"{name}.merged" if name else ""
