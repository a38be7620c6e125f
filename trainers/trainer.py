"""The training loop: gradient, update, validation, checkpoints.

Where a gradient comes from is a learner's business (`trainers/learners/`). Killed at any
moment and started again, a run continues from its last state; on a CPU in float32 it then equals
the uninterrupted run bit for bit, times excepted.

The parts know their own business; this file only says what happens when.
"""

from __future__ import annotations

import math
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from softeval.display import make_screen
from softeval.errors import UserError
from softeval.files import check_space, full_disk, locked, recover
from softeval.model.checkpoint import torch_device
from softeval.model.weights import config_hash, weights_hash
from softeval.modes import get_mode
from softeval.processes import Interruption, Processes, Stopped
from softeval.publishing import HubRepository, tracking
from softeval.trainers import run_files
from softeval.trainers.checkpoints import (
    SavedState,
    TrainerState,
    export_checkpoint,
    exported_step,
    load_state,
    save_state,
    seed_everything,
)
from softeval.trainers.config import TrainConfig
from softeval.trainers.learners.curriculum import StagedLearning
from softeval.trainers.learners.difficulty import within_pass_rates
from softeval.trainers.learners.reinforcement import Reinforcement
from softeval.trainers.memory import GIB, check_memory
from softeval.trainers.metrics import Metrics, is_finite, peak_memory, time_metrics
from softeval.trainers.questions import QuestionSet, load_questions, longest_sequence
from softeval.trainers.rollout import validate
from softeval.trainers.setup import (
    SizedEmbedding,
    load_for_training,
    make_trainee,
    training_record,
)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        path: its directory, with `best` and `last` inside.
        best_step: step of the best validation.
        best_success: its share of accepted answers.
        initial_success: that of the untrained model.
        is_main: whether this process may speak for the run.
    """

    path: Path
    best_step: int
    best_success: float
    initial_success: float
    is_main: bool


def train(config: TrainConfig, *, quiet: bool = False, command: str = "") -> TrainResult:
    """Train, or continue the run that the output directory holds.

    Args:
        config: the run.
        quiet: show nothing.
        command: what was typed, for the model card.

    Raises:
        UserError: a request that cannot be met, a directory in use, or a loss that is no number.
        Stopped: Ctrl-C or termination; the state is saved and the same call continues.
    """
    folder = Path(config.output_path or run_files.default_path(config)).expanduser()
    device = torch_device(config.device)
    processes = Processes.joined(device)
    accelerator = tracking(config.report_to, folder, device.type == "cpu")
    if config.sequences < processes.size:
        raise UserError(f"{processes.size} processes for {config.sequences} sequences; use fewer")
    if config.shard == "full" and processes.size == 1:
        raise UserError(
            "--shard full is for several processes; start them by torchrun, or leave it out"
        )
    try:
        held = locked(folder, "training") if processes.is_main else nullcontext()
        with full_disk(folder), held:
            processes.wait()  # nobody reads a state that another run may still be writing
            return Trainer(config, folder, processes, accelerator, quiet, command).run()
    finally:
        accelerator.end_training()  # its trackers, and the group of processes


class Trainer:
    """One run.

    Args:
        config: the run.
        folder: its directory.
        processes: this process and its peers.
        accelerator: accelerate's, with the trackers.
        quiet: show nothing.
        command: what was typed.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        processes: Processes,
        accelerator: Any,
        quiet: bool,
        command: str,
    ) -> None:
        self.config = config
        self.folder = folder
        self.processes = processes
        seed_everything(config.seed)
        # One process finds out which state is whole; all read their parts of it.
        found = load_state(folder / run_files.STATES) if processes.is_main else None
        saved = processes.from_main(found)
        assert processes.device is not None
        lm = load_for_training(config, processes.device)
        if saved is not None:
            former = saved.state.embedding_rms
            lm.embedding = SizedEmbedding(lm.embedding.module, lm.embedding.vocab, former)
        self.questions: QuestionSet = load_questions(config, lm.vocabulary.encode, lm.tokenizer)
        self.questions = within_pass_rates(config, self.questions, lm, processes)
        lengths = longest_sequence(config, lm, self.questions)
        needed = check_memory(config, lm, lengths, processes.size)
        known = not isinstance(needed, str)
        shard = needed.sharded if known else config.shard == "full"
        self.trainee = make_trainee(config, lm, processes, shard)
        self.record = training_record(config, self.trainee, self.questions, command)
        learner = StagedLearning if config.is_staged else Reinforcement
        self.learner = learner(config, self.trainee, self.questions, processes)
        run_id = ""
        if processes.is_main:
            prints = {"base": weights_hash(lm.model), "config": config_hash(lm)}
            prints |= self.questions.fingerprints()
            run_id = run_files.open_directory(folder, config, prints, self.record)
            # One more of each while a new one is written beside the old.
            state, checkpoint = self.trainee.bytes_on_disk
            check_space(folder, (config.save_total_limit + 1) * state + 3 * checkpoint)
        processes.wait()
        self.state = TrainerState(embedding_rms=lm.embedding.rms) if saved is None else saved.state
        self._saved_step = self.state.step
        if self.state.step > config.max_steps:
            raise UserError(
                f"{folder} has {self.state.step} updates behind it; --steps cannot be fewer"
            )
        self._restore(saved)
        if shard and self.learner.passes.fitted is None:
            self.learner.passes.fitted = needed.micro_batch if known else 1
        self.screen = make_screen(quiet or not processes.is_main)
        self.display = run_files.TrainProgress(self.screen, config.max_steps, self.state.step)
        told = f"about {needed.peak / GIB:.1f} GiB" if known else needed
        self.screen.note(f"memory needed on each device: {told}")
        if shard:
            self.screen.note(
                f"masters, gradients and moments sharded over {processes.size} processes"
            )
        for name in () if saved is None else saved.torn:
            self.screen.note(f"{name} is torn; continuing from step {self.state.step}")
        self._settle_best()
        self._tell_missing_metrics()
        self.log = run_files.Log(accelerator, config, folder, self.state.step, run_id)
        name = config.push_to_hub
        self._hub = HubRepository(name) if name and processes.is_main else None

    def run(self) -> TrainResult:
        """Train from where the run stands to its end.

        Raises:
            Stopped: Ctrl-C or termination, after the update under way was finished and saved.
        """
        with self.screen as screen, Interruption(screen.note) as interruption:
            screen.note(f"{self.folder}: {self.questions.summary()}")
            if self.state.step == 0:
                self.log.metrics(self._validated({}), 0)
                self._export(run_files.BEST)  # the base; nothing but itself is needed to redo it
            while self.state.step < self.config.max_steps:
                # The processes may be told at different moments, and must stop at the same step.
                told = self.processes.totals({"signals": float(interruption.number > 0)})
                if told["signals"]:
                    self._stop(interruption.number or signal.SIGTERM)
                self._advance()
            self._push()
        curve = self.state.curve
        return TrainResult(
            self.folder,
            self.state.best_step,
            self.state.best_success,
            curve[0][self.config.select_by],
            self.processes.is_main,
        )

    def _advance(self) -> None:
        """One update and what follows it."""
        step = self.state.step + 1
        metrics = self._update(step)
        self.state.step = step
        last = step == self.config.max_steps
        if last or step % self.config.eval_steps == 0:
            metrics = self._validated(metrics)
        self.log.metrics(metrics, step)
        self.display.step(step, metrics)
        improved = self.state.best_step == step
        if last or improved or step % self.config.save_steps == 0:
            self._save()
        if improved:
            self._export(run_files.BEST)

    def _push(self) -> None:
        """Give the hub the best checkpoint."""
        if self._hub is not None:
            step, success = self.state.best_step, 100 * self.state.best_success
            self._hub.push(self.folder / run_files.BEST, f"step {step}, validation {success:.1f} %")
            self.screen.note(f"pushed to {self._hub.address}")

    def _stop(self, number: int) -> NoReturn:
        """Save unless the state stands already, and end."""
        step = self.state.step
        if step > 0 and step != self._saved_step:
            self._save()
        raise Stopped(step, number)

    def _update(self, step: int) -> Metrics:
        """The learner's gradient, and the optimizer."""
        trainee = self.trainee
        found = self.learner.update(step, self.state.cursor)
        if found.fault:
            raise self._stop_at_fault(step, found.fault)
        metrics, norm = found.metrics, found.metrics["gradient/norm"]
        if not is_finite(metrics) or norm is None:
            raise self._fail(step)
        started = time.perf_counter()
        metrics["optimizer/zero_gradient"] = float(norm == 0)
        metrics["optimizer/learning_rate"] = trainee.optimization.schedule(step - 1)
        trainee.optimization.step(step - 1, norm)
        for further in self.learner.repeats(metrics):
            if not math.isfinite(further):
                raise self._fail(step)
            trainee.optimization.step(step - 1, further)
        self.state.cursor = found.cursor
        metrics["data/epoch"] = found.cursor / len(self.questions.train)
        seconds = {**found.seconds, "optimizer": time.perf_counter() - started}
        if found.rows:
            self.display.samples(found.rows)
            self.log.samples(found.rows, step)
        times = time_metrics(seconds, found.tokens)
        return {**metrics, **times, **peak_memory(trainee.lm.device)}

    def _validated(self, metrics: Metrics) -> Metrics:
        """Validate; note whether this is the best model so far."""
        started = time.perf_counter()
        adapters = self.trainee.adapters
        with adapters.merged() if adapters else nullcontext():  # what an export holds
            numbers = self._validations()
        self.state.curve.append({"step": float(self.state.step), **numbers})
        stage = self.learner.stage
        now = stage(self.state.step)
        self.display.validated([p for p in self.state.curve if stage(int(p["step"])) == now])
        success = numbers[self.config.select_by]
        if now > stage(self.state.best_step) or success > self.state.best_success:
            self.state.best_step = self.state.step
            self.state.best_success = success
        seconds = time.perf_counter() - started
        shown: Metrics = {f"validation/{name}": value for name, value in numbers.items()}
        return {**metrics, **shown, "time/validation": seconds}

    def _validations(self) -> dict[str, float]:
        """Every set in every mode: all figures of the method's own mode, success in the others."""
        config, own = self.config, self.learner.validated_mode(self.state.step)
        numbers: dict[str, float] = {}
        for name, questions in {"": self.questions.validation, **self.questions.further}.items():
            start = f"{name}/" if name else ""
            found = validate(self.trainee.lm, questions, config, self.processes, own)
            numbers |= {f"{start}{figure}": value for figure, value in asdict(found).items()}
            for mode in map(get_mode, config.validation_modes):
                beside = found
                if mode.name != own.name:
                    beside = validate(self.trainee.lm, questions, config, self.processes, mode)
                numbers[f"{start}{mode.name}_success"] = beside.success
        return numbers

    def _save(self) -> None:
        """Export the last model, then save the state: a final state implies its export.

        The state of a best step is saved before its export, so that `best` is never ahead of it.
        """
        self._export(run_files.LAST)
        self.state.micro_batch = self.learner.passes.fitted
        tensors = self.trainee.optimization.tensors()
        states, keep = self.folder / run_files.STATES, self.config.save_total_limit
        save_state(states, self.state, tensors, keep, self.processes)
        self._saved_step = self.state.step

    def _restore(self, saved: SavedState | None) -> None:
        """Continue from a state, or from nothing; drop what was written after it."""
        if saved is not None:
            fill = partial(saved.fill, processes=self.processes)
            self.trainee.optimization.restore(saved.names, fill)
            saved.restore_random()
            self.learner.passes.fitted = saved.state.micro_batch
        if self.processes.is_main:
            last = -1 if saved is None else saved.state.step
            for name in (run_files.METRICS, run_files.SAMPLES):
                run_files.truncate_lines(self.folder / name, last)
            for name in (run_files.BEST, run_files.LAST):
                recover(self.folder / name)
        self.processes.wait()

    def _tell_missing_metrics(self) -> None:
        if self.processes.is_main and self._saved_step:
            missing = run_files.missing_metrics(self.folder, self._saved_step)
            if missing:
                self.screen.note(
                    f"{self.folder / run_files.METRICS} has no line of {missing} of the updates "
                    "done; the run continues without them"
                )

    def _settle_best(self) -> None:
        """Make `best` hold the step that the state calls best.

        It does not where a run died between the two, which is made up for here, and where a newer
        state was torn: the model is then of updates that are done anew, and without bit-exact
        arithmetic not the same. The best is chosen from here on then.
        """
        state, main = self.state, self.processes.is_main
        if state.step == 0:
            return
        stray = main and exported_step(self.folder / run_files.BEST) != state.best_step
        if state.step == state.best_step:
            if stray:
                self._export(run_files.BEST)
            return
        stray = bool(self.processes.totals({"stray": float(stray)})["stray"])
        if stray and state.step < self.config.max_steps:
            state.best_step, state.best_success = -1, -1.0
            self.screen.note(
                f"{self.folder / run_files.BEST} is not of the step that the state calls best; "
                "the best is chosen from the validations to come"
            )

    def _export(self, name: str) -> None:
        if not self.processes.is_main:
            return
        state = self.state
        now = {"step": state.step, "validation": state.curve, "best_step": state.best_step}
        record = replace(self.record, **now, selected=name)
        export_checkpoint(self.folder / name, self.trainee.lm, record, self.trainee.adapters)

    def _fail(self, step: int) -> UserError:
        place = self.folder / f"failed-step-{step:06d}-rank{self.processes.rank}"
        self.learner.keep(place)
        return UserError(
            f"step {step}: the loss or its gradient is not a finite number; the batch is in "
            f"{place}; lower --learning-rate"
        )

    def _stop_at_fault(self, step: int, fault: str) -> UserError:
        if step > 1:
            self._save()
        return UserError(
            f"step {step}: the training pass does not find the noise that was drawn: {fault}; it sees "
            f"another model than the rollout did. The state of step {step - 1} is kept; try --dtype "
            "float32, and if that does not help another architecture"
        )
