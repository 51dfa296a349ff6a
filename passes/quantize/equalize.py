"""How much to scale the channels of joints by: from the weights on both sides, or from activations and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from secateur.ir.graph import Graph, Op
from secateur.passes.quantize.calibrate import Context, Seen, form_of
from secateur.passes.quantize.forms import parameters, rounded
from secateur.passes.quantize.plan import Plan
from secateur.passes.quantize.products import array_of
from secateur.passes.quantize.sample import by_channel, compute, part, relative
from secateur.passes.quantize.scaling import NORMS, Arrays, Joint, find_joints, scale, written
from secateur.passes.quantize.stream import Job
from secateur.passes.quantize.weights import FORMS, find_scales, nearest, pack

SWEEPS = 20
FAR = 1.25  # a channel whose largest value is this much below a clamp's bound is taken never to meet it
EXTREME = 1e4


def equalized(graph: Graph, plan: Plan, seen: Seen) -> tuple[Graph, str] | None:
    """The graph with the weights of neighbouring products evened out, and a note; None where there are no such.

    Nagel et al., 2019: s = sqrt(r1 / r2), r1 the range of the weights that make a channel and r2 of those
    that read it, over and over until nothing changes any more.
    """
    joints = [joint for joint in find_joints(graph, plan) if joint.maker.name not in NORMS]
    arrays = Arrays()
    total = {joint.value: np.ones(joint.channels) for joint in joints}
    for _ in range(SWEEPS):
        moved = 0.0
        for joint in joints:
            made = arrays.rows(joint.maker)
            read = np.max([arrays.columns(op) for op in joint.readers], axis=0)
            wanted = total[joint.value] * _ratio(np.sqrt(made), np.sqrt(read))
            factors = _within_clamps(joint, wanted, seen) / total[joint.value]
            if not np.allclose(factors, 1, rtol=1e-3):
                scale(joint, factors, arrays)
                total[joint.value] *= factors
                moved = max(moved, float(np.abs(np.log(factors)).max()))
        if moved < 0.01:
            break
    if not arrays.changed:
        return None
    return written(graph, arrays), f"{len(joints)} joints"


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below within bounds; 1 where either is nothing, as in a channel of zeros."""
    usable = (above > 0) & (below > 0) & np.isfinite(above) & np.isfinite(below)
    return np.where(usable, np.clip(above / np.where(usable, below, 1), 1 / EXTREME, EXTREME), 1.0)


def _within_clamps(joint: Joint, factors: np.ndarray, seen: Seen) -> np.ndarray:
    """Factors that leave clamps what they are.

    A bound at zero scales along. Another one does not: a channel that comes near it on the calibration
    batches keeps factor 1, and no other may be scaled until it comes near.
    """
    for clamp in joint.clamps:
        known = seen[clamp.operands[0]]
        for bound, extreme in ((clamp.attrs["low"], known.low), (clamp.attrs["high"], known.high)):
            if bound == 0 or not np.isfinite(bound):
                continue
            share = np.maximum(extreme / bound, 0) * FAR
            if len(share) != len(factors):
                return np.ones(len(factors))
            factors = np.where(share >= 1, 1.0, np.maximum(factors, share))
    return factors


# By activations -----------------------------------------------------------------------------------


@dataclass
class _Offer:
    """The factors that a joint may get, by alpha, and the error of its readers with each; alpha -1 is as it is."""

    joint: Joint
    factors: dict[float, np.ndarray]
    noise: dict[float, float] = field(default_factory=dict)

    def best(self) -> float:
        return min(self.noise, key=lambda alpha: self.noise[alpha])


def smoothed(graph: Graph, plan: Plan, seen: Seen, context: Context) -> tuple[Graph, str] | None:
    """The graph with outlying channels of activations made smaller, at the expense of the weights that read them.

    Xiao et al., "SmoothQuant", 2023: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha). For each joint that alpha is
    taken, if any, with which the readers' results err least.
    """
    offers, jobs, arrays = [], [], Arrays()
    rng = np.random.default_rng(context.recipe.seed)
    for joint in find_joints(graph, plan):
        if any((op, 0) not in plan.uses for op in joint.readers):
            continue
        made = seen[joint.value].largest()
        read = np.max([arrays.columns(op) for op in joint.readers], axis=0)
        factors = {-1.0: np.ones(joint.channels)}
        for alpha in context.recipe.alphas:
            wanted = _ratio(made**alpha, read ** (1 - alpha))
            factors[alpha] = _within_clamps(joint, wanted / np.exp(np.log(wanted).mean()), seen)
        offers.append(_Offer(joint, factors, dict.fromkeys(factors, 0.0)))
        jobs += [Job(op.operands, _trying(op, offers[-1], plan, seen, context, rng)) for op in joint.readers]
    if not offers:
        return None
    context.stream(graph, jobs, "smoothing", min(4, context.recipe.samples), judging=True)
    taken = [offer for offer in offers if offer.best() >= 0]
    if not taken:
        return None
    for offer in taken:
        scale(offer.joint, offer.factors[offer.best()], arrays)
    shared = [offer.joint for offer in taken if offer.joint.shared]
    return written(graph, arrays, shared), f"{len(taken)} of {len(offers)} joints"


def _trying(
    op: Op, offer: _Offer, plan: Plan, seen: Seen, context: Context, rng: np.random.Generator
) -> Callable[[list[np.ndarray]], None]:
    """Adds up the error of one reader with each of the factors, its weights quantised too."""
    known, site, scheme = seen[offer.joint.value], plan.uses[op, 0], plan.weights[op]
    form = form_of(site, known, context.recipe)
    weights, tried = array_of(op.operands[1]), {}
    for alpha, factors in offer.factors.items():
        arrays = Arrays()
        arrays.multiply(op, factors)
        scaled = arrays.changed[op, 1]
        scales = find_scales(scaled, scheme)
        packed = pack(nearest(scaled, scales, FORMS[scheme.weights]), scales, weights.shape, scheme)
        ends = float((known.low / factors).min()), float((known.high / factors).max())
        tried[alpha] = factors, parameters(form, *ends), packed.real()

    def take(arrays: list[np.ndarray]) -> None:
        operands = part(op, arrays, rng)
        axis = 1 if op.name == "conv" else operands[0].ndim - 1
        want = compute(op, operands)
        total = by_channel(op, want)
        for alpha, (factors, numbers, real) in tried.items():
            each = factors.reshape([-1 if dim == axis else 1 for dim in range(operands[0].ndim)]).astype(np.float32)
            x = rounded(operands[0] / each, form, *numbers)
            got = compute(op, [x, real, *operands[2:]])
            offer.noise[alpha] += relative(by_channel(op, got - want), total)

    return take
