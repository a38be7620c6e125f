"""What a running evaluation shows as it goes.

On a terminal a live bar, elsewhere a plain line now and then; always on the stream it is given
(stderr), so that stdout stays for results. Text that a model wrote is never read as markup, and its
control characters are taken out. Knows nothing of models or files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self, TextIO

from softeval.terminal import clean

PLAIN_INTERVAL = 30.0
"""Seconds between two plain lines."""


@dataclass
class Tally:
    """Counts of a part of a run.

    Attributes:
        total: samples that belong to it.
        done: samples finished, those of an earlier start included.
        fresh: samples finished since this start.
        tokens: CoT and answer tokens of the fresh ones.
        scored: samples with a verdict.
        correct: accepted ones among them.
    """

    total: int = 0
    done: int = 0
    fresh: int = 0
    tokens: int = 0
    scored: int = 0
    correct: int = 0

    @property
    def score(self) -> str:
        """Share of correct samples in percent, or "–" before the first verdict."""
        return f"{100 * self.correct / self.scored:.1f} % correct" if self.scored else "–"


@dataclass
class Meter:
    """Counts of the whole run and of the cell (task and mode) that is under way."""

    clock: Callable[[], float] = time.monotonic
    run: Tally = field(default_factory=Tally)
    cell: Tally = field(default_factory=Tally)
    title: str = ""
    started: float = 0.0
    _counted: tuple[Tally, ...] = ()

    def begin(self, total: int) -> None:
        """Start the clock of a run of `total` samples."""
        self.run = Tally(total)
        self.started = self.clock()

    def enter(self, title: str, total: int, samples: bool = True) -> None:
        """Start a cell of `total` samples, or of log-likelihood requests, which no run counts."""
        self.title, self.cell = title, Tally(total)
        self._counted = (self.run, self.cell) if samples else (self.cell,)
        if samples and not self.run.fresh:
            self.started = self.clock()

    def count(self, done: int = 0, fresh: int = 0, tokens: int = 0) -> None:
        """Count finished samples."""
        for tally in self._counted:
            tally.done += done
            tally.fresh += fresh
            tally.tokens += tokens

    def score(self, scored: int, correct: int) -> None:
        """Count verdicts."""
        for tally in self._counted:
            tally.scored += scored
            tally.correct += correct

    @property
    def counts_for_run(self) -> bool:
        """Whether the cell's samples are among those of the run."""
        return any(tally is self.run for tally in self._counted)

    @property
    def rate(self) -> float:
        """Tokens a second since the start."""
        return self.run.tokens / max(self.clock() - self.started, 1e-9)

    @property
    def eta(self) -> float | None:
        """Seconds left at the pace of the samples made since the start; None before the first."""
        if not self.run.fresh:
            return None
        pace = (self.clock() - self.started) / self.run.fresh
        return pace * (self.run.total - self.run.done)


class Display(Protocol):
    """What the evaluation tells as it goes."""

    meter: Meter

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def enter(self, title: str, total: int, samples: bool = True) -> None:
        """A cell begins; see `Meter.enter`."""
        ...

    def update(self) -> None:
        """The meter has changed."""
        ...

    def leave(self) -> None:
        """The cell is done."""
        ...

    def note(self, message: str) -> None:
        """Say something once, above the progress."""
        ...


class QuietDisplay:
    """Counts, and shows nothing."""

    def __init__(self) -> None:
        self.meter = Meter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def enter(self, title: str, total: int, samples: bool = True) -> None:
        self.meter.enter(title, total, samples)

    def update(self) -> None:
        return None

    def leave(self) -> None:
        return None

    def note(self, message: str) -> None:
        return None


class PlainDisplay:
    """A line every `PLAIN_INTERVAL` seconds, and one at the end of each cell."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.meter = Meter(clock)
        self._stream = stream
        self._shown_at = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def enter(self, title: str, total: int, samples: bool = True) -> None:
        self.meter.enter(title, total, samples)

    def update(self) -> None:
        if self.meter.clock() - self._shown_at >= PLAIN_INTERVAL:
            self.leave()

    def leave(self) -> None:
        self._shown_at = self.meter.clock()
        self.note(f"{self.meter.title}: {progress_state(self.meter)}")

    def note(self, message: str) -> None:
        print(clean(message), file=self._stream, flush=True)


class LiveDisplay:
    """A bar for the cell, redrawn in place; a line for each cell that is done."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.meter = Meter()
        self._console = Console(file=stream, highlight=False, emoji=False)
        # markup=False: a task's name is text, whatever brackets it holds.
        self._progress = Progress(
            TextColumn("{task.fields[title]}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._bar = self._progress.add_task("", total=None, title="", state="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def enter(self, title: str, total: int, samples: bool = True) -> None:
        self.meter.enter(title, total, samples)
        self.update()

    def update(self) -> None:
        cell = self.meter.cell
        self._progress.update(
            self._bar,
            completed=cell.done,
            total=cell.total,
            title=clean(self.meter.title),
            state=progress_state(self.meter),
        )

    def leave(self) -> None:
        self.update()
        cell = self.meter.cell
        score = f", {cell.score}" if cell.scored else ""
        self.note(f"{self.meter.title}: {cell.done} done{score}")

    def note(self, message: str) -> None:
        self._console.print(clean(message), markup=False, soft_wrap=True)


def make_display(quiet: bool = False, stream: TextIO | None = None) -> Display:
    """The display that fits the stream: live on a terminal, plain lines elsewhere."""
    shown: TextIO = stream or sys.stderr
    if quiet:
        return QuietDisplay()
    return LiveDisplay(shown) if shown.isatty() else PlainDisplay(shown)


def progress_state(meter: Meter) -> str:
    """Counts of the cell, its running score, the run's pace and the time left."""
    cell, run = meter.cell, meter.run
    if not meter.counts_for_run:
        return f"{cell.done}/{cell.total} log-likelihoods"
    return (
        f"{cell.done}/{cell.total}, {cell.score}, {meter.rate:.0f} tokens/s,"
        f" run {run.done}/{run.total}, {duration(meter.eta)} left"
    )


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds as "1:02:03" or "2:03"; "?" where unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
