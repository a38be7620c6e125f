"""Where a finished run is shown beside its directory: trackers, and a data set on the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from softeval.files import write_text
from softeval.publishing import HubRepository, begin_trackers, log_table, tracking
from softeval.runs.config import RunConfig
from softeval.runs.run import Run

SHOWN = ["task", "mode", "doc_id", "cot_text", "answer", "target", "correct"]
MOST = 200
"""Columns and number of the samples that trackers are shown: the first of each question and mode."""


class Publication:
    """Trackers and hub, asked before the work that they are to show.

    Raises:
        UserError: a tracker that is unknown or not installed, or a hub that refuses.
    """

    def __init__(self, config: RunConfig, folder: Path, is_main: bool) -> None:
        self._kinds, name = config.report_to, config.push_to_hub
        # lm-eval makes an Accelerator of its own, which must be given the same.
        self._accelerator = tracking(self._kinds, folder, on_cpu=False) if self._kinds else None
        self._hub = HubRepository(name, "dataset") if name and is_main else None

    def show(self, run: Run, note: Callable[[str], None]) -> None:
        """Show a finished run, from the main process."""
        if self._accelerator is not None:
            facts = {k: v for k, v in run.config.items() if isinstance(v, str | int | float)}
            run_id = f"{crc32(repr(run.info['identity']).encode()):08x}"
            begin_trackers(self._accelerator, self._kinds, run.path, run_id, facts)
            self._accelerator.log(_numbers(run), step=0)
            samples = run.samples()
            first = samples.loc[samples["sample"] == 0, SHOWN].head(MOST).to_numpy().tolist()
            for tracker in self._accelerator.trackers:
                log_table(tracker, "samples", SHOWN, first, 0)
                tracker.finish()
        if self._hub is not None:
            write_text(run.path / "README.md", _card(run))
            self._hub.push(run.path, run.path.resolve().name)
            note(f"pushed to {self._hub.address}")


def _numbers(run: Run) -> dict[str, float]:
    """Scores as trackers name them: task/mode/pass@k, and task/metric of log-likelihoods."""
    found = {}
    for row in run.scores().to_dict("records"):
        name = f"{row['mode']}/pass@{row['k']}" if row["mode"] else row["metric"]
        found[f"{row['task']}/{name}"] = float(row["value"])
    return found


def _card(run: Run) -> str:
    """The data set's card: its tables, how it was made, its scores."""
    tables = sorted(path.stem for path in run.path.glob("*.parquet"))
    parts = [f"- config_name: {name}\n  data_files: {name}.parquet" for name in tables]
    rows = [f"| {name} | {value:.4f} |" for name, value in _numbers(run).items()]
    head = ["---\ntags: [softeval]\nconfigs:", *parts, f"---\n# {run.path.resolve().name}\n"]
    made = f"A run directory of softeval: `{run.info['command']}`\n\n| score | value |\n|---|---|"
    return "\n".join([*head, made, *rows, ""])
