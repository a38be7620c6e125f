"""What the numbers of a report rest on and come from, and what could make them less than they seem."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from softeval.reports.contrasts import Comparison, find_comparisons
from softeval.reports.layout import QUIET, Heading, Own, Paragraph, Part, Section
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arm, Arms, MeasuredCheckpoint, MeasuredRun
from softeval.reports.measured.cells import Key, MeasuredCell
from softeval.reports.notes import AMBER, rules_of_run
from softeval.reports.tables import Table, TableCell, margin_text, points, simple_table
from softeval.runs.run import RecordedMode
from softeval.scoring.judge import Rules, rules_name

RED = 0.20
TIMEOUT_AMBER = 0.005
SHARES = {
    "no_answer": "no answer",
    "truncated": "truncated",
    "eos": "ended by EOS",
    "timeout": "timed out",
    "duplicates": "duplicates",
}
RECORD_PARTS = ("config", "modes", "versions", "hardware", "counts", "training", "diagnose")


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
    mode: RecordedMode
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
        for key in arms.keys
        for checkpoint in arm.having(key)
    ]


def _validity(arm: str, checkpoint: MeasuredCheckpoint, key: Key) -> CellValidity:
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


def _missing(checkpoint: MeasuredCheckpoint, cell: MeasuredCell) -> int:
    """Samples that the configuration asks for, also of problems never begun, less those recorded.

    Where the size of the data set was not recorded, of the problems seen.
    """
    for run in checkpoint.runs:
        if (cell.task, cell.mode) in run.cells:
            asked = (
                1 if cell.mode.is_greedy else int(run.config.get("num_samples") or cell.n_M.max())
            )
            questions = max(run.asked_questions(cell.task) or 0, len(cell.doc_M))
            return max(asked * questions - len(cell.doc_R), 0)
    return 0


def other_rules_text(
    arms: Arms, comparisons: Sequence[Comparison], declared: Sequence[str], margin: float
) -> str:
    """What the rules that did not give the scores would say; "" where no run records it."""
    pairs = [
        (cell.correct_R, cell.other_R)
        for run in arms.runs
        for cell in run.cells.values()
        if cell.other_R is not None
    ]
    if not pairs:
        return ""
    samples = sum(len(ours_R) for ours_R, _ in pairs)
    only_here = sum(int((ours_R & ~other_R).sum()) for ours_R, other_R in pairs)
    only_there = sum(int((other_R & ~ours_R).sum()) for ours_R, other_R in pairs)
    others = " or ".join(sorted({_other_name(run) for run in arms.runs if run.cells}))
    if not only_here and not only_there:
        return f"By {others}, the other rules, all {samples:,} verdicts are the same."
    again = find_comparisons(judged_by_other(arms), declared, margin)
    words = {(c.name, c.metric_name, c.metric.task): c.verdict.word for c in again}
    changed = [
        f"{c.name} on {c.metric.task}, {c.metric_name}: {c.verdict.word}, by {others} {word}"
        for c in comparisons
        if (word := words.get((c.name, c.metric_name, c.metric.task))) not in (None, c.verdict.word)
    ]
    effect = "; ".join(changed) if changed else "no comparison changes its word"
    return (
        f"By {others}, the other rules, {only_here + only_there:,} of {samples:,} verdicts differ"
        f" ({only_here:,} right only as scored here, {only_there:,} only by the others): {effect}."
    )


def judged_by_other(arms: Arms) -> Arms:
    """The same runs with the verdicts of the other rules, where these are recorded."""
    runs = {
        id(run): replace(run, cells={key: cell.by_other_rules() for key, cell in run.cells.items()})
        for run in arms.runs
    }

    def checkpoint(one: MeasuredCheckpoint) -> MeasuredCheckpoint:
        return replace(one, runs=tuple(runs[id(run)] for run in one.runs))

    def arm(one: Arm) -> Arm:
        return replace(one, checkpoints=tuple(map(checkpoint, one.checkpoints)))

    return replace(arms, arms=tuple(map(arm, arms.arms)), runs=tuple(runs.values()))


def _other_name(run: MeasuredRun) -> str:
    ours = rules_of_run(run)
    other = Rules.SOFTEVAL if ours.startswith(Rules.MATH_VERIFY) else Rules.MATH_VERIFY
    return rules_name(other)


# Layout --------------------------------------------------------------------------------------


def _parts(material: Material) -> Iterator[Part]:
    arms, options = material.arms, material.options
    yield Paragraph(
        "△ above 5 %, ▲ above 20 % (scoring time-outs: 0.5 % and 5 %). Samples"
        " without an answer or not scored in time count as wrong; truncated CoTs are asked for"
        " their answer at the cap. Duplicates: samples, under sampled modes, whose CoT and answer an"
        " earlier sample of the same question has; many mean that more samples find little new.",
        QUIET,
    )
    told = other_rules_text(arms, material.comparisons, options.contrasts, options.margin)
    if told:
        yield Paragraph(told, QUIET)
    yield _cells(find_validity(arms))
    yield Heading("This page")
    yield simple_table(
        "What it is about, and how it was made.", ("", ""), material.facts, "This page", (1,)
    )
    yield Heading("Runs")
    yield _provenance(arms)
    yield Heading("Data")
    yield _data(arms)
    for run in arms.runs:
        yield Own("record.html.j2", _run_record(run))


def _cells(cells: Sequence[CellValidity]) -> Table:
    """One row an arm, task and mode: the range over its checkpoints."""
    rows = []
    for (arm, task, mode), group in groupby(cells, key=lambda c: (c.arm, c.task, c.mode)):
        mine = list(group)
        missing = sum(c.missing for c in mine)
        rows.append(
            (
                TableCell(arm, f"{task}, {mode.replace('_', ' ')}"),
                TableCell(str(len({c.name for c in mine}))),
                TableCell(_range([c.problems for c in mine], str)),
                TableCell(_range([n for c in mine for n in (c.n_low, c.n_high)], str)),
                TableCell(str(missing), level="red" if missing else ""),
                *(_share_cell(mine, name) for name in SHARES),
            )
        )
    return Table(
        "Least and most over checkpoints; shares of samples.",
        ("", "seeds", "problems", "n", "missing", *SHARES.values()),
        tuple(rows),
        "Validity of each mode",
    )


def _share_cell(cells: Sequence[CellValidity], name: str) -> TableCell:
    if name == "duplicates" and cells[0].mode.is_greedy:
        return TableCell("–")
    worst = max(cells, key=lambda cell: getattr(cell, name))
    text = _range([getattr(cell, name) for cell in cells], points)
    return TableCell(f"{text} %", detail=f"most in {worst.name}", level=worst.level(name))


def _range(values: Sequence[Any], text: Callable[[Any], str]) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low}–{high}"


def _provenance(arms: Arms) -> Table:
    names = ("run", "status", "checkpoint", "weights", "trained", "dtype", "device", "scorer")
    names += ("started",)
    rows = []
    for run in arms.runs:
        record, model = run.info, run.model
        scorer = record.get("scorer") or {}
        cells = (
            run.path.name,
            str(record.get("status")),
            str(model.get("path")),
            str(model.get("weights_hash"))[:8],
            _training(run),
            _precision(model),
            str(model.get("device")),
            _scorer_text(scorer),
            str(record.get("started"))[:16].replace("T", " "),
        )
        rows.append(cells)
    alike = [at for at in range(1, len(names)) if len(rows) > 1 and len({r[at] for r in rows}) == 1]
    shown = [at for at in range(len(names)) if at not in alike]
    told = "; ".join(f"{names[at]} {rows[0][at]}" for at in alike)
    return simple_table(
        f"Where the numbers come from.{f' All runs: {told}.' if told else ''}",
        [names[at] for at in shown],
        [[row[at] for at in shown] for row in rows],
        "Provenance of the runs",
        text_columns=tuple(range(1, len(shown))),
    )


def _scorer_text(scorer: Mapping[str, Any]) -> str:
    """The rules that judged, and the library below them."""
    library = f"math-verify {scorer['math-verify']}" if "math-verify" in scorer else ""
    rules = str(scorer.get("rules") or "")
    return ", ".join(part for part in (rules, library) if part and part != "math-verify") or "–"


def _precision(model: Mapping[str, Any]) -> str:
    logits = model.get("logits_dtype")
    return f"{model.get('dtype')}" + ("" if logits in (None, "model") else f", logits {logits}")


def _training(run: MeasuredRun) -> str:
    """Method, data, seed and step, and how the checkpoint was chosen."""
    training = run.training
    if not training:
        return "–"
    words = [f"{training.get('method')} on {training.get('dataset')}"]
    words += [
        f"{name.removeprefix('train_')} {training[name]}"
        for name in ("train_seed", "step")
        if name in training
    ]
    return ", ".join([*words, *([str(training["selected"])] if "selected" in training else [])])


def _data(arms: Arms) -> Table:
    """One row a task; all runs have the same data, or they would not stand in one report."""
    sources = {task: source for run in arms.runs for task, source in run.datasets().items()}
    rows = tuple(
        tuple(map(TableCell, (task, *_source(source)))) for task, source in sources.items()
    )
    columns = ("task", "data set", "split", "questions", "from", "SHA-256")
    return Table("Questions of each task.", columns, rows, "Data sets", (1, 2, 3, 4, 5))


def _source(source: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(source.get("name")),
        str(source.get("split") or "–"),
        str(source.get("rows") or "–"),
        f"{source.get('origin')} {source.get('location') or ''}".strip(),
        str(source.get("sha256") or "–")[:12],
    )


def _run_record(run: MeasuredRun) -> dict[str, str]:
    record = run.info
    shown = {name: record[name] for name in RECORD_PARTS if name in record}
    return {
        "name": run.path.name,
        "command": str(record.get("command")),
        "record": json.dumps(shown, indent=1, ensure_ascii=False, default=str),
    }


def _methods_parts(material: Material) -> list[Own]:
    """How every number is made, with its sources."""
    return [Own("methods.html.j2", {"margin": margin_text(material.options.margin)})]


SECTION = Section("validity", "Validity", "Validity", {"Validity": _parts})
METHODS = Section("methods", "Methods", "Methods", {"Methods": _methods_parts})
