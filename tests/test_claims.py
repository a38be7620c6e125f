"""`softeval claims`: verdicts on runs whose truth is known, what is missing, and false support."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import Ended
from report_runs import write_counts, write_family
from scipy.stats import binom

from softeval.errors import UserError
from softeval.modes import ALL, MODES
from softeval.reports.claims import CLAIMS, Difference, Finding, find_claims
from softeval.reports.measured.arms import (
    Arm,
    Arms,
    MeasuredCheckpoint,
    MeasuredRun,
    measure,
)
from softeval.reports.sections.claims import claim_tables
from softeval.runs.run import RecordedMode, load_run
from softeval.statistics.contrast import compare_methods

pytest_plugins = ("command_line_fixtures",)

M, N, SEEDS = 200, 64, 3


@dataclass(frozen=True)
class Truth:
    """What is true of an arm, the same for every seed.

    Attributes:
        greedy: share of questions solved greedily under hard inference.
        rate: success of samples on questions that are within reach.
        lost: share of questions out of reach, which no sample solves.
        entropy: mean entropy in nats.
        kl: nats a token to the base.
        nll: nats a token.
        other: what the other inferences gain on hard inference, questions solved.
        noise: share of questions, other ones a seed, on which all of this is chance.
    """

    greedy: float
    rate: float
    lost: float
    entropy: float
    kl: float = 0.02
    nll: float = 2.3
    other: float = -0.1
    noise: float = 0.0


PAPER = {
    "base": Truth(0.5, 0.3, 0.4, 0.06),
    "hard": Truth(0.7, 0.9, 0.3, 0.015, kl=0.06, nll=2.6),
    "soft": Truth(0.7, 0.4, 0.0, 0.057),
    "fuzzy": Truth(0.7, 0.4, 0.0, 0.057),
}
"""A world in which every claim is true."""


def solved(truth: Truth, share: float, rng: np.random.Generator, rank_M: np.ndarray) -> np.ndarray:
    """(M,) which questions: those of low rank, but for the noise."""
    coins_M = rng.random(len(rank_M)) < truth.noise
    return np.where(coins_M, rng.random(len(rank_M)), rank_M) < share


def of_seed(truth: Truth, rng: np.random.Generator) -> Truth:
    """What it is for one training seed of several; itself without noise."""
    a, b, c = truth.noise * rng.normal(size=3)
    moved = {name: (1 + c) * getattr(truth, name) for name in ("entropy", "kl", "nll")}
    return replace(truth, greedy=truth.greedy + a / 20, lost=truth.lost + b / 20, **moved)


def cell_of(
    task: str, name: str, truth: Truth, rng: np.random.Generator, rank_M: np.ndarray
) -> Any:
    mode = RecordedMode.of(name, {"family": MODES[name].family, "is_greedy": MODES[name].is_greedy})
    gain = 0.0 if mode.family == "hard" else truth.other
    if mode.is_greedy:
        n, c_M = 1, solved(truth, truth.greedy + gain, rng, rank_M).astype(int)
    else:
        n = N
        c_M = round(N * truth.rate) * solved(truth, 1 - truth.lost + gain, rng, rank_M)
    doc_M = np.arange(len(rank_M))
    return (task, mode), SimpleNamespace(
        task=task, mode=mode, doc_M=doc_M, n_M=np.full(len(doc_M), n), c_M=c_M, prompt_M=doc_M
    )


def checkpoint(
    method: str, seed: int, truths: dict[str, Truth], modes: Sequence[str], case: int = 0
) -> MeasuredCheckpoint:
    """Of hand-made worlds the questions are in order; of a simulated case they are drawn."""
    rank_M = np.random.default_rng(case).random(2 * M) if case else (np.arange(M) + 0.5) / M
    rng = np.random.default_rng([seed, *method.encode(), case])
    mine = truths["own"]
    cells = dict(
        cell_of(t, m, truths[k], rng, rank_M)
        for k, t in (("own", "arithmetic"), ("other", "gsm8k"))
        for m in modes
    )
    doc_M = np.arange(len(rank_M))
    jitter_M = 1 + np.hypot(0.05, mine.noise) * rng.normal(size=len(doc_M))
    hard_sample = ("arithmetic", "hard_sample")
    training = {"method": method, "dataset": "arithmetic", "train_seed": seed, "base": "base"}
    run = MeasuredRun(
        Path(f"{method}-{seed}"),
        {"training": {} if method == "base" else training, "model": {"path": "base"}, "status": "complete"},
        cells,
        {hard_sample: SimpleNamespace(doc_M=doc_M, sequence_mean_M=mine.entropy * jitter_M)},
        {"arc": SimpleNamespace(doc_M=doc_M, nll_M=mine.nll * jitter_M)},
        {} if method == "base" else {
            (*hard_sample, "own"): SimpleNamespace(doc_M=doc_M, per_token={"reverse": mine.kl * jitter_M})
        },
    )  # fmt: skip
    known = (None, None) if method == "base" else ("arithmetic", seed)
    return MeasuredCheckpoint((run,), "base", method, *known)


def world(
    own: dict[str, Truth] = PAPER,
    other: dict[str, Truth] = PAPER,
    modes: Sequence[str] = ALL,
    seeds: int = SEEDS,
    case: int = 0,
) -> Arms:
    arms = []
    for method, mine in own.items():
        rng = np.random.default_rng([case, *method.encode()])
        truths = {"own": mine, "other": other[method]}
        count = 1 if method == "base" else seeds
        each = [
            {k: of_seed(truth, rng) if count > 1 else truth for k, truth in truths.items()}
            for _ in range(count)
        ]
        found = tuple(checkpoint(method, s, one, modes, case) for s, one in enumerate(each))
        arms.append(Arm("base", method, found[0].dataset, found))
    runs = tuple(run for arm in arms for c in arm.checkpoints for run in c.runs)
    return Arms(tuple(arms), runs)


def but(**changes: dict[str, float]) -> dict[str, Truth]:
    return {name: replace(truth, **changes.get(name, {})) for name, truth in PAPER.items()}


def verdicts(arms: Arms) -> dict[str, str]:
    return {finding.claim.number: finding.verdict for finding in find_claims(arms)}


NOISE = {"noise": 0.5}
NOT_SO = {
    "1": (but(fuzzy={"greedy": 0.5}), but(soft=NOISE)),
    "2": (but(soft={"lost": 0.5}), but(soft=NOISE | {"lost": 0.3})),
    "3": (but(hard={"rate": 0.2}), but(soft=NOISE | {"rate": 0.9, "lost": 0.3})),
    "4": (but(soft={"entropy": 0.02}), but(soft=NOISE | {"entropy": 0.048})),
    "5": (but(hard={"other": 0.2}), but(hard={"other": 0.0} | NOISE)),
    "6a": (but(fuzzy={"kl": 0.1}), but(fuzzy={"kl": 0.06} | NOISE)),
    "6b": (but(soft={"nll": 2.9}), but(soft={"nll": 2.6} | NOISE)),
    "7": (but(soft={"lost": 0.5}), but(soft=NOISE | {"lost": 0.3})),
    "8": (but(base={"lost": 0.0}), but(base=NOISE | {"lost": 0.3})),
}
"""Of each claim a world in which it is false, and one in which its runs cannot tell."""


def test_every_claim_is_supported_where_it_is_true():
    numbers = {claim.number for claim in CLAIMS}
    assert verdicts(world()) == dict.fromkeys(numbers, "supported")
    assert numbers == NOT_SO.keys()  # and each is false once and unclear once


@pytest.mark.parametrize("number", NOT_SO)
def test_a_claim_is_refuted_where_it_is_false_and_undecided_where_nothing_tells(number: str):
    own = "own" if number != "7" else "other"
    false, unclear = (
        next(f for f in find_claims(world(**{own: changed})) if f.claim.number == number)
        for changed in NOT_SO[number]
    )
    assert (false.verdict, unclear.verdict) == ("refuted", "undecided")
    assert false.missing == unclear.missing == ()


def told(finding: Finding) -> tuple[str, ...]:
    """On what a claim was judged, and the verdict, as shown."""
    return claim_tables([finding])[finding.group][0][1:3]


def test_one_checkpoint_a_side_says_that_it_is_about_these_only():
    found = find_claims(world(seeds=1))
    assert {f.verdict for f in found if f.claim.number in "246a"} == {"supported"}
    [coverage] = [f for f in found if f.claim.number == "2"]
    assert {one.contrast.scope for one in coverage.differences} == {"these checkpoints only"}
    assert told(coverage) == ("arithmetic, these checkpoints only", "supported")


def test_what_is_missing_is_named():
    hard_modes = ("hard_greedy", "hard_sample")
    partly = {name: PAPER[name] for name in ("hard", "soft")}
    found = {f.claim.number: f for f in find_claims(world(partly, partly, hard_modes))}
    assert found["2"].verdict == "supported" and found["2"].missing == ()
    assert found["8"].verdict == "missing" and found["8"].missing == ("the untrained model",)
    assert found["3"].verdict == "undecided" and found["3"].missing == ("the untrained model",)
    assert found["5"].missing == tuple(
        f"other inference than hard, greedy and sampled, of {name}" for name in ("hard", "soft")
    )
    soft = {f.claim.number: f for f in find_claims(world(modes=("soft_sample",)))}
    assert {soft[number].verdict for number in "123578"} == {"missing"}
    assert {"hard_sample pass@32 of soft", "hard_sample pass@32 of hard"} <= {*soft["2"].missing}
    alone = {f.claim.number: f for f in find_claims(world({"hard": PAPER["hard"]}))}
    assert alone["1"].missing == ("continuous training",)


def test_another_family_enters_by_the_family_of_the_mode_that_it_samples():
    wider = {**PAPER, "multiplex": PAPER["soft"], "hard_sample": PAPER["hard"]}
    found = {f.claim.number: f for f in find_claims(world(wider, wider))}
    names = [one.name for one in found["2"].differences]
    assert (
        "multiplex − hard, hard_sample pass@32" in names
        and "multiplex − hard_sample, hard_sample pass@32" in names
    )
    assert not any(name.startswith("hard") for name in names)


def test_a_difference_is_judged_by_where_its_interval_lies():
    rng = np.random.default_rng(0)
    contrast = compare_methods(rng.random((3, 50)) + 0.1, rng.random((3, 50)), bounded=False)
    low, high = contrast.low, contrast.high
    assert Difference("", contrast, low - 0.1, high + 0.1).word() == "supported"
    assert Difference("", contrast, contrast.diff, high + 1).word() == "undecided"
    assert Difference("", contrast, high + 0.1, np.inf).word() == "refuted"
    assert Difference("", contrast, -np.inf, low - 0.1).word() == "refuted"


def test_one_look_of_many_refutes_a_claim_only_at_the_level_of_all():
    rng = np.random.default_rng(0)
    contrast = compare_methods(rng.random((3, 50)), rng.random((3, 50)), bounded=False)
    barely = Difference("", contrast, (contrast.high + contrast.at_level(0.995)[1]) / 2, np.inf)
    sure = Difference("", contrast, contrast.low - 1, np.inf)
    alone, among = (Finding(CLAIMS[4], "", "t", (barely, *[sure] * n), ()) for n in (0, 11))
    assert (alone.verdict, among.verdict) == ("refuted", "undecided")
    beside = replace(barely, decides=False)
    assert Finding(CLAIMS[4], "", "t", (sure, beside), ()).verdict == "supported"


EDGES = (
    (  # hard − base in 3, greedy success in 1, 5 and 7, the entropy of soft, KL and NLL
        but(
            base={"greedy": 0.5, "rate": 0.25},
            hard={"rate": 0.5, "entropy": 0.03},
            soft={"greedy": 0.68, "rate": 0.25, "entropy": 0.048, "kl": 0.06, "nll": 2.6, "other": 0.02},
        ),
        "1 3 4 5 6a 6b 7",
    ),
    (  # soft − hard in 3, coverage in 2, 7 and 8, the entropy of hard
        but(
            base={"rate": 0.0625, "lost": 0.3},
            hard={"rate": 0.5, "entropy": 0.048},
            soft={"rate": 0.5, "lost": 0.3},
        ),
        "2 3 4 7 8",
    ),
)  # fmt: skip
"""Worlds in which of each of these claims one difference is on the edge of its region, and none inside."""


EDGE_MODES = ("hard_greedy", "hard_sample", "soft_greedy", "soft_sample")


@pytest.mark.slow
def test_a_claim_on_the_edge_is_supported_in_at_most_one_case_of_twenty():
    """Other questions and other seeds every time; by chance alone a claim may pass that often."""
    cases, supported = 40, Counter()
    for case in range(1, 1 + cases):
        for truths, numbers in EDGES:
            drawn = {name: replace(truths[name], noise=0.1) for name in ("base", "hard", "soft")}
            found = verdicts(world(drawn, drawn, EDGE_MODES, SEEDS, case))
            supported.update(n for n in numbers.split() if found[n] == "supported")
    looks = Counter(number for _, numbers in EDGES for number in numbers.split())
    allowed = {n: binom.ppf(0.999, times * cases, 0.05) for n, times in looks.items()}
    assert looks.keys() == NOT_SO.keys()
    assert all(supported[number] <= most for number, most in allowed.items()), supported
    assert 0 < supported.total() <= binom.ppf(0.999, looks.total() * cases, 0.05), supported


def test_one_checkpoint_of_another_is_not_better_by_chance_alone():
    """The same for the coverage of two single checkpoints, which are compared as they are."""
    rng, cases, wrong = np.random.default_rng(1), 200, 0
    for _ in range(cases):
        ease_M = rng.normal(-2, 1.5, 60)
        rates = [1 / (1 + np.exp(-ease_M - rng.normal(0, 0.5, 60))) for _ in "ab"]
        sides = [1 - (1 - rng.binomial(32, rate_M) / 32) ** 8 for rate_M in rates]
        wrong += Difference("", compare_methods(*sides), 0.0, np.inf).word() == "supported"
    assert wrong <= binom.ppf(0.999, cases, 0.05)


def ran(
    folder: Path,
    method: str,
    n: int = 32,
    right: Sequence[int] = (8, 9),
    training: dict[str, Any] | None = None,
    base: str = "base",
    **options: Any,
) -> Path:
    """A run of a checkpoint under hard sampling, with so many right of n samples of each question."""
    changes = {"model": {"path": f"checkpoints/{folder.name}", "weights_hash": folder.name}}
    if method != "base":
        named = {"method": method, "dataset": "arithmetic", "train_seed": 0, "base": f"up/{base}"}
        changes["training"] = named | (training or {})
    cells = {"hard_sample": ([n] * len(right), right)}
    record = changes | options.pop("record_changes", {})
    return write_counts(folder, method, cells, record_changes=record, **options)


def said(*runs: Path | tuple[str, Path]) -> dict[tuple[str, str], Finding]:
    """What runs, some with labels, say: by claim and group."""
    named = [run if isinstance(run, tuple) else (None, run) for run in runs]
    return {(f.claim.number, f.group): f for f in find_claims(measure(named, positions=False))}


def test_parts_of_a_task_stand_beside_and_decide_nothing(tmp_path: Path):
    """Their questions are those of all runs together: the first one was asked a few only."""
    groups = ["hidden"] * 10 + ["open"] * 30
    rising = np.arange(40) % 33
    solved = {"soft": rising, "hard": np.where(np.arange(40) < 10, 0, rising)}
    base = ran(tmp_path / "base", "base", right=rising[:5], groups=groups[:5])
    soft, hard = (
        ran(tmp_path / name, name, right=c_M, groups=groups) for name, c_M in solved.items()
    )
    coverage = load_run(base).claims(load_run(hard), load_run(soft))
    rows = coverage[coverage["claim"] == "2"].set_index("difference")
    assert rows["decides"].tolist() == [True, False, False]
    hidden = rows.loc["soft − hard, hard_sample pass@32, hidden part", "value"]
    assert hidden == pytest.approx(np.mean(1.0 * (rising[:10] > 0)))
    assert rows.loc["soft − hard, hard_sample pass@32, open part", "value"] == 0


LONGER = {"config": {"max_steps": 800}, "step": 800}
SHORTER = {"config": {"max_steps": 400}, "step": 400}


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (SHORTER, LONGER, "max_steps 400 and 800"),
        ({"config": {"learning_rate": 1e-5}}, {"config": {"learning_rate": 3e-5}}, "learning_rate"),
        ({"selected": "last", **SHORTER}, {"selected": "best", **SHORTER}, "selected"),
        ({"selected": "last", **SHORTER}, {"selected": "last", **SHORTER, "step": 250}, "step 400 and 250"),
        ({"selected": "best", **SHORTER}, {"selected": "best", **SHORTER, "step": 250}, None),
        ({"config": {"device": "cpu"}}, {"config": {"device": "cuda"}}, None),
        ({"config": {"max_steps": 400}}, {}, None),
        ({"config": {"apply_chat_template": False}}, {"config": {"apply_chat_template": None}}, None),
        ({"config": {"apply_chat_template": False}}, {"config": {"protocol": "chat"}}, "chat"),
    ],
)  # fmt: skip
def test_what_differs_in_more_than_its_seed_is_no_seed_of_a_training(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], told: str | None
):
    runs = [
        ran(tmp_path / f"hard{seed}", "hard", training=training | {"train_seed": seed})
        for seed, training in enumerate((first, second))
    ]
    if told is None:
        assert measure([(None, run) for run in runs]).arms[0].seeds == 2
    else:
        with pytest.raises(UserError, match=f"no seeds of one training: {told}.*LABEL=RUN"):
            measure([(None, run) for run in runs])


def test_lengths_and_bases_are_judged_apart_whatever_the_labels(tmp_path: Path):
    """Two bases, on each both methods at two lengths: eight trainings in four groups."""
    runs: list[tuple[str, Path]] = []
    for base in ("one", "two"):
        runs.append((f"untrained {base}", ran(tmp_path / base, "base")))
        for method in ("hard", "soft"):
            for training in (SHORTER, LONGER):
                name = f"{method}-{training['step']}-{base}"
                runs.append((name, ran(tmp_path / name, method, training=training, base=base)))
    found = said(*runs)
    names = [
        f"{base}, trained on arithmetic, {updates} updates"
        for base in ("one", "two")
        for updates in (400, 800)
    ]
    assert {group for _, group in found} == {*names}
    for group, (base, updates) in zip(
        names, [(b, u) for b in ("one", "two") for u in (400, 800)], strict=True
    ):
        [coverage] = found["2", group].differences
        hard, soft = (f"{method}-{updates}-{base}" for method in ("hard", "soft"))
        assert coverage.name == f"{soft} − {hard}, hard_sample pass@32"
        assert [one.name.split(",")[0] for one in found["8", group].differences] == [
            f"{trained} − untrained {base}" for trained in (hard, soft)
        ]


def test_what_was_trained_elsewhere_is_known_by_its_label(tmp_path: Path):
    runs = [(name, ran(tmp_path / name, "base")) for name in ("plain", "hard", "soft", "coconut")]
    [coverage] = [f for (number, _), f in said(*runs).items() if number == "2"]
    assert [one.name.split(",")[0] for one in coverage.differences] == [
        "soft − hard",
        "coconut − hard",
    ]
    with pytest.raises(UserError, match="plain, other: which is the base"):
        said(*runs, ("other", ran(tmp_path / "other", "base")))
    untrained = said(*runs[:2])
    assert {f.missing for (number, _), f in untrained.items() if number == "2"} == {
        ("continuous training",)
    }


def test_a_mode_is_hard_if_the_record_says_that_it_feeds_tokens(tmp_path: Path):
    mode = {"name": "mine", "family": "mine", "feeds_tokens": True}
    mine = ran(tmp_path / "mine", "mine", training={"mode": mode})
    [coverage] = [f for (n, _), f in said(mine, ran(tmp_path / "soft", "soft")).items() if n == "2"]
    assert [one.name for one in coverage.differences] == ["soft − mine, hard_sample pass@32"]


def test_a_claim_about_32_samples_is_not_decided_by_fewer_and_not_weakened_by_others(
    tmp_path: Path,
):
    few = said(ran(tmp_path / "h", "hard", 8, [8] * 12), ran(tmp_path / "s", "soft", 8, [0] * 12))
    [coverage] = [f for (number, _), f in few.items() if number == "2"]
    assert coverage.verdict == "missing" and coverage.differences[0].word() == "refuted"
    assert coverage.missing == ("32 samples a question, not 8, for soft − hard",)
    many = said(
        ran(tmp_path / "base", "base", 4),
        ran(tmp_path / "hard", "hard", 64),
        ran(tmp_path / "soft", "soft", 48),
    )
    names = {n: [one.name for one in f.differences] for (n, _), f in many.items()}
    assert names["2"] == ["soft − hard, hard_sample pass@32"]
    assert names["8"] == ["hard − base, hard_sample pass@4", "soft − base, hard_sample pass@4"]
    told = {n: (f.verdict, f.missing[:1]) for (n, _), f in many.items()}
    assert told["8"] == ("missing", ("32 samples a question, not 4, for hard − base",))


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"config": {"max_cot_tokens": 64}}, "runs of soft and hard alike in max_cot_tokens"),
        ({"record_changes": {"scorer": {"rules": "softeval 2"}}}, "runs of soft and hard alike in rules that judge"),
        ({"record_changes": {"status": "partial"}}, "the rest of {}"),
    ],
)  # fmt: skip
def test_runs_that_differ_in_more_than_their_training_decide_nothing(
    tmp_path: Path, options: dict[str, Any], missing: str
):
    hard = ran(tmp_path / "hard", "hard", right=[0] * 12)
    soft = ran(tmp_path / "soft", "soft", right=[32] * 12, **options)
    [coverage] = [f for (number, _), f in said(hard, soft).items() if number == "2"]
    assert coverage.verdict == "missing" and coverage.differences[0].word() == "supported"
    assert coverage.missing == (missing.format(soft),)


def test_a_run_without_tables_yet_stops_nothing(tmp_path: Path):
    hard, soft = (ran(tmp_path / m, m, right=[1] * 12) for m in ("hard", "soft"))
    begun = ran(tmp_path / "fuzzy", "fuzzy", record_changes={"status": "partial"})
    for table in begun.glob("*.parquet"):
        table.unlink()
    [coverage] = [f for (number, _), f in said(hard, soft, begun).items() if number == "2"]
    assert coverage.missing == ("hard_sample pass@32 of fuzzy",) and len(coverage.differences) == 1


def test_two_questions_decide_nothing_however_they_differ(tmp_path: Path):
    hard, soft = (ran(tmp_path / m, m, right=[n, n]) for m, n in (("hard", 0), ("soft", 32)))
    [coverage] = [f for (number, _), f in said(hard, soft).items() if number == "2"]
    assert coverage.verdict == "undecided"


def test_many_seeds_against_one_checkpoint_speak_of_these_only(tmp_path: Path):
    """The untrained model is always one; a training of one seed says nothing of others."""
    seeds = [
        ran(tmp_path / f"s{s}", "soft", right=[32] * 12, training={"train_seed": s}) for s in (0, 1)
    ]
    base, hard = (ran(tmp_path / m, m, right=[0] * 12) for m in ("base", "hard"))
    found = {number: told(f) for (number, _), f in said(*seeds, hard, base).items()}
    assert found["2"] == ("arithmetic, these checkpoints only", "supported")
    alone = {number: told(f) for (number, _), f in said(*seeds, base).items()}
    assert alone["8"] == ("arithmetic", "supported")


def test_seeds_and_questions_that_not_all_have_are_named(tmp_path: Path):
    hard = [
        ran(tmp_path / f"h{s}", "hard", right=[0] * 12, training={"train_seed": s}) for s in (0, 1)
    ]
    soft = [
        ran(tmp_path / f"s{s}", "soft", right=[32] * m, training={"train_seed": s})
        for s, m in ((0, 12), (1, 9))
    ]
    [coverage] = [f for (number, _), f in said(*hard, *soft).items() if number == "2"]
    assert coverage.verdict == "supported"
    assert coverage.differences[0].name.endswith("pass@32, 9 of 12 questions")
    greedy = {"hard_greedy": ([1] * 12, [1] * 12)}
    third = write_counts(tmp_path / "s2", "soft", greedy, 2, record_changes={
        "training": {"method": "soft", "dataset": "arithmetic", "train_seed": 2, "base": "base"},
    })  # fmt: skip
    [coverage] = [f for (number, _), f in said(*hard, *soft, third).items() if number == "2"]
    assert coverage.verdict == "undecided"
    assert coverage.missing == ("hard_sample pass@32 of 1 of 3 checkpoints of soft",)


@pytest.mark.parametrize(
    ("dataset", "task", "kind"),
    [
        ("gsm8k", "math500", "other"),
        ("math", "math500", "own"),
        ("data/mine.jsonl", "math500", "own"),  # nobody knows what it is of
        ("data/mine.jsonl", "mine", "own"),
        ("arithmetic_hidden", "arithmetic_hidden_30", "own"),
        ("arithmetic_hidden_30", "arithmetic_hidden_10", "other"),
        ("deepscaler", "olympiadbench", "own"),
    ],
)
def test_a_task_is_one_trained_on_or_another(tmp_path: Path, dataset: str, task: str, kind: str):
    runs = [
        ran(tmp_path / m, m, right=[1, 2], task=task, training={"dataset": dataset})
        for m in ("hard", "soft")
    ]
    tasks = {number: f.task for (number, _), f in said(*runs).items()}
    assert (tasks["2"], tasks["7"]) == ((task, "") if kind == "own" else ("", task))


def test_a_run_or_checkpoint_that_is_given_twice_is_refused(tmp_path: Path):
    run = ran(tmp_path / "hard", "hard")
    with pytest.raises(UserError, match="give one of them"):
        said(run, run)
    best = ran(tmp_path / "best", "hard")  # of the same seed
    with pytest.raises(UserError, match="name them apart, LABEL=RUN"):
        said(run, best)


@pytest.mark.slow
def test_the_command_and_the_frame_say_the_same(tmp_path: Path, softeval: Callable[..., Ended]):
    runs = [str(run) for run in write_family(tmp_path, seeds=2, questions=12, positions=6, kl=True)]
    printed = softeval("claims", *runs)
    assert printed.code == 0, printed.err
    rows = json.loads(softeval("claims", *runs, "--json").out)
    first, *others = map(load_run, runs)
    frame = first.claims(*others)
    assert [row["verdict"] for row in rows] == frame["verdict"].tolist()
    assert all(claim.text in printed.out for claim in CLAIMS)
    assert "missing: a log-likelihood task" in printed.out
