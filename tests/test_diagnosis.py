"""`softeval diagnose` on a real little run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_divergence import moved
from tiny import tiny_tokenizer

from softeval.errors import UserError
from softeval.model.language_model import BUNDLED_CHECKPOINT, LanguageModel, load_model
from softeval.replays.diagnose import diagnose
from softeval.reports.measured.kl import read_kl
from softeval.runs import rundir
from softeval.runs.evaluation import evaluate
from softeval.runs.run import load_run
from softeval.tasks.catalogue import find_benchmarks
from softeval.tasks.data import gold_solutions


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a checkpoint near the bundled one, and both checkpoints."""
    folder = tmp_path_factory.mktemp("diagnosis")
    base = load_model(BUNDLED_CHECKPOINT, device="cpu")
    moved(base, 0.02).model.save_pretrained(folder / "near")
    base.tokenizer.save_pretrained(folder / "near")
    return evaluate(
        model=str(folder / "near"),
        tasks=["arithmetic"],
        modes=["hard_sample", "soft_sample"],
        num_samples=2,
        limit=3,
        output_path=str(folder / "run"),
        device="cpu",
    )


def test_every_prefix_set_is_measured_in_both_directions(run):
    found = diagnose(run.path, BUNDLED_CHECKPOINT, samples=2, device="cpu")
    assert found.prefixes == {"own": 12, "base": 6, "gold": 0}
    assert found.missing_gold == ["arithmetic"]
    assert (found.regenerated, found.differing) == (6, 0)
    table = pd.read_parquet(run.path / "kl.parquet").explode(["forward", "reverse"])
    assert set(zip(table["prefix_set"], table["mode"], strict=True)) == {
        ("own", "hard_sample"),
        ("own", "soft_sample"),
        ("base", "hard_sample"),
    }
    assert bool((table[["forward", "reverse"]].to_numpy() >= 0).all())
    assert float(table["forward"].mean()) > 10 * max(found.floor, 1e-9)
    own = table.query("prefix_set == 'own'").groupby(["doc_id", "mode", "sample"]).size()
    lengths = (
        run.samples().astype({"mode": str}).set_index(["doc_id", "mode", "sample"])["n_cot_tokens"]
    )
    pd.testing.assert_series_equal(
        own.sort_index(), lengths.sort_index(), check_names=False, check_dtype=False
    )
    block = json.loads((run.path / "run.json").read_text())["diagnose"]
    assert block["noise_floor"]["mean"] == found.floor
    assert (
        block["base_weights_hash"]
        != json.loads((run.path / "run.json").read_text())["model"]["weights_hash"]
    )


def test_sets_samples_and_limit_change_what_is_replayed(run):
    options = {"sets": ["own"], "limit": 2, "device": "cpu", "self_check": False}
    assert rundir.read_record(run.path)["diagnose"]["self_check"] in ("passed", "cached")
    found = diagnose(run.path, BUNDLED_CHECKPOINT, samples=1, overwrite=True, **options)
    assert found.prefixes == {"own": 4}
    assert rundir.read_record(run.path)["diagnose"]["self_check"] == "skipped"


@pytest.mark.slow
def test_fewer_prefixes_never_replace_more_unasked(run, tmp_path):
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    both = {"sets": ["own", "base"], "samples": 2, "device": "cpu"}
    diagnose(folder, BUNDLED_CHECKPOINT, overwrite=True, **both)
    before = (folder / "kl.parquet").read_bytes()
    with pytest.raises(UserError, match=r"own prefixes of 3 questions with 2 .* by 2 with 2"):
        diagnose(folder, BUNDLED_CHECKPOINT, limit=2, **both)
    with pytest.raises(UserError, match=r"base prefixes of 3 questions .* by 3 with 1;"):
        diagnose(folder, BUNDLED_CHECKPOINT, **both | {"sets": ["base"], "samples": 1})
    with pytest.raises(UserError, match="holds own prefixes against another base model"):
        diagnose(folder, run.path.parent / "near", **both | {"sets": ["base"]})
    assert (folder / "kl.parquet").read_bytes() == before
    diagnose(folder, BUNDLED_CHECKPOINT, overwrite=True, limit=1, **both)
    assert len(set(pd.read_parquet(folder / "kl.parquet")["doc_id"])) == 1


@pytest.mark.slow
def test_a_checkpoint_that_was_moved_can_be_named(run, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    record = rundir.read_record(folder)
    assert record["model"]["path"] == record["config"]["model"] == str(run.path.parent / "near")
    record["model"]["path"] = str(tmp_path / "gone")
    rundir.write_record(folder, record)
    options = {"sets": ["own"], "samples": 2, "device": "cpu"}
    with pytest.raises(UserError, match=r"no checkpoint at .*gone.*say where it is now with --mod"):
        diagnose(folder, BUNDLED_CHECKPOINT, **options)
    with pytest.raises(UserError, match=r"is not the checkpoint of .* \(other weights\)"):
        diagnose(folder, BUNDLED_CHECKPOINT, model=BUNDLED_CHECKPOINT, **options)
    with pytest.raises(UserError, match="other weights"):
        diagnose(folder, BUNDLED_CHECKPOINT, model=BUNDLED_CHECKPOINT, dtype="bfloat16", **options)
    monkeypatch.chdir(run.path.parent)
    found = diagnose(folder, BUNDLED_CHECKPOINT, model="near", **options)
    assert found.prefixes == {"own": 12} and found.differing == 0


@pytest.mark.parametrize("config", [{}, {"graphs": False}, {"compile": True}])
def test_steps_are_run_as_the_runs_were(run, tmp_path, monkeypatch, config):
    """A mixture of experts asks the host, and its steps cannot be captured on a GPU."""
    folder, asked = Path(shutil.copytree(run.path, tmp_path / "run")), []
    record = rundir.read_record(folder)
    rundir.write_record(folder, record | {"config": record["config"] | config})
    monkeypatch.setattr(LanguageModel, "decode_by", lambda lm, **how: asked.append(how))
    diagnose(folder, BUNDLED_CHECKPOINT, sets=["own"], limit=1, device="cpu", overwrite=True)
    wanted = {"graphs": config.get("graphs", True), "fused": False}  # nothing is fused on a CPU
    assert asked == [wanted, wanted]


@pytest.mark.slow
def test_a_later_diagnosis_keeps_the_other_prefix_sets(run):
    diagnose(run.path, BUNDLED_CHECKPOINT, sets=["own", "base"], overwrite=True, device="cpu")
    before = pd.read_parquet(run.path / "kl.parquet")
    diagnose(run.path, BUNDLED_CHECKPOINT, sets=["base"], limit=1, overwrite=True, device="cpu")
    after = pd.read_parquet(run.path / "kl.parquet")
    own = "prefix_set == 'own'"
    pd.testing.assert_frame_equal(
        after.query(own).reset_index(drop=True), before.query(own).reset_index(drop=True)
    )
    assert len(set(after.query("prefix_set == 'base'")["doc_id"].tolist())) == 1
    record = json.loads((run.path / "run.json").read_text())
    assert record["diagnose"]["sets"] == ["own", "base"]
    assert read_kl(load_run(run.path))
    with pytest.raises(UserError, match="nothing to replay for --sets gold"):
        diagnose(run.path, BUNDLED_CHECKPOINT, sets=["gold"], device="cpu")
    assert pd.read_parquet(run.path / "kl.parquet").equals(after)
    diagnose(run.path, run.path.parent / "near", sets=["base"], overwrite=True, device="cpu")
    assert set(pd.read_parquet(run.path / "kl.parquet")["prefix_set"]) == {"base"}


def test_the_floor_says_how_many_prefixes_it_rests_on(run):
    diagnose(run.path, BUNDLED_CHECKPOINT, sets=["base"], limit=1, overwrite=True, device="cpu")
    floor = json.loads((run.path / "run.json").read_text())["diagnose"]["noise_floor"]
    assert floor["batch_size"] == 2


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": -1}, {"samples": 0}])
def test_counts_from_one(run, options):
    with pytest.raises(UserError, match="count from 1"):
        diagnose(run.path, BUNDLED_CHECKPOINT, device="cpu", **options)


def test_positions_that_are_gone_or_damaged_are_named(run, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(run.path, bare)
    (bare / "positions.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"positions\.parquet is damaged"):
        diagnose(bare, BUNDLED_CHECKPOINT, sets=["own"], device="cpu")
    (bare / "positions.parquet").unlink()
    with pytest.raises(UserError, match=r"positions\.parquet is missing"):
        diagnose(bare, BUNDLED_CHECKPOINT, sets=["own"], device="cpu")


def test_what_cannot_be_compared_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="choose from own, base, gold"):
        diagnose(run.path, BUNDLED_CHECKPOINT, sets=["mine"], device="cpu")
    with pytest.raises(UserError, match="is not a run directory"):
        diagnose(tmp_path, BUNDLED_CHECKPOINT)
    record = rundir.read_record(run.path)
    changed = tmp_path / "changed"
    changed.mkdir()
    record["model"]["weights_hash"] = "0" * 64
    rundir.write_record(changed, record)
    with pytest.raises(UserError, match="other weights"):
        diagnose(changed, BUNDLED_CHECKPOINT, device="cpu")
    assert tiny_tokenizer().get_vocab() != {}


@pytest.mark.parametrize("name", ["gsm8k", "math500", "olympiadbench"])
def test_reference_solutions_of_the_real_data(shared, name):
    (benchmark,) = find_benchmarks([name])
    solutions = gold_solutions(benchmark, str(shared / "data"), benchmark.test_split)
    assert solutions is not None
    assert all(isinstance(s, str) and s.strip() for s in solutions)
    assert not any("<<" in s or "####" in s for s in solutions) or name != "gsm8k"


def test_a_data_set_without_solutions_has_none():
    assert gold_solutions(find_benchmarks(["hellaswag"])[0], None, "validation") is None
