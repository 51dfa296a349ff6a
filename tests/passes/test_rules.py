"""Every rule fires in some case, has its algebra written above it, and keeps its stated tolerance."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from secateur.ir.draw import Draw
from secateur.ir.rewrite import Rule, apply_rules
from secateur.ir.text import parse
from secateur.passes.manager import PassManager, resolve
from secateur.passes.rules import topic, topics

spec = importlib.util.spec_from_file_location("cases", Path(__file__).parent / "test_cases.py")
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)


def all_rules() -> dict[str, Rule]:
    return {item.name: item for name in topics() for item in topic(name)}


def test_rule_names_are_unique() -> None:
    counted = Counter(item.name for name in topics() for item in topic(name))
    assert max(counted.values()) == 1


@pytest.mark.parametrize("rule", all_rules().values(), ids=lambda rule: rule.name)
def test_rule_states_its_algebra(rule: Rule) -> None:
    assert rule.doc
    assert 0 <= rule.tolerance <= 1e-4


def test_every_rule_fires_in_some_case() -> None:
    fired: Counter[str] = Counter()
    for path in cases.CASES.glob("*/*.ir"):
        text = path.read_text()
        mark = cases.MARK.search(text)
        manager = PassManager(resolve(mark[1].split(" then ")))
        manager.run(cases.read(text[: mark.start()], Draw(0, specials=False)))
        for record in manager.records:
            if record.rules:
                fired += record.rules.fired
    assert sorted(set(all_rules()) - set(fired)) == []


@pytest.mark.parametrize(
    ("value", "window"),
    [
        (0.0, "conv(%0, %w) {stride = [1], padding = [0, 0], dilation = [1], groups = 1, channels_last = false}"),
        (-np.inf, "max_pool(%0) {kernel = [2], stride = [1], padding = [0, 0], dilation = [1], channels_last = false}"),
    ],
)
def test_padding_of_an_empty_dimension_stays_where_it_is(value: float, window: str) -> None:
    sides = f'low = [0, 0, 1], high = [0, 0, 1], interior = [0, 0, 0], mode = "constant", value = {value}'
    graph = parse(f"""graph @m(%x: f32[1,2,0], %w: f32[2,2,2]) -> (f32[1,2,1]) {{
      %0 = pad(%x) {{{sides}}} : f32[1,2,2]
      %1 = {window} : f32[1,2,1]
      return %1
    }}""")
    assert not apply_rules(graph, topic("linear")).fired
