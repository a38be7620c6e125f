"""A finished run shown to trackers and on the hub; refused before any work where that cannot be."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_line import SMALL, Ended
from conftest import ROOT
from hub_fixtures import FakeHub

from softeval.runs.run import Run, load_run

pytest_plugins = ("command_line_fixtures", "hub_fixtures")

FINISHED = ("--limit", "3", "-n", "4", "--max-cot-tokens", "60", "--device", "cpu", "--quiet")


@pytest.fixture
def again(softeval: Callable[..., Ended], finished: Run, tmp_path: Path) -> Callable[..., Ended]:
    """The command of the finished run, with more words."""
    copy = tmp_path / "mine"
    shutil.copytree(finished.path, copy)
    return lambda *words: softeval("run", *FINISHED, "-o", copy, *words)


def test_trackers_are_shown_scores_and_samples(again: Callable[..., Ended], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ended = again("--report-to", "tensorboard")
    assert ended.code == 0, ended.err
    run = load_run(tmp_path / "mine")
    [events] = (run.path / "softeval").glob("events.out.tfevents.*")
    found = EventAccumulator(str(events.parent))
    found.Reload()
    scores = run.scores()
    row = scores[(scores["mode"] == "soft_sample") & (scores["k"] == 4)].iloc[0]
    [logged] = found.Scalars("arithmetic/soft_sample/pass@4")
    assert logged.value == pytest.approx(row["value"])
    assert len(found.Tags()["scalars"]) == len(scores)
    [tag] = [tag for tag in found.Tags()["tensors"] if "samples" in tag]
    text = found.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[0] == "| task | mode | doc_id | cot_text | answer | target | correct |"
    assert len(text.splitlines()) == 2 + 3 * 6  # the first sample of each question and mode


def test_the_hub_gets_the_run_with_its_card(
    again: Callable[..., Ended], hub: FakeHub, tmp_path: Path
) -> None:
    told = hub()
    ended = again("--push-to-hub", "me/it")
    assert ended.code == 0, ended.err
    assert told[0] == (
        "create", "me/it", {"repo_type": "dataset", "private": True, "exist_ok": True}
    )  # fmt: skip
    what, options = told[1]
    folder = Path(options["folder_path"])
    assert what == "upload" and options["repo_type"] == "dataset" and folder == tmp_path / "mine"
    card = (folder / "README.md").read_text()
    tables = yaml.safe_load(card.split("---")[1])["configs"]
    assert {table["data_files"] for table in tables} == {p.name for p in folder.glob("*.parquet")}
    assert "arithmetic/hard_greedy/pass@1" in card
    assert again().code == 0  # it is still the same run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--report-to", "nothing"), "--report-to nothing: none of"),
        (("--report-to", "clearml"), "not installed; pip install clearml"),
        (("--push-to-hub", "me/it"), "--push-to-hub me/it: 401 Unauthorized"),
        (("--report-to", "tensorboard", "--shard", "1/2"), "show whole runs: merge the shards"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_any_work(
    softeval: Callable[..., Ended],
    hub: FakeHub,
    words: tuple[str, ...],
    said: str,
) -> None:
    hub(refuses="create")
    ended = softeval("run", *SMALL, "-o", "run", *words)
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") <= 2
    if words[0] == "--report-to":
        assert said in softeval("run", *SMALL, "-o", "run", *words, "--dry-run").err
    assert not Path("run").exists()


def test_a_run_becomes_logs_of_inspect(finished: Run, tmp_path: Path) -> None:
    """In the form that inspect_ai 0.3.285 reads, as was tried with it."""
    runpy.run_path(str(ROOT / "docs" / "inspect_log.py"))["main"](finished, tmp_path)
    samples = finished.samples()
    logs = [json.loads(path.read_text()) for path in tmp_path.glob("*_arithmetic-*_run.json")]
    assert {log["eval"]["task"] for log in logs} == {f"arithmetic@{m}" for m in finished.modes}
    for log in logs:
        cell = samples[samples["mode"] == log["eval"]["task"].partition("@")[2]]
        assert log["eval"]["config"]["epochs"] == cell["sample"].nunique()
        assert [s["epoch"] for s in log["samples"]] == (cell["sample"] + 1).tolist()
        right = [s["scores"]["correct"]["value"] == "C" for s in log["samples"]]
        assert right == cell["correct"].tolist()
        [choice] = log["samples"][0]["output"]["choices"]
        assert choice["message"]["content"].startswith(cell.iloc[0]["cot_text"])
        assert (
            choice["stop_reason"] == ("stop", "max_tokens")[cell.iloc[0]["stop_reason"] == "length"]
        )


def test_none_is_no_tracker(softeval: Callable[..., Ended]) -> None:
    assert "report_to: []" in softeval("run", "--report-to", "none", "--dry-run").out
