"""What a report says in sentences, for given counts: nothing that the numbers do not bear out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_runs import write_counts

from softeval.errors import UserError
from softeval.reports.contrasts import declaration_notes, find_comparisons
from softeval.reports.differences import find_differences
from softeval.reports.measured.arms import measure
from softeval.reports.sections.comparisons import comparison_table
from softeval.reports.sections.results import main_tables
from softeval.reports.sections.verdict import verdict_sentences

M, N = 40, 8


def _told(folders, contrasts=()):
    named = [folder if isinstance(folder, tuple) else (None, folder) for folder in folders]
    arms = measure(named, positions=False)
    comparisons = find_comparisons(arms, contrasts)
    return (
        arms,
        comparisons,
        verdict_sentences(arms, comparisons, find_differences(arms, 100), 0.02),
    )


def _text(folders, contrasts=()) -> str:
    return " ".join(s.text for s in _told(folders, contrasts)[-1])


def _counts(rng, chance, n=N, questions=M):
    return np.full(questions, n), rng.binomial(n, np.broadcast_to(chance, questions))


def _write(folder: Path, method: str, chance, seed: int = 0, size=(N, M), **options) -> Path:
    rng = np.random.default_rng([seed, *folder.name.encode()])
    cells = {"hard_sample": _counts(rng, chance, *size)}
    return write_counts(folder, method, cells, seed, **options)


@pytest.mark.slow
def test_equal_models_neither_lead_nor_cross(tmp_path):
    claims = 0
    for draw in range(6):
        p = np.random.default_rng(draw).beta(0.5, 0.5, M)
        folders = [_write(tmp_path / f"{m}{draw}", m, p) for m in ("base", "hard")]
        text = _text(folders)
        claims += " leads " in text or " cross" in text
    assert claims <= 1  # at most 5 % of verdicts claim either


def test_a_crossing_is_said_where_both_sides_are_sure(tmp_path):
    """A solves half of the questions always, B all of them one time in four."""
    half = np.where(np.arange(M) < M // 2, N, 0)
    a = write_counts(tmp_path / "hard", "hard", {"hard_sample": (np.full(M, N), half)})
    quarter = np.full(M, N // 4)
    b = write_counts(tmp_path / "base", "base", {"hard_sample": (np.full(M, N), quarter)})
    text = _text([b, a])
    assert "the pass@k curves of hard and base cross: hard is ahead at k = 1, base at k = " in text


def test_identical_counts_coincide(tmp_path):
    cells = {"hard_sample": _counts(np.random.default_rng(0), 0.5)}
    folders = [write_counts(tmp_path / m, m, cells) for m in ("base", "hard")]
    assert "the pass@k curve of hard coincides with that of base up to k = 8" in _text(folders)


def test_a_base_model_and_one_method_are_compared(tmp_path):
    folders = [_write(tmp_path / "base", "base", 0.2)]
    folders += [_write(tmp_path / f"hard{s}", "hard", 0.7, s) for s in range(3)]
    _, comparisons, sentences = _told(folders)
    assert [c.name for c in comparisons if c.primary] == ["hard − base"]
    assert "hard training against the base model is better at pass@8" in sentences[0].text
    assert sentences[0].scope.endswith("but the base model stands for itself only")


def test_one_seed_is_a_checkpoint_and_several_are_training(tmp_path):
    base = _write(tmp_path / "base", "base", 0.2)
    hard = [_write(tmp_path / f"hard{s}", "hard", 0.4, s) for s in range(3)]
    soft = _write(tmp_path / "soft", "soft", 0.6)
    one = _told([base, hard[0], soft])[-1][0]
    assert "the soft-trained checkpoint against the hard-trained checkpoint is" in one.text
    assert one.scope == "these checkpoints only"
    mixed = _told([base, *hard, soft])[-1][0]
    assert "the soft-trained checkpoint against hard training is" in mixed.text
    assert mixed.scope == (
        "generalises over seeds and problems, but the soft-trained checkpoint stands for itself only"
    )


def _model(folder: Path, chances: dict[str, float]) -> Path:
    rng = np.random.default_rng(list(folder.name.encode()))
    cells = {mode: _counts(rng, chance) for mode, chance in chances.items()}
    model = {"path": f"hub/{folder.name}", "weights_hash": folder.name}
    return write_counts(folder, "base", cells, record_changes={"model": model})


@pytest.fixture
def models(tmp_path):
    chances = {"qwen": (0.9, 0.2), "stories": (0.1, 0.01), "llama": (0.4, 0.3)}
    return {
        name: _model(tmp_path / name, {"hard_sample": hard, "soft_sample": soft})
        for name, (hard, soft) in chances.items()
    }


def test_models_are_compared_as_models_and_their_modes_within_each(models):
    _, comparisons, sentences = _told([models["qwen"], models["stories"]])
    text = " ".join(s.text for s in sentences)
    assert "training" not in text and "trained" not in text
    assert "stories against qwen is worse at pass@" in text
    assert "with qwen, soft inference against hard inference is worse" in text
    names = {c.name for c in comparisons if c.primary}
    assert names == {
        "stories − qwen",
        "qwen soft sample − qwen hard sample",
        "stories soft sample − stories hard sample",
    }
    pairs = {c.name for c in _told(list(models.values()))[1] if c.a.mode == c.b.mode}
    assert pairs == {"qwen − llama", "stories − llama", "stories − qwen"}


def test_labels_of_models_do_not_make_them_trainings(models):
    text = _text([("a", models["qwen"]), ("b", models["stories"])])
    assert "b against a is worse" in text and "training" not in text
    assert "with b, soft inference against hard inference is" in text


@pytest.mark.slow
def test_every_significant_primary_finding_is_told_and_the_rest_counted(tmp_path):
    """Twelve tasks; only on the last in the alphabet does soft training lose."""
    folders = []
    for index in range(12):
        task, lost = f"task_{chr(97 + index)}", index >= 10
        for method, chance in (("base", 0.3), ("hard", 0.5), ("soft", 0.05 if lost else 0.5)):
            hashed = {"path": f"checkpoints/{method}", "weights_hash": method}
            folders.append(
                _write(
                    tmp_path / f"{method}-{task}", method, chance, size=(4, 16), task=task,
                    record_changes={"model": hashed},
                )
            )  # fmt: skip
    _, comparisons, sentences = _told(folders)
    primary = [c for c in comparisons if c.primary]
    text = " ".join(s.text for s in sentences)
    significant = [c for c in primary if c.verdict.word in ("better", "worse")]
    assert {"task_k", "task_l"} <= {c.metric.task for c in significant} and len(primary) == 12
    assert all(f"On {c.metric.task} (" in text for c in significant)
    assert "task_k" in sentences[0].text + sentences[1].text
    told = sum(s.text.startswith("On ") and " against " in s.text for s in sentences)
    assert f"{12 - told} more primary comparisons ({12 - told} inconclusive)" in sentences[-1].text


@pytest.mark.slow
def test_cut_chains_of_thought_and_other_caps_stand_beside_the_sentence(tmp_path):
    hard = [_write(tmp_path / f"h{s}", "hard", 0.2, s, truncated=0.9) for s in range(2)]
    soft = [_write(tmp_path / f"s{s}", "soft", 0.7, s) for s in range(2)]
    caveat = _told([*hard, *soft])[-1][0].caveat
    assert "CoTs cut at the cap under hard sample: 0 % of soft and " in caveat
    assert 80 <= int(caveat.split(" and ")[1].split()[0]) <= 100
    cap = {"max_cot_tokens": 64}
    other = [_write(tmp_path / f"o{s}", "soft", 0.7, s, config=cap) for s in range(2)]
    clean = [_write(tmp_path / f"c{s}", "hard", 0.2, s) for s in range(2)]
    assert _told([*clean, *other])[-1][0].caveat == "caps differ: 64 in soft, 512 in hard"
    assert _told([*clean, *soft])[-1][0].caveat == ""


def test_equivalence_is_printed_with_the_interval_it_rests_on(tmp_path):
    cells = {"hard_greedy": (np.ones(160, int), np.arange(160) % 2)}
    folders = [write_counts(tmp_path / m, m, cells) for m in ("base", "hard")]
    _, comparisons, sentences = _told(folders)
    (primary,) = [c for c in comparisons if c.primary]
    found = primary.verdict.equivalence
    assert primary.verdict.word == "equivalent" and found.low != primary.contrast.low
    shown = f"90 % interval [{100 * found.low:.1f}, {100 * found.high:.1f}]".replace("-", "−")
    assert f"within ±2 points (+0.0 points, {shown})" in sentences[0].text
    words = " ".join(cell.text for row in comparison_table([primary], 0.02).rows for cell in row)
    assert shown in words


@pytest.fixture
def uneven(tmp_path):
    """Soft runs with all samples on the easy half only."""
    p = np.linspace(1, 0, M)
    rng = np.random.default_rng(1)
    n_M = np.where(np.arange(M) < 24, N, 2)
    hard = [_write(tmp_path / f"h{s}", "hard", p, s) for s in range(2)]
    soft = [
        write_counts(tmp_path / f"s{s}", "soft", {"hard_sample": (n_M, rng.binomial(n_M, p))}, s)
        for s in range(2)
    ]
    return [*hard, *soft]


def test_what_stands_on_fewer_questions_says_so(uneven):
    arms, comparisons, sentences = _told(uneven)
    told = " ".join(s.text for s in sentences)
    assert "at pass@8 on 24 of these questions" in told and "On arithmetic (40 questions)" in told
    assert "up to k = 8, on 24 of 40 questions" in told
    (main,) = main_tables(arms)
    hard, soft = main.table.rows
    assert [("of 40 questions" in cell.note) for cell in hard[1:]] == [False, False]
    assert [cell.note.split("\n")[1:] for cell in soft[1:]] == [[], ["24 of 40 questions"]]
    seeds = main.seed_table().rows[-1]
    assert [cell.note for cell in seeds[1:]] == ["", "24 of 40 questions"]
    assert "of 24 of 40 questions" in {
        row[5].note for row in comparison_table(comparisons, 0.02).rows
    }


def test_a_contrast_is_declared_only_where_the_runs_declared_it(tmp_path):
    text, date = "soft-hard:hard_sample@4", {"started": "2026-03-05T10:00:00+00:00"}
    declare = {"config": {"primary": [text, "soft-base:hard_sample@2"]}, "record_changes": date}
    hard = _write(tmp_path / "hard", "hard", 0.3, **declare)
    soft = _write(tmp_path / "soft", "soft", 0.6, **declare)
    late = _write(tmp_path / "late", "soft", 0.6)
    arms, comparisons, _ = _told([hard, soft])
    assert [(c.name, c.metric.k, c.origin) for c in comparisons if c.primary] == [
        ("soft − hard", 4, "declared in advance, 2026-03-05")
    ]
    assert "soft-base:hard_sample@2 was declared" in declaration_notes(arms)[0]
    primary = [c.origin for c in _told([hard, late])[1] if c.primary]
    assert primary == ["declared by 1 of 2 runs before they started"]
    undeclared = _write(tmp_path / "undeclared", "hard", 0.3)
    primary = [c.origin for c in _told([undeclared, late])[1] if c.primary]
    assert primary == ["chosen when this report was made"]
    both = [(c.metric.k, c.origin[:6]) for c in _told([hard, soft], ["soft-hard:hard_sample@8"])[1]]
    assert both[:2] == [(4, "declar"), (8, "chosen")]


def test_a_contrast_of_two_modes_is_taken_and_an_absent_one_refused(models):
    run = models["qwen"]
    found = [c for c in _told([run], ["soft_sample:hard_sample@4"])[1] if c.primary]
    assert [(c.name, c.metric.k) for c in found] == [("soft sample − hard sample", 4)]
    with pytest.raises(UserError, match="is not in these runs"):
        _told([run], ["fuzzy_sample:hard_sample@4"])


def test_the_same_checkpoints_under_two_modes_are_compared_seed_by_seed(tmp_path):
    """Seeds differ by far more than the modes do."""
    folders = []
    for seed, level in enumerate((0.3, 0.5, 0.7)):
        rng = np.random.default_rng(seed)
        n_M, c_M = _counts(rng, level)
        gain_M = np.minimum(2, N - c_M) * (rng.random(M) < 0.8)
        cells = {"hard_sample": (n_M, c_M), "soft_sample": (n_M, c_M + gain_M)}
        folders.append(write_counts(tmp_path / str(seed), "soft", cells, seed))
    found = {(c.name, c.metric.k): c.verdict.word for c in _told(folders)[1]}
    assert found["soft sample − hard sample", 1] == "better"
