"""What may not stand in one report or one arm: refused here, with the difference named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.options import ProtocolOptions
from softeval.reports.measured.cells import Key
from softeval.runs.rundir import COSMETIC_FIELDS

if TYPE_CHECKING:
    from softeval.reports.measured.arms import Arm, MeasuredRun

FREE = COSMETIC_FIELDS | {"seed", "model", "dataset", "mode_file", "attn_implementation", "compile"}
FREE |= {"trust_remote_code", "micro_batch_size", "loss_chunk_size", "gradient_checkpointing"}
FREE |= {"kl_steps", "gradient_split_steps", "validation_sets", "apply_chat_template"}
"""Fields of a training's configuration in which its seeds may differ."""


def refuse_repeats(runs: Sequence[MeasuredRun]) -> None:
    """One checkpoint, task and mode may come from one run only: decoding seeds are not seeds."""
    seen: dict[Key | str, MeasuredRun] = {}
    for run in runs:
        for key in [*run.cells, *run.answers]:
            if key in seen:
                what = key if isinstance(key, str) else f"{key[0]} under {key[1]}"
                raise UserError(
                    f"{seen[key].path} and {run.path} both evaluate {what} with the"
                    " same weights; give one of them (more samples: one run, larger --num-samples)"
                )
            seen[key] = run


def refuse_same_seed(arm: Arm) -> None:
    seeds = [c.train_seed for c in arm.checkpoints]
    for index, seed in enumerate(seeds):
        if index and (seed in seeds[:index] or None in seeds):
            folders = ", ".join(str(c.runs[0].path) for c in arm.checkpoints)
            raise UserError(
                f"{folders}: different weights but the same method and training seed;"
                " name them apart, LABEL=RUN"
            )


def refuse_other_training(arm: Arm) -> None:
    """Seeds differ in nothing else that shapes a training, nor in its length or what was chosen of it."""
    first, *others = (checkpoint.runs[0] for checkpoint in arm.checkpoints)
    there = _shape(first.training)
    for run in others:
        for name, value in _shape(run.training).items():
            if there.get(name, value) != value:
                raise UserError(
                    f"{first.path} and {run.path} are no seeds of one training: {name}"
                    f" {_brief(there[name])} and {_brief(value)}; name them apart, LABEL=RUN"
                )


def _shape(training: Mapping[str, Any]) -> dict[str, Any]:
    last = ("step",) if training.get("selected") == "last" else ()
    told = {name: training[name] for name in ("method", "selected", *last) if name in training}
    config = training.get("config") or {}
    told["chat"] = ProtocolOptions.model_construct(**config).uses_chat  # False or unasked
    return told | {name: value for name, value in config.items() if name not in FREE}


def refuse_other_modes(arm: Arm) -> None:
    """Seeds that were evaluated at other temperatures or noise scales are not averaged."""
    seen: dict[str, tuple[MeasuredRun, Mapping[str, Any]]] = {}
    for run in (run for c in arm.checkpoints for run in c.runs):
        for name, mode in run.modes.items():
            first, there = seen.setdefault(name, (run, mode.options))
            for knob in {**there, **mode.options}:
                if there.get(knob) != mode.options.get(knob):
                    raise UserError(
                        f"{first.path} has {name} with {knob} {there.get(knob)},"
                        f" {run.path} with {mode.options.get(knob)}; name them apart, LABEL=RUN"
                    )


def refuse_other_data(runs: Sequence[MeasuredRun]) -> None:
    """Refuse runs in which the same task does not mean the same questions and labels.

    Raises:
        UserError: with what differs.
    """
    seen: dict[str, tuple[MeasuredRun, Mapping[str, Any]]] = {}
    for run in runs:
        for task, source in run.datasets().items():
            first, there = seen.setdefault(task, (run, source))
            for name in ("sha256", "split"):
                if there.get(name) != source.get(name):
                    raise UserError(
                        f"{first.path} and {run.path} have different data for {task}:"
                        f" {name} {_brief(there.get(name))} and {_brief(source.get(name))};"
                        " report them apart"
                    )
    _refuse_other_labels(runs)


def _refuse_other_labels(runs: Sequence[MeasuredRun]) -> None:
    seen: dict[tuple[str, int], tuple[MeasuredRun, str]] = {}
    for run in runs:
        for cell in run.cells.values():
            for doc, target in zip(cell.doc_M.tolist(), cell.target_M.tolist(), strict=True):
                first, there = seen.setdefault((cell.task, doc), (run, target))
                if there != target:
                    raise UserError(
                        f"{first.path} and {run.path} have different labels for"
                        f" {cell.task}, question {doc}: {_brief(there)} and {_brief(target)};"
                        " report them apart"
                    )


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 24 else text[:20] + "…" + text[-1]
