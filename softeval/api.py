"""`Run`: a run directory as tables and scores, for Python users and notebooks.

Reads what `softeval run` wrote; nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.reports.measured.recorded import RecordedRun
from softeval.runs import rundir

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

GREEDY_PASS = "greedy pass@1"
SAMPLED_PASS = "pass@k"
ACCURACY = "accuracy"
NLL_PER_TOKEN = "nll_per_token"

SCORE_COLUMNS = ["task", "mode", "metric", "k", "n", "questions", "value", "low", "high"]


@dataclass(frozen=True, repr=False)
class Run(RecordedRun):
    """One run directory.

    Attributes:
        path: the directory.
        info: content of its run.json.
    """

    def samples(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a generation (`records.samples_schema`), sorted by task, mode, doc_id, sample."""
        return self._table("samples", columns)

    def positions(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a CoT position (`records.position_rows_schema`); entropies in nats."""
        return self._table("positions", columns)

    def mixtures(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Largest mixture entries at each position of first samples (`records.mixture_rows_schema`)."""
        return self._table("mixtures", columns)

    def prompts(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a question, with its exact prompt (`records.prompts_schema`)."""
        return self._table("prompts", columns)

    def tokens(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Text of each token id in positions and mixtures (`records.tokens_schema`)."""
        return self._table("tokens", columns)

    def likelihoods(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a question of a log-likelihood task (`records.likelihoods_schema`)."""
        return self._table("likelihoods", columns)

    def scores(self, ks: Sequence[int] | None = None) -> pd.DataFrame:
        """One row a task, mode and metric, with a 95 % interval over questions.

        Columns: task, mode ("" for log-likelihood tasks), metric ("greedy pass@1", "pass@k",
        "accuracy", "nll_per_token"), k, n (samples a question), questions, value, low, high.
        Success and accuracy lie in [0, 1]; the NLL is in nats a token, averaged over questions.

        Args:
            ks: the k of pass@k; None takes those of the run.
        """
        import pandas as pd

        wanted = sorted(ks if ks is not None else self.config.get("pass_at") or [1])
        rows = [*self._success_rows(wanted), *self._likelihood_rows()]
        return pd.DataFrame(rows, columns=SCORE_COLUMNS)

    def plot_pass_at_k(self, *others: Run, task: str | None = None) -> Figure:
        """pass@k curves of this run and others, and their differences below.

        Args:
            *others: runs of other checkpoints, a line each.
            task: the task; None for the first.
        """
        from softeval.reports.plots import plot_pass_at_k

        return plot_pass_at_k([self, *others], task)

    def plot_entropy(self, *others: Run, task: str | None = None, view: str = "all") -> Figure:
        """Entropy by CoT position, a panel a mode.

        Args:
            *others: runs of other checkpoints, a line each.
            task: the task; None for the first.
            view: "all", "cohort", "terciles", "progress" or "end".
        """
        from softeval.reports.plots import plot_entropy

        return plot_entropy([self, *others], task, view)

    def plot_kl(self, *others: Run, task: str | None = None) -> Figure:
        """KL to the base model; needs `softeval diagnose` first."""
        from softeval.reports.plots import plot_kl

        return plot_kl([self, *others], task)

    def plot_comparisons(self, *others: Run, task: str | None = None) -> Figure:
        """Forest plot: this run against others, or its modes against hard inference."""
        from softeval.reports.plots import plot_comparisons

        return plot_comparisons([self, *others], task)

    def plot_out_of_domain(self, *others: Run) -> Figure:
        """Accuracy against NLL of the log-likelihood tasks."""
        from softeval.reports.plots import plot_out_of_domain

        return plot_out_of_domain([self, *others])

    def compare(self, other: Run, task: str | None = None, mode: str | None = None) -> pd.DataFrame:
        """This run minus another, question by question, one row a metric.

        Columns as `softeval compare --json`: a, b, difference, low, high, p, p_holm, mde, verdict,
        scope and more; shares as fractions, NLL in nats.
        """
        from softeval.reports.compare import compare_runs, comparison_frame

        return comparison_frame(compare_runs([self.path], [other.path], task, mode))

    def report(self, output: str | Path, *others: Run) -> Path:
        """Write the HTML report of this run and others."""
        from softeval.reports.page import build_report, write_report

        write_report(Path(output), build_report([run.path for run in (self, *others)]))
        return Path(output)

    def _table(self, name: str, columns: Sequence[str] | None) -> pd.DataFrame:
        from softeval.runs.tables import read_table

        return read_table(self.path, name, columns).to_pandas()

    def _success_rows(self, ks: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        from softeval.statistics import summarise_samples

        samples = self.samples(["task", "mode", "doc_id", "correct"])
        counts = samples.groupby(["task", "mode", "doc_id"])["correct"].agg(["size", "sum"])
        place = {mode: index for index, mode in enumerate(self.modes)}
        cells: list[tuple[str, str]] = sorted(
            counts.index.droplevel("doc_id").unique(),
            key=lambda cell: (cell[0], place.get(cell[1], len(place)), cell[1]),
        )
        for task, mode in cells:
            cell = counts.loc[(task, mode)]
            greedy = self.mode(mode).is_greedy
            n_M, c_M = cell["size"].to_numpy(), cell["sum"].to_numpy()
            found = summarise_samples(n_M, c_M, [1] if greedy else ks)
            metric = GREEDY_PASS if greedy else SAMPLED_PASS
            for one in found:
                if one.problems:
                    numbers = (one.k, one.n, one.problems, one.mean, one.low, one.high)
                    yield (task, mode, metric, *numbers)

    def _likelihood_rows(self) -> Iterator[tuple[Any, ...]]:
        from softeval.statistics import mean_interval, problem_interval

        rows = self.likelihoods(["task", "correct", "nll_per_token"])
        for task, cell in rows.groupby("task"):
            accuracy = problem_interval(cell["correct"].to_numpy(float))
            nll = mean_interval(cell["nll_per_token"].to_numpy())
            for metric, found in ((ACCURACY, accuracy), (NLL_PER_TOKEN, nll)):
                yield (task, "", metric, 1, 1, len(cell), found.mean, found.low, found.high)

    def __repr__(self) -> str:
        status, model = self.info.get("status"), self.config.get("model")
        tasks = ",".join(self.config.get("tasks", []))
        return f"Run({str(self.path)!r}, {status}, model={model!r}, tasks={tasks})"

    def _repr_html_(self) -> str:
        try:
            table = self.scores().to_html(index=False, float_format=lambda value: f"{value:.3f}")
        except UserError as reason:  # a run that has only begun has no tables
            table = f"<p>{escape(str(reason))}</p>"
        return f"<p><code>{escape(repr(self))}</code></p>{table}"


def load_run(path: str | Path) -> Run:
    """Open a run directory.

    Raises:
        UserError: not a run, or one written by a newer softeval, or one with a sample in two rows.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise UserError(f"no run at {folder}; `softeval ls runs` lists those in runs/")
    from softeval.runs.tables import refuse_doubled, table_path

    run = Run(folder, rundir.read_record(folder))
    if (samples := table_path(folder, "samples")).is_file():
        refuse_doubled(samples)
    return run


def evaluate(**options: Any) -> Run:
    """Evaluate a checkpoint: what `softeval run` does, with the same options as keywords.

    Args:
        **options: fields of `softeval.runs.config.RunConfig`, and ``overwrite``, ``quiet`` (default
            true) and ``lm`` (a loaded `LanguageModel` to use in place of ``model``).

    Returns:
        The run; one that is complete already is returned without computing anything.

    Raises:
        UserError: an option that cannot be used; it names the remedy.
    """
    from softeval.display import make_display
    from softeval.runs.config import make_config
    from softeval.runs.evaluation import run_evaluation

    overwrite = bool(options.pop("overwrite", False))
    display = make_display(quiet=bool(options.pop("quiet", True)))
    lm = options.pop("lm", None)
    given = {name: value for name, value in options.items() if value is not None}
    return load_run(run_evaluation(make_config(given), display, overwrite=overwrite, lm=lm).path)
