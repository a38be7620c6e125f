"""The configuration of `softeval run`: what it asks for beside the options of `softeval.options`.

Precedence is command line, environment (SOFTEVAL_RUN_*), file, default. Knows nothing of files of a
run, models or tasks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from softeval.errors import UserError, suggest
from softeval.modes import MODES, Mode, select_modes
from softeval.options import (
    LISTED,
    GenerationOptions,
    mode_option,
    output_option,
    read_options,
    read_pairs,
    sampling_option,
    split_list,
    task_option,
    validated,
)
from softeval.scoring.judge import Rules
from softeval.tasks.local_data import is_jsonl, split_tasks

DEFAULT_TASK = "arithmetic"
Names = Annotated[tuple[str, ...], LISTED]
Rows = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_SHARD = re.compile(r"(\d+)/(\d+)")
_ARRAY = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "COUNT"))


@dataclass(frozen=True)
class Shard:
    """A part of an evaluation: every count-th question of each task.

    Attributes:
        index: from 1.
        count: how many shards there are.
    """

    index: int
    count: int

    @classmethod
    def read(cls, text: str) -> Shard:
        """Of "2/7", or of "auto": the place of this task in its Slurm array, which must be whole.

        Raises:
            ValueError: neither, no array, or one that does not number its tasks from 0 or 1 on.
        """
        if text == "auto":
            return cls._of_array()
        match = _SHARD.fullmatch(text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"{text!r}: write 2/7 for the second of seven, or auto")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def _of_array(cls) -> Shard:
        try:
            place, first, last, count = (int(os.environ[name]) for name in _ARRAY)
        except (KeyError, ValueError):
            raise ValueError("auto: not a task of a Slurm array (sbatch --array=1-7)") from None
        # Some tasks of an array submitted anew would pass for the whole.
        if first not in (0, 1) or last - first + 1 != count or count < 2:
            raise ValueError(
                f"auto: the array has {count} tasks numbered {first} to {last}, which may not be all;"
                f" name the shard, such as {place}/7"
            )
        return cls(place - first + 1, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def folder(self) -> str:
        """Name of its run directory."""
        return f"shard-{self.index}-of-{self.count}"


TaskNames = Annotated[tuple[str, ...], BeforeValidator(split_tasks)]


class RunConfig(GenerationOptions):
    """What to evaluate, how, and where the run goes."""

    tasks: TaskNames = task_option(
        (DEFAULT_TASK,),
        "Tasks, or JSONL files, separated by commas; see `softeval ls tasks`.",
        flags=("-t",),
    )
    include_path: str | None = task_option(
        None, "Folder with YAMLs of tasks of your own; see docs/tasks.md."
    )
    question: str | None = task_option(
        None,
        "Field, or Jinja template, of the question in a JSONL file among --tasks."
        " Default: question, or problem.",
    )
    answer: str | None = task_option(
        None,
        "Field, or Jinja template, of the answer in a JSONL file among --tasks. Default: answer.",
    )
    limit: int | float | None = task_option(
        None,
        "Questions a task: a number, or a fraction below 1. Default: all.",
        flags=("--max-samples",),
    )
    docs: Annotated[tuple[Annotated[int, Field(ge=0)], ...] | None, LISTED] = task_option(
        None, "Only these questions of each task, by doc_id (its row, from 0): 3,17."
    )
    samples: str | None = task_option(
        None, 'Only these questions, as lm-eval takes them: JSON or its file, {"gsm8k": [3, 17]}.'
    )
    predict_only: bool = task_option(
        False, "Judge no answer; `softeval score RUN` does it later, without the model."
    )

    modes: Names = mode_option(
        ("all",), "CoT modes, separated by commas, or all; see `softeval ls modes`."
    )
    num_samples: int = sampling_option(
        32, "Samples a question in the sampled modes.", flags=("-n",), ge=1
    )
    record_top: int = output_option(
        5,
        "Largest mixture entries recorded at each position of each question's first sample.",
        ge=0,
        le=100,
    )
    primary: Annotated[tuple[str, ...] | None, LISTED] = output_option(
        None,
        "Contrasts that the report is to take as declared in advance, separated by commas:"
        " soft_sample:hard_sample@32 (two modes) or soft-hard:hard_sample@32 (two methods).",
    )
    output_path: str | None = output_option(
        None, "Run directory. Default: runs/<date>-<model>-<tasks>.", flags=("-o",)
    )
    report_to: tuple[str, ...] = output_option(
        (),
        "Trackers that are shown the scores: wandb, trackio, tensorboard or others of accelerate.",
    )
    push_to_hub: str | None = output_option(
        None, "Data set on the hub, as user/name, that gets the finished run; private if new."
    )
    shard: Shard | None = output_option(
        None,
        "Only this shard of the questions, such as 2/7, in a directory of its own under"
        " --output-path, for `softeval merge`; auto: the place in the Slurm array that runs this.",
    )

    @field_validator("tasks", "modes", "pass_at", "primary", "docs")
    @classmethod
    def _not_empty(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value is not None and not value:
            raise ValueError("names nothing; leave it out for the default")
        return value

    @field_validator("modes")
    @classmethod
    def _snake_modes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.replace("-", "_") for name in value)

    @field_validator("limit")
    @classmethod
    def _usable_limit(cls, value: float | None) -> int | float | None:
        if value is None:
            return None
        if not value > 0:
            raise ValueError(f"{value} leaves no question; give a number above 0, or leave it out")
        if value >= 1 and value != int(value):
            raise ValueError(f"{value}: give a whole number, or a fraction below 1")
        return int(value) if value >= 1 else float(value)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        for problem in self._contradictions():
            raise ValueError(problem)
        return self

    def _contradictions(self) -> Iterator[str]:
        """What options say against each other."""
        given = [f"--{n}" for n in ("limit", "docs", "samples") if getattr(self, n) is not None]
        if len(given) > 1:
            yield f"{' and '.join(given)} choose questions; give only one"
        shown = self.report_to or self.push_to_hub
        if self.predict_only and shown:
            yield "--predict-only has no scores for --report-to and --push-to-hub"
        if self.shard is not None and self.output_path is None:
            yield "--shard needs --output-path, the same for every shard"
        if self.shard is not None and shown:
            yield (
                "--report-to and --push-to-hub show whole runs: merge the shards, then give the"
                " same command without --shard, with the merged run as --output-path"
            )
        fields = [f"--{n}" for n in ("question", "answer") if getattr(self, n) is not None]
        if fields and not any(map(is_jsonl, self.tasks)):
            yield f"{fields[0]} has no effect without a .jsonl file among --tasks"

    @model_validator(mode="after")
    def _reachable_contrasts(self) -> RunConfig:
        chosen = {mode.name: mode for mode in self.selected_modes()} if self.primary else {}
        for text in self.primary or ():
            _, pair, mode, k = parse_contrast(text, "--primary")
            named = [name for name in (mode, pair.replace("-", "_")) if name in MODES]
            absent = [name for name in named if name not in chosen]
            if absent or mode not in chosen:
                raise ValueError(f"--primary {text}: {(absent or [mode])[0]} is not among --modes")
            most = 1 if chosen[mode].is_greedy else self.num_samples
            if not 1 <= k <= most:
                raise ValueError(f"--primary {text}: k is 1 to {most} there, by --num-samples")
        return self

    @field_validator("report_to", mode="before")
    @classmethod
    def _trackers(cls, value: Any) -> Any:
        return tuple(name for name in split_list(value) or () if name != "none")

    @field_validator("shard", mode="before")
    @classmethod
    def _read_shard(cls, value: Any) -> Any:
        return Shard.read(value) if isinstance(value, str) else value

    @field_serializer("shard")
    def _shard_text(self, value: Shard | None) -> str | None:
        return None if value is None else str(value)

    @property
    def rules(self) -> Rules | None:
        """Who judges; None where it is left for later."""
        return None if self.predict_only else self.scorer

    def docs_of(self, task: str) -> tuple[int, ...] | None:
        """The doc_ids asked for of a task, rising; None where --limit chooses.

        Raises:
            UserError: --samples cannot be read, or names none of this task.
        """
        if self.samples is None:
            return None if self.docs is None else tuple(sorted({*self.docs}))
        chosen = _read_samples(self.samples)
        if task not in chosen:
            raise UserError(f"--samples names no questions of {task}; add some, or leave it out")
        return tuple(sorted({*chosen[task]}))

    def selected_modes(self) -> tuple[Mode, ...]:
        """The modes, with every option in place.

        Raises:
            UserError: an unknown mode, or an option that none of them takes.
        """
        return select_modes(self.modes, self.mode_options())


def _read_samples(given: str) -> dict[str, list[int]]:
    """The doc_ids of each task, of JSON or a file of it."""
    try:
        inline = given.lstrip().startswith("{")
        text = given if inline else Path(given).expanduser().read_text(encoding="utf-8")
        return TypeAdapter(dict[str, Rows]).validate_json(text)
    except (OSError, UnicodeDecodeError, ValidationError):
        shape = 'JSON such as {"gsm8k": [3, 17]}, or a file of it'
        raise UserError(f"--samples {given[:60]} cannot be read; give {shape}") from None


_CONTRAST = re.compile(r"(?:(?P<task>[^/:]+)/)?(?P<pair>[^:]+):(?P<mode>[\w-]+)@(?P<k>\d+)")


def parse_contrast(text: str, flag: str = "--contrast") -> tuple[str | None, str, str, int]:
    """(task, pair, mode, k) of a contrast of the report.

    ``soft-hard:hard_sample@32`` sets two methods against each other under one mode,
    ``soft_sample:hard_sample@32`` two modes of one checkpoint; ``gsm8k/`` before it names the task,
    else it holds for every task.

    Raises:
        UserError: it is written otherwise.
    """
    match = _CONTRAST.fullmatch(text)
    if match is None:
        raise UserError(
            f"{flag} {text!r}: write it as soft-hard:hard_sample@32 (two methods) or"
            " soft_sample:hard_sample@32 (two modes)"
        )
    return match["task"], match["pair"], match["mode"].replace("-", "_"), int(match["k"])


def make_config(
    explicit: Mapping[str, Any], file: Path | None = None, model_args: str | None = None
) -> RunConfig:
    """The configuration from explicit options over a file over the defaults.

    Args:
        explicit: options that were really given.
        file: YAML file of field names.
        model_args: lm-eval's ``pretrained=PATH,dtype=bfloat16``; counts as explicit.

    Raises:
        UserError: unreadable file, unknown key (with a suggestion) or unusable value.
    """
    values = dict(_read_file(file)) if file is not None else {}
    values |= dict(explicit)
    if model_args:
        values |= _from_model_args(model_args, explicit)
    return validated(RunConfig, values)


def _read_file(path: Path) -> dict[str, Any]:
    values = read_options(path, "--config")
    for name in values:
        if name not in RunConfig.model_fields:
            hint = suggest(name, RunConfig.model_fields) or "; softeval run --help lists all"
            raise UserError(f"--config {path}: unknown key {name!r}{hint}")
    return values


_MODEL_ARGS = {"pretrained": "model"} | {
    name: name
    for name, field in GenerationOptions.model_fields.items()
    if name != "model" and field.json_schema_extra["panel"] == "Model"  # pyright: ignore
}


def _from_model_args(text: str, explicit: Mapping[str, Any]) -> dict[str, Any]:
    try:
        pairs = read_pairs(text)
    except ValueError as error:
        raise UserError(f"--model-args: {error}") from None
    values: dict[str, Any] = {}
    for name, value in pairs.items():
        if name not in _MODEL_ARGS:
            hint = suggest(name, _MODEL_ARGS)
            raise UserError(f"--model-args {name!r}{hint}; it takes {', '.join(_MODEL_ARGS)}")
        field = _MODEL_ARGS[name]
        # lm-eval users type `--model hf --model_args pretrained=PATH`.
        named_kind = field == "model" and explicit.get("model") in ("hf", "softeval")
        if field in explicit and not named_kind:
            raise UserError(f"--model-args {name} and --{field.replace('_', '-')}: give only one")
        values[field] = value
    return values
