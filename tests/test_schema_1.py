"""Runs of before schema 2, with a row a position, are read as those of now."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from report_runs import write_checkpoint
from schema_1 import as_schema_1

from softeval.errors import UserError
from softeval.records import SampleKey
from softeval.replays.diagnose import recorded_shadows
from softeval.replays.kl_file import Measured, write_kl
from softeval.reports.compare import compare_runs, comparison_frame
from softeval.reports.measured.arms import measure
from softeval.reports.page import build_report
from softeval.runs.rescore import rescore
from softeval.runs.run import Run, load_run
from softeval.scoring.judge import Scorer

TABLES = ("samples", "positions", "mixtures", "prompts", "tokens", "likelihoods")
SMALL = {"questions": 4, "samples": 3, "positions": 9, "kl": True, "likelihood_tasks": ("arc",)}


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("now") / "run", **SMALL)


@pytest.fixture(scope="module")
def before(now: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_schema_1(Path(shutil.copytree(now, tmp_path_factory.mktemp("before") / "run")))


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_the_same(now: Path, before: Path, name: str) -> None:
    new, old = (getattr(load_run(folder), name)() for folder in (now, before))
    pd.testing.assert_frame_equal(new, old)
    one = str(new.columns[-1])
    pd.testing.assert_frame_equal(new[[one]], getattr(load_run(before), name)([one]))


def test_columns_of_positions_can_be_chosen(now: Path) -> None:
    run = load_run(now)
    whole = run.positions()
    pd.testing.assert_frame_equal(run.positions(["position"]), whole[["position"]])
    with pytest.raises(UserError, match="no column surprise"):
        run.positions(["surprise"])


def test_the_measures_of_a_report_are_the_same(now: Path, before: Path) -> None:
    new, old = (measure([(None, f)]).arms[0].checkpoints[0] for f in (now, before))
    for key, sums in new.positions.items():
        for name in ("sum_MGT", "count_MGT", "progress_MB", "end_ME", "mean_R", "max_R"):
            np.testing.assert_allclose(getattr(old.positions[key], name), getattr(sums, name))
    for key, kl in new.kl.items():
        np.testing.assert_array_equal(old.kl[key].sum_MT["forward"], kl.sum_MT["forward"])


def test_compare_and_score_take_either(now: Path, before: Path) -> None:
    pd.testing.assert_frame_equal(load_run(now).scores(), load_run(before).scores())
    frames = [comparison_frame(compare_runs([f], [now], None, None)) for f in (now, before)]
    same, other = (
        frame.drop(columns="warning") for frame in frames
    )  # A and B are one run: it is said
    pd.testing.assert_frame_equal(same, other)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_page_is_the_same(now: Path, before: Path) -> None:
    new, old = (build_report([folder]) for folder in (now, before))
    old = old.replace(str(before.parent), str(now.parent))
    assert new.splitlines() == old.replace("version&#34;: 1", "version&#34;: 2").splitlines()


@pytest.mark.slow
def test_score_judges_an_old_run_again(before: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(before, tmp_path / "run"))
    with Scorer(workers=1) as judge:
        rescore(folder, judge)
    assert load_run(folder).positions().equals(load_run(before).positions())


def test_diagnose_finds_the_recorded_tokens(now: Path, before: Path) -> None:
    new, old = (recorded_shadows(folder, "soft_sample", 2) for folder in (now, before))
    rows = load_run(now).positions()
    assert list(new) == list(old) and {key.sample for key in new} == {0, 1}
    for key, ids in new.items():
        np.testing.assert_array_equal(ids, old[key])
        mine = rows[(rows["mode"] == "soft_sample") & (rows["doc_id"] == key.doc_id)]
        assert mine[mine["sample"] == key.sample]["shadow_id"].tolist() == ids.tolist()


def test_a_later_diagnosis_keeps_the_prefix_sets_of_an_old_file(
    before: Path, tmp_path: Path
) -> None:
    from softeval.decoding.kl import PositionKL

    folder = Path(shutil.copytree(before, tmp_path / "run"))
    half = np.full(3, 0.5)
    measured = Measured("own", "hard_sample", SampleKey("arithmetic", 0, 0), PositionKL(half, half))
    write_kl(folder, [measured], keep=["base"])
    kl = measure([(None, folder)]).arms[0].checkpoints[0].kl
    same = measure([(None, before)]).arms[0].checkpoints[0].kl
    for key, found in kl.items():
        wanted = same[key].sum_MT["forward"] if key[2] == "base" else half[None]
        np.testing.assert_array_equal(found.sum_MT["forward"], wanted)
    assert {key[2] for key in kl} == {"own", "base"}


@pytest.mark.parametrize("swap", [(5, 6), (0, 1)])
def test_rows_out_of_order_are_refused(before: Path, tmp_path: Path, swap: tuple[int, int]) -> None:
    folder = Path(shutil.copytree(before, tmp_path / "run"))
    table = pq.read_table(folder / "positions.parquet")
    order = np.arange(table.num_rows)
    order[list(swap)] = order[list(swap)][::-1]
    pq.write_table(table.take(order), folder / "positions.parquet")
    with pytest.raises(UserError, match="not sorted by position"):
        measure([(None, folder)])


def test_a_run_without_mixtures_has_none(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "run", **SMALL | {"modes": ("hard_greedy",)})
    table = pq.read_table(folder / "positions.parquet").to_pandas()
    table["mixture_id"] = table["mixture_prob"] = None
    schema = pq.read_schema(folder / "positions.parquet")
    pq.write_table(_table(table, schema), folder / "positions.parquet")
    run: Run = load_run(folder)
    assert len(run.mixtures()) == 0 and list(run.mixtures().columns)[-2:] == ["token_id", "prob"]


def _table(frame: pd.DataFrame, schema):
    import pyarrow as pa

    return pa.table({name: list(frame[name]) for name in schema.names}, schema)
