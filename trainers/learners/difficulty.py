"""Which questions are worth rollouts: those that the untrained model answers right now and then.

A group whose samples are all right, or all wrong, teaches nothing, and most groups of a soft or fuzzy
training are of that kind. The pass rate of every training question is measured once by `softeval run`
itself, in the mode of training. Its run directory is the cache: it is continued where it was stopped,
and shared by all trainings that ask the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from softeval.display import make_display
from softeval.errors import UserError
from softeval.files import write_text
from softeval.model.language_model import LanguageModel
from softeval.model.weights import weights_hash
from softeval.modes import mode_record
from softeval.processes import Processes
from softeval.protocol import PAPER
from softeval.runs import rundir
from softeval.runs.config import RunConfig
from softeval.runs.evaluation import run_evaluation
from softeval.runs.request import RUNS
from softeval.runs.run import load_run
from softeval.scoring.judge import rules_name
from softeval.trainers.learners.selection import PASS_RATE_SAMPLES
from softeval.trainers.questions import QuestionSet, fingerprint

if TYPE_CHECKING:
    from softeval.trainers.config import TrainConfig

_QUESTIONS = "train.jsonl"


def within_pass_rates(
    config: TrainConfig, questions: QuestionSet, lm: LanguageModel, processes: Processes
) -> QuestionSet:
    """The questions without training questions that are too easy or too hard; measured if need be.

    Args:
        config: says between which rates, and by how many samples.
        questions: of the run.
        lm: the untrained model.
        processes: this process and its peers; only one alone can measure.

    Raises:
        UserError: none is left, or several processes find nothing measured.
    """
    if not config.filters_difficulty:
        return questions
    rates = _pass_rates(config, questions, lm, processes)
    low, high = config.min_pass_rate, config.max_pass_rate
    kept = tuple(q for q, r in zip(questions.train, rates, strict=True) if low <= r <= high)
    if not kept:
        raise UserError(
            f"none of {len(rates)} training questions has a pass rate from {low} to {high}; widen "
            "--min-pass-rate and --max-pass-rate"
        )
    dropped = len(questions.train) - len(kept)
    return replace(questions, train=kept, too_easy_or_hard=dropped)


def _pass_rates(
    config: TrainConfig, questions: QuestionSet, lm: LanguageModel, processes: Processes
) -> list[float]:
    """Share of right samples of each training question, in order."""
    folder = _folder(config, questions, lm)
    if processes.size == 1:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Of trainings that ask the same, as a sweep's may at once, one measures and others wait.
        with FileLock(f"{folder}.lock"):
            if not _is_measured(folder):
                _measure(config, questions, lm, folder)
    elif not _is_measured(folder):
        raise UserError(
            "pass rates are measured by one process: start the same command once without torchrun, "
            "and stop it when training begins"
        )
    samples = load_run(folder).samples(["doc_id", "correct"])
    rates: Any = samples.groupby("doc_id")["correct"].mean()
    return [float(rates[n]) for n in range(len(questions.train))]


def _is_measured(folder: Path) -> bool:
    return rundir.is_run(folder) and load_run(folder).complete


def _measure(config: TrainConfig, questions: QuestionSet, lm: LanguageModel, folder: Path) -> None:
    file = folder.with_name(f"{folder.name}-{_QUESTIONS}")
    rows = [{"question": q.problem.question, "answer": q.problem.target} for q in questions.train]
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    asked = RunConfig.model_validate(
        {
            **{name: getattr(config, name) for name in (*_SHARED, "graphs", "compile")},
            "mode_args": {k: str(v) for k, v in config.mode_options().items()},
            "modes": (config.mode.name,),
            "tasks": (str(file),),
            "max_cot_tokens": config.cot_cap,
            "num_samples": config.pass_rate_samples or PASS_RATE_SAMPLES,
            "output_path": str(folder),
        }
    )
    outcome = run_evaluation(asked, make_display(), lm=lm)
    if outcome.missing:
        raise UserError(f"{folder} lacks {outcome.missing} samples; start the same command again")


_SHARED = (
    "model",
    "revision",
    "trust_remote_code",
    "dtype",
    "device",
    "logits_dtype",
    "mode_file",
    "protocol",
    "prompt",
    "system_instruction",
    "apply_chat_template",
    "chat_date",
    "cot_stop",
    "answer_prefix",
    "max_answer_tokens",
    "scorer",
)
"""Fields that training and evaluation have in common, and on which samples or verdicts depend."""
_PROTOCOL = ("protocol", "prompt", "system_instruction", "cot_stop", "answer_prefix")
"""Those of them that a protocol is made of."""


def _folder(config: TrainConfig, questions: QuestionSet, lm: LanguageModel) -> Path:
    """Where these rates are, or will be: named by all that they depend on."""
    protocol = config.selected_protocol()
    by_protocol = {
        "apply_chat_template": protocol.chat,
        "max_answer_tokens": config.limits.max_answer_tokens,
    }
    named = [n for n in _SHARED if n not in ("model", "device", *_PROTOCOL)]
    shared = {n: str(by_protocol.get(n, getattr(config, n))) for n in named}
    asked = [
        config.pass_rate_samples or PASS_RATE_SAMPLES,
        config.cot_cap,
        mode_record(config.mode),
        shared,
        *([protocol.stops] if protocol.stops != PAPER.stops else []),  # prompts are fingerprinted
        rules_name(config.scorer),
    ]
    known = [weights_hash(lm.model), fingerprint(questions.train), *asked]
    digest = hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()
    return RUNS / f"pass-rates-{digest[:16]}"
