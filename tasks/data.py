"""Where the questions come from: the Hugging Face hub, local JSONL files, or the package itself.

One table names every data set with its hub address, its default split and the fields a row must
have. Rows are returned as they are; `softeval.tasks.problems` turns them into questions and answers. The
hub is the default; a data directory replaces it altogether, so that a run never mixes the two.

Knows nothing of prompts, models or lm-eval.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any

from softeval.errors import UserError
from softeval.tasks.local_data import Row, check_fields, find_file, read_rows


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Attributes:
        name: what it is called here, on the command line and in file names.
        hub_id: repository on the Hugging Face hub; "" where it ships inside the package.
        split: the split that is used unless another is asked for.
        fields: fields that every row must have.
        config: configuration of the hub repository.
        aliases: further names under which a data directory may hold it, worse and worse.
    """

    name: str
    hub_id: str
    split: str
    fields: tuple[str, ...]
    config: str | None = None
    aliases: tuple[str, ...] = ()


_CONTINUATION = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
_LETTERED = ("question", "subject", "choices", "answer")
_ARC = ("question", "choices", "answerKey")

_TABLE = (
    DatasetSpec("arithmetic", "", "test", ("question", "answer")),
    DatasetSpec("gsm8k", "openai/gsm8k", "test", ("question", "answer"), "main"),
    DatasetSpec("math500", "HuggingFaceH4/MATH-500", "test", ("problem", "answer")),
    DatasetSpec(
        "olympiadbench",
        "Hothan/OlympiadBench",
        "train",  # the only split of that repository; it is an evaluation set
        ("question", "final_answer"),
        "OE_TO_maths_en_COMP",
    ),
    DatasetSpec("hellaswag", "Rowan/hellaswag", "validation", _CONTINUATION),
    DatasetSpec("mmlu", "cais/mmlu", "test", _LETTERED, "all"),
    DatasetSpec("arc_challenge", "allenai/ai2_arc", "test", _ARC, "ARC-Challenge"),
    DatasetSpec("arc_easy", "allenai/ai2_arc", "test", _ARC, "ARC-Easy"),
    # All of MATH but MATH-500: 12,000 problems, with the field names of MATH-500.
    DatasetSpec(
        "math",
        "nlile/hendrycks-MATH-benchmark",
        "train",
        ("problem", "answer"),
        aliases=("math_train_prm800k", "math_train"),
    ),
    DatasetSpec(
        "deepscaler",
        "agentica-org/DeepScaleR-Preview-Dataset",
        "train",
        ("problem", "answer"),
        aliases=("deepscaler_partial",),
    ),
)

DATASETS: dict[str, DatasetSpec] = {spec.name: spec for spec in _TABLE}


class Origin(StrEnum):
    """Where rows came from."""

    HUB = "hub"
    LOCAL = "local"
    BUNDLED = "bundled"


@dataclass(frozen=True)
class DatasetSource:
    """What a run record says about its questions.

    Attributes:
        name: the data set.
        origin: hub, local or bundled.
        location: hub id with its configuration, or the file.
        split: the split.
        rows: number of rows.
        sha256: hash over the required fields of all rows in order; two sources of the same
            questions agree on it, whatever further fields they carry.
        fidelity: what the data directory's MANIFEST.json says about the file; "" without one.
    """

    name: str
    origin: Origin
    location: str
    split: str
    rows: int
    sha256: str
    fidelity: str = ""


@dataclass(frozen=True)
class LoadedSplit:
    """The rows of a split and where they came from."""

    rows: list[Row]
    source: DatasetSource


def load_split(name: str, data_dir: str | None = None, split: str | None = None) -> list[Row]:
    """The rows of a data set as they are, in order.

    Args:
        name: a name of `DATASETS`.
        data_dir: directory of local JSONL files; None takes the hub.
        split: another split than the default one.

    Raises:
        UserError: unknown name, unreachable hub, no such directory or file, a row that is not JSON
            or lacks a field.
    """
    return load(name, data_dir, split).rows


def dataset_source(
    name: str, data_dir: str | None = None, split: str | None = None
) -> DatasetSource:
    """Where the rows of `load_split` come from, with their hash; raises what it raises."""
    return load(name, data_dir, split).source


def load(name: str, data_dir: str | None = None, split: str | None = None) -> LoadedSplit:
    """Rows and source of a split; see `load_split`."""
    spec = dataset_spec(name)
    split = split or spec.split
    if not spec.hub_id:
        return _from_package(spec, split)
    if data_dir is None:
        return _from_hub(spec, split)
    found = find_file(Path(data_dir).expanduser(), (spec.name, *spec.aliases), split)
    rows = read_rows(found.path, spec.fields)
    source = _source(spec, rows, Origin.LOCAL, str(found.path), split, found.fidelity)
    return LoadedSplit(rows, source)


def load_file(path: str | Path, fields: Sequence[str]) -> LoadedSplit:
    """Rows of a user's own JSONL file (``.jsonl`` or ``.jsonl.gz``).

    Raises:
        UserError: no such file, or a row that is not JSON or lacks one of the fields.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no file {path}; give a .jsonl or .jsonl.gz file")
    spec = DatasetSpec(path.name.split(".jsonl")[0], "", "all", tuple(fields))
    rows = read_rows(path, spec.fields)
    return LoadedSplit(rows, _source(spec, rows, Origin.LOCAL, str(path), spec.split))


def dataset_spec(name: str) -> DatasetSpec:
    """The table's entry.

    Raises:
        UserError: unknown name.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}; choose from {', '.join(DATASETS)}")
    return DATASETS[name]


def rows_hash(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """sha256 over the named fields of all rows, in order, as canonical JSON lines."""
    digest = hashlib.sha256()
    for row in rows:
        kept = {field: row[field] for field in fields}
        line = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _from_package(spec: DatasetSpec, split: str) -> LoadedSplit:
    file = f"{spec.name}_{split}.jsonl"
    path = Path(str(files("softeval.tasks"))) / spec.name / file
    if not path.is_file():
        raise UserError(f"{spec.name} has no split {split!r}; take test, validation or train")
    rows = read_rows(path, spec.fields)
    return LoadedSplit(rows, _source(spec, rows, Origin.BUNDLED, file, split))


def _from_hub(spec: DatasetSpec, split: str) -> LoadedSplit:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        table = datasets.load_dataset(spec.hub_id, spec.config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load {spec.name} from the hub ({reason}); give local files: --data-dir DIR"
        ) from error
    rows = [dict(row) for row in table]
    for number, row in enumerate(rows):
        check_fields(row, f"{spec.hub_id}, row {number}", spec.fields)
    location = spec.hub_id if spec.config is None else f"{spec.hub_id} ({spec.config})"
    return LoadedSplit(rows, _source(spec, rows, Origin.HUB, location, split))


def _source(
    spec: DatasetSpec, rows: list[Row], origin: Origin, location: str, split: str, note: str = ""
) -> DatasetSource:
    hashed = rows_hash(rows, spec.fields)
    return DatasetSource(spec.name, origin, location, split, len(rows), hashed, note)
