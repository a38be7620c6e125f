"""Greedy validation: the training method's mode without noise or sampling, greedy answers.

Knows nothing of training; it decodes and scores the held-out questions.
"""

from __future__ import annotations

from dataclasses import dataclass

from softeval.decoding.decoder import Decoder, Question
from softeval.decoding.rows import Limits
from softeval.model.language_model import LanguageModel
from softeval.modes import Mode, get_mode
from softeval.scoring.judge import scorer
from softeval.trainers.config import TrainConfig
from softeval.trainers.processes import Processes
from softeval.trainers.questions import TrainingQuestion


@dataclass(frozen=True)
class Validation:
    """Result of one validation.

    Attributes:
        success: share of accepted answers.
        boxed: share of answers in a box.
        cot_length: mean CoT length in tokens.
        stopped: share of CoTs that ended with the answer prefix.
    """

    success: float
    boxed: float
    cot_length: float
    stopped: float


def greedy_mode(config: TrainConfig) -> Mode:
    """The method's mode without randomness (method section 3, selection), hard where it has none."""
    return config.mode.greedy() or get_mode("hard_greedy")


def validate(
    lm: LanguageModel,
    questions: tuple[TrainingQuestion, ...],
    config: TrainConfig,
    processes: Processes,
) -> Validation:
    """Decode and score the held-out questions, shared out among the processes."""
    limits = Limits(config.cot_cap, config.max_answer_tokens)
    size = config.decode_batch_size
    decoder = Decoder(lm, greedy_mode(config), limits, batch_size=None if size == "auto" else size)
    mine = {q.index: q for q in processes.share(questions)}
    asked = [Question("validation", q.index, q.prompt_ids, (0,)) for q in mine.values()]
    found = list(decoder.run(asked))
    items = [mine[g.key.doc_id].item(g.answer) for g in found]
    verdicts = scorer(config.scorer).score_many(items) if items else []
    sums = {
        "success": float(sum(v.correct for v in verdicts)),
        "boxed": float(sum(v.status != "no_answer" for v in verdicts)),
        "cot_length": float(sum(len(g.shadow_ids) for g in found)),
        "stopped": float(sum(g.stop_reason == "answer_prefix" for g in found)),
    }
    totals = processes.totals(sums)
    return Validation(**{name: value / len(questions) for name, value in totals.items()})
