"""`softeval train` from the command line, and the real training sets through it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import SHARED
from train_cases import read_metrics, save_tiny

from softeval.cli.main import run
from softeval.trainers.config import TrainConfig

SMALL = ["--steps", "1", "-C", "demo_soft", "--prompts-per-step", "1", "--group-size", "2"]
SMALL += ["--limit", "12", "--validation-size", "2", "--report-to", "none", "--device", "cpu"]


def test_every_field_is_documented() -> None:
    assert all(field.description for field in TrainConfig.model_fields.values())


def test_a_dry_run_prints_the_resolved_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(save_tiny(tmp_path / "model"))]
    assert run(["train", "-C", "qwen-2.5-3b+math+hard", "--steps", "7", "--dry-run", *model]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["method"], config["dataset"], config["max_steps"]) == ("hard", "math", 7)
    assert config["learning_rate"] == 8e-6


@pytest.mark.parametrize("words", [["train", *SMALL], ["run", "--limit", "2"]])
def test_of_several_processes_one_prints_what_a_dry_run_says(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert run([*words, "--dry-run"]) == 0
        said = capsys.readouterr()
        assert bool(said.out or said.err) == (rank == "0")


def test_mistakes_are_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--group-size", "1"], ["-C", "nothing"], ["--dataset", "gsm"]):
        assert run(["train", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("softeval: ") and error.count("\n") == 1


@pytest.mark.slow
def test_the_self_check_can_be_left_out(tmp_path: Path) -> None:
    words = ["--no-self-check", "--output-path", str(tmp_path), "-q"]
    assert run(["train", *SMALL, *words]) == 0
    assert json.loads((tmp_path / "train.json").read_text())["self_check"] == "skipped"


@pytest.mark.slow
def test_a_run_reports_its_best_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *SMALL, "--output-path", str(tmp_path), "--json", "-q"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == str(tmp_path) and 0 <= result["best_success"] <= 1
    checked = json.loads((tmp_path / "train.json").read_text())["self_check"]
    assert checked in ("passed", "cached")
    assert run(["train", *SMALL, "--output-path", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "Best validation" in shown.out and "10 training and 2 held-out" in shown.err


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason=f"no benchmark data in {SHARED}")
@pytest.mark.parametrize("dataset", ["gsm8k", "math", "deepscaler"])
def test_real_questions_end_to_end(tmp_path: Path, dataset: str) -> None:
    """A tiny random model on the real training sets, with real labels."""
    model = save_tiny(tmp_path / "model", max_position_embeddings=8192)
    arguments = ["--model", str(model), "--dataset", dataset, "--data-dir", str(SHARED / "data")]
    arguments += ["--steps", "1", "--group-size", "2", "--max-cot-tokens", "4", "--limit", "40"]
    arguments += ["--max-answer-tokens", "4", "--validation-size", "4", "--learning-rate", "1e-3"]
    arguments += ["--output-path", str(tmp_path / "run"), "--report-to", "none", "-q"]
    assert run(["train", *arguments]) == 0
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1]
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert record["data"]["origin"] == "local"
    assert record["data"]["train"] + record["data"]["validation"] == 40
    assert set(record["data"]["overlaps"]) == {"gsm8k", "math500", "olympiadbench"}
