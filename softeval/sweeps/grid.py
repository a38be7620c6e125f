"""A grid of trainings, as a YAML file asks for it.

    title: The noise scale of fuzzy training
    config: [demo, [soft, fuzzy]]         # recipes of softeval train; of a list in it, one at a time
    train: {max_steps: 60}                # options of softeval train, over the recipes
    grid: {noise_scale: [0.1, 0.33, 1]}   # every combination is a cell
    seeds: [0, 1, 2]                      # of training; each cell once a seed
    processes: 2                          # of each training, under torchrun; or {RECIPE: number}
    run: {modes: all, num_samples: 32}    # options of softeval run, on what was trained; or a list
    shards: 4                             # of each evaluation, merged at the end
    diagnose: {limit: 20}                 # options of softeval diagnose; left out: none

`grid` takes options of `softeval train` and of the trained mode; a list of such mappings is the union
of their grids. A list under `run` is several evaluations, and `{dataset}` among their tasks stands for what
the cell was trained on (for the untrained model: what each was). Everything is resolved and checked here, before the first update.

Knows nothing of how cells are run, nor what a recipe is.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from softeval.errors import UserError, suggest
from softeval.model import BUNDLED_CHECKPOINT
from softeval.modes import MODES, mode_record
from softeval.options import read_options, read_pairs
from softeval.runs import config as evaluation
from softeval.runs.cells import chosen_benchmarks, question_count
from softeval.runs.request import refuse_other_shards
from softeval.sweeps.chain import Command, SweepCell
from softeval.trainers import config as training
from softeval.trainers.config import TrainConfig

Recipes = tuple[str, ...]
OWN = {
    "train": {"output_path": "is chosen here", "seed": "belongs under seeds"},
    "run": {
        "output_path": "is chosen here",
        "model": "is what was trained",
        "revision": "is of what was trained",
        "shard": "belongs under shards",
    },
}
"""Options of the two commands that a file does not set, and why."""
MODE_FIELDS = ("method", "mode_args", "temperature", "noise_scale", "noise_norm")
"""Options of a training that end in its mode."""


def _listed(value: Any) -> Any:
    """A list of one for anything else."""
    return value if isinstance(value, list | tuple) else [value]


def _snake(value: Any) -> Any:
    """Options with `_` for `-` in their names; what is none is refused as what it is."""
    if not isinstance(value, Mapping):
        return value
    return {str(name).replace("-", "_"): option for name, option in value.items()}


Options = Annotated[dict[str, Any], BeforeValidator(_snake)]
Values = Annotated[list[Any], Field(min_length=1), BeforeValidator(_listed)]
Axes = Annotated[dict[str, Values], BeforeValidator(_snake)]


class Diagnosing(BaseModel):
    """Options of `softeval diagnose`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sets: str | None = None
    samples: int = Field(1, ge=1)
    limit: int | None = Field(None, ge=1)
    data_dir: str | None = None
    device: str = "auto"
    dtype: str | None = None


class GridFile(BaseModel):
    """Content of the file; the module's docstring says what each key means.

    Attributes:
        checkpoint: which of a training's checkpoints is evaluated; the paper's choice is the best.
        base: whether the untrained model is evaluated beside the cells.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str | None = None
    config: Annotated[list[str | list[str]], BeforeValidator(_listed)] = []
    train: Options = {}
    grid: Annotated[list[Axes], BeforeValidator(_listed)] = [{}]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_listed)] = [0, 1, 2]
    processes: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=1)]] = 1
    run: Annotated[list[Options], BeforeValidator(_listed), Field(min_length=1)] = [{}]
    shards: int = Field(1, ge=1)
    diagnose: Diagnosing | None = None
    checkpoint: Literal["best", "last"] = "best"
    base: bool = True

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"{value}: name one or more seeds, each once")
        return value

    @property
    def recipes(self) -> list[Recipes]:
        """Every choice of recipes."""
        return list(itertools.product(*map(_listed, self.config)))

    def varying(self, recipes: Recipes) -> list[str]:
        """Those of a choice that other choices have not."""
        several = (isinstance(listed, list) and len(listed) > 1 for listed in self.config)
        return [name for name, many in zip(recipes, several, strict=True) if many]

    def runs_of(self, trained: Sequence[TrainConfig]) -> Iterator[evaluation.RunConfig]:
        """The evaluations of what was trained, or of what these trainings start from."""
        sets = dict.fromkeys(config.dataset for config in trained)
        for run in map(evaluation.make_config, self.run):
            filled = dict.fromkeys(t.replace("{dataset}", s) for s in sets for t in run.tasks)
            meant = any("{dataset}" in task for task in run.tasks)
            yield run.model_copy(update={"tasks": (*filled,)}) if meant else run

    def processes_of(self, recipes: Recipes) -> int:
        """Of a training by these recipes."""
        if isinstance(self.processes, int):
            return self.processes
        return max((self.processes.get(name, 1) for name in recipes), default=1)


def read_grid(path: Path) -> GridFile:
    """The file, its keys checked.

    Raises:
        UserError: unreadable, no YAML, an unknown key or an unusable value.
    """
    try:
        return GridFile(**read_options(path, "grid"))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise UserError(
                f"{path}: unknown key {key!r}{suggest(key, GridFile.model_fields)}"
            ) from None
        said = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {key}: {said[0].lower()}{said[1:]}") from None


def expand(
    file: GridFile, recipes: Mapping[Recipes, Mapping[str, Any]], folder: Path
) -> list[SweepCell]:
    """Every cell of a grid with its commands, the untrained models first.

    Args:
        file: the grid.
        recipes: the options of each choice of recipes.
        folder: where the cells' directories go.

    Raises:
        UserError: an unknown or unusable option, or two cells that are the same.
    """
    _refuse_own(file.train, "train")
    for options in file.run:
        _refuse_own(options, "run")
    points = [
        dict(zip(axes, values, strict=True))
        for axes in file.grid
        for values in itertools.product(*axes.values())
    ]
    asked = [(chosen, point) for point in points for chosen in file.recipes]
    trained = [_training({**recipes[chosen], **file.train}, point) for chosen, point in asked]
    labels = [file.varying(chosen) for chosen, _ in asked]
    names = _names([point for _, point in asked], labels, trained)
    _refuse_same(names, trained)
    for run in file.runs_of(trained):
        run.selected_modes()
        _refuse_few_questions(run, file.shards)
    cells = [
        _trained_cell(file, name, config, place, file.processes_of(chosen), seed)
        for name, config, (chosen, _) in zip(names, trained, asked, strict=True)
        for seed in file.seeds
        for place in [folder / f"{_folder_name(name)}-seed-{seed}"]
    ]
    return ([*_untrained(file, trained, folder)] if file.base else []) + cells


def _refuse_few_questions(run: evaluation.RunConfig, shards: int) -> None:
    """Say before hours of training that a task is unknown, or has fewer questions than shards."""
    for task in chosen_benchmarks(run):
        if task.rows is not None and (rows := question_count(task.rows, run.limit)) < shards:
            raise UserError(f"shards: {shards} of {task.task}, which has {rows} questions only")


def _untrained(file: GridFile, trained: Sequence[TrainConfig], folder: Path) -> Iterator[SweepCell]:
    """The evaluation of what the cells start from."""
    models = dict.fromkeys((config.model, config.revision) for config in trained)
    for model, revision in models:
        name = "base" if len(models) == 1 else f"base {Path(model or BUNDLED_CHECKPOINT).name}"
        chosen = {"model": model, "revision": revision}
        found = _evaluations(file, trained, chosen, folder / _folder_name(name), ())
        yield SweepCell(name, None, found)


def _training(options: Mapping[str, Any], point: Mapping[str, Any]) -> TrainConfig:
    """The configuration of one cell, its seed aside."""
    _refuse_own(point, "train")
    fields = {name: value for name, value in point.items() if name in TrainConfig.model_fields}
    of_mode = {name: value for name, value in point.items() if name not in fields}
    for name in of_mode:
        if not any(name in mode.options for mode in MODES.values()):
            raise UserError(
                f"grid: unknown option {name!r}{suggest(name, TrainConfig.model_fields)}"
            )
    values = {**options, **fields}
    if of_mode:
        values["mode_args"] = {**read_pairs(values.get("mode_args", {})), **of_mode}
    return training.make_config(values)


def _refuse_own(options: Mapping[str, Any], command: str) -> None:
    for name in options:
        if name in OWN[command]:
            raise UserError(f"{command}: {name} {OWN[command][name]}; take it out")


def _names(
    points: Sequence[Mapping[str, Any]],
    labels: Sequence[list[str]],
    trained: Sequence[TrainConfig],
) -> list[str]:
    """What tells the cells apart: recipes, the method, and other options that vary, with their names."""
    keys = dict.fromkeys(key for point in points for key in point)
    vary = [key for key in keys if len({str(point.get(key)) for point in points}) > 1]
    parts = [
        chosen + [_part(key, point[key]) for key in vary if key in point]
        for chosen, point in zip(labels, points, strict=True)
    ]
    return [", ".join(p) or config.method for p, config in zip(parts, trained, strict=True)]


def _part(key: str, value: Any) -> str:
    text = str(value).replace("=", " ")  # LABEL=RUN is how a report is given them
    return text if key == "method" else f"{key} {text}"


def _refuse_same(names: Sequence[str], trained: Sequence[TrainConfig]) -> None:
    seen: dict[str, str] = {}
    for name, config in zip(names, trained, strict=True):
        rest = config.model_dump(mode="json", exclude=set(MODE_FIELDS))
        for known in (json.dumps([rest, mode_record(config.mode)]), _folder_name(name)):
            if known in seen:
                raise UserError(f"cells {seen[known]!r} and {name!r} are the same; name it once")
            seen[known] = name


def _trained_cell(
    file: GridFile, name: str, config: TrainConfig, place: Path, processes: int, seed: int
) -> SweepCell:
    """Training, evaluation and diagnosis, in directories of a place."""
    where = ("--seed", str(seed), "--output-path", str(place / "train"))
    trained = Command(("train", *_flags(config), *where), place / "train", (), processes)
    chosen, run = {"model": str(place / "train" / file.checkpoint)}, place / "run"
    commands = [trained, *_evaluations(file, [config], chosen, place, (trained,))]
    if file.diagnose is not None:
        whole = next(command for command in commands if command.folder == run)
        words = ("diagnose", str(run), "--base", config.model or BUNDLED_CHECKPOINT)
        commands.append(Command((*words, *_flags(file.diagnose)), run, (whole,)))
    return SweepCell(name, seed, tuple(commands))


def _evaluations(
    file: GridFile,
    trained: Sequence[TrainConfig],
    chosen: Options,
    place: Path,
    needs: tuple[Command, ...],
) -> tuple[Command, ...]:
    """The commands of all evaluations of a checkpoint, in run, run-2 and so on."""
    names = ("run", *(f"run-{number}" for number in range(2, len(file.run) + 1)))
    return tuple(
        command
        for name, run in zip(names, file.runs_of(trained), strict=True)
        for command in _evaluation(run.model_copy(update=chosen), place / name, file.shards, needs)
    )


def _evaluation(
    run: evaluation.RunConfig, place: Path, shards: int, needs: tuple[Command, ...]
) -> list[Command]:
    """The commands of an evaluation, the one last that leaves the whole run in `place`."""
    arguments = ("run", *_flags(run), "--output-path")
    if shards == 1:
        return [Command((*arguments, str(place)), place, needs)]
    parts = place.with_name(place.name.replace("run", "shards"))
    divided = [evaluation.Shard(i, shards) for i in range(1, shards + 1)]
    refuse_other_shards(parts, divided[0])
    found = [
        Command((*arguments, str(parts), "--shard", str(part)), parts / part.folder, needs)
        for part in divided
    ]
    merge = ("merge", str(parts), "--output-path", str(place))
    return [*found, Command(merge, place, tuple(found))]


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name)


def _flags(config: BaseModel) -> Iterator[str]:
    """The options that were given, as the command line takes them: the command stands alone."""
    values = config.model_dump(mode="json", include=config.model_fields_set)
    for name in sorted(values):
        value, flag = values[name], name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        elif value is not None:
            yield from (f"--{flag}", _text(value))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}={part}" for name, part in value.items())
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return str(value)
