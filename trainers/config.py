"""The configuration of `softeval train`: what it asks for beside the options of `softeval.options`.

Recipes take their keys from here, too. Precedence is command line, environment (SOFTEVAL_TRAIN_*),
recipes in order, default; the defaults are the paper's. Where the paper is silent the help says so.
Names are TRL's where the meaning agrees.

Knows nothing of tensors, models or files of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, field_validator, model_validator

from softeval.errors import UserError, suggest
from softeval.modes import Mode, get_mode
from softeval.options import (
    DEFAULT_MAX_COT_TOKENS,
    BatchSize,
    Pairs,
    mode_option,
    model_option,
    option,
    output_option,
    split_list,
    validated,
)
from softeval.scoring.judge import Rules
from softeval.tasks.catalogue import is_bundled
from softeval.tasks.local_data import is_jsonl
from softeval.trainers.algorithms import LossOptions, check_rollouts
from softeval.trainers.learners.selection import SelectionOptions, check_selection
from softeval.trainers.learners.stages import NEUTRAL, Curriculum, check_stages, read_curriculum

CURRICULUM = "coconut"
"""The method that learns from worked solutions, stage by stage, not from rewards."""
if TYPE_CHECKING:
    from softeval.model.stopping import Limits

METHODS = ("hard", "soft", "fuzzy")
"""The paper's methods: each trains with the sampled mode of the family of that name."""
DATASETS = ("gsm8k", "math", "deepscaler", "demo")
SHORT_MAX_COT_TOKENS = {"gsm8k": 128, "demo": 64}
OVERLAPS = {"demo": ("arithmetic",)}
DEFAULT_OVERLAPS = ("gsm8k", "math500", "olympiadbench")

_PANELS = ("Task", "Policy", "Optimizer", "Step", "Validation and checkpoints")
task_option, policy_option, optimizer_option, step_option, selection_option = (
    partial(option, panel=title) for title in _PANELS
)


class TrainConfig(LossOptions, SelectionOptions):
    """Everything that decides a training run (method sections 1-3; paper section 4, appendix D)."""

    model_config = ConfigDict(allow_inf_nan=False)

    dtype: Literal["auto", "float32", "bfloat16"] = model_option(
        "auto", "Precision the model computes in; auto is the checkpoint's own."
    )
    lora: bool = model_option(
        False,
        "Train low-rank adapters (peft) instead of all weights. They usually want about ten times the "
        "learning rate, and the defaults are the paper's for all weights.",
    )
    lora_rank: int = model_option(16, "Rank of the adapters.", ge=1)
    lora_alpha: int = model_option(32, "Scale of the adapters: alpha / rank.", ge=1)
    lora_target_modules: tuple[str, ...] = model_option(
        ("all-linear",), "Modules that get adapters; never embeddings or head."
    )

    dataset: str = task_option(
        "demo",
        "gsm8k, math, deepscaler, demo, a bundled task such as arithmetic_hidden_10, or a JSONL file with a"
        " question and an answer.",
    )
    data_dir: str | None = task_option(
        None, "Directory with JSONL files to read instead of the hub."
    )
    exclude_tasks: tuple[str, ...] | None = task_option(
        None,
        "Evaluation sets whose questions are dropped from training; none for no check. Default: "
        "arithmetic for demo, a bundled task's own, else gsm8k,math500,olympiadbench.",
    )
    include_path: str | None = task_option(
        None, "Folder with YAMLs of tasks of your own, for --exclude-tasks."
    )
    limit: int | None = task_option(None, "Use only the first questions of the training set.", ge=2)
    max_prompt_tokens: int | None = task_option(
        None, "Drop questions whose prompt is longer; they are counted.", ge=1
    )

    method: str = policy_option(
        "soft",
        "CoT sampled in training: hard, soft or fuzzy tokens, or any sampled mode by name; coconut "
        "learns from worked solutions instead (--curriculum), with --prompts-per-step of them.",
    )
    curriculum: Pairs = policy_option(
        {},
        "Stages of coconut, as name=value,…: latents for each step (2), stages (3), updates of one "
        "(200), first for stage 0 (twice that), mixing of earlier stages (0).",
    )
    temperature: float | None = mode_option(
        None, "CoT temperature τ. Default: the mode's (hard 1, soft 0.5, fuzzy 0.0001).", gt=0
    )
    noise_scale: float | None = mode_option(
        None, "Noise scale γ of soft and fuzzy. Default: 0.33.", gt=0
    )
    answer_temperature: float = policy_option(
        1.0, "Temperature of the answer tokens (not in the paper).", gt=0
    )
    max_cot_tokens: int | None = policy_option(
        None,
        "Cap on the CoT. Default: 128 for gsm8k, 64 for demo and bundled tasks, else 512; think: 8192.",
        ge=1,
    )
    max_answer_tokens: int | None = policy_option(
        None, "Cap on the answer. Default: 32 (think: 1024).", ge=1
    )

    max_steps: int = step_option(4000, "Updates.", flags=("--steps",), ge=1)
    prompts_per_step: int = step_option(2, "Questions B of an update.", ge=1)
    num_generations: int = step_option(
        32, "Samples G of each question.", flags=("--group-size",), ge=1
    )
    micro_batch_size: BatchSize = step_option(
        "auto", "Sequences of one training pass; auto fits memory."
    )
    decode_batch_size: BatchSize = step_option(
        "auto", "Sequences decoded at a time; it never changes a sample."
    )
    loss_chunk_size: int | None = step_option(
        None,
        "Positions whose logits are held at once. Default: 8 M logits on a CPU, 64 M on CUDA.",
        ge=1,
    )
    gradient_checkpointing: bool = step_option(
        False, "Recompute activations in the backward pass: less memory, more time."
    )
    shard: Literal["auto", "none", "full"] = step_option(
        "auto",
        "Under torchrun, full: each process holds its part of float32 masters, gradients and moments "
        "(FSDP2); none: each holds all. auto shards what would not fit otherwise.",
    )
    device_memory: float | None = step_option(
        None,
        "GiB that the run may take on each device; --dry-run and the start refuse what takes more. "
        "Default: what the card, or without one the host, has.",
        gt=0,
    )
    scorer: Rules = step_option(
        Rules.SOFTEVAL, "Rules behind the reward; math-verify's verdicts are the paper's."
    )
    dynamic_sampling: bool = step_option(
        False, "Replace groups of equal rewards by new questions (DAPO)."
    )
    max_refills: int = step_option(4, "Rounds of replacement before equal groups are kept.", ge=1)
    skip_zero_advantage: bool = step_option(
        True, "Leave sequences of advantage 0 out of the training pass."
    )

    learning_rate: float = optimizer_option(
        6e-6,
        "Peak learning rate. Paper: Llama 3.2 3B 6e-6, Llama 3.1 8B 3e-6, Qwen 2.5 3B 8e-6.",
        gt=0,
    )
    warmup_steps: int = optimizer_option(20, "Steps of linear warm-up.", ge=0)
    lr_schedule: Literal["cosine", "constant"] = optimizer_option(
        "cosine",
        "After the warm-up: a cosine down to the last step, or constant, with which the same command "
        "and more --steps goes on from where a run ended.",
    )
    min_lr_ratio: float = optimizer_option(
        0.0, "End of the cosine as a share of the peak.", ge=0, le=1
    )
    weight_decay: float = optimizer_option(0.0, "AdamW's (not in the paper).", ge=0)
    adam_beta1: float = optimizer_option(0.9, "AdamW's.", ge=0, lt=1)
    adam_beta2: float = optimizer_option(0.999, "AdamW's.", ge=0, lt=1)
    adam_epsilon: float = optimizer_option(1e-8, "AdamW's.", gt=0)
    max_grad_norm: float = optimizer_option(
        1.0, "Gradients are scaled to this norm; 0 for never (not in the paper).", ge=0
    )
    master_weights: bool = optimizer_option(
        True, "Update float32 copies of half-precision weights."
    )

    eval_steps: int = selection_option(
        100, "Greedy validation every so many steps, and at both ends.", ge=1
    )
    save_steps: int = selection_option(100, "Save the state every so many steps.", ge=1)
    save_total_limit: int = selection_option(
        2, "States kept; an older one stands in for a torn one.", ge=2
    )

    seed: int = output_option(0, "Seed of data order and of every sample.", ge=0)
    output_path: str | None = output_option(
        None,
        "Directory of the run; the same command continues it. Default: runs/train-….",
        flags=("-o",),
    )
    gradient_split_steps: int = output_option(
        50, "Split the gradient norm by CoT and answer every so many steps; 0 never.", ge=0
    )
    kl_steps: int = output_option(
        50, "Measure the KL to the initial model every so many steps; 0 never.", ge=0
    )
    log_completions_steps: int = output_option(
        50, "Keep a table of sample rollouts every so many steps; 0 never.", ge=0
    )
    num_completions: int = output_option(4, "Rollouts in such a table.", ge=1)
    report_to: tuple[str, ...] = output_option(
        ("tensorboard",),
        "Trackers besides metrics.jsonl: tensorboard, wandb, trackio or others of accelerate; none.",
    )
    push_to_hub: str | None = output_option(
        None,
        "Hub repository, as user/name, that gets the best checkpoint at the end; private if new.",
    )

    @field_validator(
        "exclude_tasks",
        "report_to",
        "lora_target_modules",
        "validation_sets",
        "validation_modes",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Take "a,b" for ("a", "b") and "none" for nothing."""
        names = split_list(value)
        return None if names is None else tuple(name for name in names if name != "none")

    @field_validator("dataset")
    @classmethod
    def _known_data(cls, value: str) -> str:
        if value in DATASETS or is_jsonl(value) or is_bundled(value):
            return value
        known = f"{', '.join(DATASETS)}, nor a .jsonl file{suggest(value, DATASETS)}"
        raise ValueError(f"{value!r} is none of {known}")

    @model_validator(mode="before")
    @classmethod
    def _without_rollouts(cls, values: Any) -> Any:
        """A curriculum has one sequence of each question, and nothing to measure on rollouts."""
        if values.get("method") != CURRICULUM:
            return values
        return NEUTRAL | values

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        adapted = [name for name in _LORA if name in self.model_fields_set]
        if adapted and "lora" not in self.model_fields_set:
            raise ValueError(f"--{adapted[0].replace('_', '-')} needs --lora, which was not given")
        if self.lr_schedule == "constant" and self.min_lr_ratio > 0:
            raise ValueError("--min-lr-ratio is the end of a cosine; leave it or --lr-schedule out")
        self._usable_mode()
        check_selection(self)
        self._shardable()
        (check_stages if self.is_staged else check_rollouts)(self)
        return self

    def _usable_mode(self) -> None:
        """Refuse a mode that cannot be trained."""
        try:
            mode = self.mode
        except UserError as error:
            raise ValueError(f"--method {self.method}: {error}") from None
        if not (mode.has_density or self.is_staged):
            raise ValueError(f"--method {self.method}: {mode.name} has no density to train with")

    def _shardable(self) -> None:
        """Refuse what does not go together with sharded weights."""
        if self.shard != "full":
            return
        if self.is_staged:
            raise ValueError(
                f"--shard full: {CURRICULUM} has passes of its own for each sequence; leave it out"
            )
        if not self.master_weights:
            raise ValueError("--shard full holds float32 masters; leave out --no-master-weights")
        if self.gradient_split_steps and "gradient_split_steps" in self.model_fields_set:
            raise ValueError(
                "--gradient-split-steps is not measured on sharded gradients; leave it out, or --shard full"
            )

    @property
    def is_staged(self) -> bool:
        """Whether the run learns from worked solutions by stages."""
        return self.method == CURRICULUM

    @property
    def stages(self) -> Curriculum:
        """The stages of such a run.

        Raises:
            UserError: an option that they do not have.
        """
        return read_curriculum(self.curriculum)

    @property
    def mode(self) -> Mode:
        """The sampled mode that training draws from; the one that a curriculum ends with.

        Raises:
            UserError: no such mode, or an option that it does not have.
        """
        name = f"{self.method}_sample" if self.method in METHODS else self.method
        options = self.mode_options()
        if self.is_staged:
            options["latents"] = self.stages.thoughts(self.stages.last)
        return get_mode(name, **options)

    @property
    def cot_cap(self) -> int:
        """Cap on the CoT, the dataset's own where none is set (paper section 4)."""
        name = "demo" if is_bundled(self.dataset) else self.dataset
        short = SHORT_MAX_COT_TOKENS.get(name, DEFAULT_MAX_COT_TOKENS)
        return self.max_cot_tokens or self.selected_protocol().max_cot_tokens or short

    @property
    def limits(self) -> Limits:
        """Caps on CoT and answer, and the protocol."""
        from softeval.model.stopping import Limits

        protocol = self.selected_protocol()
        return Limits(self.cot_cap, self.max_answer_tokens or protocol.max_answer_tokens, protocol)

    @property
    def overlaps(self) -> tuple[str, ...]:
        """Evaluation sets whose questions must not be trained on."""
        if self.exclude_tasks is not None:
            return self.exclude_tasks
        default = (self.dataset,) if is_bundled(self.dataset) else DEFAULT_OVERLAPS
        return OVERLAPS.get(self.dataset, default)

    @property
    def sequences(self) -> int:
        """Sequences of one update."""
        return self.prompts_per_step * self.num_generations

    @property
    def soft_score_error(self) -> str | None:
        """`score_error` with its default; None where the mode adds no Gaussian noise."""
        return (self.score_error or "recorded") if self.mode.is_gaussian else None


_LORA = ("lora_rank", "lora_alpha", "lora_target_modules")


def make_config(
    explicit: Mapping[str, Any], recipe: Mapping[str, Any] | None = None
) -> TrainConfig:
    """The configuration from explicit options over a recipe over the defaults.

    Raises:
        UserError: unknown key (with a suggestion) or unusable value.
    """
    return validated(TrainConfig, {**(recipe or {}), **explicit})
