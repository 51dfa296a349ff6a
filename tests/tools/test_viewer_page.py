"""The page in a real browser: it opens fast, and click, search, slider and keys do what they should."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.backends.cpu.compile import Options, compile_to
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import Span
from secateur.ir.graph import Graph
from secateur.ir.types import DType, TensorType
from secateur.passes.manager import resolve
from secateur.tools.viewer.compiled import tell_artifact
from secateur.tools.viewer.errors import errors_of
from secateur.tools.viewer.page import page as html
from secateur.tools.viewer.story import Story, tell

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt install chromium")

FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
EVIL = "</script><img src=x onerror=alert(1)><!--"
Opener = Callable[..., Any]


def network(blocks: int, width: int = 8, name: str = "block") -> Graph:
    """Blocks of linear, an addition of zero and relu, with a connection around each."""
    rng = np.random.default_rng(blocks)
    graph = Graph("net", [("x", TensorType(DType.F32, (1, width)))])
    builder = Builder(graph)
    value = graph.inputs[0]
    for number in range(blocks):
        builder.span = Span("net.py", 10, 0, f"net.{name}{number}.inner")
        weight = builder.constant(rng.standard_normal((width, width)).astype(np.float32), name=f"{name}{number}.weight")
        zero = builder.constant(np.zeros(1, np.float32), name="zero")
        made = builder.relu(builder.add(builder.linear(value, weight), zero))
        builder.span = Span("net.py", 20, 0, f"net.{name}{number}")
        value = builder.add(value, made)
    graph.outputs = [value]
    return graph


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opener]:
    """Opens a story's page from disk; afterwards, nothing may have gone wrong or have been asked of the network."""
    wrong: list[str] = []
    pages = []

    def open_page(story: Story, **options: Any) -> Any:
        path = tmp_path / "graph.html"
        path.write_text(html(story.data()), encoding="utf-8")
        page = browser.new_page(viewport={"width": 1280, "height": 800}, **options)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: None if request.url.startswith("file:") else wrong.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.wait_for_timeout(50)
        page.close()
    assert wrong == []


def story(graph: Graph) -> Story:
    return tell(graph, [*resolve("default"), *resolve("cpu")], graph.name)


def middle(page: Any, kind: str, number: int) -> tuple[float, float]:
    """Where a leaf or box lies on the screen."""
    x, y = page.evaluate(
        f"""() => {{ const r = rectOf(right, "{kind}", {number}), c = right.camera;
        const f = right.canvas.getBoundingClientRect();
        return [f.left + c.x + (r.x + r.w / 2) * c.k, f.top + c.y + (r.y + Math.min(r.h, 20) / 2) * c.k]; }}"""
    )
    return x, y


def test_a_click_shows_what_an_operation_is(opened: Opener) -> None:
    page = opened(story(network(3)))
    page.select_option("#compare", "plain")
    page.keyboard.press("o")
    leaf = page.evaluate("right.scene.leaves.findIndex((leaf) => DATA.ops[leaf.record].name === 'linear')")
    page.mouse.click(*middle(page, "leaf", leaf))
    panel = page.inner_text("#panel")
    for text in ("linear", "f32[1,8]", "net.py:10", "net.block0.inner", "f32[8,8]", "100.0 %", "128 FLOP"):
        assert text in panel, text
    assert page.locator("#panel canvas.histogram").count() == 1
    page.keyboard.press("Escape")
    assert "Passes" in page.inner_text("#panel").title()


def test_search_opens_what_hides_the_hit(opened: Opener) -> None:
    page = opened(story(network(12)))
    page.keyboard.press("c")
    assert page.evaluate("right.placed.nodes.filter(Boolean).length") == 2, "input and result"
    page.keyboard.press("/")
    page.keyboard.type("block7.inner")
    assert page.inner_text("#found") == "1 / 2"
    assert page.evaluate("right.placed.nodes[state.chosen.number] !== undefined")
    assert "net.block7.inner" in page.inner_text("#panel")
    page.keyboard.press("Enter")
    assert page.inner_text("#found") == "2 / 2"
    page.keyboard.press("Escape")
    assert page.input_value("#search") == "" and page.evaluate("state.chosen") is None


def test_the_slider_goes_through_the_passes(opened: Opener) -> None:
    told = story(network(3))
    number = next(i for i, stage in enumerate(told.stages) if stage["removed"])
    page = opened(told)
    page.locator("#slider").fill(str(number))
    assert "−3" in page.inner_text("#stage") and "removed" in page.inner_text("#panel")
    for mode, seen in (("overlay", 3), ("side", 0)):
        page.select_option("#compare", mode)
        assert page.evaluate("[...right.marks.leaves.values()].filter((m) => m.kind === 'removed').length") == seen
    assert page.is_visible("#left") and page.evaluate("left.marks.leaves.size") == 3
    page.fill("#search", "relu")
    same = "(side) => DATA.ops[side.view.scene.leaves[side.number].record].name"
    assert page.evaluate(f"[state.chosen, state.twin].map({same})") == ["relu", "relu"]
    assert page.evaluate("state.twin.view === left && state.chosen.view === right")
    page.locator("#left canvas").focus()
    for _ in told.stages:
        page.keyboard.press("[")
    assert "as imported" in page.inner_text("#stage") and not page.is_visible("#left")


def test_everything_is_done_with_keys(opened: Opener) -> None:
    page = opened(story(network(3)))
    page.keyboard.press("o")
    for key in ("+", "-", "0", "ArrowLeft", "Shift+ArrowDown", "?", "?", "]", "["):
        page.keyboard.press(key)
    page.evaluate("app.go(right, 'leaf', 0)")
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    assert page.evaluate("DATA.ops[right.scene.leaves[state.chosen.number].record].name") != "x"
    page.keyboard.press("ArrowUp")
    box = page.evaluate("right.scene.boxes.findIndex((box) => box.kind === 'fusion')")
    page.evaluate(f"choose(right, 'box', {box})")
    page.locator("#right canvas").focus()
    assert page.evaluate(f"right.isOpen({box})")
    page.keyboard.press("Enter")
    assert not page.evaluate(f"right.isOpen({box})")
    page.mouse.dblclick(*middle(page, "box", box))
    assert page.evaluate(f"right.isOpen({box})")
    page.locator("#search").focus()
    assert [page.keyboard.press("Tab") or page.evaluate("document.activeElement.id") for _ in range(3)] == [
        "mode",
        "compare",
        "open",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_is_drawn(opened: Opener, scheme: str, tmp_path: Path) -> None:
    page = opened(story(network(3)), color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    modes = page.evaluate("[...document.querySelectorAll('#mode option')].map((option) => option.value)")
    assert modes == ["family", "flops", "bytes", "density"]
    pictures = set()
    for mode in modes:
        page.select_option("#mode", mode)
        page.wait_for_timeout(60)
        pictures.add(page.screenshot())
    assert len(pictures) == len(modes)


def test_an_artefact_shows_code_and_memory(opened: Opener, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    compile_to(folder, network(3), Options(threads=1))
    steps = len(tell_artifact(folder).extra["memory"]["leaves"])
    rows = [{"step": number, "seconds": 1e-3 * (number + 1), "share": 0.5} for number in range(steps)]
    page = opened(tell_artifact(folder, {"rows": rows}))
    assert page.input_value("#mode") == "seconds" and "Slowest" in page.inner_text("#panel").title()
    page.click("#memory")
    x, y = page.evaluate(
        """() => { const r = memoryRect(DATA.memory.buffers[0], arenaArea);
        const f = $("arena").querySelector("canvas").getBoundingClientRect();
        return [f.left + r.x + r.w / 2, f.top + r.y + r.h / 2]; }"""
    )
    page.mouse.click(x, y)
    assert "KERNEL(model_" in page.inner_text("#panel pre") and "1.00 ms" in page.inner_text("#panel")
    assert "step 0" in page.inner_text("#arena-text") or "steps 0" in page.inner_text("#arena-text")


def test_errors_of_quantisation_colour_the_page(opened: Opener) -> None:
    graph = network(3)
    for number, op in enumerate(graph.find("linear")):
        op.span = Span(module=f"layer{number}")
    rows = [{"source": f"layer{i}", "op": "linear", "sqnr": 20.0 * (i + 1), "reason": ""} for i in range(2)]
    page = opened(tell(graph, [], "errors", errors_of(rows)))
    assert page.input_value("#mode") == "error" and "10 %" in page.inner_text("#legend")
    panel = page.inner_text("#panel")
    assert "largest errors by quantisation" in panel.lower() and panel.index("10 %") < panel.index("1 %")


def test_names_are_text(opened: Opener) -> None:
    graph = network(2, name=EVIL)
    graph.name = graph.inputs[0].hint = EVIL
    page = opened(story(graph))
    assert page.inner_text("#title") == EVIL and page.locator("img").count() == 0
    page.fill("#search", "onerror")
    assert EVIL in page.inner_text("#panel")


def test_a_large_graph_opens_fast_and_moves_smoothly(opened: Opener) -> None:
    page = opened(story(network(400)))
    assert int(page.get_attribute("html", "data-ready")) < 3000, "milliseconds from navigation to the first picture"
    page.keyboard.press("o")
    took = page.evaluate(
        "() => { const start = performance.now(); for (let i = 0; i < 10; i++) { pan(0, -40); paint(right, state); } "
        "return [(performance.now() - start) / 10, right.placed.nodes.filter(Boolean).length]; }"
    )
    assert took[1] >= 1200 and took[0] < 100, took
