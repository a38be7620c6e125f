"""A tiny model with room for the paper's prompt, tasks on a few rows, and a store in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.instance import Instance
from tiny import PADDED, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from softeval.lmeval import load_tasks
from softeval.lmeval.adapter import SoftEvalLM
from softeval.model.language_model import LanguageModel, wrap_model
from softeval.records import Generation, SampleKey, ScoreTuple
from softeval.tasks.catalogue import find_benchmarks
from softeval.tasks.local_data import find_file, read_rows

CAPS = {"max_cot_tokens": 12, "max_answer_tokens": 6}


@cache
def roomy_lm() -> LanguageModel:
    """A random Llama over characters with a context of 2048; never to be changed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=PADDED,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    return wrap_model(model, tiny_tokenizer(), "roomy")


def save_lm(folder: Path) -> str:
    """The same checkpoint on disk."""
    roomy_lm().model.save_pretrained(folder)
    roomy_lm().tokenizer.save_pretrained(folder)
    return str(folder)


def write_data(folder: Path, rows: int = 5) -> str:
    """GSM8K-like and ARC-like rows."""
    gsm8k = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(rows)]
    arc = [
        {
            "question": f"Which is number {i}?",
            "choices": {"text": ["zero", f"it is {i}", "none"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        }
        for i in range(rows)
    ]
    for name, table in (("gsm8k_test", gsm8k), ("arc_easy_test", arc)):
        text = "".join(json.dumps(row) + "\n" for row in table)
        (folder / f"{name}.jsonl").write_text(text)
    return str(folder)


def first_rows(
    data: Path,
    folder: Path,
    names: Sequence[str],
    rows: int = 12,
    wanted: Callable[[dict[str, Any]], object] = bool,
) -> str:
    """The first rows of real benchmarks, which a small limit asks; all take ten seconds to read."""
    for benchmark in find_benchmarks(names):
        whole, _ = find_file(data, benchmark.names, benchmark.test_split)
        lines = (json.dumps(row) + "\n" for row in filter(wanted, read_rows(whole, ())))
        name = f"{benchmark.names[0]}_{benchmark.test_split}.jsonl"
        (folder / name).write_text("".join(islice(lines, rows)))
    return str(folder)


def adapter(mode: str = "soft_sample", num_samples: int = 3, **more: Any) -> SoftEvalLM:
    """The adapter around the tiny model."""
    return SoftEvalLM(roomy_lm(), mode=mode, num_samples=num_samples, **(CAPS | more))


def evaluate(
    lm: SoftEvalLM, data_dir: str, task: str = "gsm8k", limit: int | None = None, **more: Any
) -> dict[str, Any]:
    """One task through lm-eval, loaded to agree with the adapter.

    `lm_eval.evaluate`, not `simple_evaluate`: the latter asks pip and git about the machine, which
    takes seconds.
    """
    options = lm.options
    metadata = {"num_samples": options.samples_under(lm.mode), "protocol": options.protocol}
    metadata["data_dir"] = data_dir
    loaded = load_tasks([task], **metadata, **CAPS)
    result = lm_eval.evaluate(lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=0, **more)
    assert result is not None
    return dict(result)


def texts(result: dict[str, Any], task: str = "gsm8k") -> dict[int, list[str]]:
    """Generated texts by question."""
    return {s["doc_id"]: list(s["resps"][0]) for s in result["samples"][task]}


def request(
    context: str = "a prompt", arguments: dict[str, Any] | None = None, repeats: int = 1
) -> Instance:
    """A generation request of a task that is not ours."""
    given = {"until": []} if arguments is None else arguments
    return Instance("generate_until", {}, (context, given), 0, ("foreign", 0, repeats))


@dataclass
class MemoryStore:
    """A store that may break after a number of additions, like a process that is killed."""

    breaks_after: int | None = None
    generations: dict[tuple[SampleKey, str], Generation] = field(default_factory=dict)
    scores: dict[tuple[str, int, int], ScoreTuple] = field(default_factory=dict)
    prompts: dict[tuple[str, int], str] = field(default_factory=dict)
    additions: int = 0

    def get(self, key: SampleKey, mode: str) -> Generation | None:
        return self.generations.get((key, mode))

    def add(self, generation: Generation, prompt: str) -> None:
        self._count()
        self.generations[generation.key, generation.mode] = generation
        self.prompts[generation.key.task, generation.key.doc_id] = prompt

    def verdict(self, key: SampleKey, mode: str) -> None:
        """Not judged here."""

    def get_likelihood(self, task: str, doc_id: int, choice: int) -> ScoreTuple | None:
        return self.scores.get((task, doc_id, choice))

    def add_likelihood(self, task: str, doc_id: int, choice: int, result: Any) -> None:
        self._count()
        self.scores[task, doc_id, choice] = result

    def _count(self) -> None:
        if self.breaks_after is not None and self.additions >= self.breaks_after:
            raise KeyboardInterrupt
        self.additions += 1


def evaluate_ranks(lm: SoftEvalLM, data_dir: str, tasks: list[str]) -> dict[str, Any] | None:
    """One process's part under torchrun; scores and texts of each task in the first process."""
    assert lm.world_size == 2
    found: dict[str, Any] = {}
    for task in tasks:
        loaded = load_tasks([task], num_samples=lm.options.num_samples, data_dir=data_dir, **CAPS)
        result = lm_eval.evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0)
        if result is not None:
            done: dict[str, Any] = dict(result)
            generated = {} if task == "arc_easy" else texts(done, task)
            found[task] = {"scores": done["results"][task], "texts": generated}
    torch.distributed.destroy_process_group()
    return found or None
