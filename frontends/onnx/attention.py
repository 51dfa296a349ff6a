"""Attention (opset 23)."""

from __future__ import annotations

import math

import numpy as np

from secateur.frontends.onnx.node import Item, Node, row
from secateur.ir.graph import Value
from secateur.ir.types import DType

PLAIN = {"is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"}


@row("Attention")
def attention(n: Node) -> Item | list[Item]:
    """Softcap, windows, the scores as an output, and an external cache go by the function body of the schema."""
    q, k, v = (n.x(index) for index in range(3))
    one_type = q.type.dtype is k.type.dtype is v.type.dtype
    windowed = n.attrs.keys() - PLAIN
    if windowed or n.attr("softcap", 0.0) or n.has(6) or any(n.wanted[3:]) or not one_type:
        return n.by_function()
    n.attrs.read.update(PLAIN)
    flat = q.type.rank == 3
    if flat:
        q = _heads(n, q, n.need("q_num_heads"))
        k, v = (_heads(n, value, n.need("kv_num_heads")) for value in (k, v))
    past = 0
    if n.has(4) and n.has(5):
        past = n.x(4).shape[2]
        k, v = n.b.concat(n.x(4), k, axis=2), n.b.concat(n.x(5), v, axis=2)
    scale = n.attr("scale", 0.0) or 1 / math.sqrt(q.shape[-1])
    causal = bool(n.attr("is_causal", 0))
    mask = _mask(n, q.shape[-2], k.shape[-2])
    if causal and past:
        mask, causal = _with_causal(n, mask, q, k, past), False
    made = n.b.attention(q, k, v, *([] if mask is None else [mask]), scale=scale, causal=causal)
    if flat:
        batch, heads, length, depth = made.shape
        made = n.reshape(n.transpose(made, (0, 2, 1, 3)), (batch, length, heads * depth))
    return [made, k, v]


def _heads(n: Node, x: Value, heads: int) -> Value:
    """[batch, length, heads * depth] -> [batch, heads, length, depth]."""
    batch, length, width = x.shape
    return n.transpose(n.reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def _mask(n: Node, queries: int, keys: int) -> Value | None:
    """The mask input; one that is shorter than the keys hides the rest of them."""
    if not n.has(3):
        return None
    mask = n.cast(n.x(3), DType.BOOL if n.x(3).type.dtype is DType.BOOL else n.x(0).type.dtype)
    missing = keys - mask.shape[-1]
    if missing <= 0 or mask.shape[-1] == 1:
        return mask
    none, high = [0] * mask.type.rank, [0] * (mask.type.rank - 1) + [missing]
    return n.b.pad(mask, low=none, high=high, interior=none, value=0.0 if mask.type.dtype is DType.BOOL else -math.inf)


def _with_causal(n: Node, mask: Value | None, q: Value, k: Value, past: int) -> Value:
    """A query sees everything cached, and of its own block what came before it."""
    seen = n.b.constant(np.tri(q.shape[-2], k.shape[-2], past, dtype=np.bool_))
    if mask is None:
        return seen
    if mask.type.dtype is DType.BOOL:
        return n.b.bit_and(seen, mask)
    return n.b.where(seen, mask, n.scalar_like(-math.inf, mask))
