"""What single sections say and draw for given numbers, one small run or a few."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from report_runs import write_checkpoint, write_counts, write_training

from softeval.reports.contrasts import find_comparisons
from softeval.reports.differences import find_differences
from softeval.reports.material import Material, ReportOptions
from softeval.reports.measured.arms import measure
from softeval.reports.sections.comparisons import SECTION as COMPARISONS
from softeval.reports.sections.comparisons import draw_forest
from softeval.reports.sections.curves import draw_curves, find_curves
from softeval.reports.sections.entropy import entropy_block, entropy_told, find_entropy
from softeval.reports.sections.families import SECTION as FAMILIES
from softeval.reports.sections.kl import find_kl, main_rows
from softeval.reports.sections.out_of_domain import find_out_of_domain
from softeval.reports.sections.results import main_tables
from softeval.reports.sections.samples import SECTION as SAMPLES
from softeval.reports.sections.selection import find_pair
from softeval.reports.sections.training import draw_training, read_training
from softeval.reports.sections.validity import SECTION as VALIDITY
from softeval.reports.sections.validity import find_validity
from softeval.runs.run import load_run

M, N = 12, 4
SMALL = {"questions": M, "samples": N, "positions": 8, "kl": True, "likelihood_tasks": ("arc",)}
MODES = ("hard_greedy", "hard_sample", "soft_sample")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model, one that differs by chance alone, and hard training of two seeds."""
    parent = tmp_path_factory.mktemp("runs")
    names = {"base": ("base", 0), "other": ("other", 0), "hard": ("hard", 0), "hard1": ("hard", 1)}
    return [
        write_checkpoint(parent / name, method, seed, modes=MODES, **SMALL)
        for name, (method, seed) in names.items()
    ]


@pytest.fixture(scope="module")
def arms(folders):
    return measure([(None, folder) for folder in folders])


def _material(arms) -> Material:
    return Material(arms, (), ReportOptions())


def _tables(parts) -> dict:
    return {part.label: part for part in parts if part.kind == "table"}


def test_the_forest_has_a_to_the_right_and_a_line_below_what_is_primary(arms):
    found = find_comparisons(arms)
    left, right = draw_forest(found, 0.02).axes
    widths = [patch.get_width() for patch in right.patches]
    counts = [c.contrast.discordance for c in found]
    shares = [100 * c.a_only / M for c in counts] + [-100 * c.b_only / M for c in counts]
    assert widths == pytest.approx(shares) and min(widths) < 0 < max(widths)
    primary = sum(c.primary for c in found)
    assert 0 < primary < len(found)
    dotted = [np.asarray(line.get_ydata())[0] for line in left.lines if line.get_linestyle() == ":"]
    assert primary - 0.5 in dotted
    soft, hard = arms.mode("soft_sample"), arms.mode("hard_sample")
    a, b = (
        replace(found[0].a, name="m soft sample", mode=soft),
        replace(found[0].b, name="m hard sample", mode=hard),
    )
    [label] = draw_forest([replace(found[0], a=a, b=b)], 0.02).axes[0].get_yticklabels()
    assert label.get_text().startswith("m: soft sample − hard sample · ")


@pytest.mark.usefixtures("undrawn")
def test_comparisons_under_another_inference_are_shown_on_demand(arms):
    parts = COMPARISONS.parts(_material(arms))
    folded = [part.summary for part in parts if part.kind == "details"]
    assert folded[-1] == "Under soft inference" and folded[0].startswith("All ")


def test_single_checkpoints_stand_with_their_own_means(arms):
    (main,) = main_tables(arms)
    rows = [row for row in main.seed_table().rows if row[0].text == "hard"]
    for row, checkpoint in zip(rows, arms.arms[1].checkpoints, strict=True):
        cell = checkpoint.cells["arithmetic", "hard_sample"]
        assert row[0].note == f"seed {checkpoint.train_seed}"
        assert row[2].text == f"{100 * (cell.c_M / cell.n_M).mean():.1f}"
    assert len({tuple(cell.text for cell in row[1:]) for row in rows}) == 2


def test_a_ring_stands_where_the_drawn_curves_cross(tmp_path):
    half = np.where(np.arange(M) < M // 2, N, 0)
    a = write_counts(tmp_path / "hard", "hard", {"hard_sample": ([N] * M, half)})
    b = write_counts(tmp_path / "base", "base", {"hard_sample": ([N] * M, [1] * M)})
    arms = measure([(None, b), (None, a)], positions=False)
    differences = [
        replace(d, order=replace(d.order, word=word))
        for d in find_differences(arms, 50)
        for word in ("cross",)
    ]
    (figure,) = find_curves(arms, differences)
    lower = draw_curves(figure).axes[-1]
    rings = [line for line in lower.lines if line.get_markerfacecolor() == "none"]
    assert [np.asarray(line.get_xdata())[0] for line in rings] == [differences[0].meeting()]
    [panel] = figure.panels
    fewer = [f"{name}: {M} of {M + 1} questions" for name in ("base", "hard")]
    assert figure.fewer(panel) == [] and replace(figure, questions=M + 1).fewer(panel) == fewer


def test_entropies_that_differ_by_chance_are_not_told_apart(arms):
    (figure,) = find_entropy(arms, ["all"])
    told = entropy_told(arms, figure)
    assert told.startswith("Mean entropy of a CoT on arithmetic under hard sample, nats: base 0.")
    assert "not told apart: other 0." in told and "lower: hard 0." in told
    pair = tuple(arm for arm in arms.arms if arms.name(arm) in ("base", "other"))
    for two in (pair, pair[::-1]):  # whichever of them is larger
        assert "; not told apart: " in entropy_told(replace(arms, arms=two), figure)


@pytest.mark.usefixtures("undrawn")
def test_the_numbers_of_an_entropy_figure_stand_at_the_places_that_are_drawn(arms):
    tables = [entropy_block(f).table for f in find_entropy(arms, ["all", "progress", "end"])]
    assert [table.columns[1] for table in tables] == ["1", "2.5", "1"]
    assert tables[1].caption == "Entropy in nats by share of the CoT, %."


def test_terciles_are_those_of_the_last_arm(arms):
    (both,), (alone,) = (
        find_entropy(replace(arms, arms=kept), ["terciles"]) for kept in (arms.arms, arms.arms[-1:])
    )
    assert both.split == ("other",) and {name for name, *_ in both.lines} == {
        "short",
        "middle",
        "long",
    }
    for mode, lines in both.panels.items():
        for name, line in lines.items():
            np.testing.assert_array_equal(line.mean, alone.panels[mode][name].mean)


def test_kl_is_of_the_mode_of_training_and_hidden_near_the_noise(arms, folders):
    scores = find_kl(arms)
    hard = next(s for s in scores if (s.name, s.kind) == ("hard", "reverse on own prefixes"))
    rows = [pq.read_table(f / "kl.parquet").to_pandas() for f in folders[2:]]
    assert hard.sequences == sum((r["prefix_set"] == "own").sum() for r in rows)
    soft = replace(hard, key=("arithmetic", "soft_sample", "own"), trained="soft")
    shown = main_rows(arms, [replace(hard, trained="soft"), soft])
    assert [s.key[1] for s in shown] == ["soft_sample"]
    mean = hard.per_token.mean
    assert replace(hard, floor=mean / 2.9).text == "< 3 × floor"
    assert replace(hard, floor=mean / 3.1).text == replace(hard, floor=None).text


@pytest.mark.usefixtures("undrawn")
def test_validity_ranges_over_seeds_and_names_the_worst(tmp_path):
    def run(seed: int, truncated: float):
        cells = {"hard_sample": ([50] * M, [1] * M), "hard_greedy": ([1] * M, [1] * M)}
        return write_counts(tmp_path / str(seed), "soft", cells, seed, truncated=truncated)

    arms = measure([(None, run(0, 0.02)), (None, run(1, 0.9))], positions=False)
    tables = _tables(VALIDITY.parts(_material(arms)))
    greedy, sampled = tables["Validity of each mode"].rows
    cut = sampled[6]
    assert (cut.level, cut.detail) == ("red", "most in soft, seed 1") and "–" in cut.text
    cell, shares = find_validity(arms)[0], (0.05, 0.06, 0.20, 0.21)
    levels = [replace(cell, truncated=share).level("truncated") for share in shares]
    assert levels == ["", "amber", "amber", "red"]
    assert greedy[9].text == "–" and sampled[9].text.endswith(" %")
    runs = tables["Provenance of the runs"]
    assert "checkpoint" in runs.columns and "status" not in runs.columns
    assert "All runs: status complete; " in runs.caption


def test_the_browser_opens_on_the_pair_and_counts_every_sample(arms):
    (part,) = SAMPLES.parts(_material(arms))
    data = json.loads(part.values["data"].replace("\\u003c", "<"))
    pair = find_pair(arms)
    assert pair is not None
    source, (_, soft), (_, hard), doc = pair
    start = data["start"]
    assert (start["a"], start["b"]) == (source, source)
    assert [data["modes"][start[side]] for side in "mn"] == [soft, hard]
    assert data["problems"][0]["d"] == doc
    assert data["problems"][0]["w"] == "soft and hard differ most"
    assert data["total"] == sum(len(load_run(run.path).samples()) for run in arms.runs)


def test_sure_steps_and_effective_tokens_are_means_over_tokens(arms, folders):
    (table, *_) = [part for part in FAMILIES.parts(_material(arms)) if part.kind == "table"]
    row = next(row for row in table.rows if row[0].text == "soft sample")
    rows = load_run(folders[0]).positions()
    mine = rows[rows["mode"] == "soft_sample"]
    assert row[5].text == f"{np.exp(mine['mode_entropy']).mean():.2f}"
    assert row[6].text == f"{100 * (mine['top1_prob'] >= 0.99).mean():.1f}"


def test_nll_is_measured_against_the_own_base(tmp_path, folders):
    model = {"path": "hub/two", "weights_hash": "two"}
    two = write_checkpoint(tmp_path / "two", record_changes={"model": model}, **SMALL)
    scores = find_out_of_domain(measure([(None, f) for f in (*folders, two)], positions=False))
    nll = {s.name: s.nll.mean for s in scores}
    for score in (s for s in scores if s.to_base is not None):
        assert score.to_base.diff == pytest.approx(nll[score.name] - nll["base · base"])
    assert [s.to_base for s in scores if s.name == "two"] == [None]


def test_training_is_drawn_as_means_of_windows(tmp_path):
    curve = read_training(write_training(tmp_path / "t", steps=100))
    rollouts, validation = draw_training([curve]).axes
    drawn = rollouts.lines[0].get_ydata()
    np.testing.assert_allclose(drawn, curve.success.reshape(50, 2).mean(axis=1))
    rings = [line for line in validation.lines if line.get_markerfacecolor() == "none"]
    assert [(np.asarray(r.get_xdata())[0], np.asarray(r.get_ydata())[0]) for r in rings] == [
        curve.kept
    ]
    worst = int(np.argmin(curve.validation))
    kept = replace(curve, kept_step=int(curve.validation_steps[worst])).kept
    assert kept == (curve.validation_steps[worst], curve.validation[worst])
