"""Puts the parts of a training run together: model, policy, reference, optimizer.

Everything that can be wrong with a request is found here, before the first rollout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from softeval.errors import UserError
from softeval.model.embedding import InputEmbedding
from softeval.model.language_model import BUNDLED_CHECKPOINT, LanguageModel, LogitsDtype, load_model
from softeval.model.output_head import OutputHead, keep_float32_head_live, output_head
from softeval.model.stopping import Stopper
from softeval.trainers.adapters import Adapters
from softeval.trainers.config import TrainConfig
from softeval.trainers.dropout import (
    check_training_pass,
    disable_dropout,
    recompute_activations,
)
from softeval.trainers.losses import Policy, Reduction
from softeval.trainers.memory import (
    Estimate,
    Lengths,
    MemoryModel,
    describe,
    device_memory,
    require_memory,
)
from softeval.trainers.meta_model import meta_model
from softeval.trainers.optimization import MasterWeights, Optimization, Schedule
from softeval.trainers.questions import QuestionSet
from softeval.trainers.reference import Reference


@dataclass(frozen=True, eq=False)
class Trainee:
    """The model in training and all that belongs to it."""

    lm: LanguageModel
    head: OutputHead
    policy: Policy
    weights: MasterWeights
    optimization: Optimization
    adapters: Adapters | None
    reference: Reference | None


def load_for_training(config: TrainConfig, device: torch.device) -> LanguageModel:
    """The checkpoint on the device, without dropout; σ's embedding size is taken now.

    Raises:
        UserError: what `load_model` raises.
    """
    lm = load_model(
        config.model or BUNDLED_CHECKPOINT,
        dtype=config.dtype,
        device=device,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        self_check=config.self_check,
    )
    lm.logits_dtype = LogitsDtype(config.logits_dtype)
    if lm.logits_dtype is LogitsDtype.FLOAT32 and lm.dtype != torch.float32:
        keep_float32_head_live(lm.model.get_output_embeddings())
    disable_dropout(lm.model)
    _ = lm.embedding.rms  # measured once: σ stays what it is now while E is trained
    return lm


def keep_embedding_size(lm: LanguageModel, rms: float) -> None:
    """Take E's size from the state of a run, so that σ stays what it was to the last bit.

    Raises:
        UserError: the checkpoint at hand is not the one the run began with.
    """
    if not math.isclose(rms, lm.embedding.rms, rel_tol=1e-6):
        raise UserError(
            f"{lm.path} is no longer the checkpoint this run began with (its embeddings differ); "
            "restore it or give another --output-path"
        )
    lm.embedding = SizedEmbedding(lm.embedding.module, lm.embedding.vocab, rms)


class SizedEmbedding(InputEmbedding):
    """An input embedding whose root mean square is given rather than measured."""

    def __init__(self, module: nn.Module, vocab: int, rms: float) -> None:
        super().__init__(module, vocab)
        self._rms = rms


def make_trainee(config: TrainConfig, lm: LanguageModel) -> Trainee:
    """Policy, adapters, reference and optimizer around a loaded model.

    Raises:
        UserError: an architecture or option that cannot be trained.
    """
    head = output_head(lm, config.loss_chunk_size)
    policy = Policy(
        config.mode,
        config.answer_temperature,
        Reduction(config.cot_logprob_reduction),
        config.detach_embedding_in_mixture,
        recorded_noise=config.soft_score_error != "recomputed",
        seed=config.seed,
    )
    adapters = Adapters(lm.model, config) if config.lora else None
    if config.gradient_checkpointing:
        recompute_activations(lm.model)
    lm.model.eval()  # adapters come in training mode
    check_training_pass(lm)
    weights = MasterWeights(lm.model, config.master_weights)
    return Trainee(
        lm,
        head,
        policy,
        weights,
        _optimization(config, weights),
        adapters,
        _reference(config, lm, head, adapters),
    )


def check_context(config: TrainConfig, lm: LanguageModel, questions: QuestionSet) -> Lengths:
    """Lengths of the longest sequence; questions that do not fit the context are refused.

    Raises:
        UserError: naming what is needed.
    """
    longest = max(len(q.prompt_ids) for q in (*questions.train, *questions.validation))
    prefill = Stopper(lm.tokenizer).longest_prefill
    needed = longest + config.cot_cap + prefill + config.max_answer_tokens
    if needed > lm.max_length:
        raise UserError(
            f"the longest prompt ({longest} tokens) and the caps need {needed} positions, the "
            f"context has {lm.max_length}; lower --max-cot-tokens or set --max-prompt-tokens"
        )
    return Lengths(longest, config.cot_cap, needed)


def check_memory(
    config: TrainConfig, lm: LanguageModel, lengths: Lengths, processes: int
) -> Estimate | str:
    """What the run takes on each device, or why that cannot be told.

    Raises:
        UserError: more than there is, with what would fit.
    """
    try:
        model = meta_model(lm.model.config, lm.dtype, config.trust_remote_code)
        memory = MemoryModel(model, config, lengths, lm.device.type, processes)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - code of an architecture that wants real tensors
        return describe(error)
    return require_memory(memory, device_memory(lm.device, config.device_memory))


def _optimization(config: TrainConfig, weights: MasterWeights) -> Optimization:
    schedule = Schedule(
        config.learning_rate, config.warmup_steps, config.max_steps, config.min_lr_ratio
    )
    return Optimization(
        weights,
        schedule,
        (config.adam_beta1, config.adam_beta2),
        config.adam_epsilon,
        config.weight_decay,
        config.max_grad_norm,
    )


def _reference(
    config: TrainConfig, lm: LanguageModel, head: OutputHead, adapters: Adapters | None
) -> Reference | None:
    if config.beta == 0 and config.kl_steps == 0:
        return None
    if adapters is not None:
        return Reference(lm, head, adapters)
    copy = load_for_training(config, lm.device)
    copy.model.requires_grad_(False)
    return Reference(copy, output_head(copy, config.loss_chunk_size))
