"""What could make the numbers of a report less than they seem, counted for every cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from softeval.reports.arms import Arms, Checkpoint, MeasuredRun
from softeval.reports.cells import Cell, Key
from softeval.runs.journal import count_generations
from softeval.runs.rundir import SHARDS
from softeval.tasks.catalogue import LIKELIHOOD, task_catalogue

AMBER, RED = 0.05, 0.20
TIMEOUT_AMBER = 0.005


@dataclass(frozen=True)
class CellValidity:
    """Counts and shares of one checkpoint, task and mode.

    Attributes:
        arm: name of the arm.
        name: of the checkpoint.
        task: the task.
        mode: the mode.
        problems: problems with at least one sample.
        n_low: fewest samples of a problem.
        n_high: most samples.
        missing: asked-for samples that are not there.
        no_answer: share without a closed box.
        truncated: share whose CoT ended at the cap, so that the answer was prefilled there.
        eos: share whose CoT ended with an end-of-sequence token.
        timeout: share that could not be scored in time; counted wrong.
        duplicates: share that repeats an earlier sample of the same problem.
    """

    arm: str
    name: str
    task: str
    mode: str
    problems: int
    n_low: int
    n_high: int
    missing: int
    no_answer: float
    truncated: float
    eos: float
    timeout: float
    duplicates: float

    def level(self, column: str) -> str:
        """How much a share should worry: "amber", "red" or not at all ("")."""
        value = getattr(self, column)
        if column in ("eos", "duplicates"):
            return ""  # worth knowing, no fault in itself
        if column == "timeout":
            return "red" if value > AMBER else "amber" if value > TIMEOUT_AMBER else ""
        return "red" if value > RED else "amber" if value > AMBER else ""


def find_validity(arms: Arms) -> list[CellValidity]:
    """One row a checkpoint, task and mode."""
    return [
        _validity(arms.name(arm), checkpoint, key)
        for arm in arms.arms
        for checkpoint in arm.checkpoints
        for key in arms.keys
        if key in checkpoint.cells
    ]


def notes(arms: Arms) -> list[str]:
    """Sentences about the runs as a whole; empty where nothing needs saying."""
    found = []
    for run in arms.runs:
        record, where = run.run, run.run.folder.name
        if not record.complete:
            found.append(f"{where} is not finished: {_progress(run)}.")
        if record.config.get("limit") is not None:
            found.append(f"{where} was limited to {record.config['limit']} questions a task.")
        if not run.positions and run.cells:
            found.append(f"{where} has no per-position records: no entropy of it is shown.")
    return found + _prompt_notes(arms) + setting_notes(arms)


def _progress(run: MeasuredRun) -> str:
    """How far an unfinished run is, and how to finish it."""
    record, config = run.run.record, run.run.config
    again = f"the same command continues it ({record.get('command') or 'not recorded'})"
    if run.cells or run.likelihoods:
        missing = (record.get("counts") or {}).get("missing")
        told = f" ({missing:,} missing)" if missing else ""
        return f"its numbers are of the samples there{told}; {again}"
    likelihood = {entry.name for entry in task_catalogue().values() if entry.kind == LIKELIHOOD}
    questions = [run.asked_questions(t) for t in run.run.datasets() if t not in likelihood]
    each = sum(
        1 if mode.is_greedy else int(config.get("num_samples") or 1)
        for mode in run.run.modes.values()
    )
    done = count_generations(run.run.folder / SHARDS)
    asked = "" if None in questions else f" of {sum(q or 0 for q in questions) * each:,}"
    return f"{done:,}{asked} samples so far and no table yet; {again}"


def _prompt_notes(arms: Arms) -> list[str]:
    """Tasks whose questions were put in different words to different checkpoints."""
    hashes: dict[tuple[str, int], set[str]] = {}
    for run in arms.runs:
        for cell in run.cells.values():
            for doc, prompt in zip(cell.doc_M.tolist(), cell.prompt_M.tolist(), strict=True):
                hashes.setdefault((cell.task, doc), set()).add(prompt)
    several = sorted({task for (task, _), found in hashes.items() if len(found) > 1})
    return [f"The prompts of {task} differ between runs (same questions)." for task in several]


def setting_notes(arms: Arms) -> list[str]:
    """Settings of the decoder in which runs of one base model and task differ, with the values."""
    found: dict[tuple[str, str, str], dict[str, list[tuple[str, str]]]] = {}
    for arm in arms.arms:
        for run in (run for c in arm.checkpoints for run in c.runs):
            names = arms.name(arm), run.run.folder.name
            for task, setting, value in _settings(run):
                by_value = found.setdefault((arm.family, task, setting), {})
                by_value.setdefault(value, []).append(names)
    tasks: dict[str, list[str]] = {}
    for (_, task, setting), by_value in found.items():
        if len(by_value) > 1:
            tasks.setdefault(f"{setting}: {_who_has_what(by_value)}", []).append(task)
    return [
        f"Not decoded alike on {', '.join(dict.fromkeys(where))}, {what}; differences between these"
        " may come from it."
        for what, where in tasks.items()
    ]


def _settings(run: MeasuredRun) -> Iterator[tuple[str, str, str]]:
    """(task, setting, value) of everything recorded that shapes a CoT."""
    cap = run.run.config.get("max_cot_tokens")
    for task, mode in run.cells:
        if cap is not None:
            yield task, "max_cot_tokens", str(cap)
        for option, value in mode.options.items():
            if value is not None:
                yield task, f"{option} of {mode}", str(value)


def _who_has_what(by_value: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """``0.5 in base, 0.7 in soft``; run directories where one arm has several values."""
    by_arm = [{arm for arm, _ in names} for names in by_value.values()]
    distinct = len(set().union(*by_arm)) == sum(map(len, by_arm))
    return ", ".join(
        f"{value} in {' and '.join(dict.fromkeys(name[0 if distinct else 1] for name in names))}"
        for value, names in by_value.items()
    )


def _validity(arm: str, checkpoint: Checkpoint, key: Key) -> CellValidity:
    cell = checkpoint.cells[key]
    seed = checkpoint.train_seed
    return CellValidity(
        arm=arm,
        name=arm if seed is None else f"{arm}, seed {seed}",
        task=key[0],
        mode=key[1],
        problems=len(cell.doc_M),
        n_low=int(cell.n_M.min()),
        n_high=int(cell.n_M.max()),
        missing=_missing(checkpoint, cell),
        no_answer=float(cell.no_answer_R.mean()),
        truncated=float(cell.truncated_R.mean()),
        eos=float(cell.eos_R.mean()),
        timeout=float(cell.timeout_R.mean()),
        duplicates=0.0 if cell.mode.is_greedy else cell.duplicates(),
    )


def _missing(checkpoint: Checkpoint, cell: Cell) -> int:
    """Samples that the configuration asks for, also of problems never begun, less those recorded.

    Where the size of the data set was not recorded, of the problems seen.
    """
    for run in checkpoint.runs:
        if (cell.task, cell.mode) in run.cells:
            asked = (
                1
                if cell.mode.is_greedy
                else int(run.run.config.get("num_samples") or cell.n_M.max())
            )
            questions = max(run.asked_questions(cell.task) or 0, len(cell.doc_M))
            return max(asked * questions - len(cell.doc_R), 0)
    return 0
