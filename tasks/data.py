"""Where the questions come from: the Hugging Face hub, local JSONL files, or the package itself.

The hub is the default; a data directory replaces it altogether, so that a run never mixes the two.
Knows nothing of prompts, models or lm-eval.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from softeval.errors import UserError
from softeval.protocol import Example
from softeval.tasks.catalogue import LIKELIHOOD, Benchmark
from softeval.tasks.local_data import Row, check_fields, find_file, read_rows
from softeval.tasks.problems import Choice, Problem, read_row

FEWSHOT_SEED = 1234
"""lm-eval's, of its draws of examples."""


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
        sha256: of a benchmark of ours over the required fields of all rows, of any other, or with a
            `percent`, over what its templates make of them, so that another template is other data;
            two sources of the same questions agree on it, whatever further fields they carry.
        fidelity: what the data directory's MANIFEST.json says about the file; "" without one.
        scoring: how answers are judged: math, letter or likelihood.
    """

    name: str
    origin: Origin
    location: str
    split: str
    rows: int
    sha256: str
    fidelity: str = ""
    scoring: str = "math"


@dataclass(frozen=True)
class Loaded:
    """The rows of a split, what they ask, and where they came from."""

    rows: list[Row]
    problems: list[Problem | Choice]
    source: DatasetSource


def load(benchmark: Benchmark, data_dir: str | None = None, split: str | None = None) -> Loaded:
    """The questions of a benchmark, in order.

    Args:
        benchmark: which.
        data_dir: directory of local JSONL files; None takes the hub. Benchmarks whose file lies
            beside their definition read that.
        split: another split than the one that is evaluated on.

    Raises:
        UserError: unreachable hub, no such directory or file, a row that is not JSON, lacks a field
            or does not fit the templates.
    """
    split = split or benchmark.test_split
    if not benchmark.on_hub:
        return _from_beside(benchmark, split)
    if data_dir is None:
        return _from_hub(benchmark, split)
    path, fidelity = find_file(Path(data_dir).expanduser(), benchmark.names, split)
    rows = read_rows(path, benchmark.fields)
    return _loaded(benchmark, rows, Origin.LOCAL, str(path), split, fidelity=fidelity)


def load_problems(
    benchmark: Benchmark, data_dir: str | None = None, split: str | None = None
) -> tuple[list[Problem], DatasetSource]:
    """As `load`, with every question as one whose answer is free, in the words of the right choice.

    Raises:
        UserError: what `load` raises.
    """
    loaded = load(benchmark, data_dir, split)
    problems = [
        asked if isinstance(asked, Problem) else Problem(asked.query, asked.choices[asked.gold])
        for asked in loaded.problems
    ]
    return problems, loaded.source


def gold_solutions(benchmark: Benchmark, data_dir: str | None, split: str) -> list[str] | None:
    """The worked solution of every row, in order; None where the benchmark has none.

    Raises:
        UserError: what `load` raises, or a row without a solution.
    """
    if benchmark.solution is None:
        return None
    loaded = load(benchmark, data_dir, split)
    return [benchmark.templates["solution"].render(row) for row in loaded.rows]


def fewshot_examples(
    benchmark: Benchmark, count: int, data_dir: str | None = None
) -> tuple[Example, ...]:
    """Examples of the training split: always the same, and one more than `count`.

    The last one takes the place of a question that is asked itself.

    Raises:
        UserError: no such split, too few rows, or a benchmark that generates nothing.
    """
    if not count:
        return ()
    if benchmark.kind == LIKELIHOOD:
        raise UserError(
            f"--num-fewshot {count}: {benchmark.task} is scored without examples; leave one out"
        )
    try:
        loaded = load(benchmark, data_dir, benchmark.training_split)
    except UserError as error:
        raise UserError(f"--num-fewshot {count}: {error}") from None
    rows = range(len(loaded.rows))
    if len(rows) <= count:
        raise UserError(
            f"--num-fewshot {count}: {benchmark.task} has {len(rows)} to train on; ask for fewer"
        )
    worked = benchmark.templates.get("solution")
    found = []
    for row in random.Random(FEWSHOT_SEED).sample(rows, count + 1):
        problem = loaded.problems[row]
        assert isinstance(problem, Problem)
        solution = worked.render(loaded.rows[row]).strip() if worked else ""
        found.append(Example(problem.question, solution, problem.target))
    return tuple(found)


def rows_hash(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """sha256 over the named fields of all rows, in order, as canonical JSON lines."""
    digest = hashlib.sha256()
    for row in rows:
        kept = {field: row[field] for field in fields}
        line = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _from_beside(benchmark: Benchmark, split: str) -> Loaded:
    path = benchmark.folder / benchmark.dataset_path.replace("{split}", split)
    if not path.is_file():
        raise UserError(f"{benchmark.task} has no split {split!r}: no file {path}; put one there")
    rows = read_rows(path, benchmark.fields)
    if benchmark.shipped:
        return _loaded(benchmark, rows, Origin.BUNDLED, path.name, split)
    return _loaded(benchmark, rows, Origin.LOCAL, str(path), split)


def _from_hub(benchmark: Benchmark, split: str) -> Loaded:
    import datasets
    from datasets.exceptions import DatasetsError

    hub_id, config = benchmark.dataset_path, benchmark.dataset_name
    try:
        table = datasets.load_dataset(hub_id, config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load {benchmark.task} from the hub ({reason}); give local files: --data-dir DIR"
        ) from error
    rows = [dict(row) for row in table]
    for number, row in enumerate(rows):
        check_fields(row, f"{hub_id}, row {number}", benchmark.fields)
    location = hub_id if config is None else f"{hub_id} ({config})"
    return _loaded(benchmark, rows, Origin.HUB, location, split)


def _loaded(
    benchmark: Benchmark,
    rows: list[Row],
    origin: Origin,
    location: str,
    split: str,
    *,
    fidelity: str = "",
) -> Loaded:
    problems = []
    for number, row in enumerate(rows):
        try:
            problems.append(read_row(benchmark, row))
        except UserError as error:
            raise UserError(f"{location}, row {number}: {error}") from None
    if benchmark.shipped and benchmark.percent is None:
        hashed = rows_hash(rows, benchmark.fields)
    else:
        asked = [{"scoring": benchmark.scoring, **asdict(problem)} for problem in problems]
        hashed = rows_hash(asked, tuple(asked[0]))
    source = DatasetSource(
        benchmark.names[0],
        origin,
        location,
        split,
        len(rows),
        hashed,
        fidelity,
        benchmark.scoring,
    )
    return Loaded(rows, problems, source)
