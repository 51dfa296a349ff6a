"""The work of the default pipeline grows with the graph, not with its square."""

from __future__ import annotations

from secateur.tools.scaling import measure


def test_visits_for_each_operation_do_not_grow() -> None:
    small, large = measure(300), measure(3000)
    assert large.ops >= 9 * small.ops
    assert small.rewrites > small.ops // 4
    assert large.visits / large.ops < 1.1 * small.visits / small.ops
    assert large.rewrites / large.ops < 1.1 * small.rewrites / small.ops
