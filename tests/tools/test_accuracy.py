"""The accuracy studies in miniature, and what their figures are made of."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from secateur.tools.accuracy import __main__ as command
from secateur.tools.accuracy import digits, language, study_gpt, study_minilm
from secateur.tools.accuracy.report import END, START, Figures, Row, markdown, write
from secateur.tools.accuracy.study_digits import Tally
from secateur.tools.accuracy.trained import trained

DOCS = Path(__file__).parents[2] / "docs"


def row(lost: float, limit: float | None, ruin: bool = False) -> Row:
    return Row("study", "a <b>", "accuracy, %", 99.0, 99.0 - lost, lost, "points", limit, ruin)


def test_the_studies_in_miniature(tmp_path: Path) -> None:
    """Train, quantise, compile, run on held-out data, write: everything but the amount is real."""
    assert command.main(["--small", "--only", "hostile,GPT", "--threads", "1", "--output", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    rows = {(item["study"], item["variant"]): item for item in figures["rows"]}
    assert set(rows) == {
        ("hostile", "plain min-max"),
        ("hostile", "int8"),
        ("GPT", "int8"),
        ("GPT", "int4 weights by groups of 32"),
    }
    assert rows["hostile", "plain min-max"]["lost"] > 10 > rows["hostile", "int8"]["lost"]
    assert rows["GPT", "int8"]["fp32"] > 1
    assert abs(rows["GPT", "int8"]["lost"]) < 5
    assert figures["studies"]["hostile"]["seeds"] == [0]
    assert len(list((tmp_path / "weights").iterdir())) == 2
    assert "GPT" in (tmp_path / "figures.md").read_text()


def test_goals() -> None:
    assert row(0.1, 0.2).held and not row(0.3, 0.2).held and row(-1.0, 0.2).held
    assert row(50, 10, ruin=True).held and not row(5, 10, ruin=True).held
    assert row(5, None).held and not row(float("nan"), 0.2).held
    assert not Figures().held and not Figures([row(0.1, 0.2), row(0.3, 0.2)]).held


def test_figures_are_written_between_the_marks_of_a_guide(tmp_path: Path) -> None:
    guide = tmp_path / "guide.md"
    guide.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    figures = Figures([row(0.1, 0.2), row(0.3, 0.2)], {"study": {"seeds": [0, 1]}})
    for _ in range(2):
        write(figures, tmp_path / "out", guide)
    text = guide.read_text()
    image = "![what is lost, as a share of what may be lost](guide.svg)"
    assert text == f"before\n{START}\n\n{image}\n\n{markdown(figures)}\n{END}\nafter\n"
    assert "| NO |" in text and "seeds 0 1" in text and "old" not in text
    data = json.loads(guide.with_suffix(".json").read_text())
    assert [item["held"] for item in data["rows"]] == [True, False]
    picture = ElementTree.fromstring(guide.with_suffix(".svg").read_text())
    bars = [item for item in picture.iter() if item.get("fill") in ("#5b9f6d", "#c8553d")]
    assert [item.get("fill") for item in bars] == ["#5b9f6d", "#c8553d"]
    assert [float(item.get("width", 0)) for item in bars] == pytest.approx([95.0, 285.0])


def test_the_committed_figures_are_those_of_one_run_and_reach_every_goal() -> None:
    text = (DOCS / "accuracy.md").read_text()
    shown = re.findall(r"^\| .* \|$", text.partition(START)[2].partition(END)[0], re.M)[1:]
    stored = json.loads((DOCS / "accuracy.json").read_text())["rows"] if shown else []
    rows = [Row(**{key: value for key, value in item.items() if key not in ("goal", "held")}) for item in stored]
    assert shown == [f"| {' | '.join(row.cells())} |" for row in rows]
    assert all(row.held for row in rows)


def test_wrong_words_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guide = tmp_path / "guide.md"
    guide.write_text("")
    for words, message in (
        (["--only", "digts"], "no study is called 'digts'"),
        (["--small", "--guide", str(guide)], "full size"),
        (["--guide", str(tmp_path / "none.md")], "there is no file"),
    ):
        with pytest.raises(SystemExit) as caught:
            command.main(words)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_images_won_count_against_images_lost() -> None:
    tally = Tally([np.array([True, True, False, True])], [np.array([False, False, True, True])])
    made = tally.row("digits", "int8", 0.2)
    assert (made.fp32, made.value, made.lost) == (75.0, 50.0, 25.0)
    assert made.detail.startswith("2 of 4 images lost, 1 won")


def test_halves_of_the_digits_hold_every_image_once() -> None:
    first, second = digits.splits((3,))
    assert len(first.train_x) + len(first.test_x) == 1797
    np.testing.assert_array_equal(first.test_x, second.train_x)
    np.testing.assert_array_equal(np.sort(first.test_y), np.sort(second.train_y))


def test_the_hostile_network_is_the_same_function() -> None:
    torch.manual_seed(0)
    net = digits.Net().eval()
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        before = net(x)
        spread = net.down.filter[0].weight.abs().amax((1, 2, 3))
        digits.disturb(net, 0, 5.0)
        torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)
    wild = net.down.filter[0].weight.abs().amax((1, 2, 3))
    assert wild.max() / wild.min() > 20 * spread.max() / spread.min()


def test_perplexity_of_equal_chances_is_the_number_of_tokens() -> None:
    rows = np.random.default_rng(0).integers(0, 7, (5, 9))
    made = language.perplexity(lambda tokens: np.zeros((*tokens.shape, 7), np.float32), rows, 2)
    assert made == pytest.approx(7)


def test_held_out_files_are_not_trained_on() -> None:
    train, held_out = language.source_files()
    assert not set(train) & set(held_out)
    assert 0.05 < len(held_out) / (len(train) + len(held_out)) < 0.15


def test_modules_of_held_out_passages_are_not_calibrated_with() -> None:
    known, unseen = study_minilm.passages(study_minilm.Config())
    assert len(known) >= 40 and len(unseen) >= 100
    assert not {study_minilm.module_of(item) for item in known} & {study_minilm.module_of(item) for item in unseen}


def test_overlap_of_nearest_passages() -> None:
    stored = np.eye(8, dtype=np.float32) + np.linspace(0, 0.1, 8, dtype=np.float32)
    assert study_minilm.overlap(stored, stored, stored, stored, alone=True) == 1.0
    turned = stored[:, ::-1].copy()
    assert study_minilm.overlap(stored[:2], turned[:2], stored, stored) < 1.0


def test_trained_weights_are_kept_and_broken_ones_made_again(tmp_path: Path) -> None:
    runs: list[int] = []
    model = torch.nn.Linear(2, 2)

    def train() -> None:
        runs.append(1)
        torch.nn.init.constant_(model.weight, len(runs))

    def ask(facts: object) -> bool:
        return trained(tmp_path, "net", study_gpt, facts, model, train)

    assert [ask(1), ask(1), ask(2)] == [False, True, False] and len(runs) == 2
    ask(1)
    assert model.weight[0, 0] == 1
    for path in tmp_path.iterdir():
        assert re.fullmatch(r"net-[0-9a-f]{16}\.safetensors", path.name)
        path.write_bytes(path.read_bytes()[:20])
    assert not ask(1)
