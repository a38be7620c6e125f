"""The report in headless Chromium: what a reader sees, and what a malicious sample cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_browser import Visit, axe_source, chromium, violations
from report_runs import write_checkpoint, write_family, write_training

from softeval.reports.page import build_report

pytestmark = pytest.mark.browser

ATTACKS = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned=1'>",
    '"><svg onload=window.pwned=1>',
    "<!--<script>",
    "{{ 7*7 }}{% raw %}",
    "\u202eevil\u202c \u2066x\u2069",
    "\x00\x1b[31mred\x07",
    "line\u2028separator\u2029",
    "",
    "x" * 1_000_000,
    "𝔘nicode 🙂",
    "漢字かな交じり文の長いトークン",
    "שלום עולם",
)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with every section, as a file address."""
    folder = tmp_path_factory.mktemp("family")
    runs = write_family(
        folder, ("base", "hard", "soft"), seeds=2, questions=32, samples=4, positions=36,
        likelihood_tasks=("arc",), kl=True, modes=("hard_greedy", "hard_sample", "soft_sample"),
    )  # fmt: skip
    return _write(folder, [*runs, write_training(folder / "training")])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hostile")
    attack = ATTACKS[0]
    changes = {"command": f"softeval run {attack}", "model": {"path": f"m/{ATTACKS[1]}"}}
    run = write_checkpoint(
        folder / "run", questions=12, samples=2, texts=ATTACKS, record_changes=changes,
        modes=("hard_greedy", "soft_sample"), tasks=("a<b>$x$&amp;",),
    )  # fmt: skip
    return _write(folder, [f"<b onclick>\u202e{{{{7*7}}}}={run}"])


@pytest.fixture(scope="module")
def still(browser, family):
    """The first of these pages in light, of which a test may change the colours alone, and back."""
    return Visit(browser, family, color_scheme="light").page


def _write(folder: Path, runs: list) -> str:
    path = folder / "report.html"
    path.write_bytes(build_report(runs).encode())
    return path.as_uri()


def _browsing(page):
    """The page with the focus in the browser of samples, where alone its keys act."""
    page.locator("#samples-app").focus()
    return page


def _data(page) -> dict:
    return json.loads(page.locator("#samples-data").text_content())


def test_every_section_is_accessible_and_quiet(browser, family):
    visit = Visit(browser, family, color_scheme="light")
    visit.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert violations(visit.page, axe_source()) == []
    visit.page.emulate_media(color_scheme="dark")
    assert violations(visit.page, axe_source(), ["color-contrast"]) == []  # all that differs
    assert visit.problems == []
    assert visit.requests == [family]


def test_dark_and_light_differ_and_paper_is_white(still):
    ink = "getComputedStyle(document.querySelector('h1')).color"
    background = "getComputedStyle(document.body).backgroundColor"
    light = [still.evaluate(ink), still.evaluate(background)]
    still.emulate_media(color_scheme="dark")
    dark = [still.evaluate(ink), still.evaluate(background)]
    assert all(map(str.__ne__, light, dark))
    still.emulate_media(color_scheme="dark", media="print")
    assert still.evaluate(ink) == light[0]
    still.emulate_media(color_scheme="light", media="screen")


def test_the_page_fits_a_phone_its_panels_stacked_and_their_text_legible(browser, family):
    page = Visit(browser, family, viewport={"width": 390, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sizes = page.evaluate(
        """() => [...document.querySelectorAll("figure svg")]
            .filter(svg => svg.getBoundingClientRect().width > 0)
            .flatMap(svg => {
                const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
                const texts = [...svg.querySelectorAll("text")];
                return texts.map(text => scale * parseFloat(getComputedStyle(text).fontSize));
            })"""
    )
    assert len(sizes) > 50 and min(sizes) >= 11
    visible = page.locator(".phone svg").first
    assert visible.is_visible() and not page.locator("figure .wide").first.is_visible()


def test_every_figure_has_a_text_alternative(still):
    figures = still.locator("figure svg").all()
    assert len(figures) >= 8
    for figure in figures:
        assert figure.get_attribute("role") == "img"
        ids = (figure.get_attribute("aria-labelledby") or "").split()
        assert len(ids) == 2
        for name in ids:
            assert len(still.evaluate("(id) => document.getElementById(id).textContent", name)) > 8


def test_without_javascript_all_but_the_samples_is_there(browser, family):
    page = Visit(browser, family, java_script_enabled=False).page
    assert page.locator("section#results table").first.is_visible()
    assert page.locator("figure svg").first.is_visible()
    assert page.locator("noscript").first.is_visible()
    assert not page.locator("#samples-app").is_visible()


def test_nothing_of_a_hostile_run_is_executed(browser, hostile):
    visit = Visit(browser, hostile)
    _browsing(visit.page)
    for _ in range(12):
        visit.page.keyboard.press("j")
    assert visit.page.evaluate("window.pwned") is None
    assert visit.problems == []
    assert visit.requests == [hostile]
    text = visit.page.locator("body").inner_text()
    assert "⟨U+202E⟩" in text and "\u202e" not in text
    assert violations(visit.page, axe_source()) == []


def test_hostile_texts_are_shown_as_they_are(browser, hostile):
    visit = Visit(browser, hostile)
    _browsing(visit.page)
    shown = set()
    for _ in range(len(_data(visit.page)["problems"])):
        shown.add(visit.page.locator("pre[aria-label=Prompt]").text_content())
        shown.add(visit.page.locator(".cot").first.text_content())
        visit.page.keyboard.press("j")
    joined = "\n".join(shown)
    for attack in (
        ATTACKS[0],
        ATTACKS[1],
        ATTACKS[3],
        ATTACKS[4],
        "𝔘nicode 🙂",
        "⟨U+0000⟩⟨U+001B⟩[31m",
    ):
        assert attack in joined
    assert "more characters]" in joined  # the megabyte is cut, and it says so


def test_a_strip_holds_any_token_within_its_block(browser, hostile):
    """Wide letters, letters from the right, none at all, and an answer of thousands."""
    page = Visit(browser, hostile, viewport={"width": 390, "height": 800}).page
    overflowing = """() => [...document.querySelectorAll(".strip text")]
        .filter(text => text.getBBox().width > text.ownerSVGElement.getBoundingClientRect().width)
        .map(text => text.textContent)"""
    _browsing(page)
    for _ in range(12):
        assert page.evaluate(overflowing) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.keyboard.press("j")
    told = page.locator(".strip svg").evaluate_all("all => all.map(e => e.ariaLabel).join('')")
    assert "“\u2068שלום עולם\u2069”" in told and "\n" not in told


def test_the_policy_refuses_what_escaping_would_have_let_through(browser, family):
    visit = Visit(browser, family)
    visit.page.evaluate(  # the reader's own mistakes, were there any
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.pwned=1>');"
        "const s = document.createElement('script'); s.textContent = 'window.pwned=2';"
        "document.body.append(s)"
    )
    visit.page.wait_for_timeout(100)
    assert visit.page.evaluate("window.pwned") is None
    assert sum("Content Security Policy" in problem for problem in visit.problems) >= 2


def test_tokens_on_the_page_are_those_of_the_data(browser, family):
    page = Visit(browser, f"{family}#samples?q=2&m=2&n=1").page
    data = _data(page)
    left = next(s for s in data["samples"] if s["q"] == 2 and s["a"] == 0 and s["m"] == 2)
    cot = page.locator("section[aria-label='Left side'] .cot")
    assert cot.locator("span").count() == left["n"]
    assert cot.text_content() == left["x"]
    told = page.locator("section[aria-label='Left side'] .strip svg").first.get_attribute(
        "aria-label"
    )
    assert "entropy" in told and "nats" in told


def test_keys_filters_search_and_address(browser, family):
    page = _browsing(Visit(browser, family).page)
    question = page.get_by_label("Question", exact=True)
    first = question.input_value()
    page.keyboard.press("j")
    second = question.input_value()
    assert second != first
    page.keyboard.press("k")
    assert question.input_value() == first
    page.keyboard.press("j")
    page.get_by_label("Left mode").select_option(label="soft sample")
    page.get_by_label("Colour").select_option(label="top-1 probability")
    page.reload()
    assert question.input_value() == second
    assert (
        page.get_by_label("Left mode").evaluate("e => e.selectedOptions[0].text") == "soft sample"
    )
    assert "top-1 probability" in page.locator(".keyed").inner_text()
    page.get_by_label("Show").select_option(label="left incorrect")
    page.get_by_label("Left sample").select_option(index=0)
    assert "✗" in page.locator("section[aria-label='Left side'] select").nth(2).inner_text()
    page.get_by_label("Search").fill("no such text anywhere")
    assert page.get_by_role("status").inner_text() == "no question matches"
    assert not page.locator(".question").is_visible() and page.locator(".strip").count() == 2
    page.get_by_label("Search").fill("asks a question")  # stands in every prompt
    assert page.get_by_role("status").inner_text() == "no question matches"
    page.get_by_label("Search").fill("")
    assert "that match" in page.get_by_role("status").inner_text()
    odd = Visit(browser, family + "#samples?o=toString&z=valueOf&h=constructor&q=-3&a=99")
    assert "that match" in odd.page.get_by_role("status").inner_text() and odd.problems == []


def test_the_browser_of_samples_by_keyboard_alone(browser, family):
    """Its keys act inside it only; arrow keys walk a strip; Escape leaves a field, then it."""
    page = Visit(browser, family, viewport={"width": 1280, "height": 900}).page
    question, press = page.get_by_label("Question", exact=True), page.keyboard.press
    first = question.input_value()
    press("j")
    assert question.input_value() == first and page.evaluate("scrollY") == 0
    focused = "document.activeElement.getAttribute('aria-label')"
    while page.evaluate(focused) != "Search":
        press("Tab")
    page.keyboard.type("jk")
    assert page.get_by_label("Search").input_value() == "jk"
    press("Control+a")
    press("Delete")
    press("Escape")
    press("j")
    assert question.input_value() != first
    modes = page.locator(".pane select[aria-label$=mode]")
    assert modes.evaluate_all("all => all.map(e => e.selectedOptions[0].text)") == [
        "soft sample", "hard sample",
    ]  # fmt: skip
    while not (page.evaluate(focused) or "").startswith("Position"):
        press("Tab")
    strip = page.locator("section[aria-label='Left side'] .strip")
    printed = page.locator(".pane .printed").first
    assert not printed.is_visible()
    page.emulate_media(media="print")
    assert printed.is_visible() and "soft sample" in printed.inner_text() and strip.is_visible()
    page.emulate_media(media="screen")
    told = [page.evaluate(focused)]
    assert "at temperature 0.5" in told[0] and "at temperature 1" in told[0]
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End"):
        press(key)
        told.append(page.evaluate(focused))
        assert page.locator(".pane .readout").first.inner_text() == told[-1]
    assert [t.split(":")[0] for t in told[:4]] == [f"Position {n}" for n in (1, 2, 3, 2)]
    assert told[4].startswith("Answer")
    strip.locator("svg").nth(4).click()  # as a finger does
    assert page.evaluate(focused).startswith("Position 5:")
    press("Escape")
    press("k")
    assert page.evaluate("document.activeElement.tagName") == "BODY"
    assert question.input_value() != first


def test_a_long_thought_is_folded_and_unfolded(browser, family):
    visit = Visit(browser, family)
    cells = visit.page.locator("section[aria-label='Left side'] .strip > *")
    longest = max((s for s in _data(visit.page)["samples"] if s["a"] == 0), key=lambda s: s["n"])
    assert longest["n"] > 64
    visit.page.goto(family + f"#samples?q={longest['q']}&m={longest['m']}&s={longest['i']}")
    assert cells.locator("xpath=self::*[name()='svg']").count() <= 64
    assert visit.page.evaluate("scrollY") > 0  # a deep link goes there
    while (folds := visit.page.locator("section[aria-label='Left side'] .fold")).count():
        folds.first.focus()
        visit.page.keyboard.press("Enter")
    assert cells.count() == longest["n"] + 1  # and the answer
    assert visit.problems == []


def test_sides_that_differ_do_differ(browser, family):
    page = Visit(browser, family).page
    page.get_by_label("Show").select_option(label="sides differ")
    _browsing(page)
    for _ in range(3):
        outcomes = page.locator(".pane p .outcome").all_inner_texts()
        assert len(set(outcomes)) == 2
        page.keyboard.press("j")


def test_heat_is_readable_on_every_colour(still):
    """Contrast of text on the five heat colours, which axe cannot always tell."""
    for scheme in ("dark", "light"):
        still.emulate_media(color_scheme=scheme)
        for step in range(1, 5):
            pair = still.locator(f".keyed .h{step}").evaluate(
                "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
            )
            assert _contrast(*map(_rgb, pair)) >= 4.5


def _rgb(text: str) -> list[float]:
    return [int(part) / 255 for part in text[4:-1].split(",")]


def _contrast(first: list[float], second: list[float]) -> float:
    light = sorted(map(_luminance, (first, second)))
    return (light[1] + 0.05) / (light[0] + 0.05)


def _luminance(rgb: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
