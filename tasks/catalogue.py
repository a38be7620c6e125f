"""The benchmarks there are: each one YAML, read and checked without lm-eval.

A definition names its data set, its split, its question and answer as templates over a row, and how
answers are scored. Ours lie beside this file, a user's in a folder of their own (``--include-path``);
both are the same to everything else. Nothing that a definition names is imported or run here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from softeval.errors import UserError, suggest
from softeval.lmeval import TASKS_DIR
from softeval.tasks.local_data import first_row, is_jsonl, task_name
from softeval.tasks.templates import Template

GENERATIVE = "generative"
LIKELIHOOD = "log-likelihood"
GROUP = "group"
LM_EVAL = "lm-eval"


# Fields of a definition that only lm-eval reads.
_LM_EVAL_FIELDS = ("class", "tag", "task_alias")


class Scoring(StrEnum):
    """How an answer is judged."""

    MATH = "math"
    LETTER = "letter"
    LIKELIHOOD = "likelihood"


class Benchmark(BaseModel):
    """What a YAML says of a benchmark.

    Attributes:
        task: its name.
        dataset_path: repository on the hub, or a JSONL file beside the YAML, in whose name
            ``{split}`` stands for the split.
        dataset_name: configuration of the repository.
        test_split: what is evaluated on.
        training_split: what is trained on.
        local_names: names under which a data directory may hold it, best first; its own if none.
        rows: questions in the test split, for a dry run, which asks no hub.
        scoring: math and letter are generated in every mode; likelihood compares given answers.
        question: template of what is asked; with likelihood, of what the choices are scored after.
        answer: template of the right answer; with choices, of the index of the right one.
        choices: template of the list of choices.
        description: template of a text before the question (likelihood).
        error: template of how far a number may be from the answer, empty where it may not (math).
        solution: template of a worked solution, for `softeval diagnose`.
        required: further fields that every row must have; they count in the hash.
        percent: what `percent` stands for in the templates; NAME_10 is the task with another one.
        group: template of the part of the task that a question belongs to, which a run records.
        acc_norm: whether accuracy per character is reported, too (likelihood).
        metadata: of which lm-eval shows the version.
        folder: where the YAML lies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    dataset_path: str
    dataset_name: str | None = None
    test_split: str = "test"
    training_split: str = "train"
    local_names: tuple[str, ...] = ()
    rows: int | None = None
    scoring: Scoring = Scoring.MATH
    question: str
    answer: str
    choices: str | None = None
    description: str | None = None
    error: str | None = None
    solution: str | None = None
    required: tuple[str, ...] = ()
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    group: str | None = None
    acc_norm: bool = True
    metadata: dict[str, Any] = {"version": 1.0}
    folder: Path

    @classmethod
    def read(cls, content: Mapping[str, Any], path: Path) -> Benchmark:
        """A definition from the content of a YAML.

        Raises:
            UserError: an unknown or missing field, or a template that is none.
        """
        values = {name: value for name, value in content.items() if name not in _LM_EVAL_FIELDS}
        try:
            found = cls(**values, folder=path.parent)
            _ = found.templates
        except ValidationError as error:
            raise UserError(f"{path}: {_explained(error, cls.model_fields)}") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        return found

    @model_validator(mode="after")
    def _consistent(self) -> Benchmark:
        if self.scoring is Scoring.LIKELIHOOD and self.choices is None:
            raise ValueError("scoring: likelihood needs choices")
        if self.choices is not None and self.scoring is Scoring.MATH:
            raise ValueError("choices need scoring: letter or likelihood")
        if self.error is not None and self.scoring is not Scoring.MATH:
            raise ValueError("error needs scoring: math")
        if self.description is not None and self.scoring is not Scoring.LIKELIHOOD:
            raise ValueError("description needs scoring: likelihood")
        return self

    @property
    def kind(self) -> str:
        """Whether it runs in every mode, or once."""
        return LIKELIHOOD if self.scoring is Scoring.LIKELIHOOD else GENERATIVE

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its data set, best first."""
        return self.local_names or (self.task,)

    @property
    def on_hub(self) -> bool:
        """Whether its data come from the hub, unless a data directory is given."""
        return not is_jsonl(self.dataset_path)

    @property
    def shipped(self) -> bool:
        """Whether it is one of ours."""
        return self.folder.resolve().is_relative_to(TASKS_DIR.resolve())

    @cached_property
    def templates(self) -> dict[str, Template]:
        """The templates by name, in the order in which a message lists their fields."""
        names = ("question", "answer", "choices", "description", "error", "group", "solution")
        given = {name: getattr(self, name) for name in names}
        constants = {} if self.percent is None else {"percent": self.percent}
        return {
            name: Template(name, text, constants)
            for name, text in given.items()
            if text is not None
        }

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Fields that every row must have; a solution is nobody's duty."""
        asked = [t.fields for name, t in self.templates.items() if name != "solution"]
        return tuple(dict.fromkeys(name for names in (*asked, self.required) for name in names))


@dataclass(frozen=True)
class TaskEntry:
    """One name that --tasks takes.

    Attributes:
        name: the name.
        kind: "generative" (runs under every mode), "log-likelihood" (runs once), "group", or
            "lm-eval": written for lm-eval alone.
        path: its YAML.
        members: tasks of a group.
        content: what the YAML says, includes merged.
    """

    name: str
    kind: str
    path: Path
    members: tuple[str, ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)


def task_catalogue(include_path: str | None = None) -> dict[str, TaskEntry]:
    """Every task and group by name: ours, and those of a folder.

    Raises:
        UserError: no such folder, a file that is no YAML, or two definitions of one name.
    """
    entries = dict(_shipped())
    for entry in _included(include_path):
        if entry.name in entries:
            raise UserError(
                f"{entry.path} and {entries[entry.name].path} both define {entry.name}; rename one"
            )
        entries[entry.name] = entry
    return entries


def find_benchmarks(
    names: Sequence[str],
    include_path: str | None = None,
    question: str | None = None,
    answer: str | None = None,
) -> list[Benchmark]:
    """The benchmarks that names of tasks, groups and JSONL files stand for.

    Args:
        names: as --tasks takes them.
        include_path: folder of further definitions.
        question: template of a bare file's questions.
        answer: template of a bare file's answers.

    Raises:
        UserError: an unknown name, with the nearest known one; a definition that is none of ours.
    """
    known = task_catalogue(include_path)
    found: dict[str, Benchmark] = {}
    for name in names:
        if is_jsonl(name):
            if task_name(name) in known:
                raise UserError(f"{name}: {task_name(name)} is a task already; rename the file")
            several = [bare_file(name, question, answer)]
        else:
            several = _named(name, known)
        for one in several:
            if found.setdefault(one.task, one) != one:
                raise UserError(f"--tasks names two files {one.task}; rename one")
    return list(found.values())


def is_bundled(name: str) -> bool:
    """Whether a name is of a task whose questions are in the package."""
    try:
        found = _named(name, _shipped())
    except UserError:
        return False
    return bool(found) and not any(benchmark.on_hub for benchmark in found)


def bare_file(path: str, question: str | None = None, answer: str | None = None) -> Benchmark:
    """The benchmark of a JSONL file without a definition, named like the file.

    Args:
        path: the file, .jsonl or .jsonl.gz.
        question: template of the question; by default the field question, or problem.
        answer: template of the answer; by default the field answer.

    Raises:
        UserError: no such file, or a template that is none.
    """
    file = Path(path).expanduser()
    task = task_name(path)
    if question is None:
        question = "question" if "question" in first_row(file) else "problem"
    content = {
        "task": task,
        "dataset_path": file.name,
        "test_split": "all",
        "training_split": "all",
        "question": question,
        "answer": answer or "answer",
    }
    return Benchmark.read(content, file)


def _named(name: str, known: Mapping[str, TaskEntry]) -> list[Benchmark]:
    stem, _, number = name.rpartition("_")
    if name not in known and stem in known and "percent" in known[stem].content:
        changed = {"task": name, "percent": number}
        return [Benchmark.read({**known[stem].content, **changed}, known[stem].path)]
    if name not in known:
        hint = suggest(name, known) or "; see `softeval ls tasks`"
        raise UserError(f"unknown task {name!r}{hint}")
    entry = known[name]
    if entry.kind == GROUP:
        return [one for member in entry.members for one in _named(member, known)]
    if entry.kind == LM_EVAL:
        raise UserError(
            f"{name} ({entry.path}) is written for lm-eval alone: give it question and answer, or"
            " run it with `softeval lm-eval`"
        )
    return [Benchmark.read(entry.content, entry.path)]


def _included(include_path: str | None) -> Iterator[TaskEntry]:
    if include_path is None:
        return
    folder = Path(include_path).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"no folder {include_path}; give --include-path one that holds task YAMLs")
    yield from _entries(folder)


@cache
def _shipped() -> dict[str, TaskEntry]:
    return {entry.name: entry for entry in _entries(TASKS_DIR)}


def _entries(folder: Path) -> Iterator[TaskEntry]:
    for path in sorted(folder.glob("**/*.yaml")):
        content = _read_yaml(path)
        if "group" in content and "question" not in content:
            members = tuple(map(str, content.get("task") or ()))
            yield TaskEntry(str(content["group"]), GROUP, path, members)
        elif "task" in content:
            ours = "question" in content or "BenchmarkTask" in str(content.get("class"))
            once = content.get("scoring") == Scoring.LIKELIHOOD
            kind = (LIKELIHOOD if once else GENERATIVE) if ours else LM_EVAL
            yield TaskEntry(str(content["task"]), kind, path, content=content)


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a definition; lm-eval's ``include`` is merged in, own fields win."""
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path} includes itself; take the include out")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); see who includes it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}; mend it") from None
    if not isinstance(content, dict):
        return {}
    includes = content.pop("include", ())
    merged: dict[str, Any] = {}
    for name in [includes] if isinstance(includes, str) else includes:
        merged |= _read_yaml(path.parent / name, (*seen, path))
    return merged | content


def _explained(error: ValidationError, known: Mapping[str, Any]) -> str:
    """The first problem in one line; an unknown field before a missing one, which it may mean."""
    problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        hint = suggest(name, known) or f"; it takes {', '.join(n for n in known if n != 'folder')}"
        return f"unknown field {name!r}{hint}"
    if problem["type"] == "missing":
        return f"no {name}; a benchmark needs task, dataset_path, question and answer"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else f"{message}; mend it"


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's ``!function`` as the text behind it; nothing is imported."""


_Loader.add_constructor("!function", _Loader.construct_scalar)
