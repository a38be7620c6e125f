"""pass@k beyond the samples: measured and extrapolated are kept apart, and models may disagree."""

from __future__ import annotations

import re

import numpy as np
import pytest
from report_runs import write_family

from softeval.errors import UserError
from softeval.reports.measured.arms import measure
from softeval.reports.page import ReportOptions, build_report
from softeval.reports.sections.beyond import MODELS, Continuation, find_beyond, meeting
from softeval.statistics import pass_at_k
from softeval.statistics.extrapolation import Extrapolation, extrapolate


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_family(
        tmp_path_factory.mktemp("family"), ("base", "soft"), seeds=2, questions=20, samples=4,
        positions=6, modes=("hard_greedy", "hard_sample"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def arms(folders):
    return measure([(None, folder) for folder in folders], positions=False)


def test_nothing_is_extrapolated_unasked(arms):
    assert find_beyond(arms, None) == []


def test_seeds_are_fitted_apart_and_averaged(arms):
    (figure,) = find_beyond(arms, 24)
    base, soft = figure.panels["hard"]
    assert (base.name, soft.name, figure.largest) == ("base", "soft", 24)
    cells = [c.cells["arithmetic", "hard_sample"] for c in arms.arms[1].checkpoints]
    ks = soft.beyond.ks.tolist()
    assert ks[0] == soft.beyond.n == 4 and ks[-1] == 24 and ks == sorted(set(ks))
    assert {8, 16} < set(ks)
    fits = [extrapolate(cell.n_M, cell.c_M, ks) for cell in cells]
    for model in MODELS:
        expected = np.mean([getattr(fit, model) for fit in fits], axis=0)
        np.testing.assert_allclose(getattr(soft.beyond, model), expected)
    measured = [pass_at_k(cell.n_M, cell.c_M, [1, 2, 4]).mean(0) for cell in cells]
    np.testing.assert_allclose(soft.measured, np.mean(measured, axis=0))


@pytest.mark.parametrize("largest", [4, 33])
def test_k_must_lie_beyond_the_samples_but_not_far(arms, largest):
    with pytest.raises(UserError, match=r"choose 5 to 32"):
        find_beyond(arms, largest)


def _continued(measured, *curves):
    beyond = Extrapolation(np.array([8, 16, 32]), *map(np.array, curves), n=8)
    return Continuation("x", [1, 8], np.array([0.1, measured]), beyond)


def test_a_meeting_is_where_the_measured_lead_ends():
    first = _continued(0.5, [0.5, 0.6, 0.8], [0.5, 0.6, 0.7], [0.5, 0.7, 0.9])
    second = _continued(0.6, [0.6, 0.7, 0.75], [0.6, 0.7, 0.75], [0.6, 0.6, 0.6])
    expected = {"beta_binomial": 32, "zero_inflated": None, "power_law": 16}
    assert meeting(first, second) == expected == meeting(second, first)
    assert set(meeting(first, first).values()) == {None}


@pytest.mark.slow
def test_the_report_keeps_it_out_of_every_table(folders, drawing_only):
    drawing_only("beyond")
    plain, page = (build_report(folders, ReportOptions(extrapolate=k)) for k in (None, 24))
    assert "Extrapolation, not measurement" in page
    assert "Extrapolation, not measurement" not in plain
    assert re.search(
        r"Against base, (no model has|a meeting by)[^:]*: soft \(hard inference\)\.", page
    )
    assert "--extrapolate 24" in page
    tables = [re.findall(r"<table>.*?</table>", text, re.DOTALL) for text in (plain, page)]
    own = "how it was made"  # holds the command
    kept, beside = ([table for table in some if own not in table] for some in tables)
    assert kept == beside and len(kept) == len(tables[0]) - 1
    assert "beyond0-" in page and "url(#beyond0-" in page  # the hatching
