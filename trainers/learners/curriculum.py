"""What an update of COCONUT's curriculum is: worked solutions whose first steps are thoughts.

A sequence is the evaluator's prompt, the thoughts, the steps that are left, the answer prefix, the box
and the answer. A thought is what the mode feeds at inference: the last hidden state of the position
before it, so the thoughts of a sequence come one after the other, each by a pass over what stands
before it, and gradients flow back through all of them. The loss is the mean cross-entropy of the text
behind the thoughts; question and thoughts have none. (Hao et al. 2024, arXiv 2412.06769, section 3.)

Sequences are padded on the right, as in `softeval.trainers.losses`, so that positions are those of
inference and nothing that counts looks at padding. Each thought costs a pass over the prompt, because
a cache that carries gradients is not every architecture's.

Knows nothing of the optimizer's schedule, of checkpoints or of when to validate.

Shapes: B sequences, T positions, M text tokens, D width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from softeval.files import write_json
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import OutputHead, last_hidden
from softeval.model.stopping import stopper_of
from softeval.modes import Mode, Seen, get_mode
from softeval.modes.coconut import Coconut, forget_alignment
from softeval.options import fixed_size
from softeval.processes import Processes
from softeval.protocol import PAPER
from softeval.records import StopReason
from softeval.trainers.chunked import token_log_probs
from softeval.trainers.config import TrainConfig
from softeval.trainers.learners.stages import solution_text
from softeval.trainers.losses import Choices, choices
from softeval.trainers.metrics import Metrics, Update
from softeval.trainers.questions import DataOrder, QuestionSet, TrainingQuestion
from softeval.trainers.setup import Trainee
from softeval.trainers.training_pass import MicroBatched, Parts


@dataclass(frozen=True)
class Lesson:
    """A sequence to learn from: a prompt, a number of thoughts, and the text behind them."""

    prompt_ids: tuple[int, ...]
    thoughts: int
    text_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + self.thoughts + len(self.text_ids)


def lesson(
    lm: LanguageModel, question: TrainingQuestion, steps: Sequence[str], thoughts: int
) -> Lesson:
    """The sequence that inference would feed, were it to write these steps and the right answer.

    Its text ends with the brace that closes the box and, where there is one, the end of a sequence.
    """
    stopper, eos = stopper_of(lm.tokenizer, PAPER), lm.tokenizer.eos_token_id
    text = solution_text(steps)
    ids = stopper.continuation_ids(text)
    ids += stopper.prefill_ids(text, StopReason.ANSWER_PREFIX)
    ids += stopper.continuation_ids(question.problem.target + "}")
    return Lesson(question.prompt_ids, thoughts, ids if eos is None else (*ids, eos))


@dataclass(frozen=True, eq=False)
class LessonBatch:
    """B padded lessons.

    Attributes:
        ids_BT: token ids; 0 where thoughts stand and beyond the end.
        starts_B: where the first thought stands, or would.
        thoughts_B: how many there are.
        text: the M text tokens.
    """

    ids_BT: Tensor
    starts_B: Tensor
    thoughts_B: Tensor
    text: Choices


def collate_lessons(lessons: Sequence[Lesson], device: torch.device) -> LessonBatch:
    """Pad lessons to one batch."""
    ids_BT = np.zeros((len(lessons), max(x.length for x in lessons)), dtype=np.int64)
    for row, x in enumerate(lessons):
        ids_BT[row, : len(x.prompt_ids)] = x.prompt_ids
        ids_BT[row, len(x.prompt_ids) + x.thoughts : x.length] = x.text_ids
    starts = [len(x.prompt_ids) for x in lessons]
    thoughts = [x.thoughts for x in lessons]
    behind = [start + number for start, number in zip(starts, thoughts, strict=True)]
    return LessonBatch(
        torch.from_numpy(ids_BT).to(device),
        torch.tensor(starts, device=device),
        torch.tensor(thoughts, device=device),
        choices(ids_BT, behind, [len(x.text_ids) for x in lessons], device),
    )


def lesson_inputs(lm: LanguageModel, head: OutputHead, mode: Coconut, batch: LessonBatch) -> Tensor:
    """(B, T, D) what the model is fed, thoughts included; differentiable through all of them."""
    inputs_BTD = lm.embedding.rows(batch.ids_BT)
    for number in range(int(batch.thoughts_B.max())):
        rows_b = (batch.thoughts_B > number).nonzero()[:, 0]
        place_b = batch.starts_B[rows_b] + number
        hidden_btD = last_hidden(lm.model, inputs_BTD[rows_b, : int(place_b.max())])
        hidden_bD = hidden_btD[torch.arange(len(rows_b), device=rows_b.device), place_b - 1]
        seen = Seen(head.logits(hidden_bD), lm.embedding, hidden_bD, head)
        inputs_BTD = inputs_BTD.index_put((rows_b, place_b), mode.thought(seen))
    return inputs_BTD


def text_log_probs(
    lm: LanguageModel, head: OutputHead, mode: Coconut, batch: LessonBatch
) -> Tensor:
    """(M,) log-probabilities of the text tokens in nats, differentiable in the weights."""
    hidden = last_hidden(lm.model, lesson_inputs(lm, head, mode, batch)).flatten(0, 1)
    return token_log_probs(hidden[batch.text.source_N], batch.text.ids_N, head)


class LessonPass(MicroBatched):
    """Computes the gradient of an update, part by part."""

    def run(self, lessons: Sequence[Lesson], head: OutputHead, mode: Coconut, tokens: int) -> float:
        """Add the gradient of the loss to the masters; this process's share of the loss.

        Args:
            lessons: this process's.
            head: the model's output head.
            mode: makes the thoughts.
            tokens: text tokens of all processes, over which the loss is a mean.
        """
        chosen = sorted(range(len(lessons)), key=lambda b: -lessons[b].length)

        def work(parts: Parts) -> float:
            total = 0.0
            for part in parts:
                batch = collate_lessons([lessons[b] for b in part], self.lm.device)
                loss = -text_log_probs(self.lm, head, mode, batch).sum() / tokens
                loss.backward()
                self.weights.collect()
                total += float(loss.detach())
            return total

        return self.in_parts([chosen], len(lessons), work)


class StagedLearning:
    """Makes updates from worked solutions, stage by stage.

    Args:
        config: the run.
        trainee: what learns.
        questions: with their worked solutions.
        processes: this process and its peers.
    """

    def __init__(
        self, config: TrainConfig, trainee: Trainee, questions: QuestionSet, processes: Processes
    ) -> None:
        self.config = config
        self.stages = config.stages
        self.trainee = trainee
        self.processes = processes
        self._questions = questions.train
        self._order = DataOrder(len(questions.train), config.seed)
        self._lessons: Sequence[Lesson] = ()
        size = fixed_size(config.micro_batch_size)
        self.passes = LessonPass(trainee.lm, trainee.weights, size)
        assert isinstance(config.mode, Coconut)
        self.mode = config.mode

    def stage(self, step: int) -> int:
        """Stage of an update; a model of a later one is better whatever its validation."""
        return self.stages.stage(step)

    def validated_mode(self, step: int) -> Mode:
        """What is validated after so many updates: the stage's thoughts, hard_greedy without any."""
        forget_alignment(self.trainee.lm.embedding)  # the weights have moved
        thoughts = self.stages.thoughts(self.stage(step))
        return replace(self.mode, latents=thoughts) if thoughts else get_mode("hard_greedy")

    def update(self, step: int, cursor: int) -> Update:
        """The gradient of all processes in the masters; a new stage begins with a new optimizer."""
        started = time.perf_counter()
        trainee, stage = self.trainee, self.stage(step)
        if stage != self.stage(step - 1):
            trainee.optimization.forget()
        forget_alignment(trainee.lm.embedding)
        lessons = self.lessons(stage, cursor)
        tokens = sum(len(x.text_ids) for x in lessons)
        self._lessons = self.processes.share(lessons)
        loss = 0.0
        if self._lessons:
            loss = self.passes.run(self._lessons, trainee.head, self.mode, tokens)
        trainee.weights.reduce()
        metrics: Metrics = {
            "loss/text": self.processes.totals({"loss": loss})["loss"],
            "curriculum/stage": float(stage),
            "curriculum/thoughts": sum(x.thoughts for x in lessons) / len(lessons),
            "curriculum/text_tokens": tokens / len(lessons),
            "gradient/norm": trainee.weights.norm(),
        }
        seconds = {"training": time.perf_counter() - started}
        return Update(metrics, cursor + len(lessons), tokens, seconds)

    def repeats(self, metrics: Metrics) -> tuple[float, ...]:
        """A batch of lessons serves one update."""
        return ()

    def lessons(self, stage: int, cursor: int) -> list[Lesson]:
        """The sequences of an update from place `cursor` of the data order on."""
        found = []
        for place, index in enumerate(self._order.take(cursor, self.config.sequences), cursor):
            question = self._questions[index]
            own = self.stages.drawn(stage, (self.config.seed, place))
            left = self.stages.left(question.steps, own)
            found.append(lesson(self.trainee.lm, question, left, self.stages.thoughts(own)))
        return found

    def keep(self, place: Path) -> None:
        """Write the batch of the last update, in which something went wrong."""
        decode = stopper_of(self.trainee.lm.tokenizer, PAPER).decode
        place.mkdir(parents=True, exist_ok=True)
        rows = [
            {"prompt": decode(x.prompt_ids), "thoughts": x.thoughts, "text": decode(x.text_ids)}
            for x in self._lessons
        ]
        write_json(place / "batch.json", rows)
