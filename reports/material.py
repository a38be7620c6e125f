"""What the sections of a page are made from: the runs, what was asked for, what several share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from softeval.reports.contrasts import Comparison, find_comparisons
from softeval.reports.differences import CurveDifference, find_differences
from softeval.reports.left_out import attempt
from softeval.reports.measured.arms import Arms
from softeval.statistics.equivalence import MARGIN

PROBLEMS = 40


@dataclass(frozen=True)
class ReportOptions:
    """What a user may choose about a report.

    Attributes:
        title: heading; None makes one from the tasks.
        paper_reference: lay the paper's numbers beside the measured ones.
        margin: equivalence margin, a fraction.
        contrasts: primary contrasts; empty for the default ones.
        problems: problems in the browser of samples, a task.
        seed: of the random part of that choice.
        all_seeds: put samples of every training seed into the browser, not of the first only.
        extrapolate: largest k of the extrapolated pass@k curves; None for none.
    """

    title: str | None = None
    paper_reference: bool = False
    margin: float = MARGIN
    contrasts: tuple[str, ...] = ()
    problems: int = PROBLEMS
    seed: int = 0
    all_seeds: bool = False
    extrapolate: int | None = None


@dataclass(frozen=True, eq=False)
class Material:
    """Everything that a section may use.

    Attributes:
        arms: the runs, gathered.
        training: (label or None, folder) of the training directories.
        options: what was asked for.
        facts: (name, value) of what the page is about, and how it was made.
    """

    arms: Arms
    training: tuple[tuple[str | None, str], ...]
    options: ReportOptions
    facts: tuple[tuple[str, str], ...] = ()

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every comparison, the primary ones first."""
        return find_comparisons(self.arms, self.options.contrasts, self.options.margin)

    @cached_property
    def differences(self) -> tuple[list[CurveDifference], str]:
        """Differences of pass@k curves, and why there are none where they could not be made."""
        return attempt("D(k)", lambda: find_differences(self.arms), [])
