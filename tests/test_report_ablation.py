"""Trainings side by side in the report: what is found from the runs' records, and the paper's values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_counts

from softeval.reports.measured.arms import Arms, measure
from softeval.reports.page import build_report
from softeval.reports.paper import paper_ablation
from softeval.reports.sections.ablation import dose_responses, trained_cells, varying

FUZZY = {"name": "fuzzy_sample", "family": "fuzzy", "temperature": 1e-4, "noise_scale": 0.33}
WITH_SIGMA = {"is_greedy": False, "feeds_tokens": False, "sigma": 0.1}


def write_cell(
    parent: Path, label: str, right: int, seed: int = 0, weights: str = "", **mode: Any
) -> str:
    """A run of a labelled cell, as `softeval report` is given it."""
    entry = FUZZY | WITH_SIGMA | mode
    training = {
        "method": "fuzzy",
        "dataset": "gsm8k",
        "train_seed": seed,
        "base": "b",
        "mode": entry,
    }
    training["config"] = {"seed": seed, "output_path": label, "method": "fuzzy", "max_steps": 5}
    folder = parent / f"{label}-{seed}".replace(" ", "-")
    cells = {
        "hard_greedy": ([1] * 8, [1] * right + [0] * (8 - right)),
        "hard_sample": ([4] * 8, [right // 2] * 8),
    }
    changes = {
        "training": training,
        "model": {"path": label, "weights_hash": weights or label + str(seed)},
    }
    return f"{label}={write_counts(folder, 'fuzzy', cells, seed, record_changes=changes)}"


def arms_of(named: list[str]) -> Arms:
    return measure([tuple(text.split("=", 1)) for text in named], positions=False)


def test_a_number_that_alone_varies_is_a_dose(tmp_path: Path) -> None:
    named = [
        write_cell(tmp_path, f"γ {scale}", right, seed, noise_scale=scale)
        for scale, right in ((1.0, 6), (0.1, 4), (0.33, 5))
        for seed in (0, 1)
    ]
    named.append(write_cell(tmp_path, "warmer", 3, temperature=0.1))
    cells = trained_cells(arms_of(named), "arithmetic")
    assert varying(cells) == ["temperature", "noise_scale"]
    [(option, found)] = list(dose_responses(cells))
    assert option == "noise_scale"
    assert [cell.options["noise_scale"] for cell in found] == [0.1, 0.33, 1.0]
    assert [cell.arm.seeds for cell in found] == [2, 2, 2]


@pytest.mark.usefixtures("undrawn")
def test_trainings_of_other_modes_are_rows_whatever_they_are_called(tmp_path: Path) -> None:
    names = ("one", "two", "three")
    named = [write_cell(tmp_path, name, 4, name=f"{name}_mode", family=name) for name in names]
    assert list(dose_responses(trained_cells(arms_of(named), "arithmetic"))) == []
    page = build_report(named)
    assert "arithmetic: all trainings" in page and "three" in page


@pytest.mark.slow
def test_the_page_lays_the_papers_values_beside(
    tmp_path: Path, drawing_only: Callable[..., None]
) -> None:
    drawing_only("ablation")
    named = [write_cell(tmp_path, f"γ {s}", 5, noise_scale=s) for s in (0.1, 0.33, 1.0, 2.0)]
    page = build_report(named)
    assert "arithmetic: noise scale of the training" in page
    for text in ("paper 75.5 ± 0.8", "paper 76.7 ± 1.8", "paper 78.1 ± 0.2"):
        assert page.count(text) == 1
    assert "Llama 3.2 3B Instruct, trained and tested on GSM8K" in page


@pytest.mark.usefixtures("undrawn")
def test_only_labelled_runs_that_differ_are_set_side_by_side(tmp_path: Path) -> None:
    labelled = [write_cell(tmp_path, "a", 5), write_cell(tmp_path, "b", 4)]
    assert "Trainings side by side" not in build_report(labelled)
    bare = [text.split("=")[1] for text in labelled[:1]]
    assert "Trainings side by side" not in build_report(bare)


def test_seeds_that_kept_the_same_weights_are_seeds(tmp_path: Path) -> None:
    named = [write_cell(tmp_path, "a", 5, seed, weights="the base's") for seed in (0, 1)]
    [arm] = arms_of(named).arms
    assert arm.seeds == 2


@pytest.mark.parametrize(
    ("trained", "mode", "k", "text"),
    [
        (FUZZY | {"noise_scale": 3.0}, "hard_sample", 32, "95.9 ± 0.6"),
        (FUZZY | {"temperature": 0.1}, "hard_sample", 1, "63.1 ± 7.5"),
        (
            {"name": "logit_noise", "temperature": 0.5, "noise_scale": 0.33},
            "hard_greedy",
            1,
            "60 ± 14.3",
        ),
        ({}, "hard_sample", 32, "96.8"),
        (FUZZY | {"noise_scale": 0.2}, "hard_sample", 32, None),
        (FUZZY, "hard_sample", 4, None),
    ],
)
def test_the_papers_ablations_are_found_by_the_training(
    trained: dict[str, Any], mode: str, k: int, text: str | None
) -> None:
    found = paper_ablation(trained, mode, k)
    assert (found.text if found else None) == text
