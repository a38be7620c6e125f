"""`softeval run` and lm-eval's own front door give the same scores on the real questions."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from adapter_cases import first_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import softeval

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unasked")]

TASKS = ["gsm8k", "math500", "olympiadbench", "hellaswag", "mmlu", "arc_challenge", "arc_easy"]
CHOICE_TASKS = TASKS[3:]
LIMIT, CAPS = 2, {"max_cot_tokens": 6, "max_answer_tokens": 3}


@pytest.fixture(scope="module")
def checkpoint(shared, tmp_path_factory):
    """A random model with room for real questions, and a real tokenizer of few tokens."""
    path = tmp_path_factory.mktemp("stock") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def stock(model_args: dict[str, Any], tasks: list[str], limit: int) -> dict[str, Any]:
    """Results of lm-eval's own simple_evaluate, with the model named as a user names it."""
    import lm_eval

    from softeval.lmeval import task_manager

    found = lm_eval.simple_evaluate(
        model="softeval",
        model_args=model_args,
        tasks=tasks,
        limit=limit,
        task_manager=task_manager(**model_args),
        bootstrap_iters=0,
    )
    assert found is not None
    return dict(found)["results"]  # type: ignore[return-value]


def test_stock_lm_eval_gives_the_scores_of_softeval_run(checkpoint, shared, tmp_path):
    data = first_rows(shared / "data", tmp_path, TASKS)
    how = {"num_samples": 2, "data_dir": data, "device": "cpu", **CAPS}
    asked = {"model": checkpoint, "modes": ["soft_sample"], "output_path": str(tmp_path / "run")}
    run = softeval.evaluate(tasks=TASKS, limit=LIMIT, **asked, **how)
    ours = json.loads((run.path / "results.json").read_text())["results"]
    theirs = stock({"pretrained": checkpoint, "mode": "soft_sample", **how}, TASKS, LIMIT)
    compared = 0
    for task in TASKS:
        mine = ours[task if task in CHOICE_TASKS else f"{task}@soft_sample"]
        for metric, value in theirs[task].items():
            if isinstance(value, float) and "stderr" not in metric:
                assert mine[metric] == pytest.approx(value, rel=1e-5), (task, metric)
                compared += 1
    assert compared >= 2 * len(TASKS)


def test_scores_that_are_not_zero_agree_too(tmp_path):
    """On the bundled checkpoint, which does answer some questions, sampled and greedily."""
    from softeval.model.language_model import BUNDLED_CHECKPOINT

    how = {"num_samples": 4, "max_cot_tokens": 64, "device": "cpu"}
    modes, path = ["hard_greedy", "hard_sample"], str(tmp_path / "run")
    run = softeval.evaluate(tasks=["arithmetic"], modes=modes, limit=12, output_path=path, **how)
    table = run.scores()
    for mode, ks in zip(modes, [(1,), (1, 2, 4)], strict=True):
        mine = table[table["mode"] == mode]
        scores: dict[int, float] = dict(zip(mine["k"], mine["value"], strict=True))
        named = {"pretrained": BUNDLED_CHECKPOINT, "mode": mode}
        theirs = stock(named | how, ["arithmetic"], 12)["arithmetic"]
        assert {name for name in theirs if re.match(r"pass@\d+,", name)} == {
            f"pass@{k},none" for k in ks
        }
        for k in ks:
            assert scores[k] == pytest.approx(theirs[f"pass@{k},none"], rel=1e-9)
        assert 0 < scores[1] < 1
