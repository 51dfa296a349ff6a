"""Data -> one HTML file that needs nothing else and asks nobody.

The page may run only the scripts and styles whose hashes it states, and reach no address at all. Everything that
comes from a model is JSON in which no `<`, `>` or `&` is left, and is shown as text only.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = ("layout.js", "paint.js", "panel.js", "viewer.js", "explore.js", "events.js")
_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"}


def page(data: dict[str, Any]) -> str:
    """The whole file."""
    style = (HERE / "viewer.css").read_text(encoding="utf-8")
    script = "\n".join(["'use strict';", *((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)])
    policy = f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'"
    text = (HERE / "viewer.html").read_text(encoding="utf-8")
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(data["title"]),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": embedded(data),
    }
    return re.sub("@([A-Z]+)@", lambda found: parts[found[1]], text)


def embedded(data: Any) -> str:
    """JSON that can stand in a `script` element, whatever its strings hold."""
    return json.dumps(data, separators=(",", ":")).translate(_ESCAPES)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
