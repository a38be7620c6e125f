"""Runs gathered into checkpoints, and checkpoints into arms: one arm is one training method.

Several run directories of one checkpoint (say, one a task) are put together; checkpoints that
differ in their training seed only are the seeds of an arm. What may not be averaged or compared is
refused here, with the difference named. Knows nothing of scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from softeval.errors import UserError
from softeval.modes import FAMILIES, mode_order
from softeval.reports.measured.cells import (
    Key,
    Likelihoods,
    MeasuredCell,
    cell_order,
    read_cells,
    read_likelihoods,
)
from softeval.reports.measured.kl import KLSums, read_kl
from softeval.reports.measured.positions import EntropySums, choose_groups, read_positions
from softeval.reports.measured.refusals import (
    refuse_other_data,
    refuse_other_modes,
    refuse_other_training,
    refuse_repeats,
    refuse_same_seed,
)
from softeval.runs.cells import question_count
from softeval.runs.run import RecordedMode, Run, load_run
from softeval.runs.rundir import refuse_shard, refuse_unjudged

BASE = "base"
METHODS = (BASE, *FAMILIES)  # of training, in the order of the modes


@dataclass(frozen=True, eq=False)
class MeasuredRun(Run):
    """A run directory with everything the report needs of it, reduced.

    Attributes:
        cells: samples by (task, mode).
        entropy: sums by (task, mode); empty where none were recorded.
        answers: log-likelihood results by task.
        kl: KL to the base model by (task, mode, prefix set); empty without `diagnose`.
        label: the arm's name where the user gave one.
    """

    cells: Mapping[Key, MeasuredCell]
    entropy: Mapping[Key, EntropySums]
    answers: Mapping[str, Likelihoods]
    kl: Mapping[tuple[str, str, str], KLSums]
    label: str | None = None

    @property
    def identity(self) -> str:
        """What tells one checkpoint from another: its weights."""
        model = self.model
        return str(model.get("weights_hash") or model.get("path") or self.path)

    @property
    def name(self) -> str:
        """Short name of the model: the last part of its path."""
        return last_part(self.model.get("path"))

    def questions(self, task: str) -> int | None:
        """Questions of a task in its data set; None where that was not recorded."""
        rows = self.datasets().get(task, {}).get("rows")
        return None if rows is None else int(rows)

    def asked_questions(self, task: str) -> int | None:
        """Those of them that the run was to answer: the chosen ones, or as many as its limit says."""
        if task in self.chosen_docs:
            return len(self.chosen_docs[task])
        rows = self.questions(task)
        return None if rows is None else question_count(rows, self.config.get("limit"))

    @property
    def chosen_docs(self) -> Mapping[str, Any]:
        """The questions chosen one by one, by task; empty where none were."""
        return (self.info.get("identity") or {}).get("docs") or {}


@dataclass(frozen=True, eq=False)
class MeasuredCheckpoint:
    """One set of weights and all its runs.

    Attributes:
        runs: its run directories.
        family: short name of the base model.
        method: "base", the training method, or the label that the user gave.
        dataset: what it was trained on; None for a base model.
        train_seed: seed of the training; None where unknown.
    """

    runs: tuple[MeasuredRun, ...]
    family: str
    method: str
    dataset: str | None
    train_seed: int | None

    @cached_property
    def cells(self) -> dict[Key, MeasuredCell]:
        """Samples of all runs by (task, mode)."""
        return {key: cell for run in self.runs for key, cell in run.cells.items()}

    @cached_property
    def positions(self) -> dict[Key, EntropySums]:
        """Entropy sums of all runs by (task, mode)."""
        return {key: sums for run in self.runs for key, sums in run.entropy.items()}

    @cached_property
    def likelihoods(self) -> dict[str, Likelihoods]:
        """Log-likelihood results of all runs by task."""
        return {task: table for run in self.runs for task, table in run.answers.items()}

    @cached_property
    def kl(self) -> dict[tuple[str, str, str], KLSums]:
        """KL to the base model of all runs by (task, mode, prefix set)."""
        return {key: sums for run in self.runs for key, sums in run.kl.items()}

    @property
    def trained(self) -> bool:
        """Whether it is on record that softeval trained it; a label alone does not say so."""
        return any(run.training for run in self.runs)

    @property
    def name(self) -> str:
        """For lists of checkpoints: model, method, dataset and seed."""
        parts = [self.family, self.method]
        parts += [f"on {self.dataset}"] if self.dataset else []
        parts += [f"seed {self.train_seed}"] if self.train_seed is not None else []
        return " · ".join(parts)


@dataclass(frozen=True, eq=False)
class Arm:
    """Checkpoints of one base model, method and training set: one row of a table.

    Attributes:
        family: short name of the base model.
        method: "base", "hard", "fuzzy", "soft" or a label.
        dataset: training set; None for the base model.
        checkpoints: one a training seed, ascending.
    """

    family: str
    method: str
    dataset: str | None
    checkpoints: tuple[MeasuredCheckpoint, ...] = field(repr=False)

    @property
    def is_base(self) -> bool:
        """Whether this is the model before training."""
        return self.method == BASE

    @property
    def seeds(self) -> int:
        """Number of checkpoints."""
        return len(self.checkpoints)

    @property
    def trained(self) -> bool:
        """Whether its checkpoints were trained by softeval."""
        return any(checkpoint.trained for checkpoint in self.checkpoints)

    @property
    def training(self) -> Mapping[str, Any]:
        """How its first checkpoint was trained; the others differ in their seed."""
        return self.checkpoints[0].runs[0].training

    def having(self, key: Key) -> tuple[MeasuredCheckpoint, ...]:
        """The checkpoints that were evaluated on this task and mode."""
        return tuple(c for c in self.checkpoints if key in c.cells)


@dataclass(frozen=True, eq=False)
class Arms:
    """Everything one report is about.

    Attributes:
        arms: rows, grouped by base model and training set, the base model first; labelled ones in the
            order given.
        runs: all runs, in the order given.
    """

    arms: tuple[Arm, ...]
    runs: tuple[MeasuredRun, ...]

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """Every (task, mode) that some checkpoint was evaluated on."""
        found = {key for arm in self.arms for c in arm.checkpoints for key in c.cells}
        return tuple(sorted(found, key=cell_order))

    def questions(self, task: str) -> int:
        """Questions of a generative task that some run has samples of."""
        runs = (run.cells.items() for run in self.runs)
        cells = [cell.doc_M for found in runs for key, cell in found if key[0] == task]
        return len(np.unique(np.concatenate(cells)))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Generative tasks."""
        return tuple(dict.fromkeys(task for task, _ in self.keys))

    @property
    def modes(self) -> tuple[RecordedMode, ...]:
        """CoT modes, in their order."""
        return tuple(sorted({mode for _, mode in self.keys}, key=mode_order))

    def mode(self, name: str) -> RecordedMode:
        """The mode of that name, also where nothing was evaluated under it."""
        return next((m for m in self.modes if m == name), RecordedMode.of(name, {}))

    def modes_of(self, family: str, is_greedy: bool) -> tuple[RecordedMode, ...]:
        """The modes of a family, greedy or sampled."""
        return tuple(m for m in self.modes if m.family == family and m.is_greedy == is_greedy)

    @property
    def groups(self) -> dict[tuple[str, str | None], tuple[Arm, ...]]:
        """Arms that may be compared, by (base model, training set).

        One base model with what was trained from it on one set is a group. The models of which
        nothing trained is here are one group together: they are compared as models.
        """
        trained = {(a.family, a.dataset): None for a in self.arms if not a.is_base}
        groups = {
            key: tuple(a for a in self.arms if a.family == key[0] and a.dataset in (None, key[1]))
            for key in trained
        }
        alone = tuple(a for a in self.arms if a.family not in {family for family, _ in trained})
        if alone:
            groups[", ".join(arm.family for arm in alone), None] = alone
        return groups

    @property
    def named_groups(self) -> list[tuple[str, tuple[Arm, ...]]]:
        """The groups with their names, for headings."""
        return [
            (f"{family}, trained on {dataset}" if dataset else family, group)
            for (family, dataset), group in self.groups.items()
        ]

    @property
    def families(self) -> tuple[str, ...]:
        """Base models."""
        return tuple(dict.fromkeys(arm.family for arm in self.arms))

    def name(self, arm: Arm) -> str:
        """The arm's name, as short as this report allows."""
        parts = [arm.method]
        if arm.dataset and len({a.dataset for a in self.arms if a.dataset}) > 1:
            parts.append(f"on {arm.dataset}")
        if len(self.families) > 1:
            if all(other.is_base for other in self.arms if other.family == arm.family):
                return arm.family
            parts.insert(0, arm.family)
        return " · ".join(parts)


def measure(named: Sequence[tuple[str | None, str | Path]], positions: bool = True) -> Arms:
    """Read run directories and group them into arms.

    Samples are read first, so that runs that do not belong together are refused before the long
    reading of positions.

    Args:
        named: (label or None, folder) of each run; a label names the run's arm instead of its
            training method.
        positions: whether to read the per-position records (entropy, KL) too.

    Raises:
        UserError: not a run directory, a damaged file, or runs that must not stand in one table.
    """
    if not named:
        raise UserError("no run directory given; `softeval ls runs` lists them")
    opened = [(label, load_run(folder)) for label, folder in named]
    for _, run in opened:
        refuse_shard(run.path, run.info)
        refuse_unjudged(run.path, run.info)
    drafts = [
        MeasuredRun(run.path, run.info, read_cells(run), {}, read_likelihoods(run), {}, label)
        for label, run in opened
    ]
    arms = _gather(drafts)
    if not positions:
        return arms
    by_task: dict[str, list[MeasuredCell]] = {}
    for run in drafts:
        for cell in run.cells.values():
            by_task.setdefault(cell.task, []).append(cell)
    groups = {task: choose_groups(cells) for task, cells in by_task.items()}
    whole = [
        replace(draft, entropy=read_positions(draft, draft.cells, groups), kl=read_kl(draft))
        for draft in drafts
    ]
    return _gather(whole)


def _gather(runs: Sequence[MeasuredRun]) -> Arms:
    refuse_other_data(runs)
    by_weights: dict[tuple[str, str | None, int | None], list[MeasuredRun]] = {}
    for run in runs:
        # Two seeds of which neither gained anything keep the same weights, the base's.
        seed = run.training.get("train_seed")
        by_weights.setdefault((run.identity, run.label, seed), []).append(run)
    labelled = any(run.label for run in runs)
    checkpoints = [_checkpoint(tuple(group), labelled) for group in by_weights.values()]
    by_arm: dict[tuple[str, str, str | None], list[MeasuredCheckpoint]] = {}
    for one in checkpoints:
        by_arm.setdefault((one.family, one.method, one.dataset), []).append(one)
    arms = [_arm(key, group) for key, group in by_arm.items()]
    # Labelled arms stay in the order given, but for the base model.
    arms.sort(key=(lambda arm: not arm.is_base) if labelled else _arm_order)
    return Arms(tuple(arms), tuple(runs))


def _checkpoint(runs: tuple[MeasuredRun, ...], labelled: bool) -> MeasuredCheckpoint:
    refuse_repeats(runs)
    first = runs[0]
    training = first.training
    method = first.label or training.get("method") or BASE
    family = last_part(training.get("base")) if training.get("base") else first.name
    dataset = training.get("dataset") if method != BASE else None
    seed = training.get("train_seed")
    return MeasuredCheckpoint(
        runs=runs,
        family="these runs" if labelled else family,
        method=str(method),
        dataset=None if labelled or dataset is None else last_part(dataset),
        train_seed=None if seed is None else int(seed),
    )


def _arm(key: tuple[str, str, str | None], checkpoints: Iterable[MeasuredCheckpoint]) -> Arm:
    unknown = -1
    order = sorted(checkpoints, key=lambda c: unknown if c.train_seed is None else c.train_seed)
    arm = Arm(*key, checkpoints=tuple(order))
    refuse_same_seed(arm)
    refuse_other_training(arm)
    refuse_other_modes(arm)
    return arm


def _arm_order(arm: Arm) -> tuple[str, bool, str, int, str]:
    rank = METHODS.index(arm.method) if arm.method in METHODS else len(METHODS)
    return arm.family, not arm.is_base, arm.dataset or "", rank, arm.method


def last_part(path: object) -> str:
    """``Llama-3.2-3B`` of ``meta-llama/Llama-3.2-3B``; ``base`` of ``softeval:base``."""
    return PurePath(str(path).rsplit(":", 1)[-1]).name if path else "model"
