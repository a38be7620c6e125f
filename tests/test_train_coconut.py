"""COCONUT's curriculum: its stages, its sequences, its loss, and that training feeds what inference feeds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tiny
import torch
from conftest import mostly_slow
from torch.nn.functional import cross_entropy
from train_cases import (
    STAGED,
    directional_derivative,
    own_questions,
    run,
    tiny_config,
    tiny_gpt2,
    tiny_lm,
    write_rows,
)

from softeval.decoding.decoder import Decoder, Question
from softeval.errors import UserError
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import output_head
from softeval.model.stopping import Limits, stopper_of
from softeval.modes import Seen, Taken, get_mode
from softeval.modes.coconut import Coconut, forget_alignment
from softeval.processes import Processes
from softeval.protocol import PAPER as PROTOCOL
from softeval.records import Generation, StopReason
from softeval.tasks import arithmetic
from softeval.tasks.problems import Problem
from softeval.trainers import trainer
from softeval.trainers.learners.curriculum import (
    Lesson,
    StagedLearning,
    collate_lessons,
    lesson,
    lesson_inputs,
    text_log_probs,
)
from softeval.trainers.learners.stages import Curriculum
from softeval.trainers.questions import QuestionSet, TrainingQuestion, load_questions
from softeval.trainers.rollout import Validation
from softeval.trainers.setup import make_trainee

PAPER = Curriculum(updates=10)  # twenty updates of stage 0, ten of stages 1, 2 and 3, then stage 4


# --- the stages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update", "stage"),
    [(0, 0), (1, 0), (20, 0), (21, 1), (30, 1), (31, 2), (41, 3), (50, 3), (51, 4), (999, 4)],
)
def test_stage_of_an_update(update: int, stage: int) -> None:
    assert PAPER.stage(update) == stage


def test_thoughts_stand_for_the_first_steps_and_at_last_for_all() -> None:
    steps = tuple("abcde")
    assert ["".join(PAPER.left(steps, stage)) for stage in range(5)] == [
        "abcde",
        "bcde",
        "cde",
        "de",
        "",
    ]
    assert [PAPER.thoughts(stage) for stage in range(5)] == [0, 2, 4, 6, 6]


def test_a_stage_beyond_the_number_of_steps_leaves_none_and_has_its_thoughts_all_the_same() -> None:
    assert PAPER.left(("a",), 3) == () and PAPER.thoughts(3) == 6


def test_without_thoughts_steps_are_dropped_all_the_same() -> None:
    bare = Curriculum(latents=0)
    assert bare.thoughts(3) == 0 and bare.left(("a", "b"), 1) == ("b",)


def test_mixing_draws_earlier_stages_alike_and_by_place() -> None:
    mixed = Curriculum(mixing=0.4)
    drawn = [mixed.drawn(3, (0, place)) for place in range(4000)]
    shares = [drawn.count(stage) / len(drawn) for stage in range(4)]
    assert shares == pytest.approx([0.4 / 3, 0.4 / 3, 0.4 / 3, 0.6], abs=0.025)
    assert drawn == [mixed.drawn(3, (0, place)) for place in range(4000)]
    assert {mixed.drawn(0, (0, place)) for place in range(50)} == {0}
    assert {Curriculum().drawn(3, (0, place)) for place in range(50)} == {3}


# --- the worked solutions -------------------------------------------------------------------------


def test_a_question_of_the_bundled_task_is_read_back() -> None:
    for problem in arithmetic.draw_splits()["validation"]:
        assert arithmetic.ArithmeticProblem.read(problem.question) == problem


def test_careful_steps_are_the_worked_solution_without_a_sloppy_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arithmetic, "sloppy_probability", lambda value: 0.0)
    for problem in arithmetic.draw_splits()["validation"]:
        box = rf" The final answer is: \boxed{{{problem.answer}}}"
        written = "".join(problem.careful_steps) + box
        assert written == arithmetic.worked_solution(problem, Random(0))


def gsm8k_config(folder: Path, **changes: Any) -> Any:
    """Six questions in GSM8K's own form."""
    answer = "Ann has 3*2=<<3*2=6>>6 eggs.\n\nShe eats 2, so {n} are left.\n#### {n}"
    rows = [{"question": f"How many, {n}?", "answer": answer.format(n=n)} for n in range(6)]
    write_rows(folder / "gsm8k_train.jsonl", rows)
    options = {"dataset": "gsm8k", "data_dir": str(folder), "max_cot_tokens": 200}
    options |= {"exclude_tasks": "none", "limit": 6, "validation_size": 2, **STAGED}
    return tiny_config(**options | changes)


def test_a_line_of_gsm8k_is_a_step_without_its_annotation(tmp_path: Path) -> None:
    found = load_questions(gsm8k_config(tmp_path), tiny_lm().vocabulary.encode)
    for question in found.train:
        left = f" She eats 2, so {question.problem.target} are left."
        assert question.steps == (" Ann has 3*2=6 eggs.", left)
    assert len(found.train) == 4 and found.too_long == 0


def test_solutions_that_do_not_fit_the_cap_are_dropped_and_counted(tmp_path: Path) -> None:
    encode = tiny_lm().vocabulary.encode
    with pytest.raises(UserError, match="--max-cot-tokens"):
        load_questions(gsm8k_config(tmp_path, max_cot_tokens=20), encode)


def test_a_file_of_ones_own_has_a_field_solution(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": "1", "solution": "first\nthen"} for n in range(8)]
    file = write_rows(tmp_path / "own.jsonl", rows)
    config = gsm8k_config(tmp_path, dataset=file, data_dir=None)
    assert load_questions(config, tiny_lm().vocabulary.encode).train[0].steps == (" first", " then")
    own_questions(tmp_path / "own.jsonl")
    with pytest.raises(UserError, match="solution"):
        load_questions(config, tiny_lm().vocabulary.encode)


def test_the_steps_count_in_the_fingerprint(tmp_path: Path) -> None:
    found = load_questions(gsm8k_config(tmp_path), tiny_lm().vocabulary.encode)
    other = replace(found, train=tuple(replace(q, steps=q.steps[:1]) for q in found.train))
    assert found.fingerprints()["train"] != other.fingerprints()["train"]


# --- a sequence -----------------------------------------------------------------------------------


def made_question(lm: LanguageModel, question: str = "What is 12+7?") -> TrainingQuestion:
    ids = tuple(lm.vocabulary.encode(PROTOCOL.ask(question)))
    steps = arithmetic.ArithmeticProblem.read(question).careful_steps
    return TrainingQuestion(0, Problem(question, "19"), ids, steps)


def test_the_text_is_what_inference_would_feed() -> None:
    """It ends the CoT where the steps end; box and answer are those that follow there."""
    lm = tiny_lm()
    question = made_question(lm)
    made = lesson(lm, question, question.steps, 2)
    assert made.prompt_ids == question.prompt_ids and made.thoughts == 2
    ends = [
        n
        for n in range(1, len(made.text_ids))
        if stopper_of(lm.tokenizer, PROTOCOL).ends_cot(made.text_ids[:n])
    ]
    text = stopper_of(lm.tokenizer, PROTOCOL).decode(made.text_ids[: ends[0]])
    assert text == " 12+7=19; The final answer is:"
    prefill = stopper_of(lm.tokenizer, PROTOCOL).prefill_ids(text, StopReason.ANSWER_PREFIX)
    rest = made.text_ids[ends[0] :]
    assert rest[: len(prefill)] == prefill
    assert stopper_of(lm.tokenizer, PROTOCOL).closed_answer(rest[len(prefill) : -1]) == "19"
    assert rest[-1] == lm.tokenizer.eos_token_id


def decoded(lm: LanguageModel, mode: Coconut, cap: int = 6) -> list[Generation]:
    """Three prompts of different lengths, of which nothing but the cap ends a CoT."""
    prompts = [tuple(range(5, 5 + n)) for n in (4, 9, 6)]
    asked = [Question("t", n, prompt, (0,)) for n, prompt in enumerate(prompts)]
    decoder = Decoder(lm, mode, Limits(cap, 2), keep_inputs=True)
    return sorted(decoder.run(asked), key=lambda g: g.key.doc_id)


@pytest.mark.parametrize("realign", [False, True])
@pytest.mark.parametrize("family", mostly_slow(tiny.FAMILIES, ["llama", "gemma2", "gpt2"]))
def test_training_feeds_the_thoughts_that_inference_feeds(family: str, realign: bool) -> None:
    lm, mode = tiny.tiny_lm(family), Coconut(latents=3, realign=realign)
    found = decoded(lm, mode)
    assert all(len(g.shadow_ids) > 3 for g in found)
    lessons = [Lesson(tuple(g.prompt_ids), 3, (*g.shadow_ids[3:], *g.prefill_ids)) for g in found]
    batch = collate_lessons(lessons, lm.device)
    with torch.no_grad():
        fed = lesson_inputs(lm, output_head(lm), mode, batch)
    for row, g in enumerate(found):
        assert g.inputs is not None
        start = len(g.prompt_ids)
        length = len(g.inputs)
        torch.testing.assert_close(fed[row, start : start + length], g.inputs, rtol=2e-3, atol=2e-4)
        assert not torch.equal(g.inputs[0], lm.embedding.rows(torch.tensor(g.shadow_ids[:1]))[0])


def test_after_the_thoughts_the_cot_goes_on_in_tokens() -> None:
    lm = tiny.tiny_lm("llama")
    for g in decoded(lm, Coconut(latents=2)):
        assert g.inputs is not None
        tokens = lm.embedding.rows(torch.from_numpy(g.shadow_ids))
        assert torch.equal(g.inputs[2:], tokens[2:])
        assert not torch.equal(g.inputs[:2], tokens[:2])


def test_another_model_is_fed_the_thoughts_as_they_are_and_its_own_tokens() -> None:
    lm, other, mode = tiny.tiny_lm("llama"), tiny.tiny_lm("llama", seed=1), Coconut(latents=2)
    g = decoded(lm, mode)[0]
    shadow_N = torch.from_numpy(g.shadow_ids)
    seen = Seen(torch.zeros(len(shadow_N), lm.vocab), lm.embedding)
    fed_ND = mode.replay(seen, Taken(g.inputs, shadow_N), other.embedding)
    assert g.inputs is not None and torch.equal(fed_ND[:2], g.inputs[:2])
    assert torch.equal(fed_ND[2:], other.embedding.rows(shadow_N)[2:])


def test_more_thoughts_than_the_cap_are_thoughts_to_the_end() -> None:
    lm = tiny.tiny_lm("llama")
    for one, other in zip(decoded(lm, Coconut(latents=99)), decoded(lm, Coconut()), strict=True):
        assert one.inputs is not None and other.inputs is not None
        shorter = min(len(one.inputs), len(other.inputs))
        assert torch.equal(one.inputs[:shorter], other.inputs[:shorter])


def test_no_text_of_a_thought_can_end_the_cot(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    monkeypatch.setattr(lm, "eos_ids", frozenset(range(lm.vocab)))
    lengths = {n: [len(g.shadow_ids) for g in decoded(lm, Coconut(latents=n))] for n in (0, 2)}
    assert lengths == {0: [1, 1, 1], 2: [3, 3, 3]}
    monkeypatch.setattr(lm, "eos_ids", frozenset())
    monkeypatch.setattr(
        stopper_of(lm.tokenizer, PROTOCOL), "may_end_cot", frozenset(range(lm.vocab))
    )
    monkeypatch.setattr(stopper_of(lm.tokenizer, PROTOCOL), "ends_cot", lambda ids: True)
    assert [len(g.shadow_ids) for g in decoded(lm, Coconut(latents=2))] == [3, 3, 3]


# --- the loss -------------------------------------------------------------------------------------


def lessons_of(*thoughts: int) -> list[Lesson]:
    """Prompts and texts of various lengths."""
    return [
        Lesson(tuple(range(4, 7 + n)), count, tuple(range(20 + n, 26 + 2 * n)))
        for n, count in enumerate(thoughts)
    ]


def plain_losses(lm: LanguageModel, made: Lesson) -> torch.Tensor:
    """(M,) by a sequence of its own, grown thought by thought."""
    inputs = lm.embedding.rows(torch.tensor(made.prompt_ids))[None]
    base = lm.model.base_model
    for _ in range(made.thoughts):
        hidden = base(inputs_embeds=inputs).last_hidden_state
        inputs = torch.cat([inputs, hidden[:, -1:]], 1)
    text = torch.tensor(made.text_ids)
    inputs = torch.cat([inputs, lm.embedding.rows(text)[None]], 1)
    logits = lm.model(inputs_embeds=inputs).logits[0, -len(text) - 1 : -1]
    return cross_entropy(logits, text, reduction="none")


@pytest.mark.parametrize("thoughts", [(0, 0, 0), (2, 2, 2), (3, 0, 1)])
def test_the_loss_is_the_text_s_alone(thoughts: tuple[int, ...]) -> None:
    """Against every sequence by itself, without padding, batch or trainer."""
    lm, made = tiny_gpt2(tied=False), lessons_of(*thoughts)
    found = text_log_probs(lm, output_head(lm), Coconut(), collate_lessons(made, lm.device))
    expected = torch.cat([plain_losses(lm, x) for x in made])
    torch.testing.assert_close(-found.double(), expected, rtol=1e-5, atol=1e-6)


def test_stage_0_is_supervised_fine_tuning() -> None:
    lm, (made,) = tiny_gpt2(tied=True), lessons_of(0)
    found = text_log_probs(lm, output_head(lm), Coconut(), collate_lessons([made], lm.device))
    ids = torch.tensor([[*made.prompt_ids, *made.text_ids]])
    labels = ids.clone()
    labels[:, : len(made.prompt_ids)] = -100
    expected = lm.model(input_ids=ids, labels=labels).loss
    assert -found.mean().item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradients_flow_through_the_thoughts() -> None:
    """Finite differences in every weight; without the way through the thoughts they are wrong."""
    lm = tiny_gpt2(tied=False)
    head, batch = output_head(lm), collate_lessons(lessons_of(2, 3), lm.device)

    def loss(mode: Coconut = Coconut()) -> torch.Tensor:  # noqa: B008 - frozen
        return -text_log_probs(lm, head, mode, batch).sum()

    named = dict(lm.model.named_parameters())
    analytic = torch.autograd.grad(loss(), list(named.values()))
    cut = torch.autograd.grad(loss(Severed()), list(named.values()))
    for (name, parameter), gradient in zip(named.items(), analytic, strict=True):
        direction = gradient / gradient.norm()
        with torch.no_grad():
            numeric = float(directional_derivative(loss, parameter, direction))
        assert float(gradient.norm()) == pytest.approx(numeric, rel=1e-5), name
    assert any(not torch.allclose(a, b, rtol=1e-2) for a, b in zip(analytic, cut, strict=True))


class Severed(Coconut):
    """Thoughts that no gradient comes through."""

    def thought(self, seen: Any) -> torch.Tensor:
        return super().thought(seen).detach()


# --- the run --------------------------------------------------------------------------------------


def learner(**changes: Any) -> StagedLearning:
    options = STAGED | {"curriculum": {"updates": 2, "first": 2}, "max_steps": 9}
    config = tiny_config(**options | changes)
    lm = tiny_lm()
    questions = tuple(
        replace(made_question(lm, f"What is {n}+7-3?"), index=n) for n in range(10, 18)
    )
    found = QuestionSet(questions, questions[:1], None)  # type: ignore[arg-type]
    trainee = make_trainee(config, lm)
    return StagedLearning(config, trainee, found, Processes.joined(torch.device("cpu")))


def test_an_update_learns_from_the_next_questions_at_its_stage() -> None:
    staged = learner(prompts_per_step=4)
    assert staged.trainee.weights.norm() == 0
    for step, thoughts in ((1, 0), (3, 2), (5, 4)):
        update = staged.update(step, 4)
        assert update.cursor == 8
        assert update.metrics["curriculum/thoughts"] == thoughts
        assert (update.metrics["gradient/norm"] or 0) > 0
        staged.trainee.weights.clear()


def test_a_batch_that_went_wrong_can_be_read(tmp_path: Path) -> None:
    staged = learner(prompts_per_step=2)
    staged.update(3, 0)
    staged.keep(tmp_path / "failed")
    rows = json.loads((tmp_path / "failed" / "batch.json").read_text())
    assert len(rows) == 2 and {row["thoughts"] for row in rows} == {2}
    assert all("What is" in row["prompt"] and "final answer" in row["text"] for row in rows)


def test_the_loss_is_a_mean_over_the_update_whatever_its_parts() -> None:
    whole, parts = learner(prompts_per_step=6), learner(prompts_per_step=6, micro_batch_size=2)
    one, other = whole.update(3, 0), parts.update(3, 0)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-5)
    found = -text_log_probs(
        whole.trainee.lm,
        whole.trainee.head,
        whole.mode,
        collate_lessons(whole.lessons(1, 0), torch.device("cpu")),
    )
    assert one.metrics["loss/text"] == pytest.approx(found.mean().item(), rel=1e-5)


def test_each_stage_begins_with_a_new_optimizer() -> None:
    staged = learner()
    adam = staged.trainee.optimization.adam
    kept = []
    for step in range(1, 6):
        staged.update(step, 0)
        kept.append(len(adam.state) > 0)
        staged.trainee.optimization.step(step - 1, 1.0)
    assert kept == [False, True, False, True, False]


def test_validation_takes_the_thoughts_of_the_stage_and_hard_greedy_beside_them() -> None:
    staged = learner(mode_args={"realign": "true"})
    hard = get_mode("hard_greedy")
    assert staged.validated_mode(0) == staged.validated_mode(2) == hard
    assert staged.validated_mode(3) == get_mode("coconut", latents=2, realign=True)
    assert staged.validated_mode(99) == get_mode("coconut", latents=6, realign=True)


def test_realigned_thoughts_follow_the_weights() -> None:
    """Each update, and each validation, takes the alignment that a fresh load would make."""
    staged = learner(mode_args={"realign": "true"}, learning_rate=0.1)
    trainee, mode = staged.trainee, staged.mode
    batch = collate_lessons(staged.lessons(1, 0), torch.device("cpu"))

    def fed() -> torch.Tensor:
        with torch.no_grad():
            return lesson_inputs(trainee.lm, trainee.head, mode, batch)

    def is_current() -> bool:
        cached = fed()
        forget_alignment(trainee.lm.embedding)
        return torch.equal(cached, fed())

    staged.update(3, 0)
    trainee.optimization.step(3, 0.0)
    assert not is_current()
    staged.update(4, 0)
    assert is_current()
    trainee.optimization.step(4, 0.0)
    staged.validated_mode(4)
    assert is_current()


def test_the_best_model_is_one_of_the_latest_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Falling success: the first validation of each stage is the best of all so far."""
    left = iter(range(99, 0, -1))
    monkeypatch.setattr(trainer, "validate", lambda *_: Validation(next(left) / 100, 0.0, 0.0, 0.0))
    options = STAGED | {"curriculum": {"updates": 2, "first": 2, "stages": 0, "latents": 0}}
    result = run(tmp_path, max_steps=4, eval_steps=1, **options)
    assert result.best_step == 3
    card = (tmp_path / "best" / "README.md").read_text()
    assert "2412.06769" in card and "2509.19170" not in card


# --- the request ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.1}, "--beta is of reinforcement learning"),
        ({"num_generations": 4}, "--num-generations is of reinforcement learning"),
        ({"kl_steps": 10}, "--kl-steps is of reinforcement learning"),
        ({"reward_correct": 50.0}, "--reward-correct"),
        ({"temperature": 0.5}, "no option 'temperature'"),
        ({"mode_args": {"latents": "3"}}, "--curriculum latents"),
        ({"curriculum": "thoughts=3"}, "--curriculum has no 'thoughts'; it takes latents, stages"),
        ({"curriculum": "latents=-1"}, "--curriculum latents=-1"),
        ({"curriculum": "mixing=1"}, "--curriculum mixing=1"),
        (
            {"method": "soft", "num_generations": 6, "curriculum": "latents=1"},
            "for --method coconut",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_config(**STAGED | options)


def test_data_without_worked_solutions_are_refused(tmp_path: Path) -> None:
    rows = [{"problem": f"q{n}", "answer": "1"} for n in range(9)]
    write_rows(tmp_path / "math.jsonl", rows)
    config = gsm8k_config(tmp_path, dataset="math")
    with pytest.raises(UserError, match="no worked solutions"):
        load_questions(config, tiny_lm().vocabulary.encode)


def test_a_curriculum_needs_no_rollouts() -> None:
    config = tiny_config(method="coconut", num_generations=1, curriculum="latents=1,stages=2")
    assert config.sequences == config.prompts_per_step and config.kl_steps == 0
    assert config.mode == get_mode("coconut", latents=2)
