"""What quantisation did, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from secateur.ir.graph import Op
from secateur.passes.quantize.calibrate import Choice, Seen, seen_of
from secateur.passes.quantize.forms import decibels
from secateur.passes.quantize.insert import Settings
from secateur.passes.quantize.observers import squared_error
from secateur.passes.quantize.plan import Plan
from secateur.passes.quantize.products import Audit


def make_report(
    plan: Plan,
    choices: list[Choice],
    seen: Seen,
    settings: Settings,
    audits: Mapping[Op, Audit],
    repairs: list[dict[str, Any]],
    batches: int,
) -> dict[str, Any]:
    """The report of `Quantized`. Errors are signal to noise power ratios in dB: more is better, 6 is one bit.

    Keys:
        batches: how many were read.
        error: of the results: `minmax` for what plain ranges give, `final` for what is returned; empty without data.
        repairs: name, kept, before and after in dB, note; in the order they were tried.
        tensors: for each scale: name, form, observer, low, high, scale, zero, dB of the tensor by itself.
        ops: label, op, source, weights, dB of its result when it alone is quantised; or the reason why it stays float.
    """
    kept = [entry for entry in repairs if entry["kept"]]
    return {
        "batches": batches,
        "error": {"minmax": repairs[0]["after"], "final": kept[-1]["after"]} if repairs else {},
        "repairs": repairs,
        "tensors": [_tensor(choice, plan, seen, settings) for choice in choices],
        "ops": _ops(plan, settings, audits),
    }


def _tensor(choice: Choice, plan: Plan, seen: Seen, settings: Settings) -> dict[str, Any]:
    site = choice.site
    scale, zero = settings.parameters(site)
    known = seen_of(site.source, seen)
    centres, counts = known.weights()
    noise = squared_error(centres, counts, choice.form, *choice.range) if counts.size else 0.0
    made = site.source.op
    constant = made is not None and made.name == "constant"
    return {
        "name": str(made.attrs["name"]) if made is not None and constant else plan.named[made] if made else "input",
        "hint": site.source.hint,
        "form": str(choice.form),
        "observer": choice.observer,
        "low": choice.range[0],
        "high": choice.range[1],
        "seen": list(known.range()),
        "scale": float(scale),
        "zero": int(zero),
        "sqnr": round(decibels(float(np.sum(known.squares)), noise), 2),
        "tried": {name: round(decibels(1.0, error), 2) for name, error in choice.errors.items()},
    }


def _ops(plan: Plan, settings: Settings, audits: Mapping[Op, Audit]) -> list[dict[str, Any]]:
    found = []
    for op, label in plan.named.items():
        about = {"name": label, "op": op.name, "source": str(op.span or "")}
        if op in audits:
            packed = settings.packed.get(op)
            weights = "" if packed is None else f"{packed.form} {list(packed.scale.shape)}"
            error = round(decibels(audits[op].signal, audits[op].noise), 2)
            found.append({**about, "weights": weights, "sqnr": error, "reason": ""})
        elif op in plan.reasons:
            found.append({**about, "weights": "", "sqnr": None, "reason": plan.reasons[op]})
    return found
