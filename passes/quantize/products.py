"""The weights and biases of products: integers, second-order rounding, and what each operation errs by alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from secateur.ir.graph import Graph, Op, Value
from secateur.ir.ops.constant import constant_value
from secateur.passes.quantize.calibrate import Context, Seen, seen_of
from secateur.passes.quantize.forms import rounded
from secateur.passes.quantize.insert import Settings
from secateur.passes.quantize.plan import Plan
from secateur.passes.quantize.recipe import Recipe
from secateur.passes.quantize.sample import compute, input_rows, part
from secateur.passes.quantize.second_order import second_order
from secateur.passes.quantize.stream import Job
from secateur.passes.quantize.weights import FORMS, Packed, find_scales, least_scales, nearest, pack

HESSIANS = 512 << 20  # bytes of second-order statistics held at a time


def array_of(value: Value) -> np.ndarray:
    array = constant_value(value)
    assert array is not None, "weights and biases of planned products are constant"
    return array


def bias_of(op: Op, settings: Settings) -> np.ndarray | None:
    """The bias of a product, corrected if it is; None where it has none, or one that is computed."""
    if op in settings.biases:
        return settings.biases[op]
    return constant_value(op.operands[2]) if len(op.operands) > 2 else None


def pack_nearest(plan: Plan, seen: Seen, settings: Settings) -> dict[Op, Packed]:
    """The weights of every product as integers, each rounded to the nearest. `seen` is empty where no data is."""
    found = {}
    for op, scheme in plan.weights.items():
        weights = array_of(op.operands[1])
        least = None
        if (op, 0) in plan.uses:
            scale, _ = settings.parameters(plan.uses[op, 0])
            least = least_scales(bias_of(op, settings), float(scale))
        importance = _importance(op, weights, seen) if seen else None
        scales = find_scales(weights, scheme, importance, least)
        if not scheme.per_channel:
            scales[:] = scales.max()
        found[op] = pack(nearest(weights, scales, FORMS[scheme.weights]), scales, weights.shape, scheme)
    return found


def _importance(op: Op, weights: np.ndarray, seen: Seen) -> np.ndarray:
    """Mean square of the input that each weight meets: [K], or [O, K] where channels differ in their inputs."""
    squares = seen_of(op.operands[0], seen).mean_squares()
    if op.name == "linear":
        return squares
    taps, groups = int(np.prod(weights.shape[2:])), op.attrs["groups"]
    by_group = np.repeat(squares.reshape(groups, -1), taps, axis=1)
    return np.repeat(by_group, weights.shape[0] // groups, axis=0)


# Second-order rounding ----------------------------------------------------------------------------


def round_second_order(graph: Graph, plan: Plan, settings: Settings, context: Context) -> dict[Op, Packed]:
    """New integers for products that the recipe rounds so, by the inputs they get once these are quantised."""
    recipe = context.recipe
    ops = [op for op, scheme in plan.weights.items() if recipe.rounds_second_order(scheme.weights)]
    found = {}
    for number, some in enumerate(parts := list(_by_memory(ops))):
        stage = f"second-order rounding {number + 1}/{len(parts)}"
        for op, hessians in _hessians(graph, some, plan, settings, context, stage).items():
            found[op] = _rounded(settings.packed[op], array_of(op.operands[1]), hessians, recipe)
    return found


def _by_memory(ops: list[Op]) -> Iterator[list[Op]]:
    some: list[Op] = []
    held = 0
    for op in ops:
        size = 8 * _groups(op) * array_of(op.operands[1])[0].size ** 2
        if some and held + size > HESSIANS:
            yield some
            some, held = [], 0
        some.append(op)
        held += size
    if some:
        yield some


def _groups(op: Op) -> int:
    return int(op.attrs.get("groups", 1))


def _hessians(
    graph: Graph, ops: list[Op], plan: Plan, settings: Settings, context: Context, stage: str
) -> dict[Op, np.ndarray]:
    """2 X X^T of the inputs of each operation, f64 [groups, K, K]."""
    rng = np.random.default_rng(context.recipe.seed)
    sums: dict[Op, np.ndarray] = {}

    def adding(op: Op) -> Callable[[list[np.ndarray]], None]:
        kernel = op.operands[1].shape[2:]

        def take(arrays: list[np.ndarray]) -> None:
            rows = input_rows(op, _as_read(op, 0, arrays[0], plan, settings), kernel, rng).astype(np.float64)
            sums[op] = sums.get(op, 0) + 2 * (rows.swapaxes(1, 2) @ rows)

        return take

    context.stream(graph, [Job((op.operands[0],), adding(op)) for op in ops], stage, context.recipe.samples)
    return sums


def _as_read(op: Op, position: int, array: np.ndarray, plan: Plan, settings: Settings) -> np.ndarray:
    """An operand as the quantised graph gives it to an operation."""
    site = plan.uses.get((op, position))
    return array if site is None else rounded(array, settings.forms[site], *settings.parameters(site))


def _rounded(packed: Packed, weights: np.ndarray, hessians: np.ndarray, recipe: Recipe) -> Packed:
    rows = weights.reshape(len(hessians), -1, weights[0].size)
    integers = packed.integers.reshape(len(weights), -1)
    groups = packed.scale.shape[1] if packed.scale.ndim == 3 and len(packed.shape) == 2 else 1
    scales = np.broadcast_to(packed.scale.reshape(-1, groups), (len(weights), groups))
    scales = scales.reshape(len(hessians), -1, groups)
    found = [
        second_order(
            part, hessian, scale, packed.form, damp=recipe.damp, block=recipe.block, act_order=recipe.act_order
        )
        for part, hessian, scale in zip(rows, hessians, scales, strict=True)
    ]
    return replace(packed, integers=np.concatenate(found).reshape(integers.shape).reshape(packed.integers.shape))


# Each operation alone -----------------------------------------------------------------------------


@dataclass
class Audit:
    """What one operation errs by when all that flows into it is quantised and nothing else is.

    Attributes:
        noise, signal: sums of squares of the error and of the result.
        shift: what the result of a product is usually too small by, f64 [O].
    """

    noise: float = 0.0
    signal: float = 0.0
    shift: np.ndarray | None = None
    batches: int = 0


def audit(graph: Graph, plan: Plan, settings: Settings, context: Context, stage: str = "errors") -> dict[Op, Audit]:
    """The error of every quantised operation by itself, on the recipe's samples."""
    rng = np.random.default_rng(context.recipe.seed)
    found: dict[Op, Audit] = {}
    jobs = []
    for op in [*plan.whole, *(op for op in plan.weights if op not in set(plan.whole))]:
        found[op] = Audit()
        jobs.append(Job(op.operands, _auditing(op, found[op], plan, settings, rng)))
    context.stream(graph, jobs, stage, context.recipe.samples)
    return found


def _auditing(
    op: Op, found: Audit, plan: Plan, settings: Settings, rng: np.random.Generator
) -> Callable[[list[np.ndarray]], None]:
    def take(arrays: list[np.ndarray]) -> None:
        exact = part(op, arrays, rng)
        given = [_as_read(op, position, array, plan, settings) for position, array in enumerate(exact)]
        if op in settings.packed:
            given[1] = settings.packed[op].real()
        want, got = compute(op, exact), compute(op, given)
        found.noise += float(np.square(got - want).sum())
        found.signal += float(np.square(want).sum())
        if op in plan.weights and want.size:
            shift = _usual(
                np.moveaxis(want - got, 1 if op.name == "conv" else -1, 0).reshape(op.operands[1].shape[0], -1)
            )
            found.batches += 1
            before = 0.0 if found.shift is None else found.shift
            found.shift = before + (shift - before) / found.batches

    return take


def _usual(errors: np.ndarray) -> np.ndarray:
    """The mean error of each channel [C, rows] without the least and greatest tenth of the rows.

    A row whose values are cut off errs by far more than others, and they must not make up for it.
    """
    tenth = errors.shape[1] // 10
    return np.sort(errors, axis=1)[:, tenth : errors.shape[1] - tenth].mean(1)


def errors_of_weights(settings: Settings) -> dict[Op, Audit]:
    """The error of the weights by themselves, for want of inputs."""
    found = {}
    for op, packed in settings.packed.items():
        weights = array_of(op.operands[1]).astype(np.float64)
        found[op] = Audit(float(np.square(packed.real() - weights).sum()), float(np.square(weights).sum()))
    return found


def corrected_biases(audits: dict[Op, Audit], settings: Settings) -> dict[Op, np.ndarray]:
    """Biases with the mean error of each output channel added, f32 [O].

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, by
    measurement: the trimmed mean of W x - W' x' of each batch, averaged.
    """
    found = {}
    for op, made in audits.items():
        if made.shift is None or (len(op.operands) > 2 and constant_value(op.operands[2]) is None):
            continue
        bias = bias_of(op, settings)
        found[op] = (made.shift if bias is None else bias + made.shift).astype(np.float32)
    return found
