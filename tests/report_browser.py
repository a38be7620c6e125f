"""A headless Chromium for the tests of the report, or the reason why there is none. Not a test."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("SOFTEVAL_CHROMIUM") or shutil.which("chromium")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test where Chromium or playwright is absent."""
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs the package chromium (apt-get install chromium) and playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


class Visit:
    """A page with everything that went wrong on it, and every request it made."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.page = browser.new_context(**context).new_page()
        self.page.set_default_timeout(5000)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.problems.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.problems.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(address)


def axe_source() -> str:
    """axe-core as it comes with a Python package; skips where none is installed."""
    for package in ("axe_playwright_python", "axe_core_python"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            script = Path(folder) / "axe.min.js"
            if script.is_file():
                return script.read_text(encoding="utf-8")
    pytest.skip("axe-core is absent: pip install axe-playwright-python")


EVERY_RULE = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


def violations(page: Any, source: str, rules: Sequence[str] = EVERY_RULE) -> list[str]:
    """What axe-core finds wrong, by rules or sets of rules: WCAG 2 A and AA, and its best practices."""
    page.evaluate(source)
    options = {
        "runOnly": list(rules),
        "resultTypes": ["violations"],
    }  # the rest takes as long again
    found = page.evaluate("(options) => axe.run(document, options)", options)
    return [
        f"{v['id']}: {v['help']} ({node['target']}) {node['html'][:120]}"
        for v in found["violations"]
        for node in v["nodes"][:3]
    ]
