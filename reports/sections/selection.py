"""Which samples a report shows: a stratified, seeded choice of problems, the same in every cell.

Problems are chosen, not samples, so that any two modes or checkpoints can be laid side by side on
the same question. Knows nothing of texts or of how samples are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

import numpy as np

from softeval.reports.material import PROBLEMS
from softeval.reports.measured.arms import Arms, MeasuredCheckpoint, MeasuredRun
from softeval.reports.measured.cells import Key, MeasuredCell, cell_order
from softeval.reports.measured.texts import TextKey
from softeval.runs.run import REFERENCE

SHARES = {"discordant": 0.5, "high entropy": 0.25, "random": 0.25}
SAMPLED_PER_CELL = 2


@dataclass(frozen=True)
class ChosenProblem:
    """A problem and why it is shown: "discordant", "high entropy" or "random"."""

    task: str
    doc_id: int
    why: str


@dataclass(frozen=True, eq=False)
class Source:
    """Whose samples one entry of the browser's checkpoint list shows.

    Attributes:
        name: of the entry.
        checkpoints: the first that was evaluated on a task and mode gives its samples.
    """

    name: str
    checkpoints: tuple[MeasuredCheckpoint, ...] = field(repr=False)

    def having(self, key: Key) -> MeasuredCheckpoint | None:
        """The checkpoint that gives the samples of a task and mode."""
        return next((c for c in self.checkpoints if key in c.cells), None)


@dataclass(frozen=True, eq=False)
class ChosenSample:
    """A sample of a chosen problem.

    Attributes:
        problem: index among the chosen problems.
        source: index among the sources.
        checkpoint: whose sample it is.
        key: (task, mode).
        row: row of the cell.
    """

    problem: int
    source: int
    checkpoint: MeasuredCheckpoint
    key: Key
    row: int

    @property
    def cell(self) -> MeasuredCell:
        """The cell it is from."""
        return self.checkpoint.cells[self.key]

    @property
    def run(self) -> MeasuredRun:
        """The run it is from."""
        return next(run for run in self.checkpoint.runs if self.key in run.cells)

    @property
    def text_key(self) -> TextKey:
        """What names it in that run's tables."""
        return *self.key, int(self.cell.doc_R[self.row]), int(self.cell.sample_R[self.row])


def sources(arms: Arms, all_seeds: bool = False) -> list[Source]:
    """One entry an arm, which shows its first training seed; or one a checkpoint."""
    found = []
    for arm in arms.arms:
        if not all_seeds or arm.seeds == 1:
            found.append(Source(arms.name(arm), arm.checkpoints))
            continue
        for number, one in enumerate(arm.checkpoints):
            seed = number if one.train_seed is None else one.train_seed
            found.append(Source(f"{arms.name(arm)} · seed {seed}", (one,)))
    return found


def soft_and_hard(keys: Iterable[Key]) -> tuple[Key, Key] | None:
    """Of one task: the first mode of mixtures and its counterpart that feeds tokens, or None."""
    ordered = sorted(keys, key=cell_order)
    for is_greedy in (False, True):
        alike = [key for key in ordered if key[1].is_greedy == is_greedy]
        soft = next((key for key in alike if not key[1].feeds_tokens), None)
        hard = next((key for key in alike if key[1].family == REFERENCE), None)
        if soft and hard:
            return soft, hard
    return None


def find_pair(arms: Arms) -> tuple[int, Key, Key, int] | None:
    """Source, cells and question where mixtures and tokens differ most in their right samples.

    Of the first source that has both; the first of several questions. None without both.
    """
    for number, source in enumerate(sources(arms)):
        cells, found = source.checkpoints[0].cells, []
        for task in arms.tasks:
            if (pair := soft_and_hard(key for key in cells if key[0] == task)) is None:
                continue
            soft, hard = cells[pair[0]], cells[pair[1]]
            doc_M, soft_M, hard_M = np.intersect1d(soft.doc_M, hard.doc_M, return_indices=True)
            gap_M = np.abs((soft.c_M / soft.n_M)[soft_M] - (hard.c_M / hard.n_M)[hard_M])
            if len(doc_M):
                found.append((gap_M.max(), (number, *pair, int(doc_M[gap_M.argmax()]))))
        if found:
            return max(found, key=lambda entry: entry[0])[1]
    return None


def choose_problems(arms: Arms, count: int = PROBLEMS, seed: int = 0) -> list[ChosenProblem]:
    """Problems of each task in the order in which they are kept when room is short.

    Half have the most different success over the cells, a quarter the highest entropy, a quarter
    are random; the three kinds alternate. Together they are `count`, or all that the task has:
    what one kind lacks the others give.
    """
    chosen: list[ChosenProblem] = []
    for task in arms.tasks:
        shuffled = np.random.default_rng([seed, *task.encode()])
        rankings = {
            "discordant": _by_discordance(arms, task),
            "high entropy": _by_entropy(arms, task),
            "random": shuffled.permutation(_rates(arms, task)[0]).tolist(),
        }
        taken: set[int] = set()
        picks: dict[str, list[ChosenProblem]] = {why: [] for why in rankings}
        for most in (_wanted(count), dict.fromkeys(rankings, count)):
            for why, docs in rankings.items():
                free = [doc for doc in docs if doc not in taken]
                room = min(most[why] - len(picks[why]), count - len(taken))
                picks[why] += [ChosenProblem(task, doc, why) for doc in free[: max(room, 0)]]
                taken |= {p.doc_id for p in picks[why]}
        chosen += [p for p in chain(*zip_longest(*picks.values())) if p is not None]
    return chosen


def _wanted(count: int) -> dict[str, int]:
    """`count` split by `SHARES`, what is left over to the largest fractions (earlier kinds first)."""
    exact = {why: count * share for why, share in SHARES.items()}
    wanted = {why: int(value) for why, value in exact.items()}
    by_fraction = sorted(SHARES, key=lambda why: wanted[why] - exact[why])
    for why in by_fraction[: count - sum(wanted.values())]:
        wanted[why] += 1
    return wanted


def choose_samples(
    arms: Arms, problems: Sequence[ChosenProblem], shown: Sequence[Source]
) -> Iterator[ChosenSample]:
    """Of each chosen problem, source and mode: the greedy sample, or a right and a wrong one.

    The first of each kind by sample index is taken, because mixtures are recorded for the first
    samples.
    """
    for index, problem in enumerate(problems):
        for number, source in enumerate(shown):
            for key in (key for key in arms.keys if key[0] == problem.task):
                checkpoint = source.having(key)
                if checkpoint is not None:
                    for row in _rows(checkpoint.cells[key], problem.doc_id):
                        yield ChosenSample(index, number, checkpoint, key, row)


def _rows(cell: MeasuredCell, doc_id: int) -> list[int]:
    low, high = np.searchsorted(cell.doc_R, [doc_id, doc_id + 1])
    correct_R = cell.correct_R[low:high]
    if high - low <= SAMPLED_PER_CELL:
        return list(range(low, high))
    kinds = [np.flatnonzero(correct_R), np.flatnonzero(~correct_R)]
    rows = [int(low + kind[0]) for kind in kinds if len(kind)]
    if len(rows) < SAMPLED_PER_CELL:
        rows.append(int(low + 1 if rows[0] == low else low))
    return sorted(rows)


def _rates(arms: Arms, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Problems of a task and the share solved of each, one row a cell; NaN where not evaluated."""
    cells = [
        checkpoint.cells[key]
        for source in sources(arms)
        for key in arms.keys
        if key[0] == task and (checkpoint := source.having(key)) is not None
    ]
    doc_M = np.unique(np.concatenate([cell.doc_M for cell in cells]))
    rate_CM = np.full((len(cells), len(doc_M)), np.nan)
    for row, cell in enumerate(cells):
        rate_CM[row, np.searchsorted(doc_M, cell.doc_M)] = cell.c_M / cell.n_M
    return doc_M, rate_CM


def _by_discordance(arms: Arms, task: str) -> list[int]:
    doc_M, rate_CM = _rates(arms, task)
    spread_M = np.nan_to_num(np.nanvar(rate_CM, axis=0))
    return doc_M[np.argsort(-spread_M, kind="stable")].tolist()


def _by_entropy(arms: Arms, task: str) -> list[int]:
    """Problems by their largest mean entropy in any cell; none where no positions are recorded."""
    highest: dict[int, float] = {}
    for source in sources(arms):
        for key in (key for key in arms.keys if key[0] == task):
            checkpoint = source.having(key)
            if checkpoint is not None and key in checkpoint.positions:
                sums = checkpoint.positions[key]
                for doc, mean in zip(sums.doc_M.tolist(), sums.sequence_mean_M, strict=True):
                    if not np.isnan(mean):
                        highest[doc] = max(highest.get(doc, 0.0), float(mean))
    return sorted(highest, key=lambda doc: (-highest[doc], doc))
