"""The report's figures for notebooks: runs in, matplotlib figures out.

The functions behind `Run.plot_pass_at_k()` and its like. A run is a `Run` or the path of a run
directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.reports.contrasts import find_comparisons
from softeval.reports.differences import find_differences
from softeval.reports.measured.arms import Arms, measure
from softeval.reports.measured.texts import read_texts
from softeval.reports.sections.comparisons import draw_forest
from softeval.reports.sections.curves import draw_curves, find_curves
from softeval.reports.sections.entropy import VIEWS, draw_entropy, find_entropy
from softeval.reports.sections.kl import draw_kl, find_kl
from softeval.reports.sections.mixture import draw_mixture
from softeval.reports.sections.out_of_domain import draw_out_of_domain, find_out_of_domain
from softeval.reports.sections.selection import find_pair
from softeval.statistics.equivalence import MARGIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from softeval.runs.run import Run

AnyRun = Any  # a softeval.Run, or the path of a run directory


def plot_pass_at_k(runs: Sequence[AnyRun], task: str | None = None) -> Figure:
    """pass@k curves with simultaneous bands, and their differences below.

    Args:
        runs: one or many runs; several checkpoints give a line each.
        task: the task; None for the first.

    Raises:
        UserError: no mode was sampled.
    """
    arms = _measured(runs, positions=False)
    figures = find_curves(arms, find_differences(arms))
    task = _chosen(task, [figure.task for figure in figures], "no samples in these runs")
    return draw_curves(next(figure for figure in figures if figure.task == task))


def plot_entropy(runs: Sequence[AnyRun], task: str | None = None, view: str = "all") -> Figure:
    """Entropy by position, a panel a mode.

    Args:
        runs: one or many runs.
        task: the task; None for the first.
        view: "all", "cohort", "terciles", "progress" or "end".

    Raises:
        UserError: the runs hold no per-position records.
    """
    if view not in VIEWS:
        raise UserError(f"view {view!r}: choose from {', '.join(VIEWS)}")
    figures = find_entropy(_measured(runs), [view])
    task = _chosen(task, [f.task for f in figures], "no per-position records in these runs")
    return draw_entropy(next(figure for figure in figures if figure.task == task))


def plot_kl(runs: Sequence[AnyRun], task: str | None = None) -> Figure:
    """KL to the base model, as numbers and by position.

    Raises:
        UserError: `softeval diagnose` was not run.
    """
    scores = find_kl(_measured(runs))
    nothing = "no KL here: `softeval diagnose RUN --base BASE_CHECKPOINT` measures it"
    task = _chosen(task, [score.key[0] for score in scores], nothing)
    return draw_kl([score for score in scores if score.key[0] == task])


def plot_comparisons(runs: Sequence[AnyRun], task: str | None = None) -> Figure:
    """Forest plot of the comparisons; of the modes for a single checkpoint.

    Raises:
        UserError: there is nothing to compare.
    """
    found = find_comparisons(_measured(runs, positions=False))
    nothing = "nothing to compare: give several runs, or one run of several modes and questions"
    task = _chosen(task, [c.metric.task for c in found], nothing)
    return draw_forest([c for c in found if c.metric.task == task], MARGIN)


def plot_out_of_domain(runs: Sequence[AnyRun]) -> Figure:
    """Accuracy against NLL of the log-likelihood tasks.

    Raises:
        UserError: the runs hold none.
    """
    scores = find_out_of_domain(_measured(runs, positions=False))
    if not scores:
        raise UserError("no log-likelihood task in these runs")
    return draw_out_of_domain(scores)


def plot_mixture(
    run: Run, task: str | None, doc: int | None, mode: str | None, sample: int
) -> Figure:
    """As `Run.plot_mixture`; UserError where the sample or its positions are not on record."""
    there = run.samples(["task", "mode", "doc_id", "sample"])
    nothing = "no generative task in this run, so there is no CoT to see"
    task = _chosen(task, list(there["task"].unique()), nothing)
    modes = list(there.loc[there["task"] == task, "mode"].unique())
    soft_first = min(modes, key=lambda m: (run.mode(m).feeds_tokens, run.mode(m).is_greedy))
    name = soft_first if mode is None else mode.replace("-", "_")
    if doc is None:
        pair = find_pair(_measured([run], positions=False))
        first = there.loc[there["task"] == task, "doc_id"].iloc[0]
        doc = pair[3] if pair and pair[1][0] == task else int(first)
    key = (task, name, doc, sample)
    text = read_texts(run, {key}).get(key)
    what = f"sample {sample} of question {doc} ({task}, {name})"
    if text is None:
        raise UserError(f"no {what} in this run; `softeval show {run.path}` says what there is")
    if not (text.mixtures or (text.mode.feeds_tokens and text.tokens)):
        raise UserError(f"no mixtures of {what} on record; those of sample 0 are, by --record-top")
    return draw_mixture(text, f"{task}, question {doc}: {name.replace('_', ' ')}, sample {sample}")


def _chosen(task: str | None, present: Sequence[str], nothing: str) -> str:
    """The task asked for, or the first there is; `nothing` says why there may be none."""
    if not present:
        raise UserError(nothing)
    if task is not None and task not in present:
        names = ", ".join(dict.fromkeys(present))
        raise UserError(f"task {task!r} is not among these: {names}")
    return present[0] if task is None else task


def _measured(runs: Sequence[AnyRun], positions: bool = True) -> Arms:
    paths = [getattr(run, "path", run) for run in runs]
    return measure([(None, path) for path in paths], positions)
