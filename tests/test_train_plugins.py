"""What a user brings along: rewards, prompts, validations, trackers, a hub; and longer runs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hub_fixtures import FakeHub
from train_cases import LEAST, own_questions, read_metrics, run, same, tiny_config, tiny_lm, weights

from softeval.errors import UserError
from softeval.lmeval.adapter import SoftEvalLM
from softeval.model.language_model import BUNDLED_CHECKPOINT, load_model
from softeval.processes import Processes
from softeval.protocol import CHAT
from softeval.publishing import HubRepository, log_table
from softeval.runs.run import load_run
from softeval.tasks.problems import Problem
from softeval.trainers import trainer
from softeval.trainers.learners import difficulty
from softeval.trainers.learners.difficulty import within_pass_rates
from softeval.trainers.learners.rewards import load_reward, reward, source_hash
from softeval.trainers.questions import (
    TrainingQuestion,
    load_questions,
    longest_sequence,
    prompt_maker,
)
from softeval.trainers.rollout import Validation
from softeval.trainers.run_files import identity_of

pytest_plugins = ("hub_fixtures",)

SHORT = """
import numpy

def short(sample):
    return sample.reward - sample.cot_tokens

def silent(sample):
    return None

def broken(sample):
    raise KeyError("no such thing")

def numpys(sample):
    return numpy.float32(0.5) if sample.correct else numpy.int64(0)

def endless(sample):
    return float("nan")

nothing = 3
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    file = tmp_path / "my_rewards.py"
    file.write_text(SHORT)
    return file


def rewarded(name: str) -> float:
    question = TrainingQuestion(0, Problem("1 + 1", "2"), (3,))
    sample: Any = SimpleNamespace(shadow_ids=[1] * 7, cot_text="so", answer="2", stop_reason="eos")
    verdict: Any = SimpleNamespace(correct=True, status="accepted")
    return reward(question, sample, verdict, tiny_config(reward=name))


def test_a_reward_of_ones_own_is_asked_with_what_the_sample_is(rewards: Path) -> None:
    assert rewarded(f"{rewards}:short") == 100 - 7
    assert rewarded(f"{rewards}:numpys") == 0.5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("silent", "'1 [+] 1', gives None; it must give a finite number"),
        ("endless", "'1 [+] 1', gives nan; it must give a finite number"),
        ("broken", "fails .KeyError: 'no such thing'.; mend it"),
        ("absent", "no attribute 'absent'; name a function as module:function"),
        ("nothing", "nothing is no function"),
    ],
)
def test_what_goes_wrong_in_it_is_one_line(rewards: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        rewarded(f"{rewards}:{function}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no_such_module:f", "no/such/file.py:f", "short"])
def test_a_reward_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--reward {name}: .*module:function"):
        load_reward(name)


def test_a_run_belongs_to_its_rewards_source(rewards: Path) -> None:
    config = tiny_config(reward=f"{rewards}:short")
    before = identity_of(config)
    assert before["reward_source"] == source_hash(f"{rewards}:short")
    rewards.write_text(SHORT + "short = str\n")  # what is hashed is what runs from here on
    assert identity_of(config) != before
    assert load_reward(f"{rewards}:short") is str
    assert "reward_source" not in identity_of(tiny_config())


@pytest.mark.slow
def test_a_reward_of_ones_own_and_overlong_shaping_reach_the_run(
    rewards: Path, tmp_path: Path
) -> None:
    means = {}
    for name, options in {
        "plain": {},
        "own": {"reward": f"{rewards}:short"},
        "overlong": {"overlong_cache": 12, "overlong_penalty": 12.0},
    }.items():
        run(tmp_path / name, max_steps=1, prompts_per_step=1, max_cot_tokens=12, **options)
        means[name] = read_metrics(tmp_path / name)[1]
    length = means["plain"]["rollout/cot_tokens"]
    for name in ("own", "overlong"):  # both take one for each token
        lost = means["plain"]["reward/mean"] - means[name]["reward/mean"]
        assert lost == pytest.approx(length) and length > 0


def test_a_prompt_of_ones_own_is_what_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Solve: QUESTION\nThe final answer is:\n")
    config, lm = tiny_config(prompt=str(file)), tiny_lm()
    assert prompt_maker(config, None)("1 \\ 1") == "Solve: 1 \\ 1\nThe final answer is:"
    found = load_questions(config, lm.vocabulary.encode).train[0]
    plain = load_questions(tiny_config(), lm.vocabulary.encode).train[0]
    assert found.problem == plain.problem and found.prompt_ids != plain.prompt_ids
    for text in ("no place", "QUESTION and QUESTION"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"QUESTION . times; it stands for the question, once"):
            prompt_maker(config, None)
    with pytest.raises(UserError, match="cannot be read"):
        prompt_maker(tiny_config(prompt=str(tmp_path / "none")), None)


def test_a_chat_template_wraps_the_prompt_as_the_evaluator_does() -> None:
    lm = tiny_lm()
    lm.tokenizer.chat_template = "<{{ messages[0]['content'] }}>"
    made = prompt_maker(tiny_config(apply_chat_template=True), lm.tokenizer)("1 + 1")
    adapter: Any = SoftEvalLM(lm)  # pyright: ignore[reportAbstractUsage]
    asked = CHAT.prompt.replace("QUESTION", "1 + 1")
    assert made == adapter.apply_chat_template([{"role": "user", "content": asked}]) == f"<{asked}>"


def test_a_chat_template_with_a_date_is_told_one() -> None:
    lm = tiny_lm()
    lm.tokenizer.chat_template = "{{ strftime_now('%d %m') }} {{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="say which by --chat-date"):
        prompt_maker(tiny_config(apply_chat_template=True), lm.tokenizer)
    dated = tiny_config(apply_chat_template=True, chat_date="2025-09-23")
    assert prompt_maker(dated, lm.tokenizer)("q").startswith("23 09 q")
    with pytest.raises(UserError, match="--chat-date has no effect"):
        tiny_config(chat_date="2025-09-23")


@pytest.mark.slow
def test_further_sets_and_modes_are_validated_and_one_of_them_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A success that rises by one set and falls by the other chooses another checkpoint each."""
    other = own_questions(tmp_path / "other.jsonl", count=3)
    calls: list[tuple[int, str]] = []

    def falling(lm: Any, questions: Any, config: Any, processes: Any, mode: Any) -> Any:
        calls.append((len(questions), mode.name))
        rises = len(questions) == 4 and mode.name == "soft_greedy"
        success = len(calls) / 100 if rises else 1 - len(calls) / 100
        return Validation(success, 0.0, 0.0, 0.0)

    monkeypatch.setattr(trainer, "validate", falling)
    options = LEAST | {"validation_sets": str(other), "eval_steps": 1, "max_steps": 2}
    options |= {"validation_modes": "hard_greedy"}
    assert run(tmp_path / "own", **options).best_step == 2
    asked = [(4, "soft_greedy"), (4, "hard_greedy"), (3, "soft_greedy"), (3, "hard_greedy")]
    assert calls[:4] == asked and len(calls) == 12
    line = read_metrics(tmp_path / "own")[1]
    named = {name for name in line if name.startswith("validation/") and "success" in name}
    assert named == {
        "validation/success",
        "validation/hard_greedy_success",
        "validation/other/success",
        "validation/other/hard_greedy_success",
    }
    for by in ("hard_greedy_success", "other/success"):
        calls.clear()
        assert run(tmp_path / by.replace("/", "-"), select_by=by, **options).best_step == 0
    calls.clear()
    run(tmp_path / "few", **options | {"validation_modes": "none"})
    assert {mode for _, mode in calls} == {"soft_greedy"}


def test_questions_of_a_validation_set_are_not_trained_on(tmp_path: Path) -> None:
    trained = own_questions(tmp_path / "train.jsonl", count=12)
    held = own_questions(tmp_path / "held.jsonl", count=3)
    options = {"dataset": str(trained), "limit": None, "validation_size": 2}
    encode = tiny_lm().vocabulary.encode
    found = load_questions(tiny_config(**options, validation_sets=str(held)), encode)
    assert found.overlaps == {"held": 2} and len(found.further["held"]) == 2
    assert len(found.train) == 12 - 2 - 2
    other = load_questions(tiny_config(**options), encode)
    assert other.fingerprints()["validation"] != found.fingerprints()["validation"]


def test_how_far_an_answer_may_be_from_its_label_counts_by_itself(tmp_path: Path) -> None:
    """It makes rewards; a run of before, which did not record it, keeps its other hashes."""
    trained = own_questions(tmp_path / "train.jsonl", count=12)
    found = load_questions(
        tiny_config(dataset=str(trained), limit=None), tiny_lm().vocabulary.encode
    )
    looser = tuple(replace(q, problem=replace(q.problem, error=0.5)) for q in found.train)
    changed = replace(found, train=looser).fingerprints().items() - found.fingerprints().items()
    assert [name for name, _ in changed] == ["tolerances"]


def test_a_question_of_a_validation_set_must_fit_the_context_too(tmp_path: Path) -> None:
    held = own_questions(tmp_path / "held.jsonl", count=1)
    held.write_text(held.read_text().replace("q0", "1 + " * 300))
    lm, config = tiny_lm(), tiny_config(validation_sets=str(held))
    with pytest.raises(UserError, match="context"):
        longest_sequence(config, lm, load_questions(config, lm.vocabulary.encode))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"select_by": "gsm8k/success", "validation_modes": "hard_greedy"},
            "none of success, hard_greedy_success",
        ),
        ({"validation_modes": "soft_sample"}, "is sampled; name greedy modes"),
        ({"validation_modes": "soft_gredy"}, "unknown mode 'soft_gredy'"),
        ({"min_pass_rate": 0.6, "max_pass_rate": 0.4}, "is above --max-pass-rate"),
        ({"pass_rate_samples": 4}, "needs --min-pass-rate"),
        ({"min_pass_rate": 0.1, "num_fewshot": 2}, "measured without examples"),
        ({"validation_sets": "a/x.jsonl,b/x.jsonl,y.jsonl"}, "two are called x; rename a file"),
        (
            {"overlong_cache": 4, "reward_correct": 0.0, "reward_boxed": -1.0, "reward_none": -1.0},
            "give --overlong-penalty",
        ),
        ({"lr_schedule": "constant", "min_lr_ratio": 0.5}, "end of a cosine"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_config(**options)


@pytest.mark.slow
def test_questions_too_easy_or_too_hard_are_left_out_and_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lm = load_model(BUNDLED_CHECKPOINT)
    options = {"limit": 12, "max_cot_tokens": 40, "pass_rate_samples": 4}
    config = tiny_config(min_pass_rate=0.25, max_pass_rate=0.75, **options)
    asked = load_questions(config, lm.vocabulary.encode)
    alone = Processes()
    with pytest.raises(UserError, match="once without torchrun"):
        within_pass_rates(config, asked, lm, Processes(0, 2))
    kept = within_pass_rates(config, asked, lm, alone)
    (folder,) = (path for path in Path("runs").iterdir() if path.is_dir())
    samples = load_run(folder).samples(["doc_id", "correct", "mode"])
    assert len(samples) == len(asked.train) * 4 and set(samples["mode"]) == {"soft_sample"}
    counts: dict[int, int] = dict(samples.groupby("doc_id")["correct"].sum().items())  # type: ignore[arg-type]
    expected = [q.index for n, q in enumerate(asked.train) if 1 <= counts[n] <= 3]
    assert [q.index for q in kept.train] == expected and 0 < len(expected) < len(asked.train)
    assert kept.too_easy_or_hard == len(asked.train) - len(expected)
    assert "too easy or too hard" in kept.summary() and kept.validation == asked.validation

    monkeypatch.setattr(difficulty, "run_evaluation", None)  # nothing is measured again
    hard = tiny_config(max_pass_rate=0.5, seed=3, **options)
    others = within_pass_rates(hard, asked, lm, Processes(1, 2))
    assert [q.index for q in others.train] == [
        q.index for n, q in enumerate(asked.train) if counts[n] <= 2
    ]
    assert within_pass_rates(tiny_config(limit=12), asked, lm, alone) is asked


@pytest.mark.parametrize("config", [{"graphs": False}, {"compile": True}])
def test_steps_that_measure_pass_rates_are_run_as_those_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, bool]
) -> None:
    """On a GPU; the measurement leaves the model to the training as it was asked for."""
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []

    def measured(config: Any, *_: Any, **__: Any) -> None:
        asked.append({"graphs": config.graphs, "compile": config.compile})
        raise UserError("measured")

    monkeypatch.setattr(difficulty, "run_evaluation", measured)
    trained = tiny_config(limit=12, min_pass_rate=0.1, **config)
    lm = load_model(BUNDLED_CHECKPOINT, device="cpu")
    questions = load_questions(trained, lm.vocabulary.encode)
    with pytest.raises(UserError, match="measured"):
        within_pass_rates(trained, questions, lm, Processes())
    assert asked == [{"graphs": True, "compile": False} | config]


@pytest.mark.slow
def test_a_constant_schedule_lets_a_run_go_on(tmp_path: Path, boxing: dict[str, Any]) -> None:
    options = boxing | {"lr_schedule": "constant", "method": "hard"}
    run(tmp_path / "once", max_steps=4, **options)
    run(tmp_path / "twice", max_steps=2, **options)
    run(tmp_path / "twice", max_steps=4, **options)
    last = [weights(tmp_path / name / "last") for name in ("once", "twice")]
    assert same(*last) and not same(last[0], weights(tmp_path / "once" / "best"))
    rates = [line["optimizer/learning_rate"] for line in read_metrics(tmp_path / "twice")[1:]]
    assert rates == [1e-3] * 4
    recorded = json.loads((tmp_path / "twice" / "train.json").read_text())
    assert recorded["config"]["max_steps"] == 4
    with pytest.raises(UserError, match="has 4 updates behind it"):
        run(tmp_path / "twice", max_steps=3, **options)
    run(tmp_path / "cosine", **LEAST)
    with pytest.raises(UserError, match="max_steps: 1 there, 2 now"):
        run(tmp_path / "cosine", **LEAST | {"max_steps": 2})


COLUMNS = ("question", "reward")
ROWS = [["1 | 1", 10.0], ["two\nlines", 0.0]]


def test_every_tracker_gets_the_table_in_its_own_form(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def tell(*values: Any, **named: Any) -> None:
        told.append((values, named))

    fake: Any = ModuleType("trackio")
    fake.Table = lambda dataframe: dataframe.to_dict("list")
    monkeypatch.setitem(sys.modules, "trackio", fake)
    log_table(SimpleNamespace(name="trackio", log=tell), "samples", COLUMNS, ROWS, 3)
    ((values,), named) = told.pop()
    assert values == {"samples": {"question": ["1 | 1", "two\nlines"], "reward": [10.0, 0.0]}}
    assert named == {"step": 3}

    log_table(SimpleNamespace(name="wandb", log_table=tell), "samples", COLUMNS, ROWS, 3)
    assert told.pop() == (("samples",), {"columns": list(COLUMNS), "data": ROWS, "step": 3})

    writer = SimpleNamespace(add_text=tell)
    log_table(SimpleNamespace(name="tensorboard", tracker=writer), "samples", COLUMNS, ROWS, 3)
    ((name, text, step), _) = told.pop()
    assert (name, step) == ("samples", 3)
    assert text.splitlines()[2:] == ["| 1 \\| 1 | 10.0 |", "| two lines | 0.0 |"]

    log_table(SimpleNamespace(name="comet_ml"), "samples", COLUMNS, ROWS, 3)
    assert told == []


def test_a_hub_that_refuses_is_one_line_with_a_remedy(hub: FakeHub, tmp_path: Path) -> None:
    hub(refuses="create")
    with pytest.raises(UserError, match="401 Unauthorized for url; log in with hf auth login"):
        HubRepository("me/it")
    hub(refuses="upload")
    with pytest.raises(UserError, match=f"hf upload me/it {tmp_path}"):
        HubRepository("me/it").push(tmp_path, "step 1")


@pytest.mark.slow
def test_the_best_checkpoint_goes_to_the_hub_with_its_card(hub: FakeHub, tmp_path: Path) -> None:
    told = hub()
    run(tmp_path / "run", **LEAST, push_to_hub="me/it")
    assert told[0] == ("create", "me/it", {"repo_type": "model", "private": True, "exist_ok": True})
    what, options = told[1]
    assert what == "upload" and options["repo_id"] == "me/it" and len(told) == 2
    assert options["commit_message"].startswith("step ")
    assert "library_name: transformers" in (Path(options["folder_path"]) / "README.md").read_text()
    told = hub(refuses="create")
    with pytest.raises(UserError, match="--push-to-hub me/it"):
        run(tmp_path / "other", max_steps=1, push_to_hub="me/it")
    assert not (tmp_path / "other" / "metrics.jsonl").exists()
