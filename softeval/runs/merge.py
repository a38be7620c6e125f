"""Shards put together to the run directory that one process would have made.

The journals of all shards become the journal of one run, and tables and results are written from it
as at the end of any run. Nothing is decoded and no checkpoint is loaded; the questions are read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate

from softeval.display import Display, no_progress_bars
from softeval.errors import UserError
from softeval.files import serialisable, write_json, write_text
from softeval.lmeval.requests import GenerationStore, choice_key, group_requests, texts_of
from softeval.modes import Mode
from softeval.runs import rundir
from softeval.runs.cells import Cell, load_cells
from softeval.runs.config import RunConfig, Shard, make_config
from softeval.runs.journal import Journal, check_idle
from softeval.runs.judging import JudgedJournal, compact
from softeval.runs.record import (
    PER_TASK,
    CellResult,
    called_command,
    config_yaml,
    finished_record,
    merge_results,
)
from softeval.runs.tables import read_table
from softeval.scoring.judge import NotJudging, Scorer, judge_of, scorer_identity

Record = Mapping[str, Any]


def merge(folders: Sequence[Path], output: Path) -> Path:
    """Write the run that finished shards are the parts of; shown again where it is there.

    Args:
        folders: their run directories, in any order, or directories that hold these.
        output: the run directory to write.

    Raises:
        UserError: a shard that is missing, not finished, given twice or of another run; questions
            that are other ones by now; or an output directory with other content.
    """
    shards = _whole(_found(folders))
    record = merged_record(list(shards.values()), output)
    if rundir.is_run(output):
        there = rundir.read_record(output)
        if rundir.identity_differences(record["identity"], there):
            raise UserError(f"{output} holds another run; give another --output-path")
        if there["status"] == rundir.COMPLETE:
            return output
    # Prompts are in the journals: nothing renders a chat template here.
    known = record["config"] | {"apply_chat_template": False, "chat_date": None}
    config = make_config({name: value for name, value in known.items() if value is not None})
    cells = load_cells(config, config.selected_modes())
    _check_questions(cells, record["identity"])
    rundir.prepare(output)
    _clear_stopped(output)
    journal = _gathered(output / rundir.SHARDS, list(shards))
    try:
        _write(output, config, cells, journal, record, list(shards))
    finally:
        journal.close()
    rundir.remove_shards(output)
    return output


def _found(folders: Sequence[Path]) -> dict[Path, Record]:
    """Record of each shard."""
    found = {}
    for folder in folders:
        inside = sorted(path.parent for path in folder.glob(f"shard-*-of-*/{rundir.RUN_FILE}"))
        for place in inside or [folder]:
            record = rundir.read_record(place)
            if rundir.SHARD not in (record.get("identity") or {}):
                raise UserError(f"{place} is no shard (softeval run --shard 1/4); leave it out")
            found[place.resolve()] = record
    return found


def _whole(found: Mapping[Path, Record]) -> dict[Path, Record]:
    """The shards in their order, once they are known to be all, finished, and of one run."""
    named = {path: Shard.read(record["identity"][rundir.SHARD]) for path, record in found.items()}
    (first, record), *others = found.items()
    ours = _identity(record)
    for path, other in others:
        differing = rundir.identity_differences(ours, {"identity": _identity(other)})
        if differing:
            name, here, there = differing[0]
            raise UserError(f"{path} is of another run than {first}: {name} is {there}, not {here}")
    counts = {shard.count for shard in named.values()}
    if len(counts) > 1:
        raise UserError(f"shards of {' and of '.join(map(str, sorted(counts)))}: give those of one")
    places = {shard.index: path for path, shard in named.items()}
    if len(places) < len(named):
        twice = next(path for path, shard in named.items() if places[shard.index] != path)
        raise UserError(
            f"{twice} and {places[named[twice].index]} are the same shard; leave one out"
        )
    (count,) = counts
    missing = [str(Shard(i, count)) for i in range(1, count + 1) if i not in places]
    if missing:
        raise UserError(
            f"missing: {', '.join(missing)}; `softeval run … --shard {missing[0]}` makes the first"
        )
    for index in sorted(places):
        if found[places[index]].get("status") != rundir.COMPLETE:
            command = found[places[index]].get("command")
            raise UserError(f"{places[index]} is not finished; its command continues it: {command}")
    return {places[index]: found[places[index]] for index in sorted(places)}


def _identity(record: Record) -> dict[str, Any]:
    """The identity of the whole run."""
    return {name: value for name, value in record["identity"].items() if name != rundir.SHARD}


def merged_record(records: Sequence[Record], output: Path) -> dict[str, Any]:
    """What the records of all shards say together: the first one's facts, everyone's time."""
    first = records[0]
    config = {**first["config"], "shard": None, "output_path": str(output)}
    return {
        **first,
        "command": called_command(),
        "config": config,
        "identity": _identity(first),
        "started": min(record["started"] for record in records),
        "seconds": sum(record["seconds"] for record in records),
        "sessions": [session for record in records for session in record["sessions"]],
    }


def _check_questions(cells: Sequence[Cell], identity: Record) -> None:
    for cell in cells:
        if identity["tasks"].get(cell.name) != cell.source.sha256:
            raise UserError(
                f"the questions of {cell.name} at {cell.source.location} are not those of the shards;"
                " restore them"
            )


def _clear_stopped(output: Path) -> None:
    """Remove what a merge that was killed has left: it may have been of another run."""
    place = output / rundir.SHARDS
    if place.is_dir() and not rundir.is_run(output):
        check_idle(place)
        rundir.remove_shards(output)


def _gathered(place: Path, shards: Sequence[Path]) -> Journal:
    """A journal that reads those of the shards and adds to a file of its own."""
    place.mkdir(exist_ok=True)
    journals = [
        path for shard in shards for path in sorted((shard / rundir.SHARDS).glob("*.jsonl"))
    ]
    for number, path in enumerate(journals, 1):
        link = place / f"rank-{number:04d}.jsonl"
        link.unlink(missing_ok=True)  # of a merge that was stopped
        link.symlink_to(path)
    return Journal(place)


def _write(
    output: Path,
    config: RunConfig,
    cells: Sequence[Cell],
    journal: Journal,
    record: Record,
    shards: Sequence[Path],
) -> None:
    started = time.monotonic()
    judge = judge_of(config.rules)
    facts = rundir.read_json(shards[0] / rundir.RESULTS_FILE)
    texts: dict[int, str] = {}
    for shard in shards:
        texts |= {row["token_id"]: row["text"] for row in read_table(shard, "tokens").to_pylist()}
    counts = compact(output, journal, cells, judge, texts.__getitem__)
    if counts["missing"]:
        raise UserError(
            f"{counts['missing']} samples are missing, perhaps from a damaged journal among"
            f" {', '.join(map(str, shards))}; evaluate that shard again with --overwrite"
        )
    model = Stored(config)
    found = {}
    for cell in cells:
        result = _scores(model, cell, journal, judge)
        found[cell.title] = CellResult(cell.name, result, facts["modes"].get(cell.title, {}))
    of_cells = {*PER_TASK, "groups", "group_subtasks", "modes"}
    results = merge_results(found, {}, ()) | {k: v for k, v in facts.items() if k not in of_cells}
    write_json(output / rundir.RESULTS_FILE, serialisable(results))
    write_text(output / rundir.CONFIG_FILE, config_yaml(record["config"]))
    judged = {**record, "scorer": scorer_identity(judge)}  # perhaps newer than the shards'
    rundir.write_record(output, finished_record(judged, counts, {}, time.monotonic() - started))


def _scores(
    model: Stored, cell: Cell, journal: Journal, judge: Scorer | NotJudging
) -> dict[str, Any]:
    """What lm-eval makes of a cell's results."""
    if cell.mode is not None:
        cell.task.use_limits(model.options.limits)
    with JudgedJournal(journal, Display(), judge, cell.documents) as store, no_progress_bars():
        model.mode, model.store = cell.mode, store
        tasks = {"tasks": {cell.name: cell.task}, "groups": {}}
        return dict(evaluate(lm=model, task_dict=tasks, **cell.chosen, log_samples=False) or {})


class Stored(LM):
    """lm-eval's view of results that are all there.

    Args:
        options: of the run.

    Attributes:
        mode: of the cell.
        store: where the results are.
    """

    mode: Mode | None
    store: GenerationStore

    def __init__(self, options: RunConfig) -> None:
        super().__init__()
        self.options = options

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text of each sample."""
        assert self.mode is not None
        places = group_requests(requests, lambda text: [], self.options, self.mode)
        keys = [key for question in places for key in question.keys]
        found = {key: self.store.get(key, self.mode.name) for key in keys}
        done = {key: generation for key, generation in found.items() if generation is not None}
        return texts_of(requests, places, done, self.store, self.mode.name)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The score of each continuation."""
        scores = []
        for request in requests:
            score = self.store.get_likelihood(*choice_key(request))
            assert score is not None, "shards that lack a score are refused before"
            scores.append(score)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """Shards keep none of it.

        Raises:
            UserError: always.
        """
        raise UserError(
            "shards keep no rolling log-likelihoods; evaluate perplexity without --shard"
        )
