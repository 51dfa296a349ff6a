"""The pipelines, as plain lists of passes in order."""

from __future__ import annotations

PIPELINES: dict[str, list[str]] = {
    "none": [],
    "default": [],
}
