"""`Run`: a run directory, opened for reading: its record, its tables and its scores.

Tables come as pandas rows, or in batches, so that none has to fit in memory. Reads what `softeval
run` wrote; nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.modes import mode_order, recorded_modes
from softeval.protocol import Protocol, recorded_protocol
from softeval.runs import rundir
from softeval.runs.parquet_files import damage_named, open_parquet

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from matplotlib.figure import Figure

GREEDY_PASS = "greedy pass@1"
SAMPLED_PASS = "pass@k"
ACCURACY = "accuracy"
NLL_PER_TOKEN = "nll_per_token"

SCORE_COLUMNS = ["task", "mode", "metric", "k", "n", "questions", "value", "low", "high"]
BATCH_ROWS = 65_536


class RecordedMode(str):
    """A mode's name in a run, with what the run recorded of the mode.

    It compares as its name does. Nothing in a report tells a mode by how its name is spelt.

    Attributes:
        family: modes that are shown together.
        is_greedy: whether every sample of a question is the same, so that pass@k is only pass@1.
        feeds_tokens: whether ordinary tokens are fed, no mixture.
        options: every option with its value.
    """

    family: str
    is_greedy: bool
    feeds_tokens: bool
    options: dict[str, Any]

    @classmethod
    def of(cls, name: str, entry: Mapping[str, Any]) -> RecordedMode:
        """From the entry of `softeval.modes.recorded_modes`; empty for a mode not recorded."""
        mode = cls(name)
        mode.family = str(entry.get("family", name))
        mode.is_greedy = bool(entry.get("is_greedy", False))
        mode.feeds_tokens = bool(entry.get("feeds_tokens", False))
        mode.options = {k: v for k, v in entry.items() if k not in _NO_OPTION}
        return mode

    name = property(str)


_NO_OPTION = ("name", "family", "is_greedy", "feeds_tokens", "facts", "sigma")
REFERENCE = "hard"
"""The family that others are compared with: ordinary tokens."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory.

    Attributes:
        path: the directory.
        info: content of its run.json.
    """

    path: Path
    info: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """Whether every sample that was asked for is there."""
        return self.info.get("status") == rundir.COMPLETE

    @property
    def training(self) -> Mapping[str, Any]:
        """How the checkpoint was trained; empty for a checkpoint that softeval did not train."""
        return self.info.get("training") or {}

    @property
    def model(self) -> Mapping[str, Any]:
        """Path, weights hash, dtype, device and size of the checkpoint."""
        return self.info.get("model") or {}

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration."""
        return self.info.get("config") or {}

    @property
    def protocol(self) -> Protocol:
        """How the model was asked: prompt, system text, examples, stop and answer prefix."""
        return recorded_protocol(self.info)

    def datasets(self) -> dict[str, Mapping[str, Any]]:
        """Where the questions of each task came from."""
        return {d.get("task") or d["name"]: d for d in self.info.get("datasets") or ()}

    @cached_property
    def modes(self) -> dict[str, RecordedMode]:
        """The CoT modes by name, in the order of `softeval.modes.mode_order`."""
        entries = recorded_modes(self.info).items()
        found = sorted((RecordedMode.of(name, entry) for name, entry in entries), key=mode_order)
        return {mode.name: mode for mode in found}

    def mode(self, name: str) -> RecordedMode:
        """A mode by name, also where the record does not list it."""
        return self.modes.get(name) or RecordedMode.of(name, {})

    def table_path(self, table: str) -> Path:
        """Where a table lies, or would lie."""
        return self.path / f"{table}.parquet"

    def has(self, table: str) -> bool:
        """Whether the table is there and holds at least one row.

        Raises:
            UserError: the file is damaged.
        """
        return (
            self.table_path(table).is_file()
            and open_parquet(self.table_path(table)).metadata.num_rows > 0
        )

    def has_column(self, table: str, column: str) -> bool:
        """Whether the table holds a column; UserError where the file is damaged."""
        return column in open_parquet(self.table_path(table)).schema_arrow.names

    def batches(
        self, table: str, columns: Sequence[str], rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """The table's columns, a batch of rows at a time, in the order of the file.

        Raises:
            UserError: the file is missing, damaged, or lacks a column.
        """
        path = self.table_path(table)
        parquet = open_parquet(path, columns)
        with damage_named(path):
            yield from parquet.iter_batches(batch_size=rows, columns=list(columns))

    def samples(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a generation (`records.samples_schema`), sorted by task, mode, doc_id, sample.

        In every frame the modes are an ordered categorical: they sort as reports list them.
        """
        wanted = list(dict.fromkeys([*columns, "task", "mode"])) if columns is not None else None
        frame = self._table("samples", wanted)
        # The file has the modes by name.
        ordered = frame.sort_values(["task", "mode"], kind="stable", ignore_index=True)
        return ordered if columns is None else ordered.loc[:, list(columns)]

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

    def attribution(self) -> pd.DataFrame:
        """One row a replayed CoT and change (`records.attribution_schema`).

        Raises:
            UserError: `softeval attribute` was not run.
        """
        from softeval.runs.parquet_files import read_parquet

        path = self.table_path("attribution")
        if not path.is_file():
            raise UserError(f"{path} is missing; `softeval attribute {self.path}` makes it")
        return read_parquet(path).to_pandas()

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

    def plot_mixture(
        self,
        task: str | None = None,
        doc: int | None = None,
        mode: str | None = None,
        sample: int = 0,
    ) -> Figure:
        """The soft thought: tokens and weights that a sample mixes, position by position.

        Args:
            task: the task; None for the first.
            doc: the question by its doc_id; None for the one on which soft and hard differ most.
            mode: the mode; None for the first that feeds mixtures.
            sample: its number; mixtures are on record of sample 0.
        """
        from softeval.reports.plots import plot_mixture

        return plot_mixture(self, task, doc, mode, sample)

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

    def claims(self, *others: Run) -> pd.DataFrame:
        """What this run and others say of the paper's claims, a row a difference.

        Columns: claim, text, group, task, verdict, missing, difference, value, low, high, above, below
        (where it lies if the claim is true), unit, word, decides, scope; shares as fractions.
        """
        import pandas as pd

        from softeval.reports.claims import claims_of

        return pd.DataFrame(list(claims_of([run.path for run in (self, *others)])))

    def report(self, output: str | Path, *others: Run) -> Path:
        """Write the HTML report of this run and others."""
        from softeval.reports.page import build_report, write_report

        write_report(Path(output), build_report([run.path for run in (self, *others)]))
        return Path(output)

    def _table(self, name: str, columns: Sequence[str] | None) -> pd.DataFrame:
        from softeval.runs.tables import read_table

        frame = read_table(self.path, name, columns).to_pandas()
        return self._with_ordered_modes(frame) if "mode" in frame else frame

    def _with_ordered_modes(self, frame: pd.DataFrame) -> pd.DataFrame:
        import pandas as pd

        modes = {name: self.mode(name) for name in [*self.modes, *frame["mode"].unique()]}
        order = [mode.name for mode in sorted(modes.values(), key=mode_order)]
        return frame.assign(mode=pd.Categorical(frame["mode"], order, ordered=True))

    def _success_rows(self, ks: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        from softeval.statistics import summarise_samples

        rundir.refuse_unjudged(self.path, self.info)
        samples = self.samples(["task", "mode", "doc_id", "correct"])
        counts = samples.groupby(["task", "mode", "doc_id"], observed=True)["correct"].agg(
            ["size", "sum"]
        )
        cells: list[tuple[str, str]] = list(counts.index.droplevel("doc_id").unique())
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

    A run that was stopped before its tables were written has none: it is partial, not an error.

    Raises:
        UserError: not a run, or one written by a newer softeval, or one with a sample in two rows.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise UserError(f"no run at {folder}; `softeval ls runs` lists those in runs/")
    from softeval.runs.tables import refuse_doubled

    run = Run(folder, rundir.read_record(folder))
    if run.table_path("samples").is_file():
        refuse_doubled(run.table_path("samples"))
    return run
