"""The words and numbers of a report, held against a file: a change of either shows in review.

After an intended change: SOFTEVAL_UPDATE_GOLDEN=1 pytest tests/test_report_golden.py
"""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_runs import write_family, write_training

from softeval.reports.page import build_report

GOLDEN = Path(__file__).parent / "golden" / "report.txt"
SILENT = {"script", "style"}
LINES = {"p", "li", "tr", "h1", "h2", "h3", "dt", "dd", "figcaption", "caption", "title", "desc"}


class Words(HTMLParser):
    """Texts of a page, one line a paragraph or row; what is drawn in a figure is left out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.lines: list[str] = [""]
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        if tag in LINES:
            self.lines.append("")
        elif tag in ("td", "th"):
            self.lines[-1] += " | "

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass
        if tag in LINES:
            self.lines.append("")

    def handle_data(self, data: str) -> None:
        drawn = "svg" in self.open and not {"title", "desc"} & set(self.open)
        if not drawn and not SILENT & set(self.open):
            self.lines[-1] += data

    @property
    def text(self) -> str:
        lines = (" ".join(line.split()) for line in self.lines)
        return "\n".join(line for line in lines if line.strip(" |")) + "\n"


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_words_and_numbers_are_those_on_file(tmp_path: Path) -> None:
    runs = write_family(
        tmp_path, ("base", "hard", "soft"), seeds=2, questions=8, samples=4, positions=10,
        modes=("hard_greedy", "hard_sample", "soft_sample"), likelihood_tasks=("arc",), kl=True,
    )  # fmt: skip
    page = build_report([*runs, write_training(tmp_path / "training")])
    text = Words(page).text.replace(str(tmp_path), "RUNS")
    if os.environ.get("SOFTEVAL_UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text, encoding="utf-8")
    assert text.splitlines() == GOLDEN.read_text(encoding="utf-8").splitlines()
