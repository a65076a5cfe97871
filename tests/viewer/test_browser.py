"""The report in a real browser: lists, trees, permalinks, keys, untrusted texts, large runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from malt_jax.viewer.page import write_report
from tests.report.conftest import example
from tests.viewer.conftest import MadeRun, boxed, whole

EVIL = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "</script><script>window.hacked = 1</script>",
    "</div></textarea><svg onload=window.hacked=1>",
    "$\\href{javascript:window.hacked=1}{press}$ $\\htmlData{x=<script>}{y}$",
    "$\\includegraphics{https://example.org/x.png}$ \\[\\url{javascript:window.hacked=1}\\]",
    "\\[\\def\\a{\\a\\a}\\a\\] $\\rule{1e9em}{1e9em}$",
    "{{ 7*7 }} {% raw %} ${window.hacked=1} `window.hacked=1` \u2028 \ue000question\ue001",
    "__proto__ constructor \x00 \u202egnp.exe",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the report of a finished run."""
    path = tmp_path_factory.mktemp("html") / "run"
    whole(path, example())
    return f"file://{write_report(UPath(path))}"


def open_at(page: Any, address: str, selector: str) -> None:
    # A new document, also where only the part after # differs.
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector(f"html[data-ready] {selector}")


def texts(page: Any, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def test_the_overview_is_there_at_once(page: Any, report: str) -> None:
    open_at(page, report, "#overview")
    assert "malt+mv" in texts(page, "tbody th")
    assert page.locator("#overview .chart").count() > 5
    assert page.locator("#list").is_hidden()


def test_filters_search_and_orders(page: Any, report: str) -> None:
    open_at(page, f"{report}#/trees", ".row")
    assert texts(page, ".row .id") == ["#0", "#1", "#2"]
    page.click("[data-filter=disputed]")
    assert texts(page, ".row .id") == ["#1", "#2"]
    page.fill("#search", "question 2")
    assert texts(page, ".row .id") == ["#2"]
    assert page.url.endswith("#/trees?show=disputed&search=question+2")
    page.reload()
    page.wait_for_selector(".row")
    assert texts(page, ".row .id") == ["#2"]
    page.fill("#search", "no such question")
    assert texts(page, ".rows") == ["No question fits these filters."]
    page.fill("#search", "")
    page.click("[data-filter=disputed]")
    page.select_option("label:has-text('order') select", "low")
    assert texts(page, ".row .id")[-1] == "#0"


def test_rounds_are_chosen_and_have_their_own_trees(page: Any, tmp_path: Path) -> None:
    made = MadeRun(tmp_path / "run", options=["rounds=2"])
    made.add_trees()
    made.add_trees(lambda question, path: f"round 1: \\boxed{{{question}}}", number=1)
    address = f"file://{write_report(UPath(made.path))}"
    open_at(page, f"{address}#/trees?search=question+2", ".row")
    page.select_option("label:has-text('round') select", "1")
    assert texts(page, ".row .id") == ["#0", "#1", "#2"]
    page.click(".row >> nth=1")
    page.wait_for_url("**#/trees/1/1/0")
    assert "round 1: \\boxed{1}" in page.inner_text(".card .body >> nth=0")
    open_at(page, f"{address}#/trees/0/1", ".card")
    assert "The generator says" in page.inner_text(".card .body >> nth=0")


def test_before_and_after_training(page: Any, report: str) -> None:
    open_at(page, f"{report}#/test?show=gained", ".row")
    assert texts(page, "#list .row .id") == ["#1"]
    page.click(".row")
    page.wait_for_selector(".stages .card")
    headings = [text.splitlines()[0] for text in texts(page, ".stages h2")]
    assert headings == ["untrained", "after SFT", "after DPO"]
    assert texts(page, ".passes button") == ["pass 0: ✗ ✗ ✓", "pass 1: ✗ ✓ ✓", "pass 2: ✓ ✓ ✓"]
    page.click(".passes button >> nth=2")
    assert page.url.endswith("#/test/1/2")
    assert texts(page, ".stages .card .answer") == ["11"] * 9


def test_clicks_keys_and_permalinks_of_a_tree(page: Any, report: str) -> None:
    open_at(page, f"{report}#/trees", ".row")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    assert page.locator(".node").count() == 39
    assert texts(page, ".card strong") == ["generator 0", "verifier 0.0", "refiner 0.0.0"]
    page.click(".node[data-path='1.2']")
    assert texts(page, ".card strong") == ["generator 1", "verifier 1.2", "refiner 1.2.0"]
    for key, path in (
        ("ArrowRight", "1.2.0"),
        ("ArrowDown", "1.2.1"),
        ("ArrowUp", "1.2.0"),
        ("ArrowLeft", "1.2"),
        ("ArrowLeft", "1"),
        ("ArrowUp", "0"),
        ("ArrowUp", "0"),
    ):
        page.keyboard.press(key)
        assert page.locator(".node[aria-selected=true]").get_attribute("data-path") == path
        assert page.url.endswith(f"#/trees/0/1/{path}")
    open_at(page, f"{report}#/trees/0/2/2.1.0", ".card")
    assert texts(page, ".card strong") == ["generator 2", "verifier 2.1", "refiner 2.1.0"]
    page.keyboard.press("k")
    page.wait_for_url("**#/trees/0/1/0")
    page.keyboard.press("Escape")
    page.wait_for_selector("#list .row")


def test_a_path_shows_formulas_prompts_verdicts_and_pairs(page: Any, report: str) -> None:
    open_at(page, f"{report}#/trees/0/1/1.0.0", ".card")
    last = page.locator(".card").nth(2)
    assert last.locator(".katex").count() == 2
    assert last.locator(".answer.verdict-true").inner_text() == "11"
    assert "✓ correct" not in last.inner_text()
    chips = last.locator("header .chip").all_inner_texts()
    assert chips == ["1.00", "● row for SFT", "▲ chosen over 1"]
    prompt = last.locator("pre")
    assert not prompt.is_visible()
    page.keyboard.press("p")
    text = prompt.inner_text()
    assert "Question 1: what is $x$?" in text
    # The prompt of the refiner shows the texts above it.
    assert boxed(1, (1,)) in text and boxed(1, (1, 0)) in text and boxed(1, (1, 0, 0)) not in text


def test_tokens_are_shaded_by_their_log_probability(page: Any, report: str) -> None:
    open_at(page, f"{report}#/trees/0/1/0", ".card")
    page.keyboard.press("t")
    tokens = page.locator(".card >> nth=0 >> .token")
    assert "".join(tokens.all_inner_texts()[:-1]) == boxed(1, (0,))
    shades = tokens.evaluate_all("all => all.map(t => t.style.getPropertyValue('--cost'))")
    assert [float(shade) for shade in shades[:5]] == pytest.approx(
        [0.75 * 0.25 * place / 4 for place in range(5)]
    )
    assert tokens.nth(4).get_attribute("title") == "probability 37 %, log-probability -1.00"


def test_two_siblings_are_compared_word_by_word(page: Any, report: str) -> None:
    open_at(page, f"{report}#/trees/0/1/0.0.0", ".card")
    page.keyboard.press("c")
    diff = page.locator(".card.selected .diff")
    assert diff.locator("del").all_inner_texts() == ["0.0.0", "1000"]
    assert diff.locator("ins").all_inner_texts() == ["0.0.1", "11"]
    page.keyboard.press("c")
    page.keyboard.press("c")
    assert diff.count() == 0


def test_what_models_write_is_never_run(page: Any, tmp_path: Path, content: dict[str, Any]) -> None:
    def evil(question: int, path: Sequence[int]) -> str:
        return EVIL[(question + sum(path)) % len(EVIL)] + f" \\boxed{{{EVIL[question]}}}"

    class Evil(MadeRun):
        def row(self, id: int, offset: int) -> dict[str, str]:
            level = ("__proto__", "<b onclick=window.hacked=1>", EVIL[2])[id % 3]
            row = super().row(id, offset)
            return row | {"problem": f"{id + offset} {EVIL[id]}", "level": level, "type": EVIL[id]}

    made = Evil(tmp_path / "run", questions=len(EVIL))
    made.add_trees(evil)
    made.add_samples(lambda question, stage, number: EVIL[(question + number) % len(EVIL)])
    made.add_results(content | {"model": EVIL[2], "task": EVIL[1]})
    address = f"file://{write_report(UPath(made.path))}"
    open_at(page, address, "#overview")
    assert EVIL[2] in page.inner_text("h1")
    for list in ("trees", "test"):
        open_at(page, f"{address}#/{list}", ".row")
        for place, text in enumerate(EVIL):
            assert text.split()[0] in page.locator(".row .text").nth(place).text_content()
    for id in range(len(EVIL)):
        open_at(page, f"{address}#/trees/0/{id}", ".card")
        for keys in ("p", "c", "t"):
            page.keyboard.press(keys)
        shown = page.locator(".card >> nth=0 >> .body").text_content()
        assert evil(id, (0,)).split()[0] in shown
        open_at(page, f"{address}#/test/{id}", ".card")
    for route in ("#/trees/0/<script>", "#/trees/__proto__/1", "#/test/constructor/__proto__"):
        open_at(page, address + route, ".failure")
    for inside in ("script:not([src])", "img", "a[href^=javascript]", "[onclick]", "[onerror]"):
        count = page.locator(f"main {inside}").count()
        assert count == 0, inside
    assert page.evaluate("window.hacked") is None


def test_large_data_is_read_from_files_next_to_the_page(
    page: Any, made: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("malt_jax.viewer.sidecar.INLINE", 0)
    monkeypatch.setattr("malt_jax.viewer.sidecar.CHUNK", 1)
    file = write_report(UPath(made.path))
    assert len(list((made.path / "report/data").iterdir())) == 6
    for question in (2, 0, 1):
        open_at(page, f"file://{file}#/trees/0/{question}/1.1.1", ".card")
        assert f"Question {question}:" in page.inner_text(".asked")
    (made.path / "report/data/trees-0-1.js").write_text("")
    open_at(page, f"file://{file}#/trees/0/1", ".failure")
    assert "data/trees-0-1.js is missing or damaged" in page.inner_text(".failure")


def test_without_javascript_the_overview_reads(browser: Any, report: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report)
    assert "malt+mv" in page.locator("tbody th").all_inner_texts()
    assert page.locator("noscript").inner_text().startswith("The overview needs no JavaScript")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_is_wider_than_the_window(
    browser: Any, report: str, scheme: str, width: int
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, device_scale_factor=1
    )
    page = context.new_page()
    for route, selector in (("", "h1"), ("#/trees", ".row"), ("#/trees/0/1", ".card")):
        open_at(page, report + route, selector)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 30)")
    page.keyboard.press("d")
    changed = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert changed != ground
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).color") == "rgb(28, 36, 48)"
    context.close()


@pytest.mark.slow
def test_ten_thousand_questions_open_in_three_seconds(
    page: Any, tmp_path: Path, content: dict[str, Any]
) -> None:
    made = MadeRun(tmp_path / "run", questions=10_000, branching=(2, 1, 1))
    made.add_trees()
    made.add_results(content)
    file = write_report(UPath(made.path))
    began = time.monotonic()
    open_at(page, f"file://{file}#/trees", ".row")
    assert time.monotonic() - began < 3
    assert page.locator(".row").count() < 60
    assert "10,000 of 10,000" in page.inner_text("#list h1")
    began = time.monotonic()
    page.fill("#search", "question 9876")
    assert texts(page, ".row .id") == ["#9876"]
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    assert "Question 9876:" in page.inner_text(".asked")
    assert time.monotonic() - began < 3
