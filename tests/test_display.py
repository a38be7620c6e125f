"""Progress and tables: what they say, and that no model text can steer a terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softeval.cli.tables import markdown_lines, print_table, score_tables
from softeval.display import (
    Display,
    LiveScreen,
    PlainScreen,
    Screen,
    clean,
    duration,
    make_display,
    make_screen,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text(st.characters(exclude_categories=[])))
def test_clean_text_holds_no_control(text: str) -> None:
    cleaned = clean(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", cleaned)
    cleaned.encode("utf-8")
    assert clean(cleaned) == cleaned


def test_clean_keeps_what_is_text() -> None:
    assert clean("a\tb\n∑ 😀 [red]x[/red]") == "a\tb\n∑ 😀 [red]x[/red]"
    assert clean("\x1b[31mred\x1b[0m\x07") == "[31mred[0m"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (0, "0:00"), (61.4, "1:01"), (3725, "1:02:05")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_the_meter_counts_cell_and_run() -> None:
    clock = Clock()
    meter = Display(clock=clock)
    meter.begin(10)
    meter.enter("a", 4)
    meter.count(done=2)  # found in the journal: no time went into them
    assert meter.eta is None and meter.rate == 0
    clock.now = 4.0
    meter.count(done=2, fresh=2, tokens=80)
    meter.score(4, 1)
    assert meter.cell.score == "25.0 % correct"
    assert meter.rate == 20.0
    assert meter.eta == pytest.approx(2.0 * 6)
    meter.enter("b", 6)
    assert meter.cell.done == 0 and meter.run.done == 4


def test_log_likelihood_requests_do_not_count_for_the_run() -> None:
    meter = Display(clock=Clock())
    meter.begin(5)
    meter.enter("arc", 40, samples=False)
    meter.count(done=40, fresh=40, tokens=400)
    assert meter.cell.done == 40 and meter.run.done == 0 and meter.eta is None
    assert meter.state == "40/40 log-likelihoods"


def test_plain_lines_come_now_and_then() -> None:
    clock, stream = Clock(), io.StringIO()
    display = Display(PlainScreen(stream, clock), clock)
    display.begin(100)
    display.enter("gsm8k|soft_sample", 100)
    for _ in range(100):
        clock.now += 1.0
        display.count(done=1, fresh=1, tokens=10)
    display.leave()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("gsm8k|soft_sample: 30/100")
    assert "10 tokens/s" in lines[0] and "1:10 left" in lines[0]
    assert "100/100" in lines[-1]


def test_the_screen_fits_the_stream() -> None:
    assert type(make_screen(True, Terminal())) is Screen
    assert isinstance(make_screen(False, Terminal()), LiveScreen)
    assert isinstance(make_screen(False, io.StringIO()), PlainScreen)


def test_the_live_display_shows_titles_as_text() -> None:
    stream = Terminal()
    with make_display(False, stream) as display:
        display.begin(2)
        display.enter("[bold]odd[/bold]\x1b]0;title\x07", 2)
        display.count(done=2, fresh=2, tokens=5)
        display.note("[red]note[/red]\x1b[2J")
        display.leave()
    shown = stream.getvalue()
    assert "[bold]odd[/bold]" in shown
    assert "[red]note[/red]" in shown
    assert "\x1b]0;" not in shown and "\x1b[2J" not in shown


def score(task: str, mode: str, k: int, value: float, metric: str = "pass@k") -> dict[str, Any]:
    parts = {"low": value - 0.1, "high": value + 0.1, "n": 4, "questions": 10}
    return {"task": task, "mode": mode, "metric": metric, "k": k, "value": value, **parts}


SCORES = [
    score("t", "hard_greedy", 1, 0.5, "greedy pass@1"),
    score("t", "hard_sample", 2, 0.6),
    score("t", "hard_sample", 1, 0.4),
    score("arc", "", 1, 0.7, "accuracy"),
    score("arc", "", 1, 1.25, "nll_per_token"),
]


def test_tables_hold_each_score_in_its_place() -> None:
    success, likelihood = (markdown_lines(table)[2:] for table in score_tables(SCORES))
    assert success[0] == "| task | mode | n | pass@1 | pass@2 |"
    assert success[2] == "| t | hard_greedy | 10×4 | 50.0 [40.0, 60.0] |  |"
    assert success[3] == "| t | hard_sample | 10×4 | 40.0 [30.0, 50.0] | 60.0 [50.0, 70.0] |"
    assert likelihood[2] == "| arc | 10×4 | 70.0 [60.0, 80.0] | 1.250 [1.150, 1.350] |"
    assert score_tables([]) == []


@pytest.mark.parametrize("width", [40, 60, 200])
def test_a_narrow_terminal_loses_no_number(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    many = [score("task", "hard_sample", 2**i, 0.3 + i / 100) for i in range(6)]
    stream = Terminal()
    (table,) = score_tables(many)
    print_table(table, stream)
    for row in many:
        assert f"{100 * row['value']:.1f}" in stream.getvalue()
        assert f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in stream.getvalue()
    assert "…" not in stream.getvalue()


def test_elsewhere_the_tables_are_markdown() -> None:
    stream = io.StringIO()
    (table,) = score_tables([score("a|b[bold]", "m", 1, 0.5)])
    print_table(table, stream)
    assert "| a\\|b[bold] | m | 10×4 | 50.0 [40.0, 60.0] |" in stream.getvalue()
