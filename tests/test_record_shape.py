"""A run.json, or a training's record, that is not what it should be: one line that names the field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import write_checkpoint

from softeval import load_run
from softeval.errors import UserError
from softeval.reports.compare import compare_runs
from softeval.reports.page import build_report
from softeval.runs import rundir
from softeval.runs.record import read_training
from softeval.runs.rescore import rescore
from softeval.scoring.judge import scorer

TRAINING = {"method": "soft", "dataset": "gsm8k", "base": "b"}
DAMAGES = {
    "training.train_seed": ({"training": TRAINING | {"train_seed": "NaN"}}, "'NaN'"),
    "training.train_seed ": ({"training": TRAINING | {"train_seed": "zero"}}, "'zero'"),
    "training.base": ({"training": TRAINING | {"base": ["a"]}}, r"\['a'\]"),
    "datasets": ({"datasets": 5}, "5"),
    "datasets.0.rows": ({"datasets": [{"name": "a", "rows": "many"}]}, "'many'"),
    "modes": ({"modes": "x"}, "'x'"),
    "modes.0.name": ({"modes": [{"name": 3}]}, "3"),
    "config.num_samples": ({"config": {"num_samples": "lots"}}, "'lots'"),
    "config": ({"config": [1]}, r"\[1\]"),
    "model.path": ({"model": {"path": 7}}, "7"),
    "counts.missing": ({"counts": {"missing": "?"}}, r"'\?'"),
    "versions": ({"versions": "0.1"}, "'0.1'"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return write_checkpoint(folder, questions=2, samples=2, positions=4, modes=("hard_sample",))


@pytest.fixture
def damaged(run):
    """Writes the run's record with some fields replaced, and puts the old one back."""
    path = run / rundir.RUN_FILE
    whole = path.read_text()

    def write(changes) -> Path:
        rundir.write_record(run, json.loads(whole) | changes)
        return run

    yield write
    path.write_text(whole)


@pytest.mark.parametrize("field", DAMAGES)
def test_a_damaged_record_is_one_line_for_every_reader(damaged, field):
    changes, shown = DAMAGES[field]
    folder = damaged(changes)
    line = rf"run\.json is damaged: {field.strip()} is {shown} \([^\n]*\); restore[^\n]*\Z"
    readers = (
        lambda: build_report([folder]),
        lambda: compare_runs([folder], [folder]),
        lambda: rescore(folder, scorer()),
        lambda: load_run(folder),
    )
    for reader in readers:
        with pytest.raises(UserError, match=line):
            reader()


def test_what_is_not_recorded_is_no_damage(damaged):
    changes = dict.fromkeys(("training", "counts", "config", "hardware", "scorer"))
    assert load_run(damaged(changes)).info["config"] is None


@pytest.mark.parametrize("text", ['{"results": {"arith', ""])
def test_a_cut_results_file_is_named_before_anything_is_judged_again(run, text):
    path = run / rundir.RESULTS_FILE
    path.write_text(text)
    before = (run / "samples.parquet").read_bytes()
    try:
        with pytest.raises(UserError, match=r"results\.json cannot be read"):
            rescore(run, scorer())
    finally:
        path.unlink()
    assert (run / "samples.parquet").read_bytes() == before


def test_a_hostile_training_record_is_refused_before_the_run_begins(tmp_path):
    file = tmp_path / "softeval_training.json"
    file.write_text(json.dumps({"method": "soft", "train_seed": "NaN"}))
    with pytest.raises(UserError, match=r"softeval_training\.json is damaged: train_seed is 'NaN'"):
        read_training(str(tmp_path))
    file.write_text(json.dumps({"method": "soft", "train_seed": 3, "anything": ["else"]}))
    assert read_training(str(tmp_path))["train_seed"] == 3
