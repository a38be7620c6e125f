"""From run directories to counts and sums: against pandas on the same files."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import keep_documents, write_checkpoint, write_family, write_kl

from softeval.errors import UserError
from softeval.reports.measured.arms import measure
from softeval.reports.measured.cells import read_cells
from softeval.reports.measured.kl import read_kl
from softeval.reports.measured.positions import LengthGroups, read_chunks, read_positions
from softeval.reports.notes import notes
from softeval.reports.sections.validity import find_validity
from softeval.runs import rundir
from softeval.runs.run import load_run
from softeval.statistics.profiles import position_profile

GROUPS = {"arithmetic": LengthGroups((20, 30), 25)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(
        tmp_path_factory.mktemp("runs") / "base", questions=7, samples=5, positions=24, kl=True
    )


@pytest.fixture(scope="module")
def cells(folder):
    return read_cells(load_run(folder))


@pytest.fixture(scope="module")
def rows(folder) -> pd.DataFrame:
    return load_run(folder).positions().astype({"task": str, "mode": str})


def test_counts_are_those_of_the_samples(folder, cells):
    samples = pq.read_table(folder / "samples.parquet").to_pandas()
    for (task, mode), cell in cells.items():
        mine = samples[(samples["task"] == task) & (samples["mode"] == mode)]
        counted = mine.groupby("doc_id")["correct"].agg(["size", "sum"])
        np.testing.assert_array_equal(cell.n_M, counted["size"])
        np.testing.assert_array_equal(cell.c_M, counted["sum"])
        assert cell.no_answer_R.mean() == (mine["verdict"] == "no_answer").mean()
        assert cell.truncated_R.mean() == (mine["stop_reason"] == "length").mean()
        texts = mine["cot_text"] + mine["answer_text"]
        distinct = pd.DataFrame({"d": mine["doc_id"], "t": texts}).drop_duplicates()
        assert cell.duplicates() == pytest.approx(1 - len(distinct) / len(mine))


def test_sums_by_problem_and_position(folder, cells, rows):
    sums = read_positions(load_run(folder), cells, GROUPS)
    for key, found in sums.items():
        mine = rows[(rows["task"] == key[0]) & (rows["mode"] == key[1])]
        sum_MT, count_MT = _grouped(mine, found.doc_M, found.longest)
        laid_out = found.view("all", found.doc_M, found.longest)
        np.testing.assert_allclose(laid_out.sum_PT, sum_MT, atol=1e-9)
        np.testing.assert_array_equal(laid_out.count_PT, count_MT)
        assert found.tokens == len(mine)
        assert found.token_weighted == pytest.approx(mine["entropy"].mean())
        assert found.mode_entropy == pytest.approx(mine["mode_entropy"].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("view", "low", "high"),
    [("cohort", 25, 10**6), ("short", 0, 20), ("middle", 20, 30), ("long", 30, 10**6)],
)
def test_length_views_hold_the_samples_of_those_lengths(folder, cells, rows, view, low, high):
    key = ("arithmetic", "hard_sample")
    found = read_positions(load_run(folder), cells, GROUPS)[key]
    mine = rows[rows["mode"] == key[1]]
    length = mine.groupby(["doc_id", "sample"])["position"].transform("size")
    kept = mine[(length >= low) & (length < high)]
    sum_MT, count_MT = _grouped(kept, found.doc_M, found.longest)
    laid_out = found.view(view, found.doc_M, found.longest)
    np.testing.assert_allclose(laid_out.sum_PT, sum_MT, atol=1e-9)
    np.testing.assert_array_equal(laid_out.count_PT, count_MT)
    assert laid_out.sequences == len(kept.groupby(["doc_id", "sample"]))


def test_progress_and_end_views(folder, cells, rows):
    key = ("arithmetic", "soft_sample")
    found = read_positions(load_run(folder), cells, GROUPS)[key]
    mine = rows[rows["mode"] == key[1]]
    progress = _means(found.view("progress", found.doc_M, found.longest))
    end = found.view("end", found.doc_M, found.longest)
    expected, last = [], []
    for _, sample in mine.groupby(["doc_id", "sample"]):
        values = sample["entropy"].to_numpy(float)
        edges = np.linspace(0, len(values), 21)
        bins = [
            values[int(a) : max(int(np.ceil(b)), int(a) + 1)].mean()
            for a, b in zip(np.floor(edges[:-1]), np.round(edges[1:], 9), strict=True)
        ]
        expected.append((sample["doc_id"].iloc[0], *bins))
        last.append((sample["doc_id"].iloc[0], values[-1], values[-3]))
    table = pd.DataFrame(expected).groupby(0).mean().to_numpy()
    np.testing.assert_allclose(progress, table, atol=1e-6)
    ends = pd.DataFrame(last).groupby(0).mean().to_numpy()
    np.testing.assert_allclose(_means(end)[:, [0, 2]], ends, atol=1e-6)


def test_sequence_mean_and_peak(folder, cells, rows):
    key = ("arithmetic", "hard_sample")
    found = read_positions(load_run(folder), cells, GROUPS)[key]
    samples = rows[rows["mode"] == key[1]].groupby(["doc_id", "sample"])["entropy"]
    np.testing.assert_allclose(found.mean_R, samples.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.max_R, samples.max(), rtol=1e-6)
    by_problem = samples.mean().groupby("doc_id").mean()
    np.testing.assert_allclose(found.sequence_mean_M, by_problem, rtol=1e-5)


def test_row_groups_change_nothing(folder, cells, tmp_path):
    whole = read_positions(load_run(folder), cells, GROUPS)
    table = pq.read_table(folder / "positions.parquet")
    other = _copy(folder, tmp_path / "run")
    pq.write_table(table, other / "positions.parquet", row_group_size=3)
    cut = read_positions(load_run(other), cells, GROUPS)
    for key in whole:
        np.testing.assert_allclose(cut[key].sum_MGT, whole[key].sum_MGT, atol=1e-9)
        np.testing.assert_array_equal(cut[key].max_R, whole[key].max_R)
    pd.testing.assert_frame_equal(load_run(other).positions(), load_run(folder).positions())


def test_positions_of_other_samples_are_refused(folder, cells, tmp_path):
    other = _copy(folder, tmp_path / "run")
    table = pq.read_table(folder / "positions.parquet")
    doc = pa.array(table["doc_id"].to_numpy() + 1, pa.int32())
    table = table.set_column(1, table.schema.field("doc_id"), doc)
    pq.write_table(table, other / "positions.parquet")
    with pytest.raises(UserError, match="hold different samples"):
        read_positions(load_run(other), cells, GROUPS)


def test_mean_curve_equals_a_plain_computation(folder, cells, rows):
    key = ("arithmetic", "hard_sample")
    found = read_positions(load_run(folder), cells, GROUPS)[key]
    profile = position_profile(found.view("all", found.doc_M, found.longest))
    mine = rows[rows["mode"] == key[1]]
    expected = mine.groupby("position")["entropy"].mean()  # every problem has the same samples
    np.testing.assert_allclose(profile.mean, expected, rtol=1e-5)
    running = mine.groupby("position").size() / 35
    np.testing.assert_allclose(profile.at_risk, running)


def test_kl_by_sequence_and_position(folder):
    table = pq.read_table(folder / "kl.parquet").to_pandas().explode(["forward", "reverse"])
    table = table.astype({"forward": float, "reverse": float})
    table["position"] = table.groupby(["task", "prefix_set", "doc_id"]).cumcount()
    for (task, mode, prefix_set), kl in read_kl(load_run(folder)).items():
        mine = table[(table["task"] == task) & (table["prefix_set"] == prefix_set)]
        assert mode == "hard_sample"
        for direction in ("forward", "reverse"):
            by_sequence = mine.groupby("doc_id")[direction]
            np.testing.assert_allclose(kl.per_token[direction], by_sequence.mean(), rtol=1e-5)
            np.testing.assert_allclose(kl.per_sequence[direction], by_sequence.sum(), rtol=1e-5)
            assert kl.sum_MT[direction][2, 3] == pytest.approx(
                mine[(mine["doc_id"] == 2) & (mine["position"] == 3)][direction].sum(), rel=1e-5
            )


def test_chunks_hold_whole_samples_of_one_cell(folder):
    for chunk in read_chunks(load_run(folder), "positions", ("entropy",)):
        assert chunk.length_R.sum() == len(chunk.values["entropy"])
        assert (np.diff(chunk.start_R) == chunk.length_R[:-1]).all()


def test_seeds_become_one_arm_and_the_base_comes_first(tmp_path):
    folders = write_family(tmp_path, seeds=2, questions=4, samples=2, positions=8)
    arms = measure([(None, f) for f in reversed(folders)])
    assert [(a.method, a.seeds) for a in arms.arms] == [
        ("base", 1), ("hard", 2), ("soft", 2), ("fuzzy", 2),
    ]  # fmt: skip
    assert [c.train_seed for c in arms.arms[1].checkpoints] == [0, 1]
    assert len(arms.groups) == 1


def test_runs_of_one_checkpoint_are_put_together(tmp_path):
    first = write_checkpoint(tmp_path / "a", tasks=("one",), questions=4, samples=2, positions=8)
    second = write_checkpoint(
        tmp_path / "b", tasks=("two",), questions=4, samples=2, positions=8,
        record_changes={"model": {"path": "checkpoints/a", "weights_hash": "base0"}},
    )  # fmt: skip
    arms = measure([(None, first), (None, second)])
    assert arms.tasks == ("one", "two")
    assert len(arms.arms[0].checkpoints) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": [{"name": "arithmetic", "sha256": "1" * 64, "split": "test"}]}, "sha256"),
        ({"modes": [{"name": "hard_sample", "temperature": 0.7}]}, "temperature"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path, changes, message):
    first = write_checkpoint(tmp_path / "a", "soft", 0, questions=4, samples=2, positions=8)
    second = write_checkpoint(
        tmp_path / "b", "soft", 1, questions=4, samples=2, positions=8, record_changes=changes
    )
    with pytest.raises(UserError, match=message) as refusal:
        measure([(None, first), (None, second)])
    assert "b" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(("limit", "missing"), [(None, 12), (15, 3), (0.5, 0)])
def test_questions_that_were_never_begun_are_missing(tmp_path, limit, missing):
    folder = write_checkpoint(
        tmp_path / "a", questions=24, samples=2, positions=6, modes=("hard_greedy", "hard_sample"),
        record_changes={"config": {"limit": limit, "num_samples": 2}},
    )  # fmt: skip
    keep_documents(folder, 0, 12)
    found = find_validity(measure([(None, folder)], positions=False))
    assert {cell.mode: cell.missing for cell in found} == {
        "hard_greedy": missing, "hard_sample": 2 * missing,
    }  # fmt: skip


@pytest.mark.parametrize("knob", ["temperature", "noise_scale", "noise_norm", "max_cot_tokens"])
def test_settings_that_differ_between_arms_are_noted(tmp_path, knob):
    options = {"questions": 4, "samples": 2, "positions": 6, "modes": ("soft_sample",)}
    folders = [write_checkpoint(tmp_path / m, m, **options) for m in ("base", "soft")]
    assert not notes(measure([(None, f) for f in folders]))
    record = json.loads((folders[1] / "run.json").read_text())
    place = record["config"] if knob == "max_cot_tokens" else record["modes"][0]
    other = 99 if knob == "max_cot_tokens" else "other"
    before, place[knob] = place[knob], other
    rundir.write_record(folders[1], record)
    (note,) = notes(measure([(None, f) for f in folders]))
    assert knob in note and f": {before} in base, {other} in soft;" in note


def test_seeds_with_other_caps_are_noted_by_their_folders(tmp_path):
    options = {"questions": 4, "samples": 2, "positions": 6, "modes": ("soft_sample",)}
    folders = [write_checkpoint(tmp_path / f"s{s}", "soft", s, **options) for s in (0, 1)]
    record = json.loads((folders[1] / "run.json").read_text())
    record["config"]["max_cot_tokens"] = 128
    rundir.write_record(folders[1], record)
    (note,) = notes(measure([(None, f) for f in folders]))
    assert "max_cot_tokens: 512 in s0, 128 in s1" in note


def test_the_same_cell_twice_is_refused(tmp_path):
    first = write_checkpoint(tmp_path / "a", questions=4, samples=2, positions=8)
    with pytest.raises(UserError, match="both evaluate"):
        measure([(None, first), (None, first)])


def test_two_checkpoints_of_one_seed_need_labels(tmp_path):
    first = write_checkpoint(tmp_path / "a", "soft", 0, questions=4, samples=2, positions=8)
    second = write_checkpoint(
        tmp_path / "b", "soft", 0, questions=4, samples=2, positions=8,
        record_changes={"model": {"path": "x", "weights_hash": "other"}},
    )  # fmt: skip
    with pytest.raises(UserError, match="LABEL=RUN"):
        measure([(None, first), (None, second)])
    arms = measure([("one", first), ("two", second)])
    assert [arm.method for arm in arms.arms] == ["one", "two"]
    assert len(arms.groups) == 1


def test_a_damaged_table_is_named(tmp_path):
    folder = write_checkpoint(tmp_path / "a", questions=4, samples=2, positions=8)
    path = folder / "positions.parquet"
    content = bytearray(path.read_bytes())
    for damage in (content[: len(content) // 2], bytes(len(content))):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"positions\.parquet is damaged"):
            measure([(None, folder)])


def _means(sums):
    return sums.sum_PT / np.where(sums.count_PT > 0, sums.count_PT, np.nan)


def _grouped(rows: pd.DataFrame, doc_M, longest: int):
    table = rows.astype({"entropy": float}).groupby(["doc_id", "position"])["entropy"]
    sum_MT, count_MT = np.zeros((len(doc_M), longest)), np.zeros((len(doc_M), longest), int)
    for key, values in table:
        doc, position = key  # pyright: ignore[reportGeneralTypeIssues]
        at = np.searchsorted(doc_M, doc), position
        sum_MT[at], count_MT[at] = values.sum(), len(values)
    return sum_MT, count_MT


def _copy(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_kl_is_read_only_where_it_was_measured(tmp_path):
    folder = write_checkpoint(tmp_path / "a", questions=4, samples=2, positions=8)
    assert read_kl(load_run(folder)) == {}
    write_kl(folder, "soft", ("arithmetic",), 4)
    assert {key[2] for key in read_kl(load_run(folder))} == {"base", "own"}
