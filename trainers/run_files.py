"""A training run as seen from outside: its files, its trackers, its progress.

    DIR/train.json      configuration, data, versions
    DIR/metrics.jsonl   one line an update; those with a validation carry validation/success
    DIR/samples.jsonl   sample rollouts
    DIR/state/          states to continue from
    DIR/best/ last/     transformers checkpoints

Only the main process writes. Knows nothing of training.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softeval.display import Screen, duration
from softeval.errors import UserError
from softeval.files import LOCK, beside, write_bytes, write_json
from softeval.modes import mode_source
from softeval.protocol import PAPER
from softeval.publishing import begin_trackers, log_table
from softeval.records import RANDOM_NUMBERS
from softeval.runs.rundir import COSMETIC_FIELDS, differing_fields
from softeval.scoring.judge import Rules, rules_name
from softeval.trainers.checkpoints import TrainingRecord
from softeval.trainers.config import TrainConfig
from softeval.trainers.learners.rewards import source_hash
from softeval.trainers.metrics import Metrics

Fingerprints = Mapping[str, str | None]
RECORD = "train.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
STATES = "state"
BEST = "best"
LAST = "last"
# What these make is in the questions' fingerprints, or told by the protocol itself.
TOLD_ELSEWHERE = {
    "protocol",
    "prompt",
    "system_instruction",
    "num_fewshot",
    "cot_stop",
    "answer_prefix",
}


def default_path(config: TrainConfig) -> Path:
    """Where a run goes that names no directory; the same for the same method, data and seed."""
    model = Path(config.model or "bundled").name
    dataset = Path(config.dataset).name.split(".")[0]
    return Path("runs") / f"train-{model}-{dataset}-{config.method}-seed{config.seed}"


def identity_of(config: TrainConfig) -> dict[str, Any]:
    """What must agree when a run is continued: all fields but those that change no number."""
    fields = config.model_dump(mode="json", exclude={*COSMETIC_FIELDS, *TOLD_ELSEWHERE})
    rules = rules_name(Rules(config.scorer))
    drawn = {"random_numbers": RANDOM_NUMBERS}
    own: dict[str, Any] = {}
    if config.reward is not None:
        own["reward_source"] = source_hash(config.reward)
    if config.mode_file is not None:
        own["mode_source"] = mode_source(config.mode_file)
    protocol = config.selected_protocol()
    fields |= {
        "apply_chat_template": protocol.chat,
        "max_answer_tokens": config.limits.max_answer_tokens,
    }
    if protocol.stops != PAPER.stops:  # runs with the paper's have none to agree with
        own["stops"] = protocol.stops
    if config.lr_schedule == "constant":
        del fields["max_steps"]  # no update depends on it
    return {**fields, **drawn, **own, "score_error": config.soft_score_error, "scorer": rules}


def open_directory(
    folder: Path, config: TrainConfig, fingerprints: Fingerprints, record: TrainingRecord
) -> str:
    """Make the directory of a run, or check that it holds this one; the run's id among trackers.

    Args:
        folder: the directory.
        config: must agree when the run is continued, but for what changes no number.
        fingerprints: hashes of base and questions, which must agree too.
        record: also written to train.json.

    Raises:
        UserError: another configuration, base or data, foreign files, or no permission.
    """
    path = folder / RECORD
    identity = identity_of(config)
    if path.is_file():
        found = _read(path)
        _check(folder, identity, found["identity"])
        _check_fingerprints(folder, fingerprints, found.get("fingerprints", {}))
        # A constant schedule's can be raised.
        if found["config"].get("max_steps") != config.max_steps:
            write_json(path, found | {"config": record.config, "command": record.command})
        return str(found["run_id"])
    if folder.exists() and (not folder.is_dir() or _has_foreign_content(folder)):
        raise UserError(f"{folder} is not empty and no training run; give another --output-path")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run_id = uuid.uuid4().hex[:12]
        said = {name: getattr(record, name) for name in _IN_RECORD}
        content = {"identity": identity, "run_id": run_id, "fingerprints": fingerprints, **said}
        write_json(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); give another --output-path"
        ) from None
    return run_id


_IN_RECORD = ("config", "command", "data", "mode", "self_check", "versions")


def truncate_lines(path: Path, last_step: int) -> None:
    """Drop the lines of steps after `last_step`, and a last line that was cut off.

    Raises:
        UserError: a line before the last is damaged.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept: list[bytes] = []
    for number, line in enumerate(lines, 1):
        step = _step(line)
        if step is None and number < len(lines):
            raise UserError(
                f"{path}, line {number} is damaged; delete that line, and the same command continues"
            )
        if step is None or step > last_step:
            break
        kept.append(line)
    write_bytes(path, b"".join(kept))


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one JSON line; it reaches the disk's cache at once."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def missing_metrics(folder: Path, last_step: int) -> int:
    """How many of the steps 0 … `last_step` have no line in metrics.jsonl."""
    try:
        found = {_step(line) for line in (folder / METRICS).read_bytes().splitlines(keepends=True)}
    except FileNotFoundError:
        found = set()
    return len(set(range(last_step + 1)) - found)


def _step(line: bytes) -> int | None:
    """Step of a whole line, else None."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


RUNNING = 20
"""Updates over which the mean success is taken: one update has a few questions only."""
_COLUMNS = ("question", "chain of thought", "answer", "label", "reward", "advantage")


class TrainProgress:
    """What is shown of a training run as it goes.

    Args:
        screen: where.
        steps: updates of the whole run.
        done: those done before this start.
    """

    def __init__(self, screen: Screen, steps: int, done: int = 0) -> None:
        self.steps = steps
        self.note = screen.note
        self._screen = screen
        self._first = done
        self._started = time.monotonic()
        self._successes: deque[float] = deque(maxlen=RUNNING)
        self._last: float | None = None

    def step(self, step: int, metrics: Metrics) -> None:
        """Update `step` is done."""
        if "reward/success" in metrics:
            self._successes.append(metrics["reward/success"] or 0.0)
        ends = step in (self._first + 1, self.steps)
        self._screen.show("", step, self.steps, self._line(step, metrics), stays=ends)

    def validated(self, curve: Sequence[Mapping[str, float]]) -> None:
        """All validations of this stage so far, of which the last is new."""
        first, last = curve[0]["success"], curve[-1]["success"]
        step, self._last = int(curve[-1]["step"]), last
        top = max(curve, key=lambda point: point["success"])
        best = f" (best {100 * top['success']:.1f} % at step {int(top['step'])})"
        self.note(f"validation at step {step}: {100 * last:.1f} %{best if step else ''}")
        if last < first - 0.1:
            self.note(
                f"validation success fell from {first:.2f} to {last:.2f}; the learning rate may be "
                "too high for this method"
            )

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show a table of rollouts."""
        texts = [(row["question"], row["cot"], row["answer"] or "–", row["target"]) for row in rows]
        numbers = [(f"{row['reward']:g}", f"{row['advantage']:+.1f}") for row in rows]
        self._screen.table(_COLUMNS, [(*t, *n) for t, n in zip(texts, numbers, strict=True)])

    def _line(self, step: int, metrics: Metrics) -> str:
        """One line about an update."""
        pace = (time.monotonic() - self._started) / max(1, step - self._first)
        running = sum(self._successes) / max(1, len(self._successes))
        shown = {
            "reward": ("reward/mean", "{:.1f}"),
            "stage": ("curriculum/stage", "{:.0f}"),
            "loss": ("loss/text", "{:.3f}"),
            "entropy": ("rollout/entropy", "{:.3f}"),
            "KL": ("kl/tokens", "{:.2g}"),
            "grad": ("gradient/norm", "{:.3g}"),
            "χ²/d": ("health/chi_square", "{:.3f}"),
            "lr": ("optimizer/learning_rate", "{:.1e}"),
        }
        parts = [f"step {step}/{self.steps}"]
        if self._successes:
            success = f"success {100 * (metrics['reward/success'] or 0):.0f} %"
            parts.append(f"{success}, mean {100 * running:.0f} %")
        parts += [
            f"{name} {form.format(metrics[key])}"
            for name, (key, form) in shown.items()
            if metrics.get(key) is not None
        ]
        if self._last is not None:
            parts.append(f"validation {100 * self._last:.1f} %")
        parts.append(f"{metrics['time/tokens_per_second']:.0f} tok/s")
        return " | ".join([*parts, f"{duration(pace * (self.steps - step))} left"])


class Log:
    """metrics.jsonl, samples.jsonl and trackers; a continued run is the same run there.

    Only the main process writes.

    Args:
        accelerator: accelerate's.
        config: shown with the run.
        folder: the run's directory; its name is the run's.
        step: step the run continues from.
        run_id: what tells this run from others of its name.
    """

    def __init__(
        self, accelerator: Any, config: TrainConfig, folder: Path, step: int, run_id: str
    ) -> None:
        self._accelerator = accelerator
        self._folder = folder
        if not config.report_to:
            return
        shown = {k: v for k, v in identity_of(config).items() if isinstance(v, str | int | float)}
        begin_trackers(accelerator, config.report_to, folder, run_id, shown, step)

    def metrics(self, metrics: Metrics, step: int) -> None:
        """Keep an update's numbers."""
        if not self._accelerator.is_main_process:
            return
        append_line(self._folder / METRICS, {"step": step, **metrics})
        self._accelerator.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Keep a table of rollouts, also with the trackers that have tables."""
        if not self._accelerator.is_main_process:
            return
        for row in rows:
            append_line(self._folder / SAMPLES, {"step": step, **row})
        data = [[row[name] for name in TABLE] for row in rows]
        for tracker in self._accelerator.trackers:
            log_table(tracker, "samples", TABLE, data, step)


TABLE = ("question", "cot", "answer", "target", "reward", "advantage")
"""Columns of sample rollouts among trackers."""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "identity": found["identity"], "run_id": found["run_id"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give another --output-path") from None


def _has_foreign_content(folder: Path) -> bool:
    """Whether there is anything that a run killed before its first record does not leave."""
    return any(path.name not in (LOCK, beside(Path(RECORD)).name) for path in folder.iterdir())


_CHANGED = {
    "base": "the model is no longer the checkpoint that this run began with (its weights differ); "
    "restore it",
    "config": "the model is no longer the checkpoint that this run began with (its config.json or end "
    "tokens differ); restore it",
    "train": "the training questions, their labels or tokens are no longer those that this run "
    "began with; restore them",
    "validation": "the validation questions, their labels or tokens are no longer those that this "
    "run began with; restore them",
    "tolerances": "how far an answer may be from its label is no longer what it was; restore it",
}


def _check_fingerprints(folder: Path, ours: Fingerprints, theirs: Fingerprints) -> None:
    """Compare hashes; a run that recorded none is taken at its word."""
    for name, changed in _CHANGED.items():
        now, there = ours.get(name), theirs.get(name)
        if None not in (now, there) and now != there:
            raise UserError(f"{folder}: {changed}, or give another --output-path")


_ADDED = {"compile": False}
"""Fields that were added since states can be read by this version, with what they were before."""


def _check(folder: Path, identity: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compare identities; a run that recorded no code of its mode file is taken at its word."""
    former = _ADDED | {name: now for name, now in identity.items() if name == "mode_source"}
    differing = [
        f"{name}: {there} there, {now} now"
        for name, now, there in differing_fields(identity, {**former, **found})
    ]
    if differing:
        raise UserError(
            f"{folder} holds a run with another configuration ({'; '.join(differing)}); "
            "give another --output-path"
        )
