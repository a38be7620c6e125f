"""Per-position records reduced to sums: what entropy profiles and their intervals need.

positions.parquet may hold hundreds of millions of numbers. It is read one row group at a time and kept
as sums for each (problem, length group, position): exact for every profile the report draws
and its interval over problems. Knows nothing of several runs or of figures.

Shape letters: N positions of a chunk, R samples, M problems, G length groups, T positions, B bins of
relative progress, E positions before the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from softeval.errors import UserError
from softeval.reports.measured.cells import Key, MeasuredCell
from softeval.runs.parquet_files import sequences
from softeval.runs.run import Run
from softeval.statistics.positions import Align, PositionSums

if TYPE_CHECKING:
    import pyarrow as pa

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PROGRESS_BINS = 20
END_POSITIONS = 64
SURE = np.float32(0.99)
"""Largest probability from which on a step is nearly an ordinary token."""


CELL = ("task", "mode")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Sequences of one cell, one after the other; none is empty.

    Attributes:
        key: the values of the columns that name the cell, e.g. (task, mode).
        doc_R: problem of each sequence.
        sample_R: sample index.
        start_R: where each sequence begins in the values.
        length_R: positions of each sequence.
        values: value columns, (N,) each.
    """

    key: tuple[str, ...]
    doc_R: NDArray[np.int64]
    sample_R: NDArray[np.int64]
    start_R: NDArray[np.int64]
    length_R: NDArray[np.int64]
    values: Mapping[str, np.ndarray]


def read_chunks(
    run: Run, table: str, values: Sequence[str], cell: Sequence[str] = CELL
) -> Iterator[Chunk]:
    """Sequences of a table, cell by cell, about a row group at a time.

    Args:
        run: the run.
        table: name of the table.
        values: columns of numbers to read.
        cell: columns of strings that name a cell.

    Raises:
        UserError: the table is damaged.
    """
    for group in sequences(run.table_path(table), (*cell, "doc_id", "sample"), values):
        codes = (group[name].combine_chunks().dictionary_encode().indices for name in cell)
        code_RC = np.stack([code.to_numpy() for code in codes], -1)
        changes = np.flatnonzero((code_RC[1:] != code_RC[:-1]).any(1)) + 1
        for first, last in zip([0, *changes], [*changes, len(code_RC)], strict=True):
            if last > first:
                yield _chunk(group.slice(first, last - first).combine_chunks(), values, cell)


def _chunk(rows: pa.Table, values: Sequence[str], cell: Sequence[str]) -> Chunk:
    """Rows of one cell."""
    lists = {name: rows[name].chunk(0) for name in values}
    length_R = lists[values[0]].value_lengths().to_numpy().astype(np.int64)
    return Chunk(
        key=tuple(rows[name][0].as_py() for name in cell),
        doc_R=rows["doc_id"].to_numpy().astype(np.int64),
        sample_R=rows["sample"].to_numpy().astype(np.int64),
        start_R=np.cumsum(length_R) - length_R,
        length_R=length_R,
        values={name: column.flatten().to_numpy() for name, column in lists.items()},
    )


@dataclass(frozen=True)
class LengthGroups:
    """Where CoTs of one task are split by length; the same in all its modes and checkpoints.

    Attributes:
        terciles: the two lengths that split the samples in three parts.
        cohort: shortest CoT of the fixed cohort.
    """

    terciles: tuple[int, int]
    cohort: int

    @property
    def edges(self) -> tuple[int, ...]:
        """Lengths at which a group begins, ascending, the first 0."""
        return tuple(sorted({0, *self.terciles, self.cohort}))

    def group(self, length_R: Ints) -> Ints:
        """(R,) group of each CoT."""
        return np.searchsorted(self.edges, length_R, "right") - 1


def choose_groups(cells: Iterable[MeasuredCell]) -> LengthGroups:
    """Terciles and median of the CoT lengths of all the cells."""
    length_R = np.concatenate([cell.length_R for cell in cells])
    first, second = (int(q) for q in np.quantile(length_R, [1 / 3, 2 / 3], method="higher"))
    return LengthGroups((first, second), int(np.median(length_R)))


@dataclass(eq=False)
class EntropySums:
    """Entropy of one cell, summed over samples; in nats, of the distribution at temperature 1.

    Length groups split the samples by CoT length, so that the profile of all samples, of a length
    tercile, and of the fixed cohort (CoTs of at least `cohort` positions) are sums over groups.

    Attributes:
        doc_M: problems.
        samples_M: samples of each problem.
        groups: how lengths are split.
        size_G: samples of each length group.
        sum_MGT: entropy summed over the samples of a group.
        count_MGT: samples of the group that are still in their CoT.
        progress_MB: mean entropy of each twentieth of the CoT, summed over samples.
        end_ME: entropy at the last positions, the very last at the end, summed over samples.
        end_count_ME: samples with so many positions.
        mean_R: token mean of each sample, in the order of the cell; NaN for an empty CoT.
        max_R: largest entropy of each sample; NaN for an empty CoT.
        mode_sum: entropy at the mode's own temperature, summed over all tokens.
        effective_sum: effective number of tokens, exp of that entropy, summed likewise.
        sure: tokens whose largest probability at temperature 1 is at least `SURE`.
        unfit: positions whose entropy is not finite.
    """

    doc_M: Ints
    samples_M: Ints
    groups: LengthGroups
    size_G: Ints
    sum_MGT: Floats
    count_MGT: NDArray[np.int32]
    progress_MB: Floats
    end_ME: Floats
    end_count_ME: Ints
    mean_R: Floats
    max_R: Floats
    mode_sum: float = 0.0
    effective_sum: float = 0.0
    sure: int = 0
    unfit: int = 0

    def view(self, name: str, doc_M: Ints, longest: int) -> PositionSums:
        """Sums for one kind of profile, laid out for the given problems and length.

        Args:
            name: "all", "cohort", "short", "middle", "long", "progress" or "end".
            doc_M: problems of the result; the cell's own among them.
            longest: positions of the result, at least those of the cell.
        """
        if name == "progress":
            running_M = self.count_MGT[:, :, :1].sum((1, 2))  # an empty CoT has no progress
            count_MB = np.broadcast_to(running_M[:, None], self.progress_MB.shape)
            return self._placed(doc_M, self.progress_MB, count_MB, self.sequences, "progress")
        if name == "end":
            backwards = slice(None, None, -1)
            sum_ME, count_ME = self.end_ME[:, backwards], self.end_count_ME[:, backwards]
            return self._placed(doc_M, sum_ME, count_ME, self.sequences, "end")
        part = slice(*self._group_range(name))
        missing = [(0, 0), (0, longest - self.sum_MGT.shape[-1])]
        sum_MT = np.pad(self.sum_MGT[:, part].sum(1), missing)
        count_MT = np.pad(self.count_MGT[:, part].sum(1), missing)
        return self._placed(doc_M, sum_MT, count_MT, int(self.size_G[part].sum()), "start")

    def _group_range(self, name: str) -> tuple[int, int | None]:
        edges, (first, second) = self.groups.edges, self.groups.terciles
        bounds = {
            "all": (0, None),
            "cohort": (self.groups.cohort, None),
            "short": (0, first),
            "middle": (first, second),
            "long": (second, None),
        }[name]
        low, high = bounds
        return edges.index(low), None if high is None else edges.index(high)

    def _placed(
        self, doc_M: Ints, sum_MT: Floats, count_MT: Ints, sequences: int, align: Align
    ) -> PositionSums:
        """Rows of this cell's problems among those of `doc_M`; zero elsewhere."""
        rows, shape = np.searchsorted(doc_M, self.doc_M), (len(doc_M), sum_MT.shape[1])
        total, count = np.zeros(shape), np.zeros(shape, np.int64)
        total[rows], count[rows] = sum_MT, count_MT
        samples = np.zeros(len(doc_M), np.int64)
        samples[rows] = self.samples_M
        return PositionSums(total, count, samples, sequences, align, length=shape[1])

    @property
    def sequences(self) -> int:
        """Samples of the cell."""
        return int(self.samples_M.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest CoT."""
        return self.sum_MGT.shape[-1]

    @property
    def tokens(self) -> int:
        """CoT tokens of the cell."""
        return int(self.count_MGT.sum(dtype=np.int64))

    @property
    def token_weighted(self) -> float:
        """Mean entropy over all CoT tokens."""
        return float(self.sum_MGT.sum() / max(self.tokens, 1))

    @property
    def mode_entropy(self) -> float:
        """Mean over all CoT tokens of the entropy at the mode's own temperature."""
        return self.mode_sum / max(self.tokens, 1)

    @property
    def sequence_mean_M(self) -> Floats:
        """(M,) mean over a problem's samples of each sample's token mean; NaN where none has one."""
        problem_R = np.repeat(np.arange(len(self.doc_M)), self.samples_M)
        kept = ~np.isnan(self.mean_R)
        count_M = np.bincount(problem_R[kept], minlength=len(self.doc_M))
        sum_M = np.bincount(problem_R[kept], self.mean_R[kept], len(self.doc_M))
        return np.where(count_M > 0, sum_M / np.maximum(count_M, 1), np.nan)


def read_positions(
    run: Run, cells: Mapping[Key, MeasuredCell], groups: Mapping[str, LengthGroups]
) -> dict[Key, EntropySums]:
    """Entropy sums of each cell; empty where the run recorded no positions.

    Args:
        run: the run.
        cells: its samples.
        groups: how the CoTs of each task are split by length.

    Raises:
        UserError: positions.parquet is damaged, or of other samples.
    """
    if not run.has("positions"):
        return {}
    sums = {key: _empty(cell, groups[key[0]]) for key, cell in cells.items()}
    for chunk in read_chunks(run, "positions", ("entropy", "mode_entropy", "top1_prob")):
        key = (chunk.key[0], chunk.key[1])
        row_R = _rows(cells[key], chunk) if key in cells else None
        if row_R is None:
            raise UserError(
                f"{run.table_path('positions')} and samples.parquet hold different samples"
                f" (task {key[0]}, mode {key[1]}); run again with --overwrite"
            )
        _add(sums[key], row_R, chunk)
    return sums


def _empty(cell: MeasuredCell, groups: LengthGroups) -> EntropySums:
    """Sums of zero, with the counts that follow from the CoT lengths alone."""
    group_R = groups.group(cell.length_R)
    shape = (len(cell.doc_M), len(groups.edges), int(cell.length_R.max(initial=0)))
    return EntropySums(
        doc_M=cell.doc_M,
        samples_M=cell.n_M,
        groups=groups,
        size_G=np.bincount(group_R, minlength=shape[1]),
        sum_MGT=np.zeros(shape),
        count_MGT=_at_risk(cell, group_R, shape),
        progress_MB=np.zeros((shape[0], PROGRESS_BINS)),
        end_ME=np.zeros((shape[0], END_POSITIONS)),
        end_count_ME=np.zeros((shape[0], END_POSITIONS), np.int64),
        mean_R=np.full(len(cell.doc_R), np.nan),
        max_R=np.full(len(cell.doc_R), np.nan),
    )


def _at_risk(cell: MeasuredCell, group_R: Ints, shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """Samples of each problem and group whose CoT is longer than t."""
    problems, groups, longest = shape
    ends_MGT = np.zeros((problems, groups, longest + 1), np.int32)
    np.add.at(ends_MGT, (cell.problem_R, group_R, cell.length_R), 1)
    longer_MGT = ends_MGT[:, :, ::-1].cumsum(-1, dtype=np.int32)[:, :, ::-1]
    return longer_MGT[:, :, 1:]


def _rows(cell: MeasuredCell, chunk: Chunk) -> Ints | None:
    """Row in the cell of each sample of the chunk; None where one is not there as recorded."""
    width = int(max(cell.sample_R.max(), chunk.sample_R.max())) + 1
    wanted_R = chunk.doc_R * width + chunk.sample_R
    row_R = np.searchsorted(cell.doc_R * width + cell.sample_R, wanted_R)
    if row_R.max(initial=0) >= len(cell.doc_R):
        return None
    same_R = (cell.doc_R[row_R] == chunk.doc_R) & (cell.sample_R[row_R] == chunk.sample_R)
    same_R &= cell.length_R[row_R] == chunk.length_R
    return row_R if same_R.all() else None


def _add(sums: EntropySums, row_R: Ints, chunk: Chunk) -> None:
    """Add the samples of a chunk."""
    entropy_N = chunk.values["entropy"].astype(np.float64)
    sums.unfit += int((~np.isfinite(entropy_N)).sum())
    problem_R = np.searchsorted(sums.doc_M, chunk.doc_R)
    # Sums over any stretch of rows are differences of this one array.
    running_N = np.concatenate([[0.0], entropy_N.cumsum()])
    end_R = chunk.start_R + chunk.length_R
    sums.mean_R[row_R] = (running_N[end_R] - running_N[chunk.start_R]) / chunk.length_R
    sums.max_R[row_R] = np.maximum.reduceat(entropy_N, chunk.start_R)
    sums.mode_sum += float(chunk.values["mode_entropy"].sum(dtype=np.float64))
    with np.errstate(over="ignore"):
        sums.effective_sum += float(np.exp(chunk.values["mode_entropy"], dtype=np.float64).sum())
    sums.sure += int((chunk.values["top1_prob"] >= SURE).sum())
    _add_profile(sums, problem_R, chunk, entropy_N)
    _add_progress(sums, problem_R, chunk, running_N)
    _add_end(sums, problem_R, end_R, chunk.length_R, entropy_N)


def _add_profile(sums: EntropySums, problem_R: Ints, chunk: Chunk, entropy_N: Floats) -> None:
    first, last = int(problem_R.min()), int(problem_R.max()) + 1
    _, groups, longest = sums.sum_MGT.shape
    group_R = sums.groups.group(chunk.length_R)
    offset_R = ((problem_R - first) * groups + group_R) * longest - chunk.start_R
    cell_N = np.arange(len(entropy_N)) + np.repeat(offset_R, chunk.length_R)
    size = (last - first) * groups * longest
    added = np.bincount(cell_N, entropy_N, size).reshape(last - first, groups, longest)
    sums.sum_MGT[first:last] += added


def _add_progress(sums: EntropySums, problem_R: Ints, chunk: Chunk, running_N: Floats) -> None:
    """Mean of each twentieth of the CoT; a CoT of fewer tokens gives one token to several bins."""
    edge_RB = chunk.length_R[:, None] * np.arange(PROGRESS_BINS + 1) / PROGRESS_BINS
    low_RB = np.floor(edge_RB[:, :-1]).astype(np.int64)
    high_RB = np.maximum(np.ceil(edge_RB[:, 1:]).astype(np.int64), low_RB + 1)
    start_R1 = chunk.start_R[:, None]
    mean_RB = (running_N[start_R1 + high_RB] - running_N[start_R1 + low_RB]) / (high_RB - low_RB)
    np.add.at(sums.progress_MB, problem_R, mean_RB)


def _add_end(
    sums: EntropySums, problem_R: Ints, end_R: Ints, length_R: Ints, entropy_N: Floats
) -> None:
    back_E = np.arange(END_POSITIONS, 0, -1)
    inside_RE = back_E <= length_R[:, None]
    value_RE = np.where(inside_RE, entropy_N[np.maximum(end_R[:, None] - back_E, 0)], 0.0)
    np.add.at(sums.end_ME, problem_R, value_RE)
    np.add.at(sums.end_count_ME, problem_R, inside_RE)
