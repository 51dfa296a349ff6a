"""The pipelines, as plain lists of passes in order."""

from __future__ import annotations

DEFAULT = [
    # What constants decide, then one way of writing each thing, so that the passes below recognise it.
    *("fold", "canonicalize", "cse", "dce"),
    "attention",
    # Canonical forms transpose weights; as constants again they take in what surrounds them.
    *("fold", "fold_batchnorm"),
    *("canonicalize", "fold", "cse", "dce"),
]

PIPELINES: dict[str, list[str]] = {
    "none": [],
    # What every backend wants: no choice of layout, no boxes.
    "default": DEFAULT,
    # What the CPU backend adds behind it: integers, channels last, and one box a kernel.
    "cpu": ["lower_quantized", "weight_only", "merge_linear", "layout", "fold", "cse", "dce", "fuse", "dce"],
}
