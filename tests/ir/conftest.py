"""Fresh random data for every run; SECATEUR_SEED repeats one."""

from __future__ import annotations

import os
import time

import pytest

BASE = int(os.environ.get("SECATEUR_SEED") or time.time_ns() % 1_000_000_000)


def pytest_report_header() -> str:
    return f"SECATEUR_SEED={BASE}"


@pytest.fixture(scope="session")
def seed() -> int:
    """The first seed of this run; a failure names the very one it needs."""
    return BASE
