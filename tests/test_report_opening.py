"""What a report says first, for given counts; two modes compared; many runs in one table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_runs import write_checkpoint, write_counts

from softeval.errors import UserError
from softeval.reports.compare import compare_runs
from softeval.reports.contrasts import find_comparisons
from softeval.reports.differences import find_differences, order_parts
from softeval.reports.leaderboard import find_boards, leaderboard_page
from softeval.reports.material import Material, ReportOptions
from softeval.reports.measured.arms import measure
from softeval.reports.sections.entropy import entropy_told, find_entropy
from softeval.reports.sections.kl import find_kl, main_rows
from softeval.reports.sections.opening import (
    SECTION,
    clearest,
    gains,
    lead,
    lead_of_training,
    levels,
)
from softeval.reports.sections.results import main_tables
from softeval.reports.tables import interval_text
from softeval.statistics import pass_at_k

M, N = 40, 8


def _counts(right: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(M, N), np.full(M, right)


def _model(folder: Path, cells: dict[str, int], **changes) -> Path:
    model = {"path": f"hub/{folder.name}", "weights_hash": folder.name}
    counts = {mode: _counts(right) for mode, right in cells.items()}
    return write_counts(folder, "base", counts, record_changes={"model": model}, **changes)


def _arms(*folders: Path):
    arms = measure([(None, folder) for folder in folders], positions=False)
    return arms, find_comparisons(arms)


def test_the_lead_says_what_each_side_solves_and_who_is_better(tmp_path):
    arms, found = _arms(
        write_counts(tmp_path / "hard", "hard", {"hard_sample": _counts(2)}),
        write_counts(tmp_path / "soft", "soft", {"hard_sample": (np.full(M, N), np.arange(M) % 2 * 8)}),
        write_counts(tmp_path / "fuzzy", "fuzzy", {"hard_sample": _counts(2)}),
    )  # fmt: skip
    told = lead(arms, clearest([c for c in found if c.primary]), 0.02)
    assert told == (
        "On arithmetic under hard inference, the hard-trained checkpoint solves 100.0 % at pass@8;"
        " worse: the soft-trained checkpoint (50.0 %); not told apart from it: the fuzzy-trained"
        " checkpoint (100.0 %)."
    )


def test_the_first_sentence_is_about_what_was_trained_against_its_base(tmp_path):
    """Hard training solves half of the questions always, the base all of them one time in four."""
    half = np.full(M, N), np.where(np.arange(M) < M // 2, N, 0)
    arms, found = _arms(
        base := write_counts(tmp_path / "base", "base", {"hard_sample": _counts(2)}),
        hard := write_counts(tmp_path / "hard", "hard", {"hard_sample": half}),
        write_counts(tmp_path / "soft", "soft", {"hard_sample": _counts(2)}),
    )
    gained = gains(found, "arithmetic")
    differences = find_differences(arms, 50)
    told = lead_of_training(gained, differences)
    [c] = [c for c in gained if c.a.name == "hard"]
    met = next(d for d in differences if d.a.name == "hard").meeting()
    assert told == (
        "On arithmetic under hard inference, the base model solves 100.0 % at pass@8, the hard-trained"
        f" checkpoint 50.0 % (−50.0 points {interval_text(c.contrast.low, c.contrast.high)}; the curves"
        f" cross at about k = {met:.0f}, ahead at k = 1 and behind at k = 4 and 8), the soft-trained"
        " checkpoint 100.0 % (+0.0 points [−8.8, 8.8]; the same curve)."
    )
    first, *_ = SECTION.parts(Material(arms, (), ReportOptions()))
    opening = "On arithmetic under hard inference, the"
    assert first.text.startswith(f"{opening} base model solves 100.0 %")
    then = "Against the hard-trained checkpoint at pass@8, better: the soft-trained checkpoint."
    assert then in first.text and first.text.count("50.0 %") == 1  # each figure is told once
    alone, *_ = SECTION.parts(Material(_arms(base, hard)[0], (), ReportOptions()))
    assert alone.text.count(opening) == 1  # the primary comparison is the one that was told


def test_levels_stand_beside_their_difference_from_one_reference(tmp_path):
    arms, found = _arms(
        write_counts(tmp_path / "base", "base", {"hard_sample": _counts(2)}),
        write_counts(tmp_path / "hard", "hard", {"hard_sample": _counts(4)}),
        write_counts(tmp_path / "soft", "soft", {"hard_sample": _counts(8)}),
    )
    shown = levels(arms, found, "arithmetic")
    cells = {name: row["pass@1"] for name, row in shown["rows"].items()}
    assert [cells[name]["level"] for name in ("base", "hard", "soft")] == ["25.0", "50.0", "100.0"]
    differences = [cells[name]["difference"] for name in ("base", "hard", "soft")]
    assert differences == ["−25.0", "", "+50.0"] and shown["against"] == "hard"
    assert cells["soft"]["sure"] and not cells["hard"]["sure"]
    alike = [replace(c, verdict=replace(c.verdict, word="equivalent")) for c in found]
    rows = levels(arms, alike, "arithmetic")["rows"].values()
    assert not any(cell["sure"] for row in rows for cell in row.values())


def test_models_are_row_groups_of_one_table_where_one_has_several_arms(tmp_path):
    options = {"questions": 4, "samples": 2, "positions": 3, "modes": ("hard_sample",)}
    folders = [write_checkpoint(tmp_path / m, m, **options) for m in ("base", "soft")]
    other = _model(tmp_path / "other", {"hard_sample": 2})
    (main,) = main_tables(_arms(*folders)[0])
    assert main.table.row_groups == {} and "±" not in main.table.caption
    arms = measure([(None, f) for f in folders], positions=False)
    renamed = [replace(arm, family="two") for arm in measure([(None, other)]).arms]
    (main,) = main_tables(replace(arms, arms=(*arms.arms, *renamed)))
    assert main.table.row_groups == {0: "base", 2: "two"}
    assert r"\multicolumn{3}{l}{\textit{two}} \\" in _latex(main.table)


def test_the_best_is_shaded_among_the_arms_of_its_own_model(tmp_path):
    models = []
    for family, solved in (("one", {"base": 2, "soft": 8}), ("two", {"base": 1, "soft": 4})):
        folders = [
            write_counts(tmp_path / f"{family}-{m}", m, {"hard_sample": _counts(right)})
            for m, right in solved.items()
        ]
        found = measure([(None, folder) for folder in folders], positions=False)
        models.append(replace(found, arms=tuple(replace(a, family=family) for a in found.arms)))
    (main,) = main_tables(replace(models[0], arms=(*models[0].arms, *models[1].arms)))
    assert [row[1].text for row in main.table.rows] == ["100.0", "25.0", "50.0", "12.5"]
    assert [row[1].strong for row in main.table.rows] == [True, False, True, False]


def _latex(table) -> str:
    from softeval.reports.tables import to_latex

    return to_latex(table)


def test_curves_meet_where_their_drawn_difference_is_zero(tmp_path):
    half = np.where(np.arange(M) < M // 2, N, 0)
    a = write_counts(tmp_path / "hard", "hard", {"hard_sample": (np.full(M, N), half)})
    b = write_counts(tmp_path / "base", "base", {"hard_sample": _counts(2)})
    arms, _ = _arms(b, a)
    (d,) = find_differences(arms, 50)
    k = d.meeting()
    ks, mean_K = d.band.ks, d.band.mean
    assert np.interp(np.log2(k), np.log2(ks), mean_K) == pytest.approx(0, abs=1e-9)
    assert ks[0] < k < ks[-1]
    (table,) = order_parts([d], "x")
    assert table.kind == "table"
    alike = replace(d, order=replace(d.order, word="undecided"))
    (sentence,) = order_parts([alike], "x")
    assert sentence.text.endswith("not told apart in hard − base (hard sample).")
    level = replace(d, band=replace(d.band, mean=np.ones(len(ks))))
    assert level.meeting() is None and order_parts([], "x") == ()


def test_entropy_is_told_by_paired_differences_and_kl_in_two_rows(tmp_path):
    options = {"questions": 40, "samples": 4, "positions": 8, "modes": ("hard_sample",)}
    folders = [write_checkpoint(tmp_path / m, m, kl=True, **options) for m in ("base", "hard")]
    arms = measure([(None, folder) for folder in folders])
    (figure,) = find_entropy(arms, ["all"])
    told = entropy_told(arms, figure)
    assert told.startswith("Mean entropy of a CoT on arithmetic under hard sample, nats: base ")
    assert "; lower: hard 0." in told
    rows = main_rows(arms, find_kl(arms))
    assert {(s.kind, s.name) for s in rows} == {
        (kind, name)
        for kind in ("forward on base prefixes", "reverse on own prefixes")
        for name in ("base", "hard")
    }


def test_two_modes_of_a_run_are_compared_question_by_question(tmp_path):
    rng = np.random.default_rng(0)
    c = {mode: rng.binomial(N, p, M) for mode, p in (("hard_sample", 0.3), ("soft_sample", 0.6))}
    run = write_counts(tmp_path / "run", "base", {m: (np.full(M, N), c_M) for m, c_M in c.items()})
    found = compare_runs([f"{run}:soft-sample"], [f"{run}:hard_sample"])
    assert [(one.a.mode, one.b.mode, one.metric.k) for one in found] == [
        ("soft_sample", "hard_sample", 1),
        ("soft_sample", "hard_sample", 8),
    ]
    for one in found:
        x, y = (
            pass_at_k(np.full(M, N), c[m], [one.metric.k]) for m in ("soft_sample", "hard_sample")
        )
        assert one.contrast.diff == pytest.approx((x - y).mean())
    again = compare_runs([f"{run}:soft_sample"], [run])
    assert {(one.a.mode, one.b.mode) for one in again} == {("soft_sample", "soft_sample")}
    assert [one.warning for one in again] == ["A and B are the same: every difference is 0."] * 2
    assert not any(one.warning for one in found)
    with pytest.raises(UserError, match="--mode and RUN:MODE both name a mode"):
        compare_runs([f"{run}:soft_sample"], [run], mode="hard_sample")
    with pytest.raises(UserError, match="'soft_greedy' is not in A"):
        compare_runs([f"{run}:soft_greedy"], [f"{run}:hard_sample"])
    with pytest.raises(UserError, match="B ends in a colon"):
        compare_runs([run], [f"{run}:"])
    with pytest.raises(UserError, match="A names several modes"):
        compare_runs([f"{run}:soft_sample", f"{run}:hard_sample"], [run])


def test_modes_of_seeds_are_paired_by_seed(tmp_path):
    seeds = [
        write_counts(tmp_path / str(s), "soft", {"hard_sample": _counts(2 + s), "soft_sample": _counts(3 + s)}, s)
        for s in range(3)
    ]  # fmt: skip
    a, b = ([f"{seed}:{mode}" for seed in seeds] for mode in ("soft_sample", "hard_sample"))
    assert compare_runs(a, b)[0].contrast.test == "crossed t, paired by seed"


def test_a_leaderboard_sorts_marks_what_differs_and_parts_other_questions(tmp_path):
    _model(tmp_path / "deep" / "er" / "best", {"hard_sample": 6, "soft_sample": 7})
    _model(tmp_path / "worst", {"hard_sample": 1}, config={"max_cot_tokens": 64})
    few = {"hard_sample": (np.full(5, N), np.full(5, 8))}
    write_counts(tmp_path / "few", "base", few)
    boards, notes = find_boards(tmp_path)
    large, small = sorted(boards, key=lambda board: -board.questions)
    assert [(e.run, e.mode) for e in large.entries] == [
        ("deep/er/best", "soft_sample"),
        ("deep/er/best", "hard_sample"),
        ("worst", "hard_sample"),
    ]
    assert large.table.columns == ("run", "model", "mode", "cap", "pass@1", "pass@8")
    assert [row[3].text for row in large.table.rows] == ["512", "512", "64"]
    assert [row[4].strong for row in large.table.rows] == [True, False, False]
    assert (small.questions, small.table.columns[3]) == (5, "pass@1") and notes == []
    page = leaderboard_page(tmp_path, boards, ["run x is not finished"])
    assert "run x is not finished" in page and page.index("deep/er/best") < page.index(">worst<")
    with pytest.raises(UserError, match="no scored samples of gsm8k"):
        find_boards(tmp_path, "gsm8k")
    with pytest.raises(UserError, match="no folder"):
        find_boards(tmp_path / "nosuch")


def test_a_leaderboard_lists_equal_modes_in_the_order_of_reports(tmp_path):
    modes = ("hard_sample", "soft_sample", "fuzzy_sample")
    _model(tmp_path / "one", dict.fromkeys(sorted(modes), 4))
    ((board,), _) = find_boards(tmp_path)
    assert tuple(entry.mode for entry in board.entries) == modes


def test_compare_and_leaderboard_as_commands(tmp_path):
    from typer.testing import CliRunner

    from softeval.cli.main import build_app

    def run(*words):
        return CliRunner().invoke(build_app(), list(map(str, words)))

    folder = _model(tmp_path / "one", {"hard_sample": 2, "soft_sample": 6})
    printed = run("compare", f"{folder}:soft_sample", f"{folder}:hard_sample", "--k", 1).stdout
    assert "| arithmetic | soft sample − hard sample pass@1 | 40 | 75.0 | 25.0 | +50.0 |" in printed
    (record,) = json.loads(
        run("compare", f"{folder}:soft_sample", f"{folder}:hard_sample", "--k", 1, "--json").stdout
    )
    assert (record["mode"], record["mode_b"]) == ("soft_sample", "hard_sample")
    output = tmp_path / "board.html"
    printed = run("leaderboard", tmp_path, "-o", output).stdout
    assert (
        "| one | one · base | soft sample | 75.0 [" in printed
        and f"leaderboard: {output}" in printed
    )
    assert "<h1>Runs below" in output.read_text()
