"""Calls of the command line in this process, in a folder of their own, and one finished run.

A test module asks for them with ``pytest_plugins = ("command_line_fixtures",)``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import pytest
from command_line import Ended

from softeval import evaluate
from softeval.cli import main as cli
from softeval.runs.run import Run


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default run directories go into a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("SOFTEVAL_RUN")]:
        monkeypatch.delenv(name)


@pytest.fixture
def softeval(capsys: pytest.CaptureFixture[str], elsewhere: None) -> Callable[..., Ended]:
    def call(*arguments: str) -> Ended:
        capsys.readouterr()
        code = cli.run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A complete run of all modes on the bundled task."""
    path = tmp_path_factory.mktemp("finished") / "run"
    return evaluate(limit=3, num_samples=4, max_cot_tokens=60, output_path=str(path), device="cpu")


@pytest.fixture
def no_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval reads the ten thousand tasks of its own at each start, and a test needs none."""
    from lm_eval.tasks import TaskManager

    fewer = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", fewer)
