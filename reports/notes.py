"""What has to be said of runs that stand together: unfinished, other prompts, settings, rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from softeval.reports.measured.arms import Arms, MeasuredRun
from softeval.reports.measured.cells import Key
from softeval.runs.journal import count_generations
from softeval.runs.rundir import SHARDS
from softeval.scoring.judge import Rules
from softeval.tasks.catalogue import LIKELIHOOD, Scoring, task_catalogue

AMBER = 0.05
"""Share of samples from which on something is pointed out."""

BEFORE_NAMES = str(Rules.MATH_VERIFY)
"""What judged the runs whose record names no rules."""


def notes(arms: Arms) -> list[str]:
    """Sentences about the runs as a whole, besides how far they are; empty where none is needed."""
    names = Counter(run.path.name for run in arms.runs)
    told: dict[str, list[str]] = {}
    for run in arms.runs:
        name = run.path.name
        where = name if names[name] == 1 else f"{run.path.parent.name}/{name}"
        if run.config.get("limit") is not None:
            told.setdefault(f"limited to {run.config['limit']} questions a task", []).append(where)
        if run.chosen_docs:
            chosen = "asked questions chosen one by one (--docs or --samples)"
            told.setdefault(chosen, []).append(where)
        if not run.protocol.is_paper:
            told.setdefault(f"asked by the protocol {run.protocol.describe()}", []).append(where)
        if not run.entropy and run.cells:
            without = "recorded without positions: no entropy is shown"
            told.setdefault(without, []).append(where)
    found = [
        f"{', '.join(runs)} {'were' if len(runs) > 1 else 'was'} {fact}."
        for fact, runs in told.items()
    ]
    several = [
        t for t in arms.tasks if "prompts" in unlike(arms.runs, [(t, m) for m in arms.modes])
    ]
    found += [f"The prompts of {t} differ between runs (same questions)." for t in sorted(several)]
    return found + setting_notes(arms)


def unfinished_notes(arms: Arms) -> list[str]:
    """How far each run is that is not finished."""
    return [
        f"{run.path.name} is not finished: {_progress(run)}."
        for run in arms.runs
        if not run.complete
    ]


def _progress(run: MeasuredRun) -> str:
    """How far an unfinished run is, and how to finish it."""
    again = f"the same command continues it ({run.info.get('command') or 'not recorded'})"
    likelihood = {entry.name for entry in task_catalogue().values() if entry.kind == LIKELIHOOD}
    questions = [
        run.asked_questions(task)
        for task, source in run.datasets().items()
        if task not in likelihood and source.get("scoring") != Scoring.LIKELIHOOD
    ]
    each = sum(
        1 if mode.is_greedy else int(run.config.get("num_samples") or 1)
        for mode in run.modes.values()
    )
    tables = bool(run.cells or run.answers)
    done = sum(len(c.doc_R) for c in run.cells.values())
    done = done if tables else count_generations(run.path / SHARDS)
    asked = "" if None in questions else f" of {sum(q or 0 for q in questions) * each:,}"
    return f"{done:,}{asked} samples so far{'' if tables else ' and no table yet'}; {again}"


def unlike(runs: Iterable[MeasuredRun], keys: Collection[Key]) -> list[str]:
    """In what runs differ besides their training: settings of the decoder, rules, prompts of a task."""
    found: dict[str, set[str]] = {}
    asked: set[tuple[int, str]] = set()
    for run in runs:
        cells = {key: cell for key, cell in run.cells.items() if key in keys}
        for _, name, value in _settings(replace(run, cells=cells)):
            found.setdefault(name, set()).add(value)
        for cell in cells.values():
            found.setdefault("rules that judge", set()).add(rules_of_run(run))
            asked.update(zip(cell.doc_M.tolist(), cell.prompt_M.tolist(), strict=True))
    several = [name for name, values in found.items() if len(values) > 1]
    return several + ["prompts"] * (len(asked) > len(dict(asked)))


def setting_notes(arms: Arms) -> list[str]:
    """Settings of the decoder in which runs of one base model and task differ, with the values."""
    found: dict[tuple[str, str, str], dict[str, list[tuple[str, str]]]] = {}
    for arm in arms.arms:
        for run in (run for c in arm.checkpoints for run in c.runs):
            names = arms.name(arm), run.path.name
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
    cap = run.config.get("max_cot_tokens")
    for task, mode in run.cells:
        if cap is not None:
            yield task, "max_cot_tokens", str(cap)
        for name, text in run.protocol.stops.items():
            yield task, name, repr(text)
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


def rules_of_run(run: MeasuredRun) -> str:
    """Name and version of the rules that judged a run."""
    scorer = run.info.get("scorer") or {}
    return str(scorer.get("rules") or BEFORE_NAMES)


def rules_notes(arms: Arms) -> list[str]:
    """A sentence where runs were judged by different rules; empty where all by the same."""
    by_rules: dict[str, list[str]] = {}
    for run in arms.runs:
        if run.cells:
            by_rules.setdefault(rules_of_run(run), []).append(run.path.name)
    if len(by_rules) < 2:
        return []
    who = ", ".join(f"{' and '.join(names)} by {rules}" for rules, names in by_rules.items())
    told = f"Not judged by the same rules: {who}. Differences between these may come from it;"
    return [f"{told} `softeval score RUN` judges a run again."]
