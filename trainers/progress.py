"""What training shows as it goes: a live line on a terminal, plain lines elsewhere.

Always on stderr, so that stdout stays for results. Texts that a model wrote are cleaned before they
are shown. Knows nothing of models.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import IO, Any, Self

from softeval.display import PLAIN_INTERVAL, duration
from softeval.terminal import clean
from softeval.trainers.metrics import Metrics

RUNNING = 20
"""Updates over which the mean success is taken: one update has a few questions only."""


class TrainProgress:
    """Shows nothing; the base of the two that do.

    Args:
        steps: updates of the whole run.
        done: those done before this start.
    """

    def __init__(self, steps: int, done: int = 0) -> None:
        self.steps = steps
        self._first = done
        self._started = time.monotonic()
        self._successes: deque[float] = deque(maxlen=RUNNING)
        self._last = self._best = (done, float("nan"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def step(self, step: int, metrics: Metrics) -> None:
        """Update `step` is done."""
        self._successes.append(metrics["reward/success"] or 0.0)
        self.show(step, metrics)

    def show(self, step: int, metrics: Metrics) -> None:
        """Show an update."""

    def validated(self, step: int, success: float) -> None:
        """A validation after `step` updates accepted this share of answers."""
        if not success <= self._best[1]:
            self._best = (step, success)
        self._last = (step, success)
        best = f" (best {100 * self._best[1]:.1f} % at step {self._best[0]})"
        self.note(f"validation at step {step}: {100 * success:.1f} %{best if step else ''}")

    def note(self, message: str) -> None:
        """Say something once."""

    def samples(self, rows: Sequence[dict[str, Any]]) -> None:
        """Show a table of rollouts."""

    def line(self, step: int, metrics: Metrics) -> str:
        """One line about an update."""
        pace = (time.monotonic() - self._started) / max(1, step - self._first)
        running = sum(self._successes) / max(1, len(self._successes))
        shown = {
            "reward": ("reward/mean", "{:.1f}"),
            "entropy": ("rollout/entropy", "{:.3f}"),
            "KL": ("kl/tokens", "{:.2g}"),
            "grad": ("gradient/norm", "{:.3g}"),
            "χ²/d": ("health/chi_square", "{:.3f}"),
            "lr": ("optimizer/learning_rate", "{:.1e}"),
        }
        success = f"success {100 * (metrics['reward/success'] or 0):.0f} %"
        parts = [f"step {step}/{self.steps}", f"{success}, mean {100 * running:.0f} %"]
        parts += [
            f"{name} {form.format(metrics[key])}"
            for name, (key, form) in shown.items()
            if metrics.get(key) is not None
        ]
        if self._last[1] == self._last[1]:  # no number before the first validation
            parts.append(f"validation {100 * self._last[1]:.1f} %")
        parts.append(f"{metrics['time/tokens_per_second']:.0f} tok/s")
        return " | ".join([*parts, f"{duration(pace * (self.steps - step))} left"])


class PlainProgress(TrainProgress):
    """A line every `PLAIN_INTERVAL` seconds and at the end."""

    def __init__(self, steps: int, done: int = 0, stream: IO[str] | None = None) -> None:
        super().__init__(steps, done)
        self._stream = stream or sys.stderr
        self._shown = -PLAIN_INTERVAL

    def show(self, step: int, metrics: Metrics) -> None:
        now = time.monotonic()
        if step == self.steps or now - self._shown >= PLAIN_INTERVAL:
            self._shown = now
            self.note(self.line(step, metrics))

    def note(self, message: str) -> None:
        print(clean(message), file=self._stream, flush=True)


class LiveProgress(TrainProgress):
    """A bar redrawn in place, and tables of rollouts above it."""

    def __init__(self, steps: int, done: int = 0, stream: IO[str] | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(steps, done)
        self._console = Console(file=stream or sys.stderr, highlight=False, emoji=False)
        self._bar = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, state="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, step: int, metrics: Metrics) -> None:
        self._bar.update(self._task, completed=step, state=self.line(step, metrics))

    def note(self, message: str) -> None:
        self._console.print(clean(message), markup=False, soft_wrap=True)

    def samples(self, rows: Sequence[dict[str, Any]]) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table("question", "chain of thought", "answer", "label", "reward", "advantage")
        for row in rows:
            cells = (row["question"], row["cot"], row["answer"] or "–", row["target"])
            numbers = (f"{row['reward']:g}", f"{row['advantage']:+.1f}")
            table.add_row(*(Text(clean(cell)[:200]) for cell in (*cells, *numbers)))
        self._console.print(table)


def make_progress(steps: int, done: int, quiet: bool) -> TrainProgress:
    """The display that fits stderr."""
    if quiet:
        return TrainProgress(steps, done)
    return LiveProgress(steps, done) if sys.stderr.isatty() else PlainProgress(steps, done)
