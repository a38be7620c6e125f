"""An evaluation from configuration to finished run directory.

The checkpoint is loaded once; each cell (task and mode) is one call of lm-eval through the adapter,
so that a late error costs no other cell; every sample is in the journal as soon as it is finished.
Started again, what the journal holds is not computed again.
"""

from __future__ import annotations

import errno
import inspect
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.display import Display, make_display, no_progress_bars
from softeval.errors import UserError
from softeval.files import serialisable, write_json, write_text
from softeval.processes import Processes
from softeval.runs import rundir
from softeval.runs.cells import Cell, load_cells
from softeval.runs.config import RunConfig, make_config
from softeval.runs.journal import Journal, check_idle
from softeval.runs.judging import JudgedJournal, compact
from softeval.runs.publication import Publication
from softeval.runs.record import (
    CellResult,
    config_yaml,
    finished_record,
    merge_results,
    new_record,
    resumed_record,
    run_facts,
)
from softeval.runs.request import Request, examine, settle
from softeval.runs.run import Run, load_run
from softeval.scoring.judge import NotJudging, Scorer, judge_of

if TYPE_CHECKING:
    from softeval.lmeval.adapter import SoftEvalLM
    from softeval.model.language_model import LanguageModel


@dataclass(frozen=True)
class RunOutcome:
    """How an evaluation ended.

    Attributes:
        path: the run directory.
        missing: samples and log-likelihood questions that are not there.
        is_main: whether this process speaks for the run.
    """

    path: Path
    missing: int
    is_main: bool


@dataclass
class Evaluation:
    """Everything an evaluation under way needs.

    Attributes:
        request: what is asked for.
        lm: the adapter around the loaded checkpoint.
        processes: this process among those of the run.
        display: what is shown.
        folder: the run directory.
        record: content of run.json.
        results: what lm-eval returned, by title of the cell; empty but in the main process.
        failures: cells that ended in an error, with its message.
    """

    request: Request
    lm: SoftEvalLM
    processes: Processes
    display: Display
    folder: Path
    record: dict[str, Any]
    results: dict[str, CellResult] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def evaluate(
    *, overwrite: bool = False, quiet: bool = True, lm: LanguageModel | None = None, **options: Any
) -> Run:
    """Evaluate a checkpoint: what `softeval run` does, with the same options as keywords.

    Args:
        overwrite: start anew where the directory holds a run.
        quiet: show no progress.
        lm: a loaded checkpoint to use in place of ``model``.
        **options: fields of `softeval.runs.config.RunConfig`; None leaves one at its default.

    Returns:
        The run; one that is complete already is returned without computing anything.

    Raises:
        UserError: an option that cannot be used; it names the remedy.
    """
    config = make_config({name: value for name, value in options.items() if value is not None})
    return load_run(run_evaluation(config, make_display(quiet), overwrite=overwrite, lm=lm).path)


def _complete_signature() -> inspect.Signature:
    """That of `evaluate` with every option by name, for the completion of a notebook."""
    options = inspect.signature(RunConfig).parameters.values()
    *own, _ = inspect.signature(evaluate).parameters.values()
    return inspect.Signature([*options, *own], return_annotation="Run")


evaluate.__signature__ = _complete_signature()  # type: ignore[attr-defined]


def run_evaluation(
    config: RunConfig,
    display: Display | None = None,
    *,
    overwrite: bool = False,
    lm: LanguageModel | None = None,
) -> RunOutcome:
    """Evaluate, or continue, or find finished what was asked for.

    Args:
        config: what to evaluate.
        display: what is told about it; None tells nobody.
        overwrite: start anew where the directory holds a run.
        lm: a loaded checkpoint to use in place of the configuration's.

    Raises:
        UserError: a request that cannot be met; it names the remedy.
        OSError: the disk filled up; finished samples stay, and the same call continues.
    """
    processes = Processes.here()
    display = display if display is not None and processes.is_main else Display()
    modes = config.selected_modes()
    checkpoint = lm or examine(config)
    display.note("reading questions")
    cells = load_cells(config, modes)
    request = settle(config, cells, checkpoint, overwrite)
    publication = Publication(config, request.folder, processes.is_main)
    if request.is_finished:
        if processes.is_main and config.shard is None:
            _check_idle(request.folder)
            rundir.remove_shards(request.folder)  # left by a run that was killed at its very end
        display.note("finished before, shown again; --overwrite starts anew")
        outcome = RunOutcome(request.folder, 0, processes.is_main)
        return _published(publication, outcome, display)
    if processes.is_main:
        rundir.prepare(request.folder)
        _check_idle(request.folder)
    display.note("loading the checkpoint")
    adapter = _load_adapter(request)
    try:
        opened = _open_run(request, adapter.language_model) if processes.is_main else None
        folder, record = processes.from_main(opened)
        outcome = _run(Evaluation(request, adapter, processes, display, folder, record))
        return _published(publication, outcome, display)
    finally:
        if sys.exc_info()[0] is None:
            processes.leave()


def _published(publication: Publication, outcome: RunOutcome, display: Display) -> RunOutcome:
    if outcome.is_main and not outcome.missing:
        publication.show(load_run(outcome.path), display.note)
    return outcome


def _load_adapter(request: Request) -> SoftEvalLM:
    from softeval.lmeval.adapter import SoftEvalLM

    config = request.config
    # A download from the hub shows its own bar: it can take long, and we cannot measure it.
    is_local = Path(request.weights.checkpoint.path).expanduser().exists()
    with no_progress_bars() if is_local else nullcontext():
        # pyright does not see that HFLM implements loglikelihood_rolling.
        adapter = SoftEvalLM(  # pyright: ignore[reportAbstractUsage]
            request.weights.load(), mode=request.modes[0], options=config
        )
    adapter.record_top = config.record_top
    return adapter


def _check_idle(folder: Path) -> None:
    """Refuse a folder that another process is writing to, before any long work."""
    if (folder / rundir.SHARDS).is_dir():
        check_idle(folder / rundir.SHARDS)


def _open_run(request: Request, lm: LanguageModel) -> tuple[Path, dict[str, Any]]:
    """The directory, and its record, written there."""
    folder, shards = request.folder, request.folder / rundir.SHARDS
    shards.mkdir(exist_ok=True)
    check_idle(shards)
    if request.found is None:
        # Only now, with the checkpoint loaded, may an earlier run go.
        rundir.clear(folder)
        shards.mkdir()
        record = new_record(request, lm)
    else:
        record = resumed_record(request.found, request, lm)
    write_text(folder / rundir.CONFIG_FILE, config_yaml(record["config"]))
    rundir.write_record(folder, record)
    return folder, record


def _run(evaluation: Evaluation) -> RunOutcome:
    processes, folder = evaluation.processes, evaluation.folder
    judge = judge_of(evaluation.request.config.rules)
    journal = Journal(folder / rundir.SHARDS, processes.rank)
    started = time.monotonic()
    try:
        with _status_on_error(evaluation, started), evaluation.display:
            _begin(evaluation, journal.damaged)
            for cell in evaluation.request.fresh_cells:
                _run_cell_safely(evaluation, cell, journal, judge)
            processes.wait()
            missing = 0
            if processes.is_main:
                evaluation.display.note("writing tables")
                journal.refresh()
                missing = _finish(evaluation, journal, judge, started)
            missing = processes.from_main(missing)
    finally:
        journal.close()
    if processes.is_main and not missing and evaluation.request.config.shard is None:
        rundir.remove_shards(folder)  # of a shard's a run is merged
    return RunOutcome(folder, missing, processes.is_main)


def _begin(evaluation: Evaluation, damaged: int) -> None:
    """Tell the display how much there is to do, and what differs from the first start."""
    shares = [
        len(evaluation.processes.share(list(cell.documents))) * cell.num_samples
        for cell in evaluation.request.fresh_cells
        if cell.mode is not None
    ]
    evaluation.display.begin(sum(shares))
    if damaged:
        evaluation.display.note(
            f"{damaged} damaged entries of {evaluation.folder / rundir.SHARDS} are computed again"
        )
    for warning in evaluation.record["sessions"][-1].get("changes", []):
        evaluation.display.note(f"warning: another version than at the first start: {warning}")


def _run_cell_safely(
    evaluation: Evaluation, cell: Cell, journal: Journal, judge: Scorer | NotJudging
) -> None:
    """Run a cell; an error in it is kept and shown, and the other cells still run.

    With several processes any error ends the run: the others wait for this one's results.
    """
    try:
        _run_cell(evaluation, cell, journal, judge)
    except (UserError, OSError):
        raise
    except Exception as error:
        if evaluation.processes.size > 1:
            raise
        evaluation.failures[cell.title] = f"{type(error).__name__}: {error}"
        evaluation.display.note(traceback.format_exc())
        evaluation.display.note(f"{cell.title} failed; going on with the rest")


def _run_cell(
    evaluation: Evaluation, cell: Cell, journal: Journal, judge: Scorer | NotJudging
) -> None:
    from lm_eval.evaluator import evaluate

    request, lm, display = evaluation.request, evaluation.lm, evaluation.display
    protocol = request.protocol
    display.enter(cell.title, _cell_size(cell, evaluation.processes), samples=cell.mode is not None)
    store = JudgedJournal(journal, display, judge, cell.documents)
    with store, no_progress_bars():
        lm.store = store
        if cell.mode is not None:
            lm.mode = cell.mode
            cell.task.use_limits(request.config.limits)
        # `evaluate`, not `simple_evaluate`: that one sets global seeds and asks pip, git and
        # nvidia-smi about the machine, half a second for each cell.
        result = evaluate(
            lm=lm,
            task_dict={"tasks": {cell.name: cell.task}, "groups": {}},
            **cell.chosen,
            apply_chat_template=protocol.chat,
            system_instruction=protocol.system,
            log_samples=False,
        )
    if result is not None:
        facts = lm.mode_facts if cell.mode is not None else {}
        evaluation.results[cell.title] = CellResult(cell.name, dict(result), facts)


def _cell_size(cell: Cell, processes: Processes) -> int:
    """Requests of this process in a cell."""
    chosen = processes.share(list(cell.documents.values()))
    return sum(len(doc.get("choices", ())) or cell.num_samples for doc in chosen)


def _finish(
    evaluation: Evaluation, journal: Journal, judge: Scorer | NotJudging, started: float
) -> int:
    """Write tables, results and the final record; the number of missing samples."""
    tokenizer = evaluation.lm.language_model.tokenizer

    def token_text(token_id: int) -> str:
        return tokenizer.decode([token_id], clean_up_tokenization_spaces=False)

    request, folder = evaluation.request, evaluation.folder
    counts = compact(folder, journal, request.cells, judge, token_text, request.kept)
    there = folder / rundir.RESULTS_FILE
    earlier = rundir.read_json(there) if request.kept and there.is_file() else {}
    results = merge_results(evaluation.results, earlier, request.kept)
    results |= run_facts(evaluation.lm, request)
    write_json(evaluation.folder / rundir.RESULTS_FILE, serialisable(results))
    record = finished_record(
        evaluation.record, counts, evaluation.failures, time.monotonic() - started
    )
    rundir.write_record(evaluation.folder, record)
    return counts["missing"]


@contextmanager
def _status_on_error(evaluation: Evaluation, started: float) -> Iterator[None]:
    """Leave "partial" in run.json where an error or Ctrl-C ends the run, if the disk allows."""
    try:
        yield
    except BaseException as error:
        if evaluation.processes.is_main:
            spent = evaluation.record["seconds"] + time.monotonic() - started
            stopped = evaluation.record | {"status": rundir.PARTIAL, "seconds": round(spent, 1)}
            # On a full disk the record stays as it was; the error below says why.
            with suppress(OSError):
                rundir.write_record(evaluation.folder, stopped)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise rundir.unwritable(evaluation.folder, error) from error
        raise
