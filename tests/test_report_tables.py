"""Tables, verdicts, paper reference, LaTeX: what is printed for given numbers."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from report_runs import keep_documents, write_checkpoint, write_family

from softeval.reports.contrasts import find_comparisons
from softeval.reports.differences import find_differences
from softeval.reports.escaping import clip, script_json, visible
from softeval.reports.measured.arms import Arm, measure
from softeval.reports.measured.scores import arm_score, curve_ks
from softeval.reports.paper import paper_model, paper_out_of_domain, paper_pass_at_k
from softeval.reports.sections.comparisons import comparison_table
from softeval.reports.sections.curves import curve_block, find_curves
from softeval.reports.sections.out_of_domain import OutOfDomainScore, table_row
from softeval.reports.sections.results import main_tables
from softeval.reports.sections.verdict import verdict_sentences
from softeval.reports.tables import (
    detectable_text,
    latex_text,
    margin_text,
    p_text,
    points,
    simple_table,
    to_latex,
)
from softeval.statistics import pass_at_k
from softeval.statistics.curves import Crossing
from softeval.statistics.interval import Interval


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    folders = write_family(
        tmp_path_factory.mktemp("family"), seeds=3, questions=16, samples=8, positions=2,
        modes=("hard_greedy", "hard_sample", "soft_sample"),
    )  # fmt: skip
    return measure([(None, folder) for folder in folders], positions=False)


def test_main_table_prints_the_crossed_means(arms):
    (main,) = main_tables(arms)
    assert main.metrics == (
        ("hard_greedy", 1), ("hard_sample", 1), ("hard_sample", 8), ("soft_sample", 1), ("soft_sample", 8),
    )  # fmt: skip
    soft = next(row for row in main.table.rows if row[0].text == "soft")
    cells = [c.cells["arithmetic", "hard_sample"] for c in arms.arms[2].checkpoints]
    means = [pass_at_k(cell.n_M, cell.c_M, [8]).mean() * 100 for cell in cells]
    assert soft[3].text == f"{np.mean(means):.1f} ± {np.std(means, ddof=1):.1f}"
    assert re.fullmatch(r"\[\d+\.\d, \d+\.\d\]", soft[3].note)
    base = next(row for row in main.table.rows if row[0].text == "base")
    assert "±" not in base[1].text  # one checkpoint has no SD, and none is printed
    assert any(cell.strong for row in main.table.rows for cell in row)


def _strong_cells(folders) -> int:
    (main,) = main_tables(measure([(None, folder) for folder in folders], positions=False))
    return sum(cell.strong for row in main.table.rows for cell in row)


def test_cells_are_shaded_on_the_same_questions_only(tmp_path):
    """Two arms of as many questions: none of them shared, then half of them shared."""
    options = {"questions": 36, "samples": 4, "positions": 6, "modes": ("hard_sample",)}
    folders = [write_checkpoint(tmp_path / m, m, **options) for m in ("base", "hard")]
    wins, losses = keep_documents(folders[1], 0, 24), keep_documents(folders[0], 12, 36)
    assert _strong_cells([wins, losses]) > 0
    _answer_all(wins, True)
    _answer_all(losses, False)
    assert _strong_cells([wins, losses]) == 2  # the better arm at both k
    keep_documents(wins, 0, 12)
    assert _strong_cells([wins, losses]) == 0
    keep_documents(losses, 24, 36)
    assert _strong_cells([wins, losses]) == 0


def _answer_all(folder, correct: bool) -> None:
    table = pq.read_table(folder / "samples.parquet")
    place = table.schema.get_field_index("correct")
    column = pa.array([correct] * table.num_rows, table.schema.field(place).type)
    pq.write_table(
        table.set_column(place, table.schema.field(place), column), folder / "samples.parquet"
    )


def test_csv_holds_full_precision_and_can_be_read_back(arms):
    (main,) = main_tables(arms)
    rows = list(csv.DictReader(io.StringIO(main.table.csv())))
    assert len(rows) == 4 * 5
    row = next(
        r for r in rows if (r["training"], r["mode"], r["k"]) == ("soft", "hard_sample", "8")
    )
    score = arm_score(arms.arms[2], ("arithmetic", "hard_sample"), 8)
    assert float(row["mean_percent"]) == pytest.approx(100 * score.mean.mean, abs=1e-4)
    seeds = [float(value) for value in row["seed_means_percent"].split()]
    assert seeds == pytest.approx([100 * value for value in score.mean.seed_means], abs=1e-4)


def test_csv_cells_cannot_be_formulas():
    table = simple_table("c", ["=1+1", "b"], [["@SUM(A1)", "-cmd"], ["+x", "-1.5"]])
    cells = [cell for row in csv.reader(io.StringIO(table.csv())) for cell in row]
    assert cells == ["'=1+1", "b", "'@SUM(A1)", "'-cmd", "'+x", "-1.5"]


def test_latex_of_a_table_is_balanced_and_escaped(arms):
    (main,) = main_tables(arms)
    text = to_latex(main.table)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in body[1:]} == {5}
    assert r"hard\_" not in text and "hard greedy" in text
    assert latex_text("50 % of a_b & {c} \\ $x$") == (
        r"50 \% of a\_b \& \{c\} \textbackslash{} \$x\$"
    )
    assert "\n" not in latex_text("a\nb\x00")


def test_points_and_p_values():
    assert points(0.12345) == "12.3" and points(-0.01, sign=True) == "−1.0"
    assert points(0.5125 - 1e-16) == points(0.5125 + 1e-16)
    assert points(0.01, sign=True) == "+1.0" and points(float("nan")) == "–"
    assert p_text(0.0004) == "< .001" and p_text(0.0421) == ".042" and p_text(1.0) == "1.000"


def test_primary_contrasts_are_those_against_hard_training(arms):
    found = find_comparisons(arms)
    primary = {(c.name, c.metric.mode, c.metric.k) for c in found if c.primary}
    assert primary == {
        (f"{a} − hard", mode, k)
        for a in ("fuzzy", "soft")
        for mode, k in (("hard_greedy", 1), ("hard_sample", 8))
    }
    assert all(c.verdict.p >= c.contrast.p for c in found if c.primary)
    assert all(c.verdict.p == c.contrast.p for c in found if not c.primary)


def test_a_declared_contrast_replaces_the_default_ones(arms):
    found = find_comparisons(arms, ["soft-base:soft_sample@4"])
    assert [(c.name, c.metric.k) for c in found if c.primary] == [("soft − base", 4)]


def test_verdict_words_are_those_of_the_tests(arms):
    comparisons, differences = find_comparisons(arms), find_differences(arms, 200)
    sentences = verdict_sentences(arms, comparisons, differences, 0.02)
    assert 2 <= len(sentences) <= 6
    text = " ".join(s.text for s in sentences)
    for c in (c for c in comparisons if c.primary):
        effect = f"{points(c.contrast.diff, sign=True)} points"
        assert effect in text and c.verdict.word in text
    assert "no difference" not in text.lower()
    assert all(s.scope for s in sentences if "against" in s.text)


def _told_of(arms, order, a_ks, b_ks, **changes) -> str:
    difference = find_differences(arms, 50)[0]
    judged = replace(difference.order, word=order, a_ks=a_ks, b_ks=b_ks)
    changed = replace(difference, order=judged, **changes)
    return verdict_sentences(arms, [], [changed], 0.02)[-1].text


def test_a_crossing_names_who_is_ahead_on_which_side(arms):
    changes = Crossing(3, 8, 1, 0.2, 2.0, 5.0, (5, 7))
    told = _told_of(arms, "cross", (1, 2), (8,), crossing=changes)
    assert "hard is ahead at k = 1 and 2, base at k = 8" in told
    assert "first changes sign at k = 3 and again at k = 5 and 7, 95 % of such" in told
    told = _told_of(arms, "cross", (8,), (1, 2), crossing=changes)
    assert "base is ahead at k = 1 and 2, hard at k = 8" in told


def test_a_sign_change_alone_is_neither_a_lead_nor_a_crossing(arms):
    changes = Crossing(3, 8, 1, 0.2, 2.0, 5.0)
    told = _told_of(arms, "undecided", (), (), crossing=changes)
    assert "hard cannot be told apart from that of base up to k = 8" in told
    assert "lead" not in told and "cross" not in told
    told = _told_of(arms, "a leads", (1, 2, 4), ())
    assert (
        "hard leads that of base at k = 1 to 4 and cannot be told apart from it elsewhere" in told
    )
    told = _told_of(arms, "b leads", (), (1, 2, 4, 8))
    assert "base leads that of hard at k = 1 to 8;" in told
    assert "hard coincides with that of base up to k = 8" in _told_of(arms, "coincide", (), ())


def test_the_margin_is_printed_as_given(arms):
    comparisons = find_comparisons(arms, margin=0.995)
    told = " ".join(s.text for s in verdict_sentences(arms, comparisons, [], 0.995))
    assert "±99.5 points" in told
    table = comparison_table(comparisons, 0.995)
    words = " ".join(cell.text for row in table.rows for cell in row)
    assert "(±99.5)" in words or "less than 99.5" in words
    assert margin_text(0.02) == "2" and margin_text(0.015) == "1.5"


@pytest.mark.parametrize(
    ("raw", "blamed"), [(0.03, "after Holm's adjustment"), (0.0625, "by the exact test")]
)
def test_holm_is_blamed_only_where_it_made_the_difference(arms, raw, blamed):
    first = next(c for c in find_comparisons(arms) if c.primary)
    contrast = replace(first.contrast, low=0.01, high=0.2, p=raw)
    verdict = replace(first.verdict, word="inconclusive", p=0.0625)
    changed = replace(first, contrast=contrast, verdict=verdict)
    told = verdict_sentences(arms, [changed], [], 0.02)[0].text
    assert f"not significant {blamed};" in told


def test_labels_keep_their_order_and_their_endings(arms):
    """A label may end like a mode; the first label is what the others are measured against."""
    folders = [arm.checkpoints[0].runs[0].path for arm in arms.arms]
    labels = ("zeta", "mid_sample", "alpha")
    named = measure(list(zip(labels, folders, strict=False)), positions=False)
    assert [arm.method for arm in named.arms] == list(labels)
    told = " ".join(s.text for s in verdict_sentences(named, find_comparisons(named), [], 0.02))
    assert "the checkpoint mid_sample against zeta is" in told
    differences = find_differences(named, 50)
    told = " ".join(s.text for s in verdict_sentences(named, [], differences, 0.02))
    assert "mid_sample" in told and not re.search(r"mid(?!_sample)", told)


def test_the_base_model_is_called_so_among_several_families(tmp_path):
    options = {"questions": 6, "samples": 2, "positions": 6, "modes": ("hard_greedy",)}
    folders = [write_checkpoint(tmp_path / m, m, **options) for m in ("base", "soft")]
    other = {"path": "checkpoints/other", "weights_hash": "other"}
    folders.append(write_checkpoint(tmp_path / "other", record_changes={"model": other}, **options))
    arms = measure([(None, folder) for folder in folders], positions=False)
    told = verdict_sentences(arms, find_comparisons(arms), [], 0.02)[0].text
    assert "the checkpoint base · soft against the base model base is" in told


@pytest.mark.slow
def test_each_panel_names_what_it_is_measured_against(tmp_path):
    options = {"questions": 6, "samples": 2, "positions": 6}
    modes = ("hard_sample", "fuzzy_sample", "soft_sample")
    folders = [write_checkpoint(tmp_path / "base", modes=modes[:1], **options)]
    folders += [write_checkpoint(tmp_path / m, m, modes=modes, **options) for m in ("hard", "soft")]
    arms = measure([(None, folder) for folder in folders], positions=False)
    (figure,) = find_curves(arms, find_differences(arms, 50))
    assert [panel.baseline for panel in figure.panels] == ["base", "hard", "hard"]
    block = curve_block(figure, 0)
    assert "from base (hard inference) and hard (soft inference, fuzzy inference)" in block.caption
    assert block.svg.count(">minus hard<") == 2 and ">minus base<" in block.svg


@pytest.mark.parametrize("mode", ["hard_sample", "hard-sample"])
def test_a_declared_contrast_takes_either_spelling_of_a_mode(arms, mode):
    first = find_comparisons(arms, [f"soft-hard:{mode}@8"])[0]
    assert first.primary and first.metric.mode == "hard_sample"


def test_without_comparisons_the_scores_are_told(arms):
    base = measure([(None, arms.runs[0].path)], positions=False)
    told = verdict_sentences(base, [], [], 0.02)
    assert told[0].text.startswith("base solves") and "greedy pass@1" in told[0].text
    assert told[0].text.endswith("(16 questions).")


def _paper_arm(family: str, method: str, dataset: str | None) -> Arm:
    return Arm(family, method, dataset, ())


def test_paper_numbers_are_those_of_the_files():
    soft = _paper_arm("Llama-3.2-3B-Instruct", "soft", "gsm8k")
    assert paper_pass_at_k(soft, "gsm8k", "hard_sample", 32).text == "97.9 ± 0.3"
    base = _paper_arm("meta-Llama-3.2-3B-Instruct", "base", None)
    assert paper_pass_at_k(base, "gsm8k", "hard_greedy", 1).text == "71.4"  # one model, no spread
    assert paper_out_of_domain(soft, "arc_challenge", "accuracy_percent") is not None
    assert paper_pass_at_k(soft, "arithmetic", "hard_sample", 32) is None
    assert paper_pass_at_k(soft, "gsm8k", "hard_sample", 7) is None
    assert paper_pass_at_k(_paper_arm("gpt2", "soft", "gsm8k"), "gsm8k", "hard_greedy", 1) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"max_cot_tokens": 128}},
        {"config": {"max_cot_tokens": 512, "apply_chat_template": True}},
        {"modes": [{"name": "hard_sample", "temperature": 0.7, "noise_scale": 0.0}]},
        {"datasets": [{"name": "gsm8k", "rows": 1319, "sha256": "0" * 64, "split": "test"}]},
        {},
    ],
)
def test_the_paper_is_matched_only_where_its_settings_were_used(tmp_path, changes):
    training = {"method": "soft", "dataset": "gsm8k", "train_seed": 0}
    training["base"] = "meta-llama/Llama-3.2-3B-Instruct"
    folder = write_checkpoint(
        tmp_path / "run", "soft", tasks=("gsm8k",), modes=("hard_sample",), questions=4, samples=2,
        positions=6, record_changes={"training": training, **changes},
    )  # fmt: skip
    (arm,) = measure([(None, folder)], positions=False).arms
    assert (paper_pass_at_k(arm, "gsm8k", "hard_sample", 1) is None) == bool(changes)


def test_an_interval_of_what_is_never_negative_starts_at_zero():
    interval = Interval(0.01, -0.004, 0.027, 0.95, float("nan"), 3, 4)
    mean = SimpleNamespace(interval=interval, mean=0.01, sd=float("nan"))
    score = OutOfDomainScore(_paper_arm("x", "base", None), "a", "arc", mean, mean, None, 4)
    assert table_row(score, False)[2].note == "[0.000, 0.027]"


def test_every_row_of_the_papers_table_can_be_matched():
    with (ROOT / "reports" / "data" / "pass_at_k.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 486
    for row in rows:
        none = row["train_method"] == "none"
        arm = _paper_arm(
            row["model"],
            "base" if none else row["train_method"],
            None if none else row["train_dataset"],
        )
        found = paper_pass_at_k(arm, row["task"], row["mode"], int(row["k"]))
        assert found.mean == float(row["mean_percent"]) and found.source == row["source"]


@pytest.mark.parametrize(
    ("name", "paper"),
    [
        ("Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct"),
        ("Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct"),
        ("Qwen2.5-3B-Instruct", "qwen-2.5-3b-instruct"),
        ("base", "base"),
    ],
)
def test_model_names_are_spelled_as_in_the_paper(name, paper):
    assert paper_model(name) == paper


@given(st.text())
def test_visible_text_hides_nothing(text):
    shown = visible(text)
    assert visible(shown) == shown
    assert not any(0x202A <= ord(c) <= 0x202E or (ord(c) < 32 and c not in "\n\t") for c in shown)


@given(st.text())
def test_json_in_a_script_is_inert_and_means_the_same(text):
    import json

    packed = script_json({"x": text})
    assert not set("<>&\u2028\u2029") & set(packed)
    assert json.loads(packed) == {"x": text}


def test_clipped_text_says_how_much_is_missing():
    assert clip("abc", 3) == "abc"
    assert clip("a" * 2000, 500).endswith("… [1,500 more characters]")


def test_curves_are_drawn_at_powers_of_two_and_n():
    assert curve_ks(32) == [1, 2, 4, 8, 16, 32]
    assert curve_ks(20) == [1, 2, 4, 8, 16, 20]
    assert curve_ks(1) == [1]


@pytest.mark.slow
def test_numbers_on_an_axis_are_printed_as_they_are():
    from softeval.reports.drawing import new_figure, styled, to_svg

    with styled():
        figure = new_figure(2.0)
        axes = figure.subplots()
        axes.plot([0.001234567, 0.003], [1, 2])
        axes.set_xticks([0.001, 0.003], ["0.001234567", "0.003"])
        axes.set_xlabel("a < b & $c$ \u202e 1.23456")
    svg = to_svg(figure, "x", "title <&>", "description")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert "a &lt; b &amp; $c$ ⟨U+202E⟩ 1.23456" in texts
    assert {"0.001234567", "0.003"} <= set(texts)
    assert "title &lt;&amp;&gt;" in svg
    assert max(len(part) for part in re.findall(r"\.(\d+)", re.sub(r">[^<]*<", "><", svg))) == 2


def test_no_detectable_difference_is_larger_than_all_there_is():
    told = [detectable_text(mde) for mde in (0.05, 1.0, 3.1, float("inf"), float("nan"))]
    assert told == ["5.0", "100.0", "over 100", "over 100", "–"]
