"""Which questions are trained on, which are held out, and in which order they come.

A training question that also stands in an evaluation set is dropped and counted: DeepScaleR holds
some of MATH-500. Two questions are copies if their texts agree without white space, or if texts and
labels agree without LaTeX dressing. The held-out questions are chosen by a hash of their text, so
every method and seed is validated on the same ones.

Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from softeval.errors import UserError
from softeval.model.chat import example_hash, render_chat
from softeval.model.language_model import LanguageModel
from softeval.model.stopping import check_context
from softeval.protocol import Example
from softeval.scoring.judge import Item, ScoreKind
from softeval.tasks.arithmetic import ArithmeticProblem
from softeval.tasks.catalogue import Benchmark, bare_file, find_benchmarks
from softeval.tasks.data import DatasetSource, fewshot_examples, gold_solutions, load_problems
from softeval.tasks.local_data import is_jsonl, task_name
from softeval.tasks.problems import Problem
from softeval.trainers.config import TrainConfig
from softeval.trainers.learners.stages import solution_text

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class TrainingQuestion:
    """A question ready to be decoded.

    Attributes:
        index: row of the training set, the key of its random numbers.
        problem: its text and label.
        prompt_ids: its prompt as tokens.
        steps: its worked solution, one text a step; none where nothing learns from it.
    """

    index: int
    problem: Problem
    prompt_ids: tuple[int, ...]
    steps: tuple[str, ...] = ()

    def item(self, answer: str | None) -> Item:
        """What the scorer is asked about an answer."""
        return Item(answer, self.problem.target, ScoreKind.MATH, self.problem.error)


@dataclass(frozen=True)
class QuestionSet:
    """Training and validation questions, and what was left out.

    Attributes:
        train: trained on.
        validation: held out.
        further: questions of further validation sets, by their names.
        source: where they come from.
        overlaps: questions dropped for standing in an evaluation set, by its name.
        repeated: questions dropped as copies of earlier ones of the training set.
        unlabelled: questions dropped for an empty label, which no answer can equal.
        too_long: questions dropped for the length of their prompt or worked solution.
        too_easy_or_hard: training questions dropped for their pass rate.
    """

    train: tuple[TrainingQuestion, ...]
    validation: tuple[TrainingQuestion, ...]
    source: DatasetSource
    overlaps: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    unlabelled: int = 0
    too_long: int = 0
    too_easy_or_hard: int = 0
    further: dict[str, tuple[TrainingQuestion, ...]] = field(default_factory=dict)

    def fingerprints(self) -> dict[str, str]:
        """Hashes of training and validation questions, which must agree when a run is continued."""
        validated = (*self.validation, *chain(*self.further.values()))
        errors = json.dumps([q.problem.error for q in (*self.train, *validated)])
        found = {"train": fingerprint(self.train), "validation": fingerprint(validated)}
        return found | {"tolerances": hashlib.sha256(errors.encode()).hexdigest()}

    def counts(self) -> dict[str, Any]:
        """Source and numbers, for the record."""
        return {
            **asdict(self.source),
            "train": len(self.train),
            "validation": len(self.validation),
            "overlaps": self.overlaps,
            "repeated": self.repeated,
            "unlabelled": self.unlabelled,
            "too_long": self.too_long,
            "too_easy_or_hard": self.too_easy_or_hard,
            "further": {name: len(questions) for name, questions in self.further.items()},
        }

    def summary(self) -> str:
        """One line of counts."""
        dropped = [f"{n} in {name}" for name, n in self.overlaps.items() if n]
        dropped += [f"{self.repeated} repeated"] * bool(self.repeated)
        dropped += [f"{self.unlabelled} without a label"] * bool(self.unlabelled)
        dropped += [f"{self.too_long} too long"] * bool(self.too_long)
        odd = self.too_easy_or_hard
        dropped += [f"{odd} too easy or too hard"] * bool(odd)
        left_out = f"; dropped: {', '.join(dropped)}" if dropped else ""
        return f"{len(self.train)} training and {len(self.validation)} held-out questions{left_out}"


@dataclass(frozen=True)
class Lengths:
    """Positions of the longest sequence: its prompt, its CoT's cap, and all together."""

    prompt: int
    cot: int
    total: int


def longest_sequence(config: TrainConfig, lm: LanguageModel, questions: QuestionSet) -> Lengths:
    """Lengths of the longest sequence; questions that do not fit the context are refused.

    Raises:
        UserError: naming what is needed.
    """
    asked = (*questions.train, *questions.validation, *chain(*questions.further.values()))
    prompts = [(len(q.prompt_ids), "training", q.index) for q in asked]
    check_context(prompts, config.limits, lm, "or set --max-prompt-tokens")
    longest = max(prompts)[0]
    return Lengths(longest, config.cot_cap, longest + config.limits.room(lm))


class DataOrder:
    """An endless sequence of questions: every epoch a new permutation, a function of the seed.

    Args:
        count: number of questions.
        seed: seed of the permutations.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def take(self, cursor: int, number: int) -> list[int]:
        """Indices of the questions at places cursor … cursor + number - 1 of the sequence."""
        return [self._at(place) for place in range(cursor, cursor + number)]

    def _at(self, place: int) -> int:
        epoch, offset = divmod(place, self.count)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng((self.seed, epoch)).permutation(self.count)
            self._epoch = epoch
        return int(self._permutation[offset])


def prompt_maker(
    config: TrainConfig, tokenizer: Any, examples: Sequence[Example] = ()
) -> Callable[[str], str]:
    """What makes a question's whole prompt, as in `softeval run`.

    Raises:
        UserError: no usable template, or a chat template that asks for the date, which is not given.
    """
    protocol = config.selected_protocol()
    if not protocol.chat:
        return lambda question: protocol.whole_prompt(question, examples)
    days = [config.chat_date] if config.chat_date else [date(2000, 1, 1), date(2024, 12, 31)]
    if len({example_hash(tokenizer, day) for day in days}) > 1:
        raise UserError("the chat template tells the date; say which by --chat-date YYYY-MM-DD")
    chat = partial(render_chat, tokenizer, day=days[0])
    return lambda question: protocol.whole_prompt(question, examples, chat)


def load_questions(config: TrainConfig, encode: Encode, tokenizer: Any = None) -> QuestionSet:
    """Load, filter, hold out and encode the questions of a training run.

    Args:
        config: names the data.
        encode: text to token ids.
        tokenizer: the checkpoint's, for its chat template.

    Raises:
        UserError: data that cannot be loaded, or too few questions left.
    """
    name = "arithmetic" if config.dataset == "demo" else config.dataset
    benchmark = _benchmarks(name)[0]
    examples = fewshot_examples(benchmark, config.num_fewshot, config.data_dir)
    prompt = prompt_maker(config, tokenizer, examples)
    problems, source = load_problems(benchmark, config.data_dir, benchmark.training_split)
    labelled = [(index, p) for index, p in enumerate(problems) if p.target.strip()]
    kept, overlaps, repeated = _filtered(labelled, config)
    worked = _worked_solutions(config, benchmark, problems) if config.is_staged else None
    questions = [
        TrainingQuestion(
            index,
            problem,
            tuple(encode(prompt(problem.question))),
            () if worked is None else worked[index],
        )
        for index, problem in kept[: config.limit]
    ]
    longest = config.max_prompt_tokens
    fitting = [q for q in questions if longest is None or len(q.prompt_ids) <= longest]
    train, validation = hold_out(fitting, config.validation_size)
    if config.is_staged:
        train = tuple(q for q in train if _fits_caps(q, config, encode))
        if not train:
            raise UserError("no worked solution is within the caps; raise --max-cot-tokens")
    return QuestionSet(
        train,
        validation,
        source,
        overlaps,
        repeated,
        unlabelled=len(problems) - len(labelled),
        too_long=len(questions) - len(train) - len(validation),
        further={
            task_name(name): tuple(
                TrainingQuestion(index, problem, tuple(encode(prompt(problem.question))))
                for index, problem in enumerate(_validated(name, config))
            )
            for name in config.validation_sets
        },
    )


def _benchmarks(name: str, include_path: str | None = None) -> Sequence[Benchmark]:
    return [bare_file(name)] if is_jsonl(name) else find_benchmarks([name], include_path)


def _problems(name: str, config: TrainConfig) -> list[Problem]:
    """Those that a task, a group of tasks or a file evaluates on."""
    found = _benchmarks(name, config.include_path)
    return [p for b in found for p in load_problems(b, config.data_dir)[0]]


def _validated(name: str, config: TrainConfig) -> list[Problem]:
    return _problems(name, config)[: config.validation_size]


def hold_out(
    questions: Sequence[TrainingQuestion], size: int
) -> tuple[tuple[TrainingQuestion, ...], tuple[TrainingQuestion, ...]]:
    """Training and validation questions; the choice depends on the questions' texts alone.

    Raises:
        UserError: nothing would be left to train on.
    """
    if len(questions) <= size:
        raise UserError(
            f"{len(questions)} questions leave none to train on beside {size} held out; "
            "lower --validation-size or give more data"
        )
    ranked = sorted(questions, key=lambda q: _digest(q.problem.question))
    held = {q.index for q in ranked[:size]}
    train = tuple(q for q in questions if q.index not in held)
    return train, tuple(q for q in questions if q.index in held)


def fingerprint(questions: Sequence[TrainingQuestion]) -> str:
    """sha256 over rows, texts, labels and prompt tokens of the questions, in order."""
    asked = [(q.index, q.problem, q.prompt_ids, q.steps) for q in questions]
    rows = [(index, p.question, p.target, ids, *steps) for index, p, ids, steps in asked]
    return hashlib.sha256("".join(f"{json.dumps(row)}\n" for row in rows).encode()).hexdigest()


def _worked_solutions(
    config: TrainConfig, benchmark: Benchmark, problems: Sequence[Problem]
) -> list[tuple[str, ...]]:
    """The steps of every row's worked solution, each with the space before it.

    The bundled task's are known to its generator; of any other a line is a step.
    """
    if config.dataset == "demo":
        return [ArithmeticProblem.read(p.question).careful_steps for p in problems]
    if is_jsonl(config.dataset):
        benchmark = Benchmark.model_validate(benchmark.model_dump() | {"solution": "solution"})
    solutions = gold_solutions(benchmark, config.data_dir, benchmark.training_split)
    if solutions is None:
        raise UserError(
            f"--dataset {config.dataset} has no worked solutions, from which --method "
            f"{config.method} learns; take demo, gsm8k, or a JSONL file with a field solution"
        )
    return [tuple(f" {x.strip()}" for x in s.splitlines() if x.strip()) for s in solutions]


def _fits_caps(question: TrainingQuestion, config: TrainConfig, encode: Encode) -> bool:
    """Whether a CoT with all steps, and one with all thoughts beside them, is within the caps."""
    text = solution_text(question.steps)
    thoughts = config.stages.thoughts(config.stages.last)
    return (
        len(encode(text)) + thoughts <= config.cot_cap
        and len(encode(question.problem.target)) < config.limits.max_answer_tokens
    )


def normalised(text: str) -> str:
    """Text without white space, in which copies of one question differ most."""
    return "".join(text.split())


_DRESSING = re.compile(
    r"\\(?:left|right|displaystyle|quad|qquad|hspace\{[^}]*\})(?![a-z])"
    r"|\\[\[\](),;:! ]"
    r"|[$~{},\s]"
    r"|(?<!\d)\.|\.(?!\d)"  # a full stop, not a decimal point
)


def undressed(text: str) -> str:
    """Text in lower case without white space, dollars, braces, commas, full stops and spacing macros.

    Operators stay, and so do letters of other macros: z^4-z^2+1 and z^4+z^2+1 are two questions.
    """
    return _DRESSING.sub("", re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", text.lower()))


def copy_keys(problem: Problem) -> set[str | tuple[str, str]]:
    """Keys of which copies of one question share at least one."""
    dressed = normalised(problem.question)
    return {dressed, (undressed(problem.question), undressed(problem.target))}


def _filtered(
    problems: Sequence[tuple[int, Problem]], config: TrainConfig
) -> tuple[list[tuple[int, Problem]], dict[str, int], int]:
    """(row, problem) of those kept, count of those in each evaluation set, count of repeats."""
    evaluated = {task: _keys(task, config) for task in config.overlaps}
    for name in config.validation_sets:
        evaluated[task_name(name)] = set().union(*map(copy_keys, _validated(name, config)))
    overlaps = dict.fromkeys(evaluated, 0)
    seen: set[str | tuple[str, str]] = set()
    kept: list[tuple[int, Problem]] = []
    repeated = 0
    for index, problem in problems:
        keys = copy_keys(problem)
        found = [task for task, theirs in evaluated.items() if keys & theirs]
        for task in found:
            overlaps[task] += 1
        repeated += not found and not keys.isdisjoint(seen)
        if not found and keys.isdisjoint(seen):
            kept.append((index, problem))
        seen |= keys
    return kept, overlaps, repeated


def _keys(task: str, config: TrainConfig) -> set[str | tuple[str, str]]:
    try:
        problems = _problems(task, config)
    except UserError as error:
        raise UserError(
            f"{error}; it is read to drop its questions from training, --exclude-tasks none leaves "
            "it out"
        ) from error
    return set().union(*map(copy_keys, problems))


def _digest(text: str) -> str:
    return hashlib.sha256(normalised(text).encode()).hexdigest()
