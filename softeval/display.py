"""What a command shows as it goes, and how other libraries are kept out of that.

On a terminal a live bar, elsewhere a plain line now and then; always on stderr, so that stdout stays
for results. Text that a model wrote is never read as markup, and its control characters are taken out.
Knows nothing of models or files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TextIO

from softeval.terminal import clean

PLAIN_INTERVAL = 30.0
"""Seconds between two plain lines."""


class Screen:
    """Shows nothing; the base of the two that do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def note(self, message: str) -> None:
        """Say something once, above the progress."""

    def show(self, title: str, done: int, total: int, state: str, stays: bool = False) -> None:
        """Show how far something is.

        Args:
            title: what is under way; may be empty.
            done: how many of its parts are.
            total: how many there are.
            state: the same in words.
            stays: show it now, as a line that stays.
        """

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table of texts, where there is room for it."""


class PlainScreen(Screen):
    """A line every `PLAIN_INTERVAL` seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._shown_at = clock()

    def show(self, title: str, done: int, total: int, state: str, stays: bool = False) -> None:
        if stays or self._clock() - self._shown_at >= PLAIN_INTERVAL:
            self._shown_at = self._clock()
            self.note(_line(title, state))

    def note(self, message: str) -> None:
        print(clean(message), file=self._stream, flush=True)


class LiveScreen(Screen):
    """A bar, redrawn in place below what stays."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

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

    def show(self, title: str, done: int, total: int, state: str, stays: bool = False) -> None:
        self._progress.update(
            self._bar, completed=done, total=total, title=clean(title), state=clean(state)
        )
        if stays:
            self.note(_line(title, state))

    def note(self, message: str) -> None:
        self._console.print(clean(message), markup=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns)
        for row in rows:
            table.add_row(*(Text(clean(cell)[:200]) for cell in row))
        self._console.print(table)


def make_screen(quiet: bool = False, stream: TextIO | None = None) -> Screen:
    """The screen that fits the stream: live on a terminal, plain lines elsewhere."""
    shown: TextIO = stream or sys.stderr
    if quiet:
        return Screen()
    return LiveScreen(shown) if shown.isatty() else PlainScreen(shown)


def _line(title: str, state: str) -> str:
    return f"{title}: {state}" if title else state


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


class Display:
    """What an evaluation tells as it goes: counts of the run and of the cell (task and mode) under way.

    Args:
        screen: shows them; None shows nothing.
        clock: tells the time in seconds.
    """

    def __init__(
        self, screen: Screen | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.run, self.cell = Tally(), Tally()
        self._screen = screen or Screen()
        self._clock = clock
        self._title = ""
        self._started = 0.0
        self._counted: tuple[Tally, ...] = ()
        self.note = self._screen.note

    def __enter__(self) -> Self:
        self._screen.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._screen.__exit__(*error)

    def begin(self, total: int) -> None:
        """Start the clock of a run of `total` samples."""
        self.run = Tally(total)
        self._started = self._clock()

    def enter(self, title: str, total: int, samples: bool = True) -> None:
        """Start a cell of `total` samples, or of log-likelihood requests, which no run counts."""
        self._title, self.cell = title, Tally(total)
        self._counted = (self.run, self.cell) if samples else (self.cell,)
        if samples and not self.run.fresh:
            self._started = self._clock()

    def count(self, done: int = 0, fresh: int = 0, tokens: int = 0) -> None:
        """Count and show finished samples."""
        for tally in self._counted:
            tally.done += done
            tally.fresh += fresh
            tally.tokens += tokens
        self._show()

    def score(self, scored: int, correct: int) -> None:
        """Count verdicts."""
        for tally in self._counted:
            tally.scored += scored
            tally.correct += correct

    def leave(self) -> None:
        """The cell is done."""
        self._show(stays=True)

    @property
    def rate(self) -> float:
        """Tokens a second since the start."""
        return self.run.tokens / max(self._clock() - self._started, 1e-9)

    @property
    def eta(self) -> float | None:
        """Seconds left at the pace of the samples made since the start; None before the first."""
        if not self.run.fresh:
            return None
        pace = (self._clock() - self._started) / self.run.fresh
        return pace * (self.run.total - self.run.done)

    @property
    def state(self) -> str:
        """Counts of the cell, its running score, the run's pace and the time left."""
        cell, run = self.cell, self.run
        if not any(tally is run for tally in self._counted):
            return f"{cell.done}/{cell.total} log-likelihoods"
        return (
            f"{cell.done}/{cell.total}, {cell.score}, {self.rate:.0f} tokens/s,"
            f" run {run.done}/{run.total}, {duration(self.eta)} left"
        )

    def _show(self, stays: bool = False) -> None:
        self._screen.show(self._title, self.cell.done, self.cell.total, self.state, stays)


def make_display(quiet: bool = False, stream: TextIO | None = None) -> Display:
    """An evaluation's display on the screen that fits the stream."""
    return Display(make_screen(quiet, stream))


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds as "1:02:03" or "2:03"; "?" where unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """No tqdm bar is drawn inside.

    lm-eval and transformers offer no switch for some of theirs, and tqdm's own is read when it is
    imported, which may be long before.
    """
    from tqdm.std import tqdm

    real = tqdm.__init__

    def quiet(self: Any, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **{**options, "disable": True})

    tqdm.__init__ = quiet  # type: ignore[method-assign]
    try:
        yield
    finally:
        tqdm.__init__ = real  # type: ignore[method-assign]
