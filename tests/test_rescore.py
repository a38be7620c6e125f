"""Judging stored samples again: what changes, what stays, and what survives a stop."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import write_checkpoint

from softeval.errors import UserError
from softeval.runs import rundir
from softeval.runs.rescore import rescore
from softeval.runs.run import load_run
from softeval.scoring.grading import RULES
from softeval.scoring.judge import Rules, Verdict, rules_of, scorer


class FixedScorer:
    """Accepts what it is told to accept."""

    timeout, memory_mb, rules = 7.5, 100, Rules.SOFTEVAL

    def __init__(self, accept):
        self.accept = accept

    def score_many(self, items, *, both=False):
        return [
            Verdict(False, "no_answer")
            if answer is None
            else Verdict(self.accept(answer, target), "ok")
            for answer, target, *_ in items
        ]


@pytest.fixture
def run(tmp_path):
    return write_checkpoint(tmp_path / "run", questions=6, samples=4, positions=8)


def _judged(run, name="samples.parquet"):
    return pq.read_table(
        run / name, columns=["task", "doc_id", "mode", "sample", "correct", "verdict"]
    )


def test_the_same_scorer_leaves_every_verdict_and_byte(run):
    rescore(run, scorer())  # the synthetic run has time-outs that are none
    before = (run / "samples.parquet").read_bytes()
    found = rescore(run, scorer())
    assert (found.gained, found.lost, found.statuses, found.kept) == (0, 0, 0, None)
    assert (run / "samples.parquet").read_bytes() == before


def test_a_changed_scorer_changes_verdicts_and_keeps_the_old_ones(run):
    before = _judged(run)
    found = rescore(run, FixedScorer(lambda answer, target: True))
    after = _judged(run)
    had_answer = np.array(before["verdict"].to_pylist()) != "no_answer"
    np.testing.assert_array_equal(after["correct"].to_numpy(), had_answer)
    assert found.gained == (had_answer & ~before["correct"].to_numpy()).sum() > 0
    assert found.lost == 0
    assert _judged(run, found.kept).equals(before)
    record = rundir.read_record(run)
    assert record["scorings"] == [{"scorer": {"math-verify": "0.9.0"}, "verdicts": found.kept}]
    assert record["counts"]["verdicts"]["ok"] == had_answer.sum()


def test_a_second_change_keeps_both_earlier_verdicts(run):
    first = rescore(run, FixedScorer(lambda answer, target: True))
    middle = _judged(run)
    second = rescore(run, FixedScorer(lambda answer, target: False))
    assert (first.kept, second.kept) == ("verdicts-1.parquet", "verdicts-2.parquet")
    assert _judged(run, second.kept).equals(middle)
    assert len(rundir.read_record(run)["scorings"]) == 2


def test_all_but_the_verdicts_stays(run):
    before = pq.read_table(run / "samples.parquet").drop_columns(["correct", "verdict"])
    rescore(run, FixedScorer(lambda answer, target: answer != target))
    after = pq.read_table(run / "samples.parquet").drop_columns(["correct", "verdict"])
    assert after.equals(before)


def test_a_stop_after_the_table_was_replaced_loses_no_old_verdict(run, monkeypatch):
    before = _judged(run)
    write = rundir.write_record
    monkeypatch.setattr(rundir, "write_record", _stop)
    with pytest.raises(KeyboardInterrupt):
        rescore(run, FixedScorer(lambda answer, target: True))
    monkeypatch.setattr(rundir, "write_record", write)
    found = rescore(run, FixedScorer(lambda answer, target: True))
    assert found.kept == "verdicts-1.parquet"
    assert _judged(run, found.kept).equals(before)


def _stop(*_):
    raise KeyboardInterrupt


def test_results_follow_the_verdicts(run):
    entry = {"name": "arithmetic", "pass@1,none": 0.5, "pass@1_stderr,none": 0.1,
             "pass@4,none": 0.5, "no_answer,none": 0.0, "truncated,none": 0.25}  # fmt: skip
    results = {"results": {"a": entry}, "modes": {"a": {"mode": "hard_sample"}}}
    (run / "results.json").write_text(json.dumps(results))
    rescore(run, FixedScorer(lambda answer, target: True))
    new = json.loads((run / "results.json").read_text())["results"]["a"]
    rows = pq.read_table(
        run / "samples.parquet", filters=[("mode", "=", "hard_sample")]
    ).to_pandas()
    by_question = rows.groupby("doc_id")["correct"].mean()
    assert new["pass@1,none"] == pytest.approx(by_question.mean())
    assert new["pass@1_stderr,none"] == pytest.approx(by_question.std() / len(by_question) ** 0.5)
    assert new["pass@4,none"] == pytest.approx((by_question > 0).mean())
    assert new["no_answer,none"] == pytest.approx((rows["verdict"] == "no_answer").mean())
    assert new["truncated,none"] == 0.25


def test_the_record_names_the_limits_that_were_used(run):
    rescore(run, FixedScorer(lambda answer, target: True))
    assert rundir.read_record(run)["scorer"]["cpu_seconds"] == 7.5


def test_rules_of_a_later_version_are_named_with_the_remedy_that_works(run):
    record = rundir.read_record(run)
    rundir.write_record(run, record | {"scorer": {"rules": "oracle 3"}})
    with pytest.raises(
        UserError, match=r"judged by oracle, .*`softeval score RUN --scorer softeval`"
    ):
        rules_of(rundir.read_record(run))
    assert len(load_run(run).scores())  # what it says is read all the same
    assert rescore(run, FixedScorer(lambda answer, target: True)).kept == "verdicts-1.parquet"
    assert rules_of(rundir.read_record(run)) is Rules.SOFTEVAL


@pytest.mark.parametrize("damage", ["cut", "inside"])
def test_a_damaged_table_is_named_and_left_alone(run, damage):
    path = run / "samples.parquet"
    whole = path.read_bytes()
    broken = whole[:-9] if damage == "cut" else whole[:8] + b"\xff" * 4000 + whole[4008:]
    path.write_bytes(broken)
    with pytest.raises(UserError, match=r"samples\.parquet is damaged"):
        rescore(run, FixedScorer(lambda answer, target: True))
    assert path.read_bytes() == broken and not list(run.glob(".*.partial"))


def test_a_run_that_will_be_continued_is_refused(run):
    (run / rundir.SHARDS).mkdir()
    with pytest.raises(UserError, match="not finished"):
        rescore(run, FixedScorer(lambda answer, target: True))


def test_a_run_without_samples_is_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    rundir.write_record(folder, {"status": "running"})
    with pytest.raises(UserError, match="starting it again"):
        rescore(folder, FixedScorer(bool))


def test_the_result_is_plain_data(run):
    assert set(asdict(rescore(run, FixedScorer(lambda a, t: a == t)))) >= {
        "samples",
        "gained",
        "lost",
    }


def _with_answers(run, answers, target, errors=None):
    """Put other answers, one label and perhaps an allowed error into a run."""
    path = run / "samples.parquet"
    table = pq.read_table(path)
    rows = table.num_rows
    columns = {
        "answer": [answers[n % len(answers)] for n in range(rows)],
        "target": [target] * rows,
    }
    if errors is not None:
        columns["target_error"] = [errors] * rows
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(
            at, table.schema.field(at), pa.array(values, table.schema.field(at).type)
        )
    pq.write_table(table, path)


def test_an_old_run_is_judged_by_both_rules(run):
    _with_answers(run, [r"n \text{ is odd}", r"n\text{ is even}"], r"n\text{ is even}")
    path = run / "samples.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["other_correct", "target_error"]), path)
    rescore(run, scorer())
    table = pq.read_table(path)
    assert table["correct"].to_pylist()[:2] == [False, True]
    assert table["other_correct"].to_pylist()[:2] == [True, True]
    assert rundir.read_record(run)["scorer"]["rules"] == f"softeval {RULES}"


def test_the_allowed_error_of_a_label_is_kept(run):
    _with_answers(run, ["4.25", "4.35"], "4.2", errors=0.1)
    rescore(run, scorer())
    table = pq.read_table(run / "samples.parquet")
    assert table["correct"].to_pylist()[:2] == [True, False]
    assert set(table["target_error"].to_pylist()) == {0.1}
