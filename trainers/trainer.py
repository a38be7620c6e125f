"""The training loop: rollouts, gradient, update, validation, checkpoints.

Strictly on-policy: every rollout is used for one update of the weights that made it. Killed at any
moment and started again, a run continues from its last state; on a CPU in float32 it then equals
the uninterrupted run bit for bit, times excepted.

The parts know their own business; this file only says what happens when.
"""

from __future__ import annotations

import random
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from softeval.decoding.decoder import Decoder
from softeval.decoding.rows import Limits
from softeval.display import make_screen
from softeval.errors import UserError
from softeval.files import locked, recover
from softeval.model.checkpoint import torch_device
from softeval.model.language_model import BUNDLED_CHECKPOINT, weights_hash
from softeval.modes import mode_record
from softeval.processes import Processes
from softeval.runs.environment import package_versions
from softeval.trainers import run_files
from softeval.trainers.algorithms import Algorithm, advantages
from softeval.trainers.checkpoints import (
    Progress,
    SavedState,
    TrainingRecord,
    check_space,
    export_checkpoint,
    exported_step,
    full_disk,
    load_state,
    save_failure,
    save_state,
)
from softeval.trainers.config import TrainConfig
from softeval.trainers.memory import GIB, check_context, check_memory
from softeval.trainers.metrics import (
    Metrics,
    is_finite,
    noise_fault,
    pass_metrics,
    peak_memory,
    rollout_metrics,
    rollout_sums,
    time_metrics,
)
from softeval.trainers.questions import DataOrder, QuestionSet, fingerprint, load_questions
from softeval.trainers.rollout import (
    RECORDED_TOP,
    RolloutCollector,
    StepRollouts,
    sample_rows,
    validate,
)
from softeval.trainers.run_files import Interruption, Stopped
from softeval.trainers.setup import (
    keep_embedding_size,
    load_for_training,
    make_trainee,
)
from softeval.trainers.training_pass import PassPlan, PassResult, TrainingPass, split_norms


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
    folder = Path(config.output_path or default_path(config)).expanduser()
    device = torch_device(config.device)
    processes = Processes.joined(device)
    accelerator = run_files.tracking(config.report_to, folder, device.type == "cpu")
    if config.sequences < processes.size:
        raise UserError(f"{processes.size} processes for {config.sequences} sequences; use fewer")
    try:
        held = locked(folder, "training") if processes.is_main else nullcontext()
        with full_disk(folder), held:
            processes.wait()  # nobody reads a state that another run may still be writing
            return Trainer(config, folder, processes, accelerator, quiet, command).run()
    finally:
        accelerator.end_training()  # its trackers, and the group of processes


def default_path(config: TrainConfig) -> Path:
    """Where a run goes that names no directory; the same for the same method, data and seed."""
    model = Path(config.model or "bundled").name
    dataset = Path(config.dataset).name.split(".")[0]
    return Path("runs") / f"train-{model}-{dataset}-{config.method}-seed{config.seed}"


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
        self.command = command
        _seed_everything(config.seed)
        state = load_state(folder / run_files.STATES)
        assert processes.device is not None
        lm = load_for_training(config, processes.device)
        base = weights_hash(lm.model) if processes.is_main else ""
        if state is not None:
            keep_embedding_size(lm, state.progress.embedding_rms)
        self.questions: QuestionSet = load_questions(config, lm.vocabulary.encode)
        lengths = check_context(config, lm, self.questions)
        needed = check_memory(config, lm, lengths, processes.size)
        self.trainee = make_trainee(config, lm)
        self.progress = Progress(embedding_rms=lm.embedding.rms)
        self._saved_step = 0 if state is None else state.progress.step
        self.passes = self._make_passes()
        self.collector = self._make_collector()
        run_id = ""
        if processes.is_main:
            run_id = run_files.open_directory(folder, config, self._record(base))
            self._check_space()
        processes.wait()
        self._restore(state)
        quiet = quiet or not processes.is_main
        self.screen = make_screen(quiet)
        self.display = run_files.TrainProgress(self.screen, config.max_steps, self.progress.step)
        told = needed if isinstance(needed, str) else f"about {needed.peak / GIB:.1f} GiB"
        self.display.note(f"memory needed on each device: {told}")
        for name in () if state is None else state.torn:
            self.display.note(f"{name} is torn; continuing from step {self.progress.step}")
        self._settle_best()
        self._tell_missing_metrics()
        self.trackers = run_files.Trackers(accelerator, config, folder, self.progress.step, run_id)

    def run(self) -> TrainResult:
        """Train from where the run stands to its end.

        Raises:
            Stopped: Ctrl-C or termination, after the update under way was finished and saved.
        """
        with self.screen as screen, Interruption(screen.note) as interruption:
            screen.note(f"{self.folder}: {self.questions.summary()}")
            if self.progress.step == 0:
                self._finish_step(self._validated({}), 0)
                self._export(run_files.BEST)  # the base; nothing but itself is needed to redo it
            while self.progress.step < self.config.max_steps:
                # The processes may be told at different moments, and must stop at the same step.
                told = self.processes.totals({"signals": float(interruption.number > 0)})
                if told["signals"]:
                    self._stop(interruption.number or signal.SIGTERM)
                self._advance()
        curve = self.progress.curve
        return TrainResult(
            self.folder,
            self.progress.best_step,
            self.progress.best_success,
            curve[0]["success"],
            self.processes.is_main,
        )

    def _advance(self) -> None:
        """One update and what follows it."""
        step = self.progress.step + 1
        metrics = self._update(step)
        self.progress.step = step
        last = step == self.config.max_steps
        if last or step % self.config.eval_steps == 0:
            metrics = self._validated(metrics)
        self._finish_step(metrics, step)
        self.display.step(step, metrics)
        improved = self.progress.best_step == step
        if last or improved or step % self.config.save_steps == 0:
            self._save()
        if improved:
            self._export(run_files.BEST)

    def _stop(self, number: int) -> NoReturn:
        """Save unless the state stands already, and end."""
        step = self.progress.step
        if step > 0 and step != self._saved_step:
            self._save()
        raise Stopped(step, number)

    def _update(self, step: int) -> Metrics:
        """Rollouts, gradient, optimizer."""
        config, trainee = self.config, self.trainee
        tabled = _due(config.log_completions_steps, step)
        self.collector.decoder.record_top = RECORDED_TOP if tabled else 0
        drawn = self.collector.collect(self.progress.cursor)
        found_PG = advantages(drawn.rewards_PG, Algorithm(config.algorithm))
        mine = [float(found_PG[r.group, r.member]) for r in drawn.local]
        found_B = torch.tensor(mine, dtype=found_PG.dtype)
        started = time.perf_counter()
        metrics = self._differentiate(step, drawn, found_PG, found_B)
        differentiated = time.perf_counter()
        norm = metrics["gradient/norm"]
        if not is_finite(metrics) or norm is None:
            raise self._fail(step, drawn, found_B)
        metrics["optimizer/zero_gradient"] = float(norm == 0)
        metrics["optimizer/learning_rate"] = trainee.optimization.schedule(step - 1)
        trainee.optimization.step(step - 1, norm)
        self.progress.cursor = drawn.cursor
        metrics["data/epoch"] = drawn.cursor / len(self.questions.train)
        seconds = {**drawn.seconds, "training": differentiated - started}
        seconds["optimizer"] = time.perf_counter() - differentiated
        if tabled:
            self._show_samples(step, drawn, found_B)
        times = time_metrics(seconds, metrics["rollout/tokens_drawn"] or 0)
        return {**metrics, **times, **peak_memory(trainee.lm.device)}

    def _differentiate(
        self, step: int, drawn: StepRollouts, found_PG: Tensor, found_B: Tensor
    ) -> Metrics:
        """Gradient of all processes in the masters; the update's numbers."""
        config, trainee, processes = self.config, self.trainee, self.processes
        plan = PassPlan(
            sequences=config.sequences,
            measure_drift=_due(config.kl_steps, step),
            split=_due(config.gradient_split_steps, step),
            keep_first=processes.is_main and bool((found_PG == 0).all()),
        )
        result = self.passes.run([r.generation for r in drawn.local], found_B, plan)
        trainee.weights.reduce(processes.total)
        local = {**result.sums, **rollout_sums(drawn.local), **drawn.drawn_sums}
        sums = processes.totals(local)
        noisy = trainee.policy.mode.is_gaussian
        if noisy and (fault := noise_fault(sums, trainee.lm.embedding.width)):
            raise self._stop_at_fault(step, fault)
        drifted = plan.measure_drift or config.beta > 0
        metrics = {
            **rollout_metrics(sums, drawn),
            **pass_metrics(sums, trainee.lm.embedding.width, noisy, drifted),
            "gradient/norm": trainee.optimization.norm(),
            **dict.fromkeys(("gradient/cot_norm", "gradient/answer_norm", "gradient/kl_norm")),
        }
        return metrics | (self._part_norms(result) if plan.split else {})

    def _part_norms(self, result: PassResult) -> Metrics:
        """Norms of the gradient's parts over all processes; the KL's only where it has one."""
        weights = self.trainee.weights
        names = ("answer", "kl") if self.config.beta > 0 else ("answer",)
        none = [torch.zeros_like(m, device="cpu") for m in weights.masters]
        parts = {name: result.parts.get(name) or none for name in names}
        norms = split_norms(weights, parts, self.processes.total)
        return {f"gradient/{name}_norm": norm for name, norm in norms.items()}

    def _validated(self, metrics: Metrics) -> Metrics:
        """Validate; note whether this is the best model so far."""
        started = time.perf_counter()
        adapters, questions = self.trainee.adapters, self.questions.validation
        with adapters.merged() if adapters else nullcontext():  # what an export holds
            found = validate(self.trainee.lm, questions, self.config, self.processes)
        point = {"step": float(self.progress.step), **asdict(found)}
        self.progress.curve.append(point)
        self.display.validated(self.progress.step, found.success)
        self._warn_of_collapse()
        if found.success > self.progress.best_success:
            self.progress.best_step = self.progress.step
            self.progress.best_success = found.success
        seconds = time.perf_counter() - started
        shown: Metrics = {f"validation/{name}": value for name, value in asdict(found).items()}
        return {**metrics, **shown, "time/validation": seconds}

    def _warn_of_collapse(self) -> None:
        first, now = self.progress.curve[0]["success"], self.progress.curve[-1]["success"]
        if now < first - 0.1:
            self.display.note(
                f"validation success fell from {first:.2f} to {now:.2f}; the learning rate may be "
                "too high for this method"
            )

    def _finish_step(self, metrics: Metrics, step: int) -> None:
        if self.processes.is_main:
            run_files.append_line(self.folder / run_files.METRICS, {"step": step, **metrics})
            self.trackers.log(metrics, step)

    def _show_samples(self, step: int, drawn: StepRollouts, found_B: Tensor) -> None:
        if not self.processes.is_main:
            return
        tokenizer = self.trainee.lm.tokenizer
        rows = sample_rows(drawn.local, found_B.tolist(), self.config.num_completions, tokenizer)
        self.display.samples(rows)
        self.trackers.samples(rows, step)
        for row in rows:
            run_files.append_line(self.folder / run_files.SAMPLES, {"step": step, **row})

    def _save(self) -> None:
        """Export the last model, then save the state: a final state implies its export.

        The state of a best step is saved before its export, so that `best` is never ahead of it.
        """
        self._export(run_files.LAST)
        self.progress.micro_batch = self.passes.fitted
        if self.processes.is_main:
            tensors = self.trainee.optimization.tensors()
            states = self.folder / run_files.STATES
            save_state(states, self.progress, tensors, self.config.save_total_limit)
        self._saved_step = self.progress.step
        self.processes.wait()

    def _restore(self, state: SavedState | None) -> None:
        """Continue from a state, or from nothing; drop what was written after it."""
        if state is not None:
            self.trainee.optimization.restore(state.tensors)
            state.restore_random()
            self.progress = state.progress
            self.passes.fitted = state.progress.micro_batch
        if self.processes.is_main:
            last = -1 if state is None else state.progress.step
            for name in (run_files.METRICS, run_files.SAMPLES):
                run_files.truncate_lines(self.folder / name, last)
            for name in (run_files.BEST, run_files.LAST):
                recover(self.folder / name)
        self.processes.wait()

    def _check_space(self) -> None:
        """Refuse a disk that the states and checkpoints will not fit."""
        weights = self.trainee.weights
        state = 3 * sum(m.numel() * m.element_size() for m in weights.masters)
        model = sum(t.numel() * t.element_size() for t in self.trainee.lm.model.parameters())
        # One more of each while a new one is written beside the old.
        check_space(self.folder, (self.config.save_total_limit + 1) * state + 3 * model)

    def _tell_missing_metrics(self) -> None:
        if self.processes.is_main and self._saved_step:
            missing = run_files.missing_metrics(self.folder, self._saved_step)
            if missing:
                self.display.note(
                    f"{self.folder / run_files.METRICS} has no line of {missing} of the updates "
                    "done; the run continues without them"
                )

    def _settle_best(self) -> None:
        """Make `best` hold the step that the state calls best.

        It does not where a run died between the two, which is made up for here, and where a newer
        state was torn: the model is then of updates that are done anew, and without bit-exact
        arithmetic not the same. The best is chosen from here on then.
        """
        progress, main = self.progress, self.processes.is_main
        if progress.step == 0:
            return
        stray = main and exported_step(self.folder / run_files.BEST) != progress.best_step
        if progress.step == progress.best_step:
            if stray:
                self._export(run_files.BEST)
            return
        stray = bool(self.processes.totals({"stray": float(stray)})["stray"])
        if stray and progress.step < self.config.max_steps:
            progress.best_step, progress.best_success = -1, -1.0
            self.display.note(
                f"{self.folder / run_files.BEST} is not of the step that the state calls best; "
                "the best is chosen from the validations to come"
            )

    def _export(self, name: str) -> None:
        if not self.processes.is_main:
            return
        record = self._training_record(name)
        export_checkpoint(self.folder / name, self.trainee.lm, record, self.trainee.adapters)

    def _fail(self, step: int, drawn: StepRollouts, found_B: Tensor) -> UserError:
        place = self.folder / f"failed-step-{step:06d}-rank{self.processes.rank}"
        save_failure(place, drawn.local, found_B.tolist())
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

    def _make_collector(self) -> RolloutCollector:
        config = self.config
        size = config.decode_batch_size
        decoder = Decoder(
            self.trainee.lm,
            self.trainee.policy.mode,
            Limits(config.cot_cap, config.max_answer_tokens),
            seed=config.seed,
            batch_size=None if size == "auto" else size,
            answer_temperature=config.answer_temperature,
            keep_inputs=not self.trainee.policy.mode.feeds_tokens,
        )
        order = DataOrder(len(self.questions.train), config.seed)
        return RolloutCollector(decoder, self.questions, order, config, self.processes)

    def _make_passes(self) -> TrainingPass:
        config, trainee = self.config, self.trainee
        size = config.micro_batch_size
        return TrainingPass(
            trainee.lm,
            trainee.head,
            trainee.weights,
            trainee.policy,
            micro_batch=None if size == "auto" else size,
            reference=trainee.reference,
            beta=config.beta,
            skip_zero=config.skip_zero_advantage,
        )

    def _record(self, base: str) -> dict[str, Any]:
        """What train.json says; the fingerprints must agree when the run is continued."""
        return {
            "fingerprints": {
                "base": base,
                "train": fingerprint(self.questions.train),
                "validation": fingerprint(self.questions.validation),
            },
            "config": self.config.model_dump(mode="json"),
            "command": self.command,
            "data": self._data(),
            "mode": self._mode_record(),
            "self_check": self.trainee.lm.self_check,
            "versions": package_versions(),
        }

    def _data(self) -> dict[str, Any]:
        questions = self.questions
        return {
            **asdict(questions.source),
            "train": len(questions.train),
            "validation": len(questions.validation),
            "overlaps": questions.overlaps,
            "repeated": questions.repeated,
            "unlabelled": questions.unlabelled,
            "too_long": questions.too_long,
        }

    def _mode_record(self) -> dict[str, Any]:
        mode = self.trainee.policy.mode
        return mode_record(mode) | mode.facts(self.trainee.lm.embedding)

    def _training_record(self, name: str) -> TrainingRecord:
        config = self.config
        return TrainingRecord(
            method=config.method,
            dataset=config.dataset,
            train_seed=config.seed,
            base=config.model or f"softeval:{Path(BUNDLED_CHECKPOINT).name}",
            step=self.progress.step,
            mode=self._mode_record(),
            logits_dtype=config.logits_dtype,
            validation=self.progress.curve,
            selected=name,
            command=self.command,
            config=config.model_dump(mode="json"),
            data=self._data(),
            versions=package_versions(),
        )


def _due(every: int, step: int) -> bool:
    """Whether something done every so many steps is done at this one; the first counts too."""
    return every > 0 and (step == 1 or step % every == 0)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
