"""`softeval attribute` on a real little run, and what the report makes of its table."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Ended
from report_runs import write_checkpoint
from scipy.stats import norm, t

from softeval.errors import UserError
from softeval.records import CONTROLS, INTERVENTIONS, attribution_schema
from softeval.replays.attribute import attribute
from softeval.reports.layout import AMBER
from softeval.reports.material import Material, ReportOptions
from softeval.reports.measured.arms import measure
from softeval.reports.page import build_report
from softeval.reports.sections import SECTIONS
from softeval.reports.sections.attribution import find_attribution
from softeval.runs import rundir
from softeval.runs.evaluation import evaluate
from softeval.runs.run import load_run
from softeval.scoring.judge import score

pytest_plugins = ("command_line_fixtures",)

MODES = ["hard_sample", "soft_sample", "soft_thinking"]
KEY = ["doc_id", "mode", "sample"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the bundled checkpoint, attributed whole."""
    folder = tmp_path_factory.mktemp("attribution") / "run"
    options = {"num_samples": 2, "limit": 3, "max_cot_tokens": 24, "device": "cpu"}
    evaluate(tasks=["arithmetic"], modes=MODES, output_path=str(folder), **options)
    attribute(folder, samples=2, device="cpu")
    return load_run(folder)


@pytest.mark.slow
def test_unchanged_cots_give_the_recorded_answers(run):
    rows = run.attribution()
    samples = run.samples().astype({"mode": str}).set_index(KEY).sort_index()
    same = rows.query("intervention == 'unchanged'").set_index(KEY).sort_index()
    pd.testing.assert_frame_equal(
        same[["answer_text", "answer", "correct"]], samples[["answer_text", "answer", "correct"]]
    )
    assert not same["changed"].any()
    block = rundir.read_record(run.path)["attribution"]
    counted = samples.groupby("mode").size().to_dict()
    assert {mode: entry["replayed"] for mode, entry in block.items()} == counted
    assert {entry["differing"] for entry in block.values()} == {0}


@pytest.mark.slow
def test_every_change_is_there_where_it_is_defined_and_judged_like_a_sample(run):
    rows = run.attribution()
    found = rows.groupby("mode")["intervention"].agg(set).to_dict()
    changes, (matched, stop) = set(INTERVENTIONS), CONTROLS
    assert found == {
        "soft_sample": changes | {matched},
        "soft_thinking": changes - {"noise_only"} | {matched, stop},
        "hard_sample": changes - {"noise_only"},
    }
    hard = rows.query("mode == 'hard_sample' and intervention == 'top1'")
    assert len(hard) == 6 and not hard["changed"].any()
    targets = run.samples().drop_duplicates("doc_id").set_index("doc_id")["target"]
    labels = [targets[doc_id] for doc_id in rows["doc_id"]]
    answers = [None if pd.isna(answer) else answer for answer in rows["answer"]]
    verdicts = score(answers, labels)
    assert rows["correct"].tolist() == [verdict.correct for verdict in verdicts]
    assert rows["changed"].mean() > 0.2


@pytest.mark.slow
def test_single_steps_are_told_of_unchanged_cots_as_many_as_asked_for(run, tmp_path):
    rows = run.attribution()
    same = rows["intervention"] == "unchanged"
    assert rows.loc[~same, ["steps", "agreeing", "step_kl"]].isna().all(axis=None)
    assert set(rows.loc[same, "steps"]) == {4}
    assert (rows[same]["agreeing"] <= 4).all() and (rows[same]["step_kl"] >= 0).all()
    hard = rows[same].query("mode == 'hard_sample'")
    assert (hard["agreeing"] == 4).all()
    assert (rows[same].query("mode == 'soft_thinking'")["step_kl"] == 0).all()
    assert rundir.read_record(run.path)["attribution"]["soft_sample"]["steps"] == 4
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    options = {"modes": ["hard_sample"], "limit": 1, "device": "cpu", "overwrite": True}
    attribute(folder, steps=2, **options)
    again = load_run(folder).attribution().query("mode == 'hard_sample'")
    assert again["steps"].dropna().tolist() == [2]


@pytest.mark.slow
def test_modes_and_limit_choose_and_fewer_never_replace_more_unasked(run, tmp_path):
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    before = (folder / "attribution.parquet").read_bytes()
    found = attribute(folder, modes=["hard_sample"], samples=2, device="cpu")
    assert list(found) == ["hard_sample"]
    assert (folder / "attribution.parquet").read_bytes() == before  # the same call, the same file
    with pytest.raises(UserError, match=r"holds \d+ answers that this call would drop; .*overwr"):
        attribute(folder, modes=["hard_sample"], samples=2, limit=2, device="cpu")
    assert (folder / "attribution.parquet").read_bytes() == before
    options = {"modes": ["hard_sample"], "limit": 2, "device": "cpu", "overwrite": True}
    assert attribute(folder, **options)["hard_sample"]["replayed"] == 2
    rows = load_run(folder).attribution()
    assert set(rows.query("mode == 'hard_sample'")["doc_id"]) == {0, 1}
    kept, whole = (table.query("mode != 'hard_sample'") for table in (rows, run.attribution()))
    pd.testing.assert_frame_equal(kept.reset_index(drop=True), whole.reset_index(drop=True))
    assert rundir.read_record(folder)["attribution"]["hard_sample"]["limit"] == 2
    table = folder / "attribution.parquet"
    older = pq.read_table(table).drop_columns(["steps", "agreeing", "step_kl"])
    pq.write_table(older, table)
    for said in (r"no column steps, .* older softeval .* --overwrite", r"damaged .* --overwrite"):
        with pytest.raises(UserError, match=said):
            attribute(folder, modes=["hard_sample"], device="cpu")
        table.write_bytes(table.read_bytes()[:-9])
    attribute(folder, **options)
    assert set(load_run(folder).attribution()["mode"]) == {"hard_sample"}


@pytest.mark.slow
def test_what_comes_out_otherwise_is_counted_and_measured_as_it_is_now(run, tmp_path):
    """As by `diagnose`: a near tie may fall the other way beside fewer rows, in half precision."""
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    table = pq.read_table(folder / "samples.parquet")
    rows = table.to_pylist()
    for row in rows[::2]:  # another CoT with another answer, and the other verdict
        row |= {"cot_text": "other", "answer_text": "-1}", "answer": "-1"}
        row["correct"] = not row["correct"]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "samples.parquet")
    others = sum(row["mode"] == "soft_sample" for row in rows[::2])
    found = attribute(folder, modes=["soft_sample"], samples=2, device="cpu")
    assert found["soft_sample"] == {"replayed": 6, "otherwise": others, "differing": 0} and others
    now, before = (r.attribution().query("mode == 'soft_sample'") for r in (load_run(folder), run))
    pd.testing.assert_frame_equal(now, before)
    assert rundir.read_record(folder)["attribution"]["soft_sample"]["otherwise"] == others


def test_mistakes_are_one_line(softeval, tmp_path):
    folder = write_checkpoint(tmp_path / "run", questions=2, samples=1, positions=4)
    for arguments, said in (
        (["--modes", "mine"], "--modes mine: "),
        (["--limit", "0"], "greater than or equal to 1"),
        (["--steps", "-1"], "greater than or equal to 0"),
        (["--model", str(tmp_path)], "config.json"),
    ):
        ended: Ended = softeval("attribute", str(folder), *arguments)
        assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1, ended.err
    with pytest.raises(UserError, match="count from 1"):
        attribute(folder, samples=0)
    with pytest.raises(UserError, match="0 tries none"):
        attribute(folder, steps=-1)
    with pytest.raises(UserError, match=r"`softeval attribute .*run` makes it"):
        load_run(folder).attribution()


# The report ----------------------------------------------------------------------------------


def write_attribution(folder: Path, after: np.ndarray, before: np.ndarray, mode: str) -> None:
    """attribution.parquet with one sample a question: right or wrong, unchanged and shuffled."""
    rows = [
        {"task": "arithmetic", "doc_id": doc, "mode": mode, "sample": 0, "intervention": name,
         "answer_text": "1}", "answer": "1", "changed": bool(right != before[doc]),
         "correct": bool(right)}
        for name, side in (("unchanged", before), ("shuffled", after))
        for doc, right in enumerate(side)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, attribution_schema()), folder / "attribution.parquet")


def test_the_paired_interval_is_one_by_hand(tmp_path):
    rng = np.random.default_rng(0)
    before, after = rng.random(60) < 0.7, rng.random(60) < 0.4
    folder = write_checkpoint(tmp_path / "run", questions=60, samples=2, positions=4)
    write_attribution(folder, after, before, "soft_sample")
    same, shuffled = find_attribution(measure([(None, folder)]))
    assert (same.change, shuffled.change) == ("unchanged", "shuffled")
    assert same.changed.mean == 0 and same.success.diff == 0
    d_M = after.astype(float) - before.astype(float)
    half = t.ppf(0.975, 59) * d_M.std(ddof=1) / np.sqrt(60)
    about_M = d_M - d_M.mean()
    skew = (about_M**3).mean() / (6 * 60 * (about_M**2).mean())  # the longer tail (Hall 1983)
    tail = (1 + 2 * norm.ppf(0.975) ** 2) * skew
    assert tail > 0
    found = shuffled.success
    assert (found.low, found.high) == pytest.approx((d_M.mean() - half, d_M.mean() + half + tail))
    assert shuffled.changed.mean == pytest.approx(np.mean(after != before))
    assert found.mean_a == pytest.approx(after.mean())


@pytest.mark.usefixtures("undrawn")
def test_steps_and_controls_are_told_with_what_the_rule_ended(tmp_path):
    """Two questions, by hand: 3 of 4 and 2 of 4 next tokens kept; the rule ended one CoT of two."""
    folder = write_checkpoint(tmp_path / "run", questions=2, samples=2, positions=4)
    one = {"task": "arithmetic", "mode": "soft_sample", "sample": 0, "answer_text": "1}",
           "answer": "1", "changed": False, "correct": True}  # fmt: skip
    kept = {"steps": 4, "step_kl": 0.5, "stop_reason": "length"}
    rows = [
        one | kept | {"doc_id": 0, "intervention": "unchanged", "agreeing": 3},
        one | kept | {"doc_id": 1, "intervention": "unchanged", "agreeing": 2},
        one | {"doc_id": 0, "intervention": "stop_rule", "stop_reason": "mode", "correct": False},
        one | {"doc_id": 1, "intervention": "stop_rule", "stop_reason": "length"},
    ]
    pq.write_table(pa.Table.from_pylist(rows, attribution_schema()), folder / "attribution.parquet")
    found = {e.change: e for e in find_attribution(measure([(None, folder)]))}
    assert found["next_token"].changed.mean == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert found["next_token"].success is None
    assert (found["stop_rule"].stopped, found["unchanged"].stopped) == (0.5, 0)
    assert found["stop_rule"].success.diff == pytest.approx(-0.5)
    page = build_report([folder])
    side = page[page.index('id="families"') :]
    row = side[side.index("soft sample") : side.index("</tr>", side.index("soft sample"))]
    assert "62.5" in row and ">0.50<" in row and "rule ended 50.0 %" in page


def said_of(folder: Path, entry: dict) -> list[str]:
    """What the section says in amber of a run with this entry in its record."""
    record = rundir.read_record(folder)
    whole = {"scorer": record.get("scorer"), "replayed": 2, "differing": 0} | entry
    rundir.write_record(folder, record | {"attribution": {"soft_sample": whole}})
    (section,) = [s for s in SECTIONS if s.anchor == "attribution"]
    parts = section.parts(Material(measure([(None, folder)]), (), ReportOptions()))
    return [str(p.text) for p in parts if p.kind == "paragraph" and p.look == AMBER]


@pytest.mark.usefixtures("undrawn")
def test_verdicts_of_another_scorer_and_cots_that_came_out_otherwise_are_told(tmp_path):
    folder = write_checkpoint(tmp_path / "run", questions=2, samples=2, positions=4)
    write_attribution(folder, np.zeros(2), np.ones(2), "soft_sample")
    assert said_of(folder, {}) == []
    (stale,) = said_of(folder, {"scorer": {"rules": "others"}})
    assert stale.startswith("Judged by other rules than the samples: run.")
    (otherwise,) = said_of(folder, {"differing": 2})
    assert otherwise.startswith("Not replayed bit for bit: run, 2.")
    (otherwise,) = said_of(folder, {"otherwise": 1})
    assert otherwise.endswith("otherwise than recorded, measured as they are now: run, 1.")


def test_effective_tokens_are_those_of_the_positions(tmp_path):
    folder = write_checkpoint(tmp_path / "run", questions=3, samples=2, positions=9)
    (arm,) = measure([(None, folder)]).arms
    rows = load_run(folder).positions().query("mode == 'soft_sample'")
    sums = arm.checkpoints[0].positions["arithmetic", "soft_sample"]
    assert sums.tokens == len(rows)
    assert sums.effective_sum == pytest.approx(np.exp(rows["mode_entropy"].astype(float)).sum())
    assert sums.sure == (rows["top1_prob"] >= 0.99).sum() < len(rows)


@pytest.mark.slow
def test_the_page_shows_it_or_says_how_to_get_it(tmp_path, drawing_only):
    drawing_only("attribution")
    modes = ("hard_greedy", "soft_sample")
    folder = write_checkpoint(tmp_path / "run", questions=8, samples=2, positions=4, modes=modes)
    assert "<code>softeval attribute RUN</code>" in build_report([folder])
    write_attribution(folder, np.zeros(8), np.ones(8), "soft_sample")
    page = build_report([folder])
    assert "<code>softeval attribute RUN</code>" not in page
    assert "What answers on arithmetic rest on" in page and "100.0 % of answers of " in page
