"""The soft thought as a strip: what is shown, on which question, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import write_checkpoint, write_counts

from softeval.errors import UserError
from softeval.modes import MODES
from softeval.reports.material import Material, ReportOptions
from softeval.reports.measured.arms import measure
from softeval.reports.measured.texts import SampleText, question_of, read_texts, shared_frame
from softeval.reports.sections.mixture import SECTION, draw_mixture, shown_positions
from softeval.reports.sections.selection import find_pair
from softeval.runs.run import RecordedMode, load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    modes = ("soft_sample", "hard_sample", "fuzzy_sample")
    folder = tmp_path_factory.mktemp("run")
    return load_run(write_checkpoint(folder, modes=modes, questions=4, samples=2, positions=40))


def _text(run, mode="soft_sample", doc=0, sample=0):
    key = ("arithmetic", mode, doc, sample)
    return read_texts(run, {key})[key]


@given(st.lists(st.floats(0, 5), max_size=80), st.sampled_from([8, 16, 24]))
def test_the_windows_of_highest_entropy_are_shown(values, most):
    shown = shown_positions(values, most)
    assert shown == sorted(set(shown)) and len(shown) <= most
    if len(values) <= most:
        assert len(shown) == len(values)
    else:
        peaks = [max(values[i : i + 8]) for i in range(0, len(values), 8)]
        kept = sorted((peaks[i] for i in {t // 8 for t in shown}), reverse=True)
        assert kept == sorted(peaks, reverse=True)[: most // 8]


@pytest.mark.parametrize(
    ("soft", "hard", "chosen"),
    [([4, 0, 2, 4], [1, 3, 0, 0], 3), ([0, 4, 0, 0], [4, 0, 4, 0], 0), ([1, 1], [0, 3], 1)],
)
def test_the_question_on_which_soft_and_hard_differ_most(tmp_path, soft, hard, chosen):
    n = [4] * len(soft)
    counts = {"soft_sample": (n, soft), "hard_sample": (n, hard), "fuzzy_sample": (n, hard)}
    arms = measure([(None, write_counts(tmp_path / "r", "base", counts))], positions=False)
    names = [("arithmetic", mode) for mode in ("soft_sample", "hard_sample")]
    assert find_pair(arms) == (0, *names, chosen)


def test_the_opening_names_the_modes_and_their_right_samples(tmp_path):
    counts = {"fuzzy_sample": ([4, 5], [1, 5]), "hard_sample": ([4, 4], [2, 0])}
    arms = measure([(None, write_counts(tmp_path / "r", "base", counts))], positions=False)
    (part,) = SECTION.parts(Material(arms, (), ReportOptions()))
    assert part.values == {"right": "5 of 5 under fuzzy sample and 0 of 4 under hard sample"}


def test_without_soft_or_hard_there_is_no_such_question(tmp_path):
    run = write_counts(tmp_path / "r", "base", {"soft_sample": ([2], [1])})
    assert find_pair(measure([(None, run)], positions=False)) is None


@pytest.mark.parametrize(
    ("before", "questions", "after"),
    [
        ("A asks. User: ", ["What is 35+2?", "What is 36+2?"], " Assistant:"),
        ("Solve it.\n\n", ["One has 5 kg. How much?", "Two have 7 kg. How many?"], "\n"),
        ("<|user|>", ["3*4=", "3*5=+1"], "<|end|>\n"),
    ],
)
def test_the_question_is_found_in_its_prompt(before, questions, after):
    prompts = [before + question + after for question in questions]
    frame = shared_frame(prompts)
    assert [question_of(prompt, frame) for prompt in prompts] == questions
    assert question_of(prompts[0], shared_frame(prompts[:1])) == prompts[0].strip()


def test_a_figure_says_in_words_what_it_shows(run):
    figure = run.plot_mixture(doc=1)
    png, told = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    text = _text(run, doc=1)
    peak = int(np.argmax(text.entropy_T))
    token, weight = text.mixtures[peak][0]
    assert f"Position {peak + 1}: “{token.strip()}” {100 * weight:.1f} %" in told["alt"]
    assert "soft sample, sample 0" in told["alt"] and "at temperature 0.5" in told["alt"]


def test_blocks_are_stacked_to_their_weights_and_hold_any_token():
    mode = RecordedMode.of("soft_sample", {"temperature": 0.5})
    mixtures = [[("\n", 0.6), (" a", 0.3), ("c", 0.1)], [("b", 0.999)], []]
    entropy, told = np.array([0.9, 0.0, 0.1], np.float32), {"answer": "7", "correct": True}
    text = SampleText(mode, told, ["\n", "b", " "], entropy, mixtures=mixtures)
    above, below = draw_mixture(text, "t").axes
    blocks = [value for p in above.patches for value in (p.get_y(), p.get_height())]
    assert blocks == pytest.approx([0, 0.6, 0.6, 0.3, 0.9, 0.1, 0, 0.999, 0, 1])
    assert [t.get_text() for t in above.texts] == ["⏎", "a", "b", "␣"]
    assert [t.get_text() for t in below.get_xticklabels()] == ["1", "2", "3"]
    assert [text.mixes(t) for t in range(3)] == [True, False, False]
    nearly = SampleText(mode, told, ["a"], entropy[:1], mixtures=[[("a", 0.99), ("b", 0.01)]])
    assert nearly.mixes(0)
    one = SampleText(mode, told, ["b"], entropy[:1], mixtures=mixtures[1:2])
    assert len(draw_mixture(one, "t").axes[0].patches) == 1


def test_entries_that_would_print_as_nothing_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("softeval.reports.measured.texts.LEAST_WEIGHT", 0.2)
    run = load_run(write_checkpoint(tmp_path / "r", modes=("soft_sample",), questions=1, samples=1))
    table = run.mixtures()
    kept = table[(table["rank"] < 3) & (table["prob"] >= 0.2)].groupby("position").size()
    shown = {t: len(entries) for t, entries in enumerate(_text(run).mixtures) if entries}
    assert shown == kept.to_dict() and max(shown.values()) > 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sample": 1}, "sample 0 are"),
        ({"doc": 99}, "no sample 0 of question 99"),
        ({"task": "gsm8k"}, "arithmetic"),
        ({"mode": "soft"}, "soft"),
    ],
)
def test_a_figure_of_what_is_not_there_is_refused(run, asked, message):
    with pytest.raises(UserError, match=message):
        run.plot_mixture(**asked)


def test_every_mode_says_what_it_feeds():
    ours = {n: m for n, m in MODES.items() if type(m).__module__.startswith("softeval.")}
    told = {name: mode.meaning for name, mode in ours.items()}
    assert all(text and "\n" not in text and "(name" not in text for text in told.values())
    assert told["hard_greedy"] != told["hard_sample"]
    assert "σ" in told["soft_sample"] and "σ" not in told["soft_greedy"]
