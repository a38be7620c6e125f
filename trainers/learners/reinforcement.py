"""What an update of reinforcement learning is: rollouts, rewards, a policy gradient.

Strictly on-policy unless several updates are asked for: every rollout is used for one update of the
weights that made it.

Knows nothing of the optimizer, of checkpoints or of when to validate.

Shapes: P questions, G samples of each; B sequences of this process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from softeval.files import replacing_directory
from softeval.model.output_head import can_share, output_head
from softeval.modes import Mode
from softeval.options import fixed_size
from softeval.processes import Processes
from softeval.trainers.algorithms import make_algorithm
from softeval.trainers.config import TrainConfig
from softeval.trainers.losses import Policy, Reference
from softeval.trainers.metrics import (
    Metrics,
    Update,
    noise_fault,
    pass_metrics,
    rollout_metrics,
    rollout_sums,
)
from softeval.trainers.questions import DataOrder, QuestionSet
from softeval.trainers.rollout import (
    RECORDED_TOP,
    Rollout,
    RolloutCollector,
    StepRollouts,
    greedy_mode,
    sample_rows,
    training_decoder,
)
from softeval.trainers.setup import Trainee, load_for_training
from softeval.trainers.training_pass import PassPlan, TrainingPass, split_norms


class Reinforcement:
    """Makes updates from rollouts.

    Args:
        config: the run.
        trainee: what learns.
        questions: what is asked.
        processes: this process and its peers.
    """

    def __init__(
        self, config: TrainConfig, trainee: Trainee, questions: QuestionSet, processes: Processes
    ) -> None:
        self.config = config
        self.trainee = trainee
        self.processes = processes
        order = DataOrder(len(questions.train), config.seed)
        decoder = training_decoder(config, trainee.lm)
        self.collector = RolloutCollector(decoder, questions, order, config, processes)
        self.passes = _training_pass(config, trainee)
        self._drawn: StepRollouts | None = None
        self._advantages_B = self._weights_B = torch.zeros(0)

    def stage(self, step: int) -> int:
        """All updates are of one kind."""
        return 0

    def validated_mode(self, step: int) -> Mode:
        """What is validated after so many updates."""
        return greedy_mode(self.config)

    def update(self, step: int, cursor: int) -> Update:
        """Rollouts, and the gradient of all processes in the masters."""
        config = self.config
        tabled = due(config.log_completions_steps, step)
        self.collector.decoder.record_top = RECORDED_TOP if tabled else 0
        drawn = self.collector.collect(cursor)
        algorithm = self.passes.algorithm
        found_PG = algorithm.advantages(drawn.rewards_PG)
        weights_PG = algorithm.weights(drawn.lengths_PG, config.limits.tokens)
        found_B = drawn.of_local(found_PG)
        self._drawn, self._advantages_B = drawn, found_B
        self._weights_B = drawn.of_local(weights_PG)
        started = time.perf_counter()
        found = self._differentiate(step, drawn, found_PG, found_B)
        found.seconds.update(drawn.seconds, training=time.perf_counter() - started)
        if tabled:
            number, tokenizer = config.num_completions, self.trainee.lm.tokenizer
            found.rows = sample_rows(drawn.local, found_B.tolist(), number, tokenizer)
        return found

    def repeats(self, metrics: Metrics) -> Iterator[float]:
        """Norm of each further gradient of the same rollouts, between which the weights are updated.

        Args:
            metrics: of the update; what the clip does is added.
        """
        assert self._drawn is not None
        for _ in range(1, self.config.num_iterations):
            plan = PassPlan(self.config.sequences, again=True)
            generations = [r.generation for r in self._drawn.local]
            result = self.passes.run(generations, self._advantages_B, plan, self._weights_B)
            self.trainee.weights.reduce()
            sums = self.processes.totals(result.sums)
            metrics["ratio/clipped"] = sums["clipped"] / max(sums["compared"], 1.0)
            yield self.trainee.weights.norm()

    def keep(self, place: Path) -> None:
        """Write the batch of the last update, in which something went wrong."""
        assert self._drawn is not None
        _save_batch(place, self._drawn.local, self._advantages_B.tolist())

    def _differentiate(
        self, step: int, drawn: StepRollouts, found_PG: Tensor, found_B: Tensor
    ) -> Update:
        config, trainee, processes = self.config, self.trainee, self.processes
        plan = PassPlan(
            sequences=config.sequences,
            measure_kl=due(config.kl_steps, step),
            split=due(config.gradient_split_steps, step) and not trainee.weights.is_sharded,
            keep_first=processes.is_main and bool((found_PG == 0).all()),
            keep_log_probs=config.num_iterations > 1,
        )
        generations = [r.generation for r in drawn.local]
        result = self.passes.run(generations, found_B, plan, self._weights_B)
        trainee.weights.reduce()
        local = {**result.sums, **rollout_sums(drawn.local), **drawn.drawn_sums}
        sums = processes.totals(local)
        width, noisy = trainee.lm.embedding.width, trainee.mode.is_gaussian
        tokens = sums["drawn_tokens"]
        if noisy and (fault := noise_fault(sums, width)):
            return Update({}, drawn.cursor, tokens, fault=fault)
        with_kl = plan.measure_kl or config.beta > 0
        metrics: Metrics = {
            **rollout_metrics(sums, drawn),
            **pass_metrics(sums, width, noisy, with_kl),
            "gradient/norm": trainee.weights.norm(),
            **dict.fromkeys(("gradient/cot_norm", "gradient/answer_norm", "gradient/kl_norm")),
        }
        if plan.split:
            # The KL has a part only where it has a gradient; a process may have passed nothing.
            names = ("answer", "kl") if config.beta > 0 else ("answer",)
            norms = split_norms(trainee.weights, result.parts, names)
            metrics |= {f"gradient/{name}_norm": norm for name, norm in norms.items()}
        return Update(metrics, drawn.cursor, tokens)


def due(every: int, step: int) -> bool:
    """Whether something done every so many steps is done at this one; the first counts too."""
    return every > 0 and (step == 1 or step % every == 0)


FEWEST_SHARING = 4
"""Samples of a question that have passes of their own; of fewer, all questions' go together."""


def _training_pass(config: TrainConfig, trainee: Trainee) -> TrainingPass:
    policy = Policy(
        config.mode,
        config.answer_temperature,
        config.cot_logprob_reduction,
        config.detach_embedding_in_mixture,
        recorded_noise=config.soft_score_error != "recomputed",
        seed=config.seed,
    )
    # A layer that is computed again, or has FSDP's hooks, is passed once for each backward pass.
    twice = not (config.gradient_checkpointing or trainee.weights.is_sharded)
    return TrainingPass(
        trainee.lm,
        trainee.head,
        trainee.weights,
        policy,
        micro_batch=fixed_size(config.micro_batch_size),
        reference=_reference(config, trainee),
        beta=config.beta,
        skip_zero=config.skip_zero_advantage,
        share=twice and can_share(trainee.lm.model) and config.num_generations >= FEWEST_SHARING,
        algorithm=make_algorithm(config),
    )


def _reference(config: TrainConfig, trainee: Trainee) -> Reference | None:
    if config.beta == 0 and config.kl_steps == 0:
        return None
    if trainee.adapters is not None:
        return Reference(trainee.lm, trainee.head, trainee.adapters.disabled)
    copy = load_for_training(config, trainee.lm.device)
    copy.model.requires_grad_(False)
    return Reference(copy, output_head(copy, config.loss_chunk_size))


def _save_batch(place: Path, rollouts: Sequence[Rollout], advantages: Sequence[float]) -> None:
    """Write texts, rewards and advantages as JSON, token ids and fed vectors as safetensors."""
    with replacing_directory(place) as partial:
        tensors: dict[str, Tensor] = {}
        for number, rollout in enumerate(rollouts):
            g = rollout.generation
            ids = {"prompt": g.prompt_ids, "shadow": g.shadow_ids, "answer": g.answer_ids}
            ids["prefill"] = g.prefill_ids
            tensors |= {f"{number}.{name}": torch.as_tensor(value) for name, value in ids.items()}
            if g.inputs is not None:
                tensors[f"{number}.inputs"] = g.inputs
        save_file(tensors, str(partial / "batch.safetensors"))
        rows = [
            {
                "question": rollout.question.problem.question,
                "target": rollout.question.problem.target,
                "text": rollout.generation.text,
                "reward": rollout.reward,
                "advantage": advantage,
            }
            for rollout, advantage in zip(rollouts, advantages, strict=True)
        ]
        text = json.dumps(rows, indent=2, ensure_ascii=False)
        (partial / "batch.json").write_text(text + "\n", encoding="utf-8")
