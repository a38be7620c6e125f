"""Tiny models, rollouts and oracles that the trainer's tests share."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from softeval.model.language_model import LanguageModel, wrap_model
from softeval.records import AnswerStop, Generation, SampleKey, StopReason
from softeval.scoring.judge import Verdict
from softeval.tasks import arithmetic
from softeval.trainers.checkpoints import TrainingRecord
from softeval.trainers.config import TrainConfig, make_config
from softeval.trainers.learners.rewards import RewardInput
from softeval.trainers.run_files import METRICS
from softeval.trainers.trainer import TrainResult, train


def tiny_llama(
    vocab: int = 64, width: int = 16, layers: int = 2, seed: int = 0, **changes: Any
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,  # logits that differ, so that a mixture is no average
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**(config | changes))).eval()


def tiny_lm(
    dtype: torch.dtype = torch.float32, logits_dtype: str = "model", **changes: Any
) -> LanguageModel:
    from softeval.trainers.demo_base import build_tokenizer

    tokenizer = build_tokenizer()
    model = tiny_llama(vocab=len(tokenizer), **changes).to(dtype)
    return wrap_model(model, tokenizer, "tiny", logits_dtype=logits_dtype)


def drawn_reward(sample: RewardInput) -> float:
    """A reward that draws on the generators whose states a run keeps."""
    return sample.reward + random.random()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, in order."""
    text = (folder / METRICS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def record(**changes: Any) -> TrainingRecord:
    values: dict[str, Any] = {
        "method": "soft",
        "dataset": "gsm8k",
        "train_seed": 0,
        "base": "Qwen/Qwen2.5-3B-Instruct",
        "step": 3,
        "mode": {"name": "soft_sample", "temperature": 0.5, "noise_scale": 0.33, "sigma": 0.1},
        "logits_dtype": "model",
        "validation": [{"step": 0.0, "success": 0.5}],
        "selected": "best",
        "command": "softeval train",
        "config": {},
        "data": {},
        "self_check": "passed",
        "versions": {},
    }
    return TrainingRecord(**(values | changes))


def made_generation(
    lm: LanguageModel,
    lengths: tuple[int, int, int, int] = (4, 5, 2, 3),
    seed: int = 0,
    sample: int = 0,
    inputs: bool = True,
) -> Generation:
    """Random tokens and fed vectors: prompt, CoT, prefill and answer of the given lengths."""
    rng = np.random.default_rng((seed, sample))
    prompt, cot, prefill, answer = (rng.integers(3, lm.vocab, n) for n in lengths)
    fed = rng.normal(size=(lengths[1], lm.embedding.width)) * lm.embedding.rms
    empty = np.zeros(lengths[1], dtype=np.float32)
    return Generation(
        key=SampleKey("made", seed, sample),
        mode="soft_sample",
        cot_text="",
        prefill_text="",
        answer=None,
        answer_text="",
        stop_reason=StopReason.LENGTH,
        answer_stop=AnswerStop.LENGTH,
        prompt_ids=prompt,
        shadow_ids=cot,
        prefill_ids=prefill,
        answer_ids=answer,
        entropy=empty,
        mode_entropy=empty,
        top1_prob=empty,
        top_ids=np.zeros((lengths[1], 0), dtype=np.int32),
        top_probs=np.zeros((lengths[1], 0), dtype=np.float32),
        inputs=torch.from_numpy(fed).to(lm.dtype) if inputs else None,
        seconds=0.0,
    )


def tiny_gpt2(tied: bool, width: int = 8) -> LanguageModel:
    """A float64 model without the float32 islands that Llama's norms have."""
    from softeval.trainers.demo_base import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=width,
        n_layer=1,
        n_head=2,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
    )
    return wrap_model(GPT2LMHeadModel(config).double().eval(), tokenizer, "tiny")


def directional_derivative(
    function: Any, tensor: torch.Tensor, direction: torch.Tensor, step: float = 1e-6
) -> Any:
    """Central difference of a function as the tensor moves along a direction."""
    values = []
    for sign in (1, -1):
        tensor.data.add_(direction, alpha=sign * step)
        values.append(function().detach())
        tensor.data.add_(direction, alpha=-sign * step)
    return (values[0] - values[1]) / (2 * step)


def kept_folder() -> Path:
    """An empty one for what several tests of this process read, and none changes."""
    return Path(mkdtemp(dir=os.environ.get("SOFTEVAL_CACHE")))


@cache
def few_questions() -> str:
    """A file of the demo's first questions, which are read in no time."""
    names = ("question", "answer", "solution")
    asked = arithmetic.draw_splits()["train"][:24]
    rows = [(q.question, str(q.answer), "\n".join(q.careful_steps)) for q in asked]
    named = [dict(zip(names, row, strict=True)) for row in rows]
    return write_rows(kept_folder() / "few.jsonl", named)


def tiny_config(**changes: Any) -> TrainConfig:
    """Four questions of six samples, two steps, nothing beyond metrics.jsonl."""
    options = {
        "dataset": few_questions(),
        "exclude_tasks": (),
        "max_steps": 2,
        "prompts_per_step": 4,
        "num_generations": 6,
        "max_cot_tokens": 24,
        "max_answer_tokens": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "validation_size": 4,
        "validation_modes": (),
        "limit": 24,
        "eval_steps": 2,
        "save_steps": 1,
        "device": "cpu",
        "report_to": (),
    }
    return make_config(options | changes)


def save_tiny(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A tiny random checkpoint on disk, with room for the demo's prompts."""
    lm = tiny_lm(dtype, **changes)
    lm.model.save_pretrained(str(folder))
    lm.tokenizer.save_pretrained(str(folder))
    return folder


def save_boxing(folder: Path) -> Path:
    """A tiny checkpoint that closes a box now and then: with `BoxJudge`, some samples are rewarded."""
    return save_tiny(folder, initializer_range=0.05)


BOXING: dict[str, Any] = {"seed": 0, "max_cot_tokens": 6, "max_answer_tokens": 8}
"""Options with which both updates of that checkpoint move."""


LEAST: dict[str, Any] = {"num_generations": 2, "prompts_per_step": 1, "max_cot_tokens": 4}
LEAST |= {"max_steps": 1}
"""Options of the least that is an update, whether or not it moves."""


@cache
def boxing_model() -> str:
    return str(save_boxing(kept_folder() / "model"))


class BoxJudge:
    """Any closed box is a wrong answer. Gibberish would keep the real scorer's workers busy."""

    def __init__(self, rules: str) -> None:
        self.rules = rules

    def score_many(self, items: list[tuple[str | None, str, Any]]) -> list[Verdict]:
        return [Verdict(False, "no_answer" if item[0] is None else "ok") for item in items]


def own_questions(path: Path, count: int = 12, **changed: str) -> Path:
    """A user's own questions; `changed` replaces labels, by question."""
    rows = [{"question": f"q{n}", "answer": changed.get(f"q{n}", "1")} for n in range(count)]
    write_rows(path, rows)
    return path


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


LINEAR = {"adam_epsilon": 1.0, "learning_rate": 0.1}
"""An update that moves by lr·g. AdamW's own divides g by its size, so that a gradient of which only
rounding is left moves a weight as far as any other: what rounds apart is then a whole step apart."""


def relative_distance(ones: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> float:
    """‖one - other‖ / ‖other‖ over all tensors together."""
    one, other = (torch.cat([t.detach().double().flatten() for t in ts]) for ts in (ones, others))
    return float((one - other).norm() / other.norm())


def moved_apart(one: Path, other: Path, start: dict[str, torch.Tensor]) -> float:
    """How far apart two exports lie, as a share of how far training has moved; NaN if it has not."""
    ones, others = weights(one), weights(other)
    return relative_distance(
        [ones[name] - start[name] for name in ones], [others[name] - start[name] for name in ones]
    )


METHODS = {
    "hard": {"method": "hard"},
    "soft": {"method": "soft", "temperature": 1.0, "noise_scale": 1.0},
    "fuzzy": {"method": "fuzzy", "logits_dtype": "bfloat16", "noise_scale": 1.0},
}


STAGED: dict[str, Any] = {"method": "coconut", "num_generations": 1}
"""COCONUT's curriculum, which has one sequence of a question."""

MOVING: dict[str, dict[str, Any]] = {
    "hard": {"seed": 0},
    "soft": {"seed": 8, "max_cot_tokens": 16},
    "fuzzy": {"seed": 22, "max_cot_tokens": 16},
}
"""Options with which each of the first three updates moves: not every group has equal rewards."""


def run(folder: Path, **changes: Any) -> TrainResult:
    options = {"max_steps": 3, "output_path": str(folder)} | changes
    return train(tiny_config(**options), quiet=True)


def command(folder: Path, **changes: Any) -> list[str]:
    """The words after `python` that do the same as `run`."""
    values = tiny_config(output_path=str(folder), **changes)
    words = ["-m", "softeval", "train", "--quiet"]
    for name, value in values.model_dump(mode="json", exclude_defaults=True).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [
                f"--{flag}",
                ",".join(value) or "none" if isinstance(value, list) else str(value),
            ]
    return words


def timeless(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "memory/"))}
        for line in read_metrics(folder)
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "model.safetensors"))


def state_tensors(place: Path) -> dict[str, torch.Tensor]:
    """What a state directory holds, by name."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    listed = FileSystemReader(place).read_metadata().state_dict_metadata
    found = {n: torch.empty(m.size, dtype=m.properties.dtype) for n, m in listed.items()}
    load(found, checkpoint_id=place, no_dist=True)
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
