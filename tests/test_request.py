"""A request is settled before any weights are loaded, and its questions are read once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from softeval import UserError, evaluate
from softeval.model import BUNDLED_CHECKPOINT
from softeval.runs import cells
from softeval.runs.config import make_config
from softeval.runs.plan import make_plan

pytestmark = pytest.mark.slow

SMALL = {"limit": 1, "num_samples": 1, "modes": "hard_greedy", "max_cot_tokens": 6, "device": "cpu"}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the bundled checkpoint; default run directories go beside it."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(BUNDLED_CHECKPOINT, tmp_path / "model").name


def never(*_: object, **__: object) -> Any:
    raise AssertionError("weights were loaded")


def change_weights(model: str) -> None:
    file = Path(model, "model.safetensors")
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1e-3
    save_file(tensors, file, {"format": "pt"})


def test_finished_or_refused_nothing_is_loaded(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {**SMALL, "model": model, "output_path": "run"}
    first = evaluate(**asked)
    monkeypatch.setattr("softeval.model.language_model.load_weights", never)
    assert evaluate(**asked).info == first.info
    assert make_plan(make_config(asked))["config"]["output_path"] == "run"
    with pytest.raises(UserError, match="seed: 0 there, 1 now"):
        evaluate(**asked, seed=1)
    change_weights(model)
    for ask in (lambda: evaluate(**asked), lambda: make_plan(make_config(asked))):
        with pytest.raises(UserError, match=r"weights: .* there, .* now"):
            ask()


def test_the_questions_are_read_once_for_all_modes_and_caps(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = cells.load
    monkeypatch.setattr(cells, "load", lambda b, *rest: (read.append(b.task), load(b, *rest))[1])
    several = {**SMALL, "modes": "hard_greedy,hard_sample", "num_samples": 2}
    evaluate(**several, model=model, output_path="run")
    assert read == ["arithmetic"]
