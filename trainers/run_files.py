"""A training run as seen from outside: its files, its trackers, and the signals that stop it.

    DIR/train.json      configuration, data, versions
    DIR/metrics.jsonl   one line an update; those with a validation carry validation/success
    DIR/samples.jsonl   sample rollouts
    DIR/state/          states to continue from
    DIR/best/ last/     transformers checkpoints

Only the main process writes. Knows nothing of training.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from softeval.display import Screen, duration
from softeval.errors import UserError
from softeval.files import LOCK, beside, write_bytes, write_json
from softeval.runs.rundir import differing_fields
from softeval.trainers.config import TrainConfig
from softeval.trainers.metrics import Metrics

RECORD = "train.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
PROJECT = "softeval"
STATES = "state"
BEST = "best"
LAST = "last"


def open_directory(folder: Path, config: TrainConfig, record: Mapping[str, Any]) -> str:
    """Make the directory of a run, or check that it holds this one; the run's id among trackers.

    Raises:
        UserError: another configuration, base or data, foreign files, or no permission.
    """
    path = folder / RECORD
    identity = config.identity()
    if path.is_file():
        found = _read(path)
        _check(folder, identity, _with_former_defaults(found["identity"]))
        _check_fingerprints(folder, record["fingerprints"], found.get("fingerprints", {}))
        return str(found.get("run_id") or _path_id(folder))
    if folder.exists() and (not folder.is_dir() or _has_foreign_content(folder)):
        raise UserError(f"{folder} is not empty and no training run; give another --output-path")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run_id = uuid.uuid4().hex[:12]
        write_json(path, {"identity": identity, "run_id": run_id, **record})
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); give another --output-path"
        ) from None
    return run_id


def _path_id(folder: Path) -> str:
    """Of a run that recorded none."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]


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


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, in order."""
    text = (folder / METRICS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


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
        self._last = self._best = (done, float("nan"))

    def step(self, step: int, metrics: Metrics) -> None:
        """Update `step` is done."""
        self._successes.append(metrics["reward/success"] or 0.0)
        ends = step in (self._first + 1, self.steps)
        self._screen.show("", step, self.steps, self._line(step, metrics), stays=ends)

    def validated(self, step: int, success: float) -> None:
        """A validation after `step` updates accepted this share of answers."""
        if not success <= self._best[1]:
            self._best = (step, success)
        self._last = (step, success)
        best = f" (best {100 * self._best[1]:.1f} % at step {self._best[0]})"
        self.note(f"validation at step {step}: {100 * success:.1f} %{best if step else ''}")

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


def tracking(names: Sequence[str], folder: Path, on_cpu: bool) -> Any:
    """Accelerate's Accelerator with these trackers.

    Raises:
        UserError: one is unknown or not installed.
    """
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = sorted(LOGGER_TYPE_TO_CLASS)
    installed = {str(getattr(t, "value", t)) for t in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UserError(f"--report-to {name}: none of {', '.join(known)}, none")
        if name not in installed:
            raise UserError(f"--report-to {name}: not installed; pip install {name}, or name none")
    return Accelerator(cpu=on_cpu, log_with=list(names) or None, project_dir=str(folder))


class Trackers:
    """TensorBoard and the like, through accelerate; a continued run is the same run there.

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
        if not config.report_to:
            return
        shown = {k: v for k, v in config.identity().items() if isinstance(v, str | int | float)}
        name = folder.resolve().name
        options = {
            "tensorboard": {"purge_step": step + 1},
            "wandb": {"name": name, "id": run_id, "resume": "allow", "dir": str(folder)},
            "trackio": {"name": f"{name}-{run_id}", "resume": "allow"},
        }
        told = any((folder / PROJECT).glob("*/hparams.yml"))  # TensorBoard adds it at every start
        accelerator.init_trackers(
            PROJECT,
            config=None if told else shown,
            init_kwargs={kind: options.get(kind, {}) for kind in config.report_to},
        )

    def log(self, metrics: Metrics, step: int) -> None:
        """Send an update's numbers."""
        self._accelerator.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Send a table of rollouts to the trackers that have tables."""
        columns = ["question", "cot", "answer", "target", "reward", "advantage"]
        data = [[row[name] for name in columns] for row in rows]
        for tracker in self._accelerator.trackers:
            if hasattr(tracker, "log_table"):
                tracker.log_table("samples", columns=columns, data=data, step=step)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "identity": found["identity"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give another --output-path") from None


def _has_foreign_content(folder: Path) -> bool:
    """Whether there is anything that a run killed before its first record does not leave."""
    return any(path.name not in (LOCK, beside(Path(RECORD)).name) for path in folder.iterdir())


_CHANGED = {
    "base": "the model is no longer the checkpoint that this run began with (its weights differ); "
    "restore it",
    "train": "the training questions, their labels or tokens are no longer those that this run "
    "began with; restore them",
    "validation": "the validation questions, their labels or tokens are no longer those that this "
    "run began with; restore them",
}


def _check_fingerprints(folder: Path, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Compare hashes; a run that recorded none is taken at its word."""
    for name, changed in _CHANGED.items():
        if theirs.get(name, ours[name]) != ours[name]:
            raise UserError(f"{folder}: {changed}, or give another --output-path")


def _with_former_defaults(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity with what runs did before they recorded it."""
    noisy = identity.get("method") != "hard"
    former = {"score_error": "recomputed"} if noisy else {}
    return former | {"scorer": "math-verify"} | dict(identity)


def _check(folder: Path, identity: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    differing = [
        f"{name}: {there} there, {now} now"
        for name, now, there in differing_fields(identity, found)
    ]
    if differing:
        raise UserError(
            f"{folder} holds a run with another configuration ({'; '.join(differing)}); "
            "give another --output-path"
        )


SAME = 1.0
"""Seconds within which two signals are one request."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run ended on request, its state saved.

    Args:
        step: updates done.
        number: of the signal.
    """

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped at step {step}; the same command continues")
        self.exit_code = 128 + number


class Interruption:
    """Catches the two signals while it is entered; elsewhere than in the main thread none.

    Args:
        say: told once, when the first one comes.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.number = 0
        self._say = say
        self._first = 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {n: signal.signal(n, self._receive) for n in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._first = number, now
            self._say("stopping after this update; a second signal stops at once, without saving")
        elif now - self._first > SAME:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
