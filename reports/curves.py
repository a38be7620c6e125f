"""pass@k curves of a report: what each panel shows, ready to draw.

A panel is one kind of CoT, a family of modes: the sampled mode gives a curve, the greedy mode a
single marker beside it, because greedy pass@1 is another quantity than sampled pass@1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softeval.reports.arms import Arm, Arms
from softeval.reports.contrasts import mode_arms
from softeval.reports.differences import REPLICATES, CurveDifference
from softeval.reports.recorded import RecordedMode
from softeval.reports.scores import ArmScore, arm_score, complete_curve, curve_ks, usual_n
from softeval.statistics.curves import Band, curve_band


@dataclass(frozen=True)
class Lane:
    """Modes that one panel shows together: a family's sampled mode and its greedy one."""

    title: str
    sampled: RecordedMode | None
    greedy: RecordedMode | None


def lanes(arms: Arms) -> list[Lane]:
    """The lanes of a report; a family of several sampled or greedy modes has one for each."""
    found = []
    for family in dict.fromkeys(mode.family for mode in arms.modes):
        sampled, greedy = arms.modes_of(family, False), arms.modes_of(family, True)
        if len(sampled) <= 1 and len(greedy) <= 1:
            pair = (modes[0] if modes else None for modes in (sampled, greedy))
            found.append(Lane(family, *pair))
        else:
            found += [Lane(mode.replace("_", " "), mode, None) for mode in sampled]
            found += [Lane(mode.replace("_", " "), None, mode) for mode in greedy]
    return found


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a panel.

    Attributes:
        name: in the legend.
        band: pass@k at powers of two with its simultaneous band; None where n < 2.
        greedy: greedy pass@1 of the same arm and kind; None where it was not run.
        n: largest k.
    """

    name: str
    band: Band | None
    greedy: ArmScore | None
    n: int


@dataclass(frozen=True, eq=False)
class Panel:
    """One panel: its curves above, their differences from the first below.

    Attributes:
        title: kind of CoT at inference, or "one checkpoint".
        curves: lines.
        differences: D(k) of the other lines against one of them.
    """

    title: str
    curves: tuple[Curve, ...]
    differences: tuple[CurveDifference, ...]

    @property
    def baseline(self) -> str:
        """What the differences are against; "" where there are none."""
        return self.differences[0].b.name if self.differences else ""


@dataclass(frozen=True, eq=False)
class CurveFigure:
    """All panels of one task and group of arms.

    Attributes:
        name: of the group, for the heading.
        task: the task.
        panels: by kind of CoT; a single panel for a single arm.
        questions: of the task in this report; a curve stands on those with n samples.
    """

    name: str
    task: str
    panels: tuple[Panel, ...]
    questions: int

    def fewer(self, panel: Panel) -> list[str]:
        """Curves of a panel that do not stand on every question, with how many they stand on."""
        found = [(c.name, c.band.problems) for c in panel.curves if c.band is not None]
        found += [(f"{c.name}, greedy", c.greedy.mean.interval.m) for c in panel.curves if c.greedy]
        return [
            f"{name}: {entered} of {self.questions} questions"
            for name, entered in found
            if entered < self.questions
        ]

    @property
    def baselines(self) -> dict[str, list[str]]:
        """Each name that differences are against, with the titles of its panels."""
        found: dict[str, list[str]] = {}
        for panel in self.panels:
            if panel.baseline:
                found.setdefault(panel.baseline, []).append(panel.title)
        return found


def find_curves(
    arms: Arms, differences: Sequence[CurveDifference], replicates: int = REPLICATES
) -> list[CurveFigure]:
    """The pass@k figures of a report, one for each group of arms and task."""
    figures = []
    for (family, dataset), group in arms.groups.items():
        name = f"{family}, trained on {dataset}" if dataset else family
        for task in arms.tasks:
            by_mode = [arm for arm in group if arm in mode_arms(arms)]
            if len(group) > 1 or not by_mode:
                panels = _panels_of_arms(arms, group, task, differences, replicates)
                figures.append(CurveFigure(name, task, tuple(panels), arms.questions(task)))
            for arm in by_mode:
                panels = _panels_of_modes(arms, arm, task, differences, replicates)
                shown = name if len(arms.arms) == 1 else arms.name(arm)
                figures.append(CurveFigure(shown, task, tuple(panels), arms.questions(task)))
    return [figure for figure in figures if figure.panels]


def _panels_of_arms(
    arms: Arms,
    group: Sequence[Arm],
    task: str,
    differences: Sequence[CurveDifference],
    replicates: int,
) -> list[Panel]:
    panels = []
    for lane in lanes(arms):
        curves = [
            curve
            for arm in group
            if (curve := _curve(arm, task, lane, arms.name(arm), replicates)) is not None
        ]
        names = {curve.name for curve in curves}
        mine = [
            d
            for d in differences
            if d.task == task and d.a.mode == lane.sampled and {d.a.name, d.b.name} <= names
        ]
        if curves:
            panels.append(Panel(f"{lane.title} inference", tuple(curves), tuple(mine)))
    return panels


def _panels_of_modes(
    arms: Arms, arm: Arm, task: str, differences: Sequence[CurveDifference], replicates: int
) -> list[Panel]:
    curves = [
        curve
        for lane in lanes(arms)
        if (curve := _curve(arm, task, lane, lane.title, replicates)) is not None
    ]
    mine = tuple(
        d
        for d in differences
        if d.task == task and d.a.mode != d.b.mode and set(d.a.checkpoints) <= set(arm.checkpoints)
    )
    return [Panel("", tuple(curves), mine)] if curves else []


def _curve(arm: Arm, task: str, lane: Lane, name: str, replicates: int) -> Curve | None:
    score = None if lane.greedy is None else arm_score(arm, (task, lane.greedy), 1)
    checkpoints = () if lane.sampled is None else arm.having((task, lane.sampled))
    if lane.sampled is None or not checkpoints:
        return None if score is None else Curve(name, None, score, 1)
    sampled = (task, lane.sampled)
    n = usual_n(checkpoint.cells[sampled] for checkpoint in checkpoints)
    doc_M, x_SMK = complete_curve(checkpoints, sampled, curve_ks(n))
    enough = len(doc_M) > 1 and n > 1
    band = curve_band(x_SMK, curve_ks(n), replicates=replicates) if enough else None
    return Curve(name, band, score, n)
