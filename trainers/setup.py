"""Puts the parts of a training run together: model, adapters, optimizer.

Everything that can be wrong with a request is found here, before the first rollout.

Rollout and training pass must see one and the same model. Dropout in the pass alone would score another
model than the one that sampled, and no loss would show it. So the model stays in evaluation mode all
the time, also where activations are computed again in the backward pass: transformers' own gradient
checkpointing wants training mode, so its layers are wrapped here instead.

Low-rank adapters are peft's layers, injected in place, so that the model stays an ordinary transformers
model for the decoder and the trainer. Embeddings and head never get one: their plain matrices are
needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from softeval.environment import package_versions
from softeval.errors import UserError
from softeval.model.checkpoint import read_config
from softeval.model.embedding import InputEmbedding
from softeval.model.language_model import BUNDLED_CHECKPOINT, LanguageModel, LogitsDtype, load_model
from softeval.model.output_head import (
    OutputHead,
    can_share,
    keep_float32_head_live,
    last_hidden,
    output_head,
)
from softeval.model.weights import meta_model
from softeval.modes import Mode, mode_record
from softeval.processes import ALONE, Processes
from softeval.trainers.checkpoints import TrainingRecord
from softeval.trainers.config import TrainConfig
from softeval.trainers.optimization import MasterWeights, Optimization, Schedule, ShardedWeights
from softeval.trainers.questions import QuestionSet


@dataclass(frozen=True, eq=False)
class Trainee:
    """The model in training and all that belongs to it."""

    lm: LanguageModel
    head: OutputHead
    mode: Mode
    weights: MasterWeights
    optimization: Optimization
    adapters: Adapters | None

    @property
    def bytes_on_disk(self) -> tuple[int, int]:
        """Of a state and of a checkpoint."""
        state = 3 * sum(m.numel() * m.element_size() for m in self.weights.masters)
        return state, sum(t.numel() * t.element_size() for t in self.lm.model.parameters())


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
        attn_implementation=config.attn_implementation,
    )
    if lm.embedding.per_layer is not None:
        raise UserError(
            f"{lm.path} has per-layer embeddings, for whose mixture the trainer has no gradient;"
            " train another architecture"
        )
    lm.decode_by(graphs=config.graphs, fused=config.compile)
    lm.logits_dtype = LogitsDtype(config.logits_dtype)
    if lm.logits_dtype is LogitsDtype.FLOAT32 and lm.dtype != torch.float32:
        keep_float32_head_live(lm.model.get_output_embeddings())
    disable_dropout(lm.model)
    _ = lm.embedding.rms  # measured once: σ stays what it is now while E is trained
    return lm


def planned_model(config: TrainConfig) -> Any:
    """The model of a run on the meta device, from its config.json alone.

    Raises:
        UserError: what `load_model` raises for it.
    """
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    found = read_config(config.model or BUNDLED_CHECKPOINT, options)
    own = getattr(found, "dtype", None) or torch.float32
    dtype = own if config.dtype == "auto" else getattr(torch, config.dtype)
    return meta_model(found, dtype, config.trust_remote_code)


class SizedEmbedding(InputEmbedding):
    """An input embedding whose root mean square is given, so that σ stays what it was to the last bit."""

    def __init__(self, module: nn.Module, vocab: int, rms: float) -> None:
        super().__init__(module, vocab)
        self._rms = rms


def disable_dropout(model: nn.Module) -> None:
    """Set every rate of dropout and layer drop to zero, under whatever name.

    Router jitter is left to evaluation mode: Phi-MoE's is also a threshold that decoding needs.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def recompute_activations(model: nn.Module) -> None:
    """Gradient checkpointing: keep each layer's input only, and compute the rest again.

    Raises:
        UserError: the architecture has no layers that transformers would recompute.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"--gradient-checkpointing: {type(model).__name__} has no layers that can be computed "
            "again; leave it out"
        )
    for layer in layers:
        layer.forward = _recomputed(layer.forward)


def check_training_pass(lm: LanguageModel) -> None:
    """Compare the hidden states of a training pass with those of decoding, twice; also of one in parts.

    Raises:
        UserError: they differ, so something random, or another computation, is left in the pass.
    """
    ids = torch.arange(min(16, lm.vocab), device=lm.device)[None]
    inputs = lm.embedding.rows(ids).detach()
    with torch.no_grad():
        expected = last_hidden(lm.model, inputs).float()
    tolerance = 2e-2 if torch.finfo(lm.dtype).bits < 32 else 1e-4
    for shared in (0, inputs.shape[1] // 2 if can_share(lm.model) else 0):
        with torch.enable_grad():
            found = last_hidden(lm.model, inputs, shared).detach().float()
        gap = float((found - expected).abs().max() / expected.abs().max())
        if not gap <= tolerance:
            raise UserError(
                f"{type(lm.model).__name__}: hidden states of a training pass differ from those of "
                f"decoding by {gap:.1g} of the largest; dropout, layer drop or router noise is still "
                "on in it; take another architecture"
            )


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        # Nothing is random in evaluation mode, so no generator need be kept.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **options)

    return run


def make_trainee(
    config: TrainConfig, lm: LanguageModel, processes: Processes = ALONE, shard: bool = False
) -> Trainee:
    """Adapters and optimizer around a loaded model.

    Args:
        config: the run.
        lm: the model.
        processes: this process and its peers.
        shard: give each its part of masters, gradients and moments.

    Raises:
        UserError: an architecture or option that cannot be trained.
    """
    adapters = Adapters(lm.model, config) if config.lora else None
    if config.gradient_checkpointing:
        recompute_activations(lm.model)
    lm.model.eval()  # adapters come in training mode
    check_training_pass(lm)
    weights = (
        ShardedWeights(lm.model, processes)
        if shard
        else MasterWeights(lm.model, config.master_weights, processes)
    )
    head = output_head(lm, config.loss_chunk_size)
    return Trainee(lm, head, config.mode, weights, _optimization(config, weights), adapters)


def training_record(
    config: TrainConfig, trainee: Trainee, questions: QuestionSet, command: str
) -> TrainingRecord:
    """What is said of the run in train.json and beside each checkpoint."""
    mode = trainee.mode
    return TrainingRecord(
        method=config.method,
        dataset=config.dataset,
        train_seed=config.seed,
        base=config.model or f"softeval:{Path(BUNDLED_CHECKPOINT).name}",
        mode=mode_record(mode) | mode.facts(trainee.lm.embedding),
        logits_dtype=config.logits_dtype,
        command=command,
        config=config.model_dump(mode="json"),
        data=questions.counts(),
        self_check=trainee.lm.self_check,
        versions=package_versions(),
    )


def _optimization(config: TrainConfig, weights: MasterWeights) -> Optimization:
    floor = 1.0 if config.lr_schedule == "constant" else config.min_lr_ratio
    schedule = Schedule(config.learning_rate, config.warmup_steps, config.max_steps, floor)
    return Optimization(
        weights,
        schedule,
        (config.adam_beta1, config.adam_beta2),
        config.adam_epsilon,
        config.weight_decay,
        config.max_grad_norm,
    )


_NAME = "default"
_BASE_LAYER = re.compile(r"\.base_layer\b")


class Adapters:
    """The adapters of one model.

    Args:
        model: gets the adapters; everything else in it is frozen.
        config: rank, scale and target modules.

    Raises:
        UserError: peft is missing, or no module fits.
    """

    def __init__(self, model: Any, config: TrainConfig) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise UserError("--lora needs peft: pip install 'softeval[lora]'") from None
        targets = list(config.lora_target_modules)
        torch.manual_seed(config.seed)  # the adapters' first values are drawn
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
            task_type="CAUSAL_LM",
        )
        try:
            inject_adapter_in_model(lora, model, adapter_name=_NAME)
        except ValueError as error:
            raise UserError(f"--lora-target-modules: {str(error).splitlines()[0]}") from error
        self._model = model
        self._config = lora
        self._layers = dict(_tuner_layers(model))
        plain = (model.get_input_embeddings(), model.get_output_embeddings())
        if any(layer in self._layers.values() for layer in plain):
            raise UserError("--lora-target-modules: embeddings and head cannot get an adapter")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self._try_merging()

    def _try_merging(self) -> None:
        """Find out now, not after hours, whether these layers can be exported."""
        try:
            with self.merged():
                pass
        except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"--lora: adapters of this architecture cannot be merged ({reason}); name plain linear "
                "layers by --lora-target-modules"
            ) from error

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model as it was before training."""
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    @contextmanager
    def merged(self) -> Iterator[dict[str, Tensor]]:
        """The model with the adapters added to its weights and rounded to their precision.

        This is what is exported, so it is also what is validated. Gives the state of an ordinary
        model; afterwards the weights are what they were, to the bit.
        """
        kept: list[tuple[Tensor, Tensor]] = []
        with self.disabled(), torch.no_grad():
            try:
                for layer in self._layers.values():
                    weight = _adapted(layer)
                    kept.append((weight, weight.data))
                    delta = layer.get_delta_weight(_NAME).float()
                    weight.data = (weight.float() + delta).to(weight.dtype)
                yield {
                    _BASE_LAYER.sub("", name): tensor
                    for name, tensor in self._model.state_dict().items()
                    if ".lora_" not in name
                }
            finally:
                for weight, before in reversed(kept):
                    weight.data = before

    def save(self, folder: Path, base: str) -> None:
        """Write the adapters as peft reads them: adapter_config.json, adapter_model.safetensors.

        Args:
            folder: an own one, since transformers would add an adapter that lies beside a model to it.
            base: name of the model they are for.
        """
        from peft.utils import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder.mkdir()
        state = get_peft_model_state_dict(self._model, adapter_name=_NAME)
        named = {f"base_model.model.{n}": t.detach().cpu().contiguous() for n, t in state.items()}
        save_file(named, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
        config = replace(self._config, base_model_name_or_path=base, inference_mode=True)
        config.save_pretrained(str(folder))

    def _switch(self, enabled: bool) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(enabled)
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_("lora_" in name)


def _adapted(layer: Any) -> Tensor:
    """The weight that a layer's adapter is for; one of several, in experts that are fused."""
    named = getattr(layer, "parameter_name", None)
    base = layer.get_base_layer()
    return base.weight if named is None else getattr(base, named)


def _tuner_layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module
