"""Which samples are shown, and that packing loses nothing that the page claims to show."""

from __future__ import annotations

import base64

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import write_checkpoint, write_family

from softeval.reports.escaping import script_json, visible
from softeval.reports.measured.arms import measure
from softeval.reports.measured.texts import read_prompts
from softeval.reports.sections.samples import SCALE, _lengths, _nats, pack, read_samples
from softeval.reports.sections.selection import choose_problems, choose_samples, sources
from softeval.runs.run import load_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_family(
        tmp_path_factory.mktemp("family"), ("base", "soft"), seeds=2, questions=24, samples=6,
        positions=16,
    )  # fmt: skip


@pytest.fixture(scope="module")
def arms(folders):
    return measure([(None, folder) for folder in folders])


@pytest.fixture(scope="module")
def packed(arms):
    return _packed(arms)


def _packed(arms, count=16, **options):
    problems = choose_problems(arms, count)
    samples = read_samples(choose_samples(arms, problems, sources(arms)))
    prompts = read_prompts(arms.runs, {(p.task, p.doc_id) for p in problems})
    return pack(arms, sources(arms), problems, prompts, samples, **options)


def test_problems_are_stratified_and_seeded(arms):
    chosen = choose_problems(arms, 16)
    kinds = [p.why for p in chosen]
    assert {k: kinds.count(k) for k in set(kinds)} == {
        "discordant": 8, "high entropy": 4, "random": 4,
    }  # fmt: skip
    assert len({p.doc_id for p in chosen}) == 16
    assert choose_problems(arms, 16) == chosen
    assert choose_problems(arms, 16, seed=1) != chosen


@pytest.mark.parametrize(
    ("count", "kinds"),
    [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (5, (3, 1, 1)), (6, (3, 2, 1)), (99, (24,))],
)
def test_so_many_problems_are_shown_as_were_asked_for(arms, count, kinds):
    chosen = choose_problems(arms, count)
    assert len({p.doc_id for p in chosen}) == len(chosen) == min(count, 24)
    if count < 24:
        whys = [p.why for p in chosen]
        assert tuple(map(whys.count, ("discordant", "high entropy", "random"))) == kinds


def test_without_entropies_the_others_fill_up(folders):
    arms = measure([(None, folder) for folder in folders], positions=False)
    chosen = choose_problems(arms, 8)
    assert len({p.doc_id for p in chosen}) == 8
    assert "high entropy" not in {p.why for p in chosen}


def test_the_first_discordant_problem_is_the_most_discordant_one(arms):
    rates = np.array(
        [
            [cell.c_M[d] / cell.n_M[d] for arm in arms.arms for cell in arm.checkpoints[0].cells.values()]
            for d in range(24)
        ]
    )  # fmt: skip
    first = next(p for p in choose_problems(arms, 16) if p.why == "discordant")
    assert rates[first.doc_id].var() == pytest.approx(rates.var(axis=1).max())


def test_a_right_and_a_wrong_sample_of_each_cell(arms):
    problems = choose_problems(arms, 16)
    shown: dict = {}
    for s in choose_samples(arms, problems, sources(arms)):
        shown.setdefault((s.problem, s.source, s.key), []).append(bool(s.cell.correct_R[s.row]))
    for (problem, arm, key), outcomes in shown.items():
        cell = arms.arms[arm].checkpoints[0].cells[key]
        at = np.searchsorted(cell.doc_M, problems[problem].doc_id)
        mixed = 0 < cell.c_M[at] < cell.n_M[at]
        assert len(outcomes) == (1 if cell.mode.is_greedy else 2)
        assert sorted(set(outcomes)) == ([False, True] if mixed else [bool(cell.c_M[at])])


def test_every_seed_can_be_shown(arms):
    assert [s.name for s in sources(arms)] == ["base", "soft"]
    shown = sources(arms, all_seeds=True)
    assert [s.name for s in shown] == ["base", "soft · seed 0", "soft · seed 1"]
    chosen = list(choose_samples(arms, choose_problems(arms, 4), shown))
    assert {(s.source, s.checkpoint.train_seed) for s in chosen} == {(0, None), (1, 0), (2, 1)}


def test_packed_samples_are_those_of_the_files(arms, folders, packed):
    samples = pq.read_table(folders[0] / "samples.parquet").to_pandas()
    positions = load_run(folders[0]).positions()
    for s in [s for s in packed["samples"] if s["a"] == 0][::7]:
        problem = packed["problems"][s["q"]]
        mode = packed["modes"][s["m"]]
        row = samples[
            (samples["mode"] == mode)
            & (samples["doc_id"] == problem["d"])
            & (samples["sample"] == s["i"])
        ].iloc[0]
        assert s["x"] == visible(row["cot_text"]) and s["z"] == row["answer_text"]
        assert (s["c"], s["v"], s["r"]) == (row["correct"], row["verdict"], row["stop_reason"])
        assert s["b"] == row["answer"] or (s["b"] is None and row["answer"] is None)
        mine = positions[
            (positions["mode"] == mode)
            & (positions["doc_id"] == problem["d"])
            & (positions["sample"] == s["i"])
        ]
        entropy = SCALE * (np.frombuffer(base64.b64decode(s["e"]), np.uint8) / 255) ** 2
        np.testing.assert_allclose(entropy, mine["entropy"].clip(0, SCALE), atol=0.05, rtol=0.05)
        assert s["n"] == len(mine) == len(base64.b64decode(s["l"]))
        assert s["h"][0] == pytest.approx(mine["entropy"].mean(), abs=1e-3)


def test_mixtures_are_packed_for_soft_modes_only(packed, folders):
    with_mixture = {packed["modes"][s["m"]] for s in packed["samples"] if "u" in s}
    assert with_mixture and not any(mode.startswith("hard") for mode in with_mixture)
    one = next(s for s in packed["samples"] if "u" in s and s["a"] == 0)
    words = np.frombuffer(base64.b64decode(one["u"]), "<u2")
    position, count = words[:2]
    table = load_run(folders[0]).mixtures()
    names = dict(
        zip(*pq.read_table(folders[0] / "tokens.parquet").to_pydict().values(), strict=True)
    )
    mine = table[
        (table["mode"] == packed["modes"][one["m"]])
        & (table["doc_id"] == packed["problems"][one["q"]]["d"])
        & (table["position"] == position)
    ].sort_values("rank")
    assert count == 3
    for entry in range(count):
        index, probability = words[2 + 2 * entry], words[3 + 2 * entry] / 1e4
        assert packed["vocab"][index] == names[mine["token_id"].iloc[entry]]
        assert probability == pytest.approx(mine["prob"].iloc[entry], abs=1e-4)


def test_the_budget_drops_problems_from_the_end_and_is_kept(arms, packed):
    size = len(script_json(packed))
    small = _packed(arms, budget=size // 3)
    assert 1 <= len(small["problems"]) < len(packed["problems"])
    assert len(script_json(small)) < size // 2
    kept = [p["d"] for p in small["problems"]]
    assert kept == [p["d"] for p in packed["problems"]][: len(kept)]
    assert {s["q"] for s in small["samples"]} == set(range(len(kept)))


def test_long_and_hostile_texts_are_cut_and_counted(tmp_path):
    texts = ("y" * 1_000_000, "\x00\u202e", "", "🙂")
    run = write_checkpoint(tmp_path / "run", questions=4, samples=2, positions=20, texts=texts)
    found = _packed(measure([(None, run)]))
    assert len(script_json(found)) < 2_000_000
    joined = " ".join(s["x"] for s in found["samples"])
    assert "more characters]" in joined and "⟨U+0000⟩⟨U+202E⟩" in joined and "\x00" not in joined
    for s in found["samples"]:
        units = len(s["x"].encode("utf-16-le")) // 2
        assert sum(base64.b64decode(s["l"])) == units


@given(st.lists(st.text(max_size=700)))
def test_token_lengths_can_be_read_back(tokens):
    tokens = [t.encode("utf-16", "replace").decode("utf-16") for t in tokens]
    found, size = [], 0
    for part in _lengths(tokens):
        size += int(part)
        if part != 255:
            found.append(size)
            size = 0
    assert found == [len(t.encode("utf-16-le")) // 2 for t in tokens]


@given(st.lists(st.floats(0, 30), min_size=1))
def test_nats_survive_one_byte(values):
    back = SCALE * (_nats(values) / 255.0) ** 2
    wanted = np.clip(values, 0, SCALE)
    assert np.abs(np.sqrt(back) - np.sqrt(wanted)).max() <= np.sqrt(SCALE) / 255 * 0.51


def test_odd_numbers_become_zero_and_not_an_error():
    assert _nats([float("nan"), -1.0, float("inf")]).tolist() == [0, 0, 255]
