"""The run directory: atomic files, identities, and tables that are the same for the same rows."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from synthetic import make_generation, write_run

from softeval.errors import UserError
from softeval.modes import ALL, get_mode, mode_order, mode_record
from softeval.records import (
    SCHEMA_VERSION,
    SampleKey,
    mixture_rows_schema,
    position_rows_schema,
)
from softeval.reports.measured.arms import measure
from softeval.runs import rundir
from softeval.runs.run import load_run
from softeval.runs.tables import SCHEMAS, TableWriter, likelihood_row, read_table
from softeval.scoring.judge import Verdict


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", tasks=("t", "s"), likelihood_tasks=("arc",), questions=4)
    second = write_run(tmp_path / "b", tasks=("t", "s"), likelihood_tasks=("arc",), questions=4)
    for name in SCHEMAS:
        file = f"{name}.parquet"
        assert (first / file).read_bytes() == (second / file).read_bytes()


def test_tables_keep_their_schemas_and_order(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", tasks=("t", "s"), likelihood_tasks=("arc",), questions=3)
    for name, schema in SCHEMAS.items():
        assert pq.read_schema(run / f"{name}.parquet").equals(schema())
    assert read_table(run, "positions").schema.equals(position_rows_schema())
    assert read_table(run, "mixtures").schema.equals(mixture_rows_schema())
    samples = read_table(run, "samples").to_pandas()
    keys = samples[["task", "mode", "doc_id", "sample"]].apply(tuple, axis=1).tolist()
    assert keys == sorted(keys) and len(keys) == len(set(keys))


def test_modes_have_one_order_in_frames_scores_and_reports(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", modes=ALL[::-1], questions=2, samples=2, positions=3)
    run = load_run(folder)
    assert list(run.modes) == list(ALL)
    assert [m.name for m in sorted(map(run.mode, ["zz", *ALL]), key=mode_order)] == [*ALL, "zz"]
    samples = run.samples()
    assert list(dict.fromkeys(samples["mode"])) == list(dict.fromkeys(run.scores()["mode"]))
    assert list(dict.fromkeys(samples["mode"])) == list(measure([(None, folder)]).modes) == [*ALL]
    for frame in (samples, run.positions(["mode"])):
        assert list(frame.sort_values("mode", ascending=False)["mode"].unique()) == [*ALL][::-1]
    pd.testing.assert_series_equal(run.samples(["doc_id"])["doc_id"], samples["doc_id"])


def test_positions_are_those_of_the_samples(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", questions=3, samples=4, positions=5))
    positions, samples = run.positions(), run.samples()
    per_sample = positions.groupby(["task", "mode", "doc_id", "sample"], observed=True).size()
    wanted = samples.set_index(["task", "mode", "doc_id", "sample"])["n_cot_tokens"]
    assert (per_sample == wanted.loc[per_sample.index]).all()
    assert len(per_sample) == len(samples)
    one = positions[(positions["mode"] == "soft_sample") & (positions["doc_id"] == 1)]
    one = one[one["sample"] == 2]
    text = run.tokens().set_index("token_id")["text"]
    row = samples[(samples["mode"] == "soft_sample") & (samples["doc_id"] == 1)]
    assert "".join(text[one["shadow_id"]]) == row[row["sample"] == 2]["cot_text"].item()
    assert one["position"].tolist() == list(range(len(one)))


def test_mixtures_are_of_first_samples_and_ranked(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", questions=2, samples=4, top=3))
    mixtures = run.mixtures()
    assert set(mixtures["sample"]) == {0}
    assert mixtures["rank"].tolist() == [0, 1, 2] * (len(mixtures) // 3)
    positions = run.positions()
    assert len(mixtures) == 3 * (positions["sample"] == 0).sum()


def test_a_text_that_utf8_cannot_hold_is_kept_with_a_mark(tmp_path: Path) -> None:
    generation = make_generation(SampleKey("t", 0, 0))
    with TableWriter(tmp_path, str) as writer:
        writer.add(generation, "0" * 16, "a\ud800b😀\x00", Verdict(False, "ok"))
    assert read_table(tmp_path, "samples")["target"].to_pylist() == ["a\ufffdb😀\x00"]


def test_a_failed_compaction_leaves_the_earlier_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "r", questions=2, samples=2)
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        write_run(tmp_path / "r", questions=3, samples=2)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_missing_table_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"samples\.parquet is missing; finish the run"):
        read_table(tmp_path, "samples")


def test_likelihood_rows(tmp_path: Path) -> None:
    with TableWriter(tmp_path, str) as writer:
        right, wrong = ("arc", 0, 2, 2, 6.0, 4), ("arc", 1, 0, 3, 1.0, 1)
        writer.write("likelihoods", [likelihood_row(*right), likelihood_row(*wrong)])
    rows = read_table(tmp_path, "likelihoods").to_pylist()
    assert [r["correct"] for r in rows] == [True, False]
    assert [r["nll_per_token"] for r in rows] == [1.5, 1.0]


def test_records_are_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rundir.write_record(tmp_path, {"status": "running"})

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        rundir.write_record(tmp_path, {"status": "complete"})
    assert rundir.read_record(tmp_path)["status"] == "running"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run directory"),
        ("{", "cannot be read"),
        ("[]", "was not written by softeval"),
        (json.dumps({"schema_version": SCHEMA_VERSION + 1}), "upgrade softeval"),
    ],
)
def test_what_is_no_run_is_said(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_run(tmp_path)


def test_load_run_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        load_run(tmp_path / "absent")


def test_identity_names_every_differing_field(tmp_path: Path) -> None:
    there = {"seed": 0, "modes": {"soft_sample": {"temperature": 0.5}}, "same": [1, 2]}
    now = {"seed": 1, "modes": {"soft_sample": {"temperature": 0.7}}, "same": (1, 2)}
    with pytest.raises(UserError) as caught:
        rundir.check_identity(tmp_path, now, {"identity": there})
    message = str(caught.value)
    assert "seed: 0 there, 1 now" in message
    assert "modes.soft_sample.temperature: 0.5 there, 0.7 now" in message
    assert "same" not in message and "\n" not in message
    assert "--output-path" in message and "--overwrite" in message
    rundir.check_identity(tmp_path, there, {"identity": there})


def test_a_run_from_before_hard_sampling_had_filters_goes_on_without_them(tmp_path: Path) -> None:
    old = {"name": "hard_sample", "family": "hard", "temperature": 1.0}
    new = mode_record(get_mode("hard_sample"))
    entry = {k: v for k, v in new.items() if k not in ("top_k", "top_p", "min_p")}
    assert entry.items() >= old.items()
    there = {"identity": {"modes": {"hard_sample": entry}}}
    rundir.check_identity(tmp_path, {"modes": {"hard_sample": new}}, there)
    filtered = mode_record(get_mode("hard_sample", top_k=5))
    with pytest.raises(UserError, match="top_k"):
        rundir.check_identity(tmp_path, {"modes": {"hard_sample": filtered}}, there)


def test_identity_names_other_modes_and_tasks_by_their_names(tmp_path: Path) -> None:
    greedy, soft = {"temperature": 0}, {"temperature": 0.5}
    there = {"modes": {"hard_greedy": greedy, "soft_sample": soft}, "tasks": {"a": "1", "b": "2"}}
    now = {"modes": {"hard_greedy": greedy}, "tasks": {"a": "3", "c": "4"}}
    with pytest.raises(UserError) as caught:
        rundir.check_identity(tmp_path, now, {"identity": there})
    message = str(caught.value)
    assert "modes: hard_greedy, soft_sample there, hard_greedy now" in message
    assert "tasks: a, b there, a, c now" in message and "tasks.a: 1 there, 3 now" in message
    assert "tasks.b" not in message and "{" not in message and "null" not in message
    assert len(there["modes"]) == 2, "the record itself stays as it was"


def test_prepare_refuses_what_it_would_harm(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError, match="is a file"):
        rundir.prepare(file)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("x")
    with pytest.raises(UserError, match="not empty and not a run"):
        rundir.prepare(foreign)
    assert (foreign / "chapter.txt").exists()


def test_prepare_writes_a_probe_and_takes_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rundir.prepare(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write to .* \(No space left on device\)"):
        rundir.prepare(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_prepare_refuses_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write to"):
        rundir.prepare(tmp_path / "new")


def test_clear_takes_the_run_and_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", questions=2, samples=2)
    (run / "report.html").write_text("kept")
    (run / rundir.SHARDS).mkdir()
    rundir.clear(run)
    assert sorted(path.name for path in run.iterdir()) == ["report.html"]


def test_runs_are_found_newest_first(tmp_path: Path) -> None:
    for index, name in enumerate(("old", "new")):
        run = write_run(tmp_path / name, questions=1, samples=1, modes=("hard_greedy",))
        os.utime(run / "run.json", (index, index))
    (tmp_path / "other").mkdir()
    assert [path.name for path in rundir.find_runs(tmp_path)] == ["new", "old"]


def test_scores_agree_with_counting(tmp_path: Path) -> None:
    run = load_run(
        write_run(tmp_path / "r", questions=30, samples=8, likelihood_tasks=("arc",), positions=3)
    )
    scores = run.scores().set_index(["task", "mode", "metric", "k"])
    samples = run.samples()
    soft = samples[samples["mode"] == "soft_sample"]
    assert scores.loc["arithmetic", "soft_sample", "pass@k", 1]["value"] == pytest.approx(
        soft["correct"].mean()
    )
    any_right = soft.groupby("doc_id")["correct"].any().mean()
    row = scores.loc["arithmetic", "soft_sample", "pass@k", 8]
    assert row["value"] == pytest.approx(any_right)
    assert row["low"] < row["value"] < row["high"] and row["n"] == 8 and row["questions"] == 30
    greedy = samples[samples["mode"] == "hard_greedy"]
    assert scores.loc["arithmetic", "hard_greedy", "greedy pass@1", 1]["value"] == pytest.approx(
        greedy["correct"].mean()
    )
    likelihoods = run.likelihoods()
    assert scores.loc["arc", "", "nll_per_token", 1]["value"] == pytest.approx(
        likelihoods["nll_per_token"].mean()
    )
    assert set(run.scores(ks=[3])["k"]) == {1, 3}
    assert np.isfinite(run.scores()["value"]).all()
    assert "soft_sample" in run._repr_html_() and "<table" in run._repr_html_()
