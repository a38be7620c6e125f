"""Both verdicts of every sample in a report, and runs that different rules have judged."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import write_checkpoint

from softeval import load_run
from softeval.reports.compare import compare_runs
from softeval.reports.contrasts import find_comparisons
from softeval.reports.measured.arms import measure
from softeval.reports.notes import rules_notes
from softeval.reports.page import build_report
from softeval.reports.sections.validity import other_rules_text
from softeval.runs import rundir
from softeval.statistics.equivalence import MARGIN

OPTIONS = {"questions": 30, "samples": 8, "positions": 4, "modes": ("hard_sample",)}


def _say(folder, *, other=None, rules=None):
    """Write what the other rules say of every sample, and the name of the run's own."""
    if other is not None:
        path = folder / "samples.parquet"
        table = pq.read_table(path)
        at = table.schema.get_field_index("other_correct")
        values = pa.array(other(table["correct"].to_pylist()), pa.bool_())
        pq.write_table(table.set_column(at, "other_correct", values), path)
    if rules is not None:
        record = json.loads((folder / "run.json").read_text())
        rundir.write_record(folder, record | {"scorer": {"rules": rules}})


def _opposite(verdicts):
    return [not verdict for verdict in verdicts]


def _told(folders):
    """What the report says of the other rules and of different rules."""
    arms = measure([(None, folder) for folder in folders], positions=False)
    text = other_rules_text(arms, find_comparisons(arms), (), MARGIN)
    return " ".join([text, *rules_notes(arms)])


@pytest.fixture
def pair(tmp_path):
    return [write_checkpoint(tmp_path / name, name, **OPTIONS) for name in ("base", "soft")]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_equal_verdicts_are_said_to_be_equal(pair):
    for folder in pair:
        _say(folder, other=lambda verdicts: verdicts, rules="softeval 1")
    text = build_report(pair)
    assert "By math-verify, the other rules, all 480 verdicts are the same." in text


def test_differing_verdicts_are_counted_and_the_words_that_change_are_named(pair):
    _say(pair[0], other=lambda verdicts: verdicts, rules="softeval 1")
    _say(pair[1], other=_opposite, rules="softeval 1")
    text = _told(pair)
    correct = pq.read_table(pair[1] / "samples.parquet")["correct"].to_pylist()
    assert f"240 of 480 verdicts differ ({sum(correct)} right only as scored here" in text
    told = text.partition("verdicts differ")[2].partition(".")[0]
    word = compare_runs([pair[1]], [pair[0]])[0].verdict.word
    if "no comparison changes" not in told:
        assert f"pass@8: {word}, by math-verify" in told.replace("hard sample ", "")


def test_older_runs_say_nothing_of_other_rules(pair):
    assert "the other rules" not in _told(pair)


def test_runs_judged_by_different_rules_are_told_apart(pair):
    _say(pair[0], rules="softeval 1")
    text = _told(pair)
    told = "base by softeval 1, soft by math-verify"
    assert told in text and "softeval score RUN" in text
    warning = load_run(pair[0]).compare(load_run(pair[1]))["warning"].iloc[0]
    assert told in warning
    _say(pair[1], rules="softeval 1")
    assert "same rules" not in _told(pair)
    assert load_run(pair[0]).compare(load_run(pair[1]))["warning"].iloc[0] == ""
