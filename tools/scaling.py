"""How the default pipeline's time grows with the graph: `python -m secateur.tools.scaling [OPS ...]`.

The graph is a chain of transformer blocks written in pieces, as exporters write them, so that every
block gives the rules work: attention, layer norms and GELU are spelled out, and reshapes and
transposes stand between.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Value
from secateur.passes.manager import PassManager, resolve
from secateur.tools.console import Ui, duration, table

SIZES = (1_000, 1_500, 4_000, 16_000)
WIDTH, LENGTH, HEADS = 8, 4, 2


def blocks(least: int) -> Graph:
    """A chain of blocks of at least `least` operations in all."""
    b = Builder.graph("blocks", x=f"f32[1,{LENGTH},{WIDTH}]")
    rng = np.random.default_rng(0)
    value = b["x"]
    value = _block(b, value, rng)
    for _ in range(-(-least // len(b.into)) - 1):
        value = _block(b, value, rng)
    return b.returns(value)


def _block(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    def weight(*shape: int) -> Value:
        return b.constant(rng.standard_normal(shape).astype(np.float32))

    def dense(value: Value, wide: int) -> Value:
        deep = value.shape[-1]
        flat = b.reshape(value, shape=(LENGTH, deep))
        return b.reshape(b.add(b.matmul(flat, weight(deep, wide)), weight(wide)), shape=(1, LENGTH, wide))

    def norm(value: Value) -> Value:
        centred = b.sub(value, b.reduce_mean(value, axes=(2,), keepdims=True))
        variance = b.reduce_mean(b.mul(centred, centred), axes=(2,), keepdims=True)
        unit = b.div(centred, b.sqrt(b.add(variance, b.constant(1e-5))))
        return b.add(b.mul(unit, weight(WIDTH)), weight(WIDTH))

    def heads(value: Value) -> Value:
        return b.transpose(b.reshape(value, shape=(1, LENGTH, HEADS, WIDTH // HEADS)), perm=(0, 2, 1, 3))

    h = norm(x)
    q, k, v = (heads(dense(h, WIDTH)) for _ in range(3))
    scores = b.div(b.matmul(q, b.transpose(k, perm=(0, 1, 3, 2))), b.constant(2.0))
    mixed = b.transpose(b.matmul(b.softmax(scores, axis=3), v), perm=(0, 2, 1, 3))
    x = b.add(x, dense(b.reshape(mixed, shape=(1, LENGTH, WIDTH)), WIDTH))
    h = dense(norm(x), 2 * WIDTH)
    inner = b.add(b.erf(b.div(h, b.constant(2.0**0.5))), b.constant(1.0))
    return b.add(x, dense(b.mul(b.mul(h, inner), b.constant(0.5)), WIDTH))


@dataclass(frozen=True)
class Growth:
    """One run of the default pipeline."""

    ops: int
    left: int
    rewrites: int
    visits: int
    seconds: float


def measure(least: int) -> Growth:
    """Run the default pipeline over a graph of at least `least` operations."""
    graph = blocks(least)
    ops = len(graph)
    manager = PassManager(resolve("default"))
    start = time.perf_counter()
    manager.run(graph)
    seconds = time.perf_counter() - start
    stats = [record.rules for record in manager.records if record.rules]
    fired = sum(sum(item.fired.values()) for item in stats)
    return Growth(ops, len(graph), fired, sum(item.visits for item in stats), seconds)


def _each(run: Growth) -> int:
    return round(1e6 * run.seconds / run.ops)


def main(sizes: list[int]) -> None:
    runs = [measure(size) for size in sizes or SIZES]
    rows = [
        (run.ops, run.left, run.rewrites, round(run.visits / run.ops, 1), duration(run.seconds), _each(run))
        for run in runs
    ]
    columns = ["ops>", "left>", "rewrites>", "visits for each op>", "time>", "us for each op>"]
    Ui().out.print(table("the default pipeline over transformer blocks in pieces", columns, rows))


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]])
