"""Every op, compiled: interpreter and native code agree on instances drawn from the op's own sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from secateur.backends.cpu import lower
from secateur.ir.opdef import all_ops

SEED = int(np.random.default_rng().integers(1 << 30))
INSTANCES = 12
GROUP = 13
NAMES = [name for name in all_ops() if name != "constant"]


@pytest.mark.parametrize("group", range(-(-len(NAMES) // GROUP)))
def test_compiled_ops_agree_with_their_references(group: int, assert_ops_agree: Callable[..., None]) -> None:
    assert_ops_agree(NAMES[group * GROUP : (group + 1) * GROUP], INSTANCES, SEED)


def test_units_shared_between_threads_give_the_same_bits(
    assert_ops_agree: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ops this small run on one thread; here all of them are shared out."""
    monkeypatch.setattr(lower, "SERIAL_CYCLES", 0)
    assert_ops_agree(NAMES, 4, SEED, threads=(1, 2, 3, 7))
