"""An evaluation from configuration to finished run directory.

The checkpoint is loaded once; each cell (task and mode) is one call of lm-eval through the adapter,
so that a late error costs no other cell; every sample is in the journal as soon as it is finished.
Started again, what the journal holds is not computed again.
"""

from __future__ import annotations

import errno
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.display import Display, no_progress_bars
from softeval.errors import UserError
from softeval.files import write_json, write_text
from softeval.modes import Mode
from softeval.processes import Processes
from softeval.runs import rundir
from softeval.runs.cells import Cell, load_cells
from softeval.runs.config import RunConfig
from softeval.runs.context import check_template, examine, settled_cot_cap
from softeval.runs.identity import Request, choose_folder, settle_folder, with_chat_date
from softeval.runs.journal import Journal, check_idle
from softeval.runs.judging import JudgedJournal, compact
from softeval.runs.results import CellResult, merge_results, run_facts, serialisable
from softeval.runs.run_record import (
    finished_record,
    new_record,
    refuse_other_scorer,
    resumed_record,
)
from softeval.scoring.judge import Scorer, scorer

if TYPE_CHECKING:
    from softeval.lmeval.adapter import SoftEvalLM
    from softeval.model.checkpoint import Checkpoint
    from softeval.model.language_model import LanguageModel


@dataclass(frozen=True)
class Outcome:
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
        request: what is asked for, and what must agree to continue it.
        cells: in the order in which they run.
        lm: the adapter around the loaded checkpoint.
        processes: this process among those of the run.
        display: what is shown.
        folder: the run directory.
        record: content of run.json.
        results: what lm-eval returned, by title of the cell; empty but in the main process.
        failures: cells that ended in an error, with its message.
    """

    request: Request
    cells: Sequence[Cell]
    lm: SoftEvalLM
    processes: Processes
    display: Display
    folder: Path
    record: dict[str, Any]
    results: dict[str, CellResult] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def run_evaluation(
    config: RunConfig,
    display: Display | None = None,
    *,
    overwrite: bool = False,
    lm: LanguageModel | None = None,
) -> Outcome:
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
    check_template(config, checkpoint)
    display.note("reading questions")
    cells = load_cells(config, modes)
    request = with_chat_date(Request.of(config, modes, cells), overwrite)
    config = request.config
    folder = choose_folder(request, overwrite) if processes.is_main else Path()
    cells, request = _fit_context(config, modes, cells, request, checkpoint)
    display.note("loading the checkpoint")
    adapter = _load_adapter(config, modes[0], lm)
    try:
        request = request.with_model(adapter.language_model)
        folder, record = processes.from_main(_open_run(request, folder, overwrite, processes))
        if record["status"] == rundir.COMPLETE:
            display.note("finished before, shown again; --overwrite starts anew")
            return Outcome(folder, 0, processes.is_main)
        evaluation = Evaluation(request, cells, adapter, processes, display, folder, record)
        return _run(evaluation)
    finally:
        if sys.exc_info()[0] is None:
            processes.leave()


def _load_adapter(config: RunConfig, mode: Mode, lm: LanguageModel | None) -> SoftEvalLM:
    from softeval.lmeval.adapter import SoftEvalLM
    from softeval.model.language_model import BUNDLED_CHECKPOINT

    options: dict[str, Any] = {} if lm is not None else _loading_options(config)
    path = config.model or BUNDLED_CHECKPOINT
    # A download from the hub shows its own bar: it can take long, and we cannot measure it.
    bars = no_progress_bars() if Path(path).expanduser().exists() else nullcontext()
    with bars:
        # pyright does not see that HFLM implements loglikelihood_rolling.
        return SoftEvalLM(  # pyright: ignore[reportAbstractUsage]
            lm if lm is not None else path,
            mode=mode,
            batch_size=config.batch_size,
            **options,
        )


def _loading_options(config: RunConfig) -> dict[str, Any]:
    return {
        "dtype": config.dtype,
        "device": config.device,
        "logits_dtype": config.logits_dtype,
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "self_check": config.self_check,
    }


def _fit_context(
    config: RunConfig,
    modes: Sequence[Mode],
    cells: Sequence[Cell],
    request: Request,
    checkpoint: Checkpoint | LanguageModel,
) -> tuple[Sequence[Cell], Request]:
    """Settle the cap on the CoT; tasks are read again where it is not the default one."""
    cap = settled_cot_cap(config, cells, checkpoint)
    if cap != request.default_cot_cap and any(cell.mode is not None for cell in cells):
        cells = load_cells(config, modes, cap)
    return cells, request.with_cot_cap(cap)


def _open_run(
    request: Request, folder: Path, overwrite: bool, processes: Processes
) -> tuple[Path, dict[str, Any]] | None:
    """In the main process: the directory that is settled on, and its record, written there."""
    if not processes.is_main:
        return None
    folder, old = settle_folder(request, folder, overwrite)
    if old is not None and old["status"] == rundir.COMPLETE:
        refuse_other_scorer(old, request.config.scorer, folder)
    (folder / rundir.SHARDS).mkdir(exist_ok=True)
    check_idle(folder / rundir.SHARDS)
    if old is None:
        # Only now, with the checkpoint loaded, may an earlier run go.
        rundir.clear(folder)
        (folder / rundir.SHARDS).mkdir()
        record = new_record(request)
        write_text(folder / rundir.CONFIG_FILE, request.as_yaml())
        rundir.write_record(folder, record)
    elif old["status"] == rundir.COMPLETE:
        rundir.remove_shards(folder)
        record = old
    else:
        record = resumed_record(old, request)
        rundir.write_record(folder, record)
    return folder, record


def _run(evaluation: Evaluation) -> Outcome:
    processes, folder = evaluation.processes, evaluation.folder
    judge = scorer(evaluation.request.config.scorer)
    journal = Journal(folder / rundir.SHARDS, processes.rank)
    started = time.monotonic()
    try:
        with _status_on_error(evaluation, started), evaluation.display:
            _begin(evaluation, journal.damaged)
            for cell in evaluation.cells:
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
    if processes.is_main and not missing:
        rundir.remove_shards(folder)
    return Outcome(folder, missing, processes.is_main)


def _begin(evaluation: Evaluation, damaged: int) -> None:
    """Tell the display how much there is to do, and what differs from the first start."""
    shares = [
        len(evaluation.processes.share(list(cell.documents))) * cell.num_samples
        for cell in evaluation.cells
        if cell.mode is not None
    ]
    evaluation.display.meter.begin(sum(shares))
    if damaged:
        evaluation.display.note(
            f"{damaged} damaged entries of {evaluation.folder / rundir.SHARDS} are computed again"
        )
    for warning in evaluation.record["sessions"][-1].get("changes", []):
        evaluation.display.note(f"warning: another version than at the first start: {warning}")


def _run_cell_safely(evaluation: Evaluation, cell: Cell, journal: Journal, judge: Scorer) -> None:
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


def _run_cell(evaluation: Evaluation, cell: Cell, journal: Journal, judge: Scorer) -> None:
    from lm_eval.evaluator import evaluate

    from softeval.decoding.rows import Limits

    config, lm, display = evaluation.request.config, evaluation.lm, evaluation.display
    display.enter(cell.title, _cell_size(cell, evaluation.processes), samples=cell.mode is not None)
    store = JudgedJournal(journal, display, judge, cell.documents)
    with store, no_progress_bars():
        lm.configure(store=store, progress=False)
        if config.chat_date is not None:
            lm.configure(chat_date=config.chat_date)
        if cell.mode is not None:
            lm.configure(
                mode=cell.mode,
                limits=Limits(evaluation.request.max_cot_tokens, config.max_answer_tokens),
                seed=config.seed,
                num_samples=cell.num_samples,
                record_top=config.record_top,
            )
        # `evaluate`, not `simple_evaluate`: that one sets global seeds and asks pip, git and
        # nvidia-smi about the machine, half a second for each cell.
        result = evaluate(
            lm=lm,
            task_dict={"tasks": {cell.name: cell.task}, "groups": {}},
            limit=len(cell.documents),
            apply_chat_template=config.apply_chat_template,
            log_samples=False,
        )
    if result is not None:
        facts = lm.mode_facts if cell.mode is not None else {}
        evaluation.results[cell.title] = CellResult(cell.name, dict(result), facts)


def _cell_size(cell: Cell, processes: Processes) -> int:
    """Requests of this process in a cell."""
    chosen = processes.share(list(cell.documents.values()))
    return sum(len(doc.get("choices", ())) or cell.num_samples for doc in chosen)


def _finish(evaluation: Evaluation, journal: Journal, judge: Scorer, started: float) -> int:
    """Write tables, results and the final record; the number of missing samples."""
    tokenizer = evaluation.lm.language_model.tokenizer

    def token_text(token_id: int) -> str:
        return tokenizer.decode([token_id], clean_up_tokenization_spaces=False)

    compacted = compact(evaluation.folder, journal, evaluation.cells, judge, token_text)
    results = merge_results(evaluation.results) | run_facts(evaluation.lm, evaluation.request)
    write_json(evaluation.folder / rundir.RESULTS_FILE, serialisable(results))
    record = finished_record(
        evaluation.record, compacted, evaluation.failures, time.monotonic() - started
    )
    rundir.write_record(evaluation.folder, record)
    return compacted.missing


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
