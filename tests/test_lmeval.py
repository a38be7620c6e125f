"""The lm-eval adapter: generation, log-likelihoods, stores, and lm-eval's pitfalls."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import torch
from adapter_cases import (
    CAPS,
    MemoryStore,
    adapter,
    evaluate,
    first_rows,
    request,
    roomy_lm,
    save_lm,
    texts,
    write_data,
)
from conftest import mostly_slow
from lm_eval.models.huggingface import HFLM

from softeval.decoding.generate import generate
from softeval.lmeval import load_tasks
from softeval.lmeval.adapter import SoftEvalLM
from softeval.lmeval.requests import GenText
from softeval.modes import get_mode
from softeval.protocol import CHAT, PAPER
from softeval.records import SampleKey, ScoreTuple
from softeval.tasks.catalogue import find_benchmarks
from softeval.tasks.data import load_problems

pytest_plugins = ("command_line_fixtures",)


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    return write_data(tmp_path)


# Generation


@pytest.mark.parametrize(
    "mode",
    mostly_slow(["hard_greedy", "hard_sample", "soft_greedy", "fuzzy_sample"], ["fuzzy_sample"]),
)
def test_stock_evaluation_gives_what_generate_gives(mode: str, data_dir: str) -> None:
    lm = adapter(mode, 2, seed=7)
    found = texts(evaluate(lm, data_dir))
    problems, _ = load_problems(find_benchmarks(["gsm8k"])[0], data_dir)
    prompts = [PAPER.ask(problem.question) for problem in problems]
    count = 1 if lm.mode.is_greedy else 2
    expected = generate(roomy_lm(), prompts, mode, count, 7, **CAPS, task="gsm8k")
    assert found == {i: [g.text for g in samples] for i, samples in enumerate(expected)}


def test_samples_differ_and_keep_their_place(data_dir: str) -> None:
    lm = adapter("hard_sample", 3)
    result = evaluate(lm, data_dir)
    for sample in result["samples"]["gsm8k"]:
        answers = sample["resps"][0]
        assert [text.meta["sample"] for text in answers] == [0, 1, 2]
        assert len(set(answers)) == 3
        for text in answers:
            assert text.generation.key == SampleKey("gsm8k", sample["doc_id"], text.meta["sample"])


def test_results_are_in_lm_evals_shape(data_dir: str) -> None:
    result = evaluate(adapter("hard_sample", 4), data_dir)
    scores = result["results"]["gsm8k"]
    assert {"pass@1,none", "pass@2,none", "pass@4,none", "no_answer,none"} <= set(scores)
    assert result["versions"]["gsm8k"] == 1.0
    assert result["n-samples"]["gsm8k"] == {"original": 5, "effective": 5}


@pytest.mark.usefixtures("no_defaults", "unasked")
def test_simple_evaluate_records_the_model(data_dir: str) -> None:
    tasks = load_tasks(["gsm8k"], data_dir=data_dir, num_samples=2, **CAPS)["tasks"]
    lm = adapter("hard_sample", 2)
    found = lm_eval.simple_evaluate(model=lm, tasks=list(tasks.values()), bootstrap_iters=0)
    result: Any = found
    assert result["results"]["gsm8k"]["pass@2,none"] == 0.0
    assert result["config"]["mode"] == "hard_sample"
    assert result["config"]["weights_sha256"] == lm.weights_sha256
    assert texts(result) == texts(evaluate(lm, data_dir))


def test_configure_changes_mode_caps_seed_and_samples(data_dir: str) -> None:
    lm = adapter("hard_sample", 2)
    first = texts(evaluate(lm, data_dir))
    lm.configure(seed=1)
    assert texts(evaluate(lm, data_dir)) != first
    lm.configure(seed=0, mode=get_mode("soft_sample"))
    soft = texts(evaluate(lm, data_dir))
    assert soft != first
    lm.configure(mode=get_mode("soft_sample", noise_scale=1.0))
    assert texts(evaluate(lm, data_dir)) != soft
    lm.configure(mode=get_mode("hard_sample"), num_samples=3)
    assert {i: kept[:2] for i, kept in texts(evaluate(lm, data_dir)).items()} == first


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_batch_size_changes_nothing(batch_size: int, data_dir: str) -> None:
    expected = texts(evaluate(adapter(), data_dir))
    assert texts(evaluate(adapter(batch_size=batch_size), data_dir)) == expected


def test_options_reach_the_mode_and_the_record(data_dir: str) -> None:
    lm = adapter("soft_sample", temperature=0.9, noise_scale="0.5", noise_norm="vector", seed="3")
    info = lm.get_model_info()
    assert lm.mode == get_mode("soft_sample", temperature=0.9, noise_scale=0.5, noise_norm="vector")
    assert (info["mode"], info["temperature"], info["noise_scale"]) == ("soft_sample", 0.9, 0.5)
    assert (info["noise_norm"], info["seed"], info["max_cot_tokens"]) == ("vector", 3, 12)
    assert info["sigma"] == pytest.approx(0.5 * roomy_lm().embedding.rms * 32**0.5)
    assert len(info["weights_sha256"]) == 64
    assert info["model_num_parameters"] == roomy_lm().model.num_parameters()


def test_a_path_is_loaded_with_its_options(tmp_path: Path) -> None:
    path = save_lm(tmp_path)
    lm = SoftEvalLM(path, dtype="bfloat16", logits_dtype="float32", device="cpu", batch_size=2)
    assert lm.language_model.dtype == torch.bfloat16
    assert lm.language_model.logits_dtype == "float32"
    assert (lm.batch_size, lm.options.batch_size) == (2, 2)
    assert lm.get_model_info()["path"] == path


def test_a_greedy_mode_computes_one_sample_for_all_places() -> None:
    lm = adapter("soft_greedy", num_samples=1)
    lm.configure(num_samples=None)
    store = MemoryStore()
    lm.store = store
    wanted = request(repeats=4)
    answers = lm.generate_until([wanted] * 4)
    assert len(store.generations) == 1 and len(set(answers)) == 1 and len(answers) == 4


def test_stop_strings_cut_the_text_of_other_tasks() -> None:
    lm = adapter("hard_greedy", num_samples=1)
    whole = lm.generate_until([request()])[0]
    cut = lm.generate_until([request(arguments={"until": [whole[5:7]], "temperature": 0.0})])[0]
    assert cut == whole[: whole.index(whole[5:7])]
    assert len(cut) <= 5


def test_chat_template_reaches_the_prompt(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, store = adapter("hard_greedy", 1), MemoryStore()
    lm.store = store
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
    monkeypatch.setattr(lm.tokenizer, "chat_template", template)
    evaluate(lm, data_dir, limit=1, apply_chat_template=True)
    prompt = CHAT.ask("What is 0 + 0?")
    assert store.prompts == {("gsm8k", 0): f"[user]{prompt}[bot]"}


@pytest.mark.slow
@pytest.mark.parametrize("templated", [False, True])
def test_bos_is_put_once(templated: bool, shared: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from softeval.model.language_model import wrap_model

    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "llama-3.2-instruct")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    lm = SoftEvalLM(wrap_model(LlamaForCausalLM(config).eval(), tokenizer, "x"), **CAPS)
    text = PAPER.ask("What is 1 + 1?")
    if templated:
        text = lm.apply_chat_template([{"role": "user", "content": text}])
        assert text.startswith(tokenizer.bos_token)
    answer = lm.generate_until([request(text)], disable_tqdm=True)[0]
    assert isinstance(answer, GenText) and answer.generation is not None
    assert list(answer.generation.prompt_ids).count(tokenizer.bos_token_id) == 1
    assert answer.generation.prompt_ids[0] == tokenizer.bos_token_id


# Log-likelihoods


def likelihoods(result: dict[str, Any], task: str) -> list[list[tuple[float, bool]]]:
    return [[r[0] for r in sample["resps"]] for sample in result["samples"][task]]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["hellaswag", "mmlu", "arc_challenge", "arc_easy"])
def test_log_likelihoods_equal_lm_evals_hf_model(task: str, tmp_path: Path, shared: Path) -> None:
    data_dir = first_rows(shared / "data", tmp_path, [task])
    lm = adapter(num_samples=1)
    ours = evaluate(lm, data_dir, task, limit=6)
    theirs = HFLM(save_lm(tmp_path / "tiny"), device="cpu", batch_size=lm.batch_size)
    loaded = load_tasks([task], data_dir=data_dir)
    stock: Any = lm_eval.evaluate(lm=theirs, task_dict=loaded, limit=6, bootstrap_iters=0)
    assert likelihoods(ours, task) == likelihoods(stock, task)
    assert ours["results"][task]["acc,none"] == stock["results"][task]["acc,none"]
    assert "nll_per_token,none" not in stock["results"][task]  # hf does not tell the counts


def test_nll_per_token_equals_plain_torch(data_dir: str) -> None:
    result = evaluate(adapter(), data_dir, "arc_easy")
    nlls, counts = [], []
    for sample in result["samples"]["arc_easy"]:
        context, continuation = sample["arguments"][sample["doc"]["gold"]]
        ids = torch.tensor([roomy_lm().tokenizer.encode(context + continuation)])
        with torch.no_grad():
            log_probs = roomy_lm().model(ids).logits.double().log_softmax(-1)
        n = len(roomy_lm().tokenizer.encode(continuation))
        chosen = log_probs[0, -n - 1 : -1].gather(-1, ids[0, -n:, None])
        nlls.append(-float(chosen.sum()))
        counts.append(n)
    scores = result["results"]["arc_easy"]
    macro = np.mean([nll / n for nll, n in zip(nlls, counts, strict=True)])
    assert scores["nll_per_token,none"] == pytest.approx(macro, abs=1e-5)
    assert scores["nll_per_token_micro,none"] == pytest.approx(sum(nlls) / sum(counts), abs=1e-5)


def test_groups_weigh_every_question_once(data_dir: str) -> None:
    for name in ("arc_challenge", "arc_easy"):
        rows = (Path(data_dir) / "arc_easy_test.jsonl").read_text().splitlines(keepends=True)
        kept = rows if name == "arc_easy" else rows[:2]
        (Path(data_dir) / f"{name}_test.jsonl").write_text("".join(kept))
    loaded = load_tasks(["arc"], data_dir=data_dir)
    result: Any = lm_eval.evaluate(lm=adapter(), task_dict=loaded, bootstrap_iters=0)
    each = [result["results"][name]["nll_per_token,none"] for name in ("arc_challenge", "arc_easy")]
    grouped = result["results"]["arc"]["nll_per_token,none"]
    assert grouped == pytest.approx((2 * each[0] + 5 * each[1]) / 7)


# Stores and resuming


def test_a_broken_run_continues_with_what_is_missing(data_dir: str) -> None:
    whole = texts(evaluate(adapter(), data_dir))
    lm, store = adapter(), MemoryStore(breaks_after=7)
    lm.store = store
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, data_dir)
    assert len(store.generations) == 7
    store.breaks_after = None
    assert texts(evaluate(lm, data_dir)) == whole
    assert store.additions == len(store.generations) == 15
    assert texts(evaluate(lm, data_dir)) == whole
    assert store.additions == 15  # a third run computes nothing


def test_another_mode_finds_nothing_in_the_store(data_dir: str) -> None:
    lm, store = adapter(), MemoryStore()
    lm.store = store
    evaluate(lm, data_dir)
    lm.configure(mode=get_mode("fuzzy_sample"))
    evaluate(lm, data_dir)
    assert store.additions == 30


def test_broken_likelihoods_continue(data_dir: str) -> None:
    whole = evaluate(adapter(), data_dir, "arc_easy")
    lm, store = adapter(batch_size=1), MemoryStore(breaks_after=4)
    lm.store = store
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, data_dir, "arc_easy")
    assert len(store.scores) == 4
    store.breaks_after = None
    resumed = evaluate(lm, data_dir, "arc_easy")
    assert store.additions == len(store.scores) == 15
    assert sorted(store.scores) == [("arc_easy", doc, c) for doc in range(5) for c in range(3)]
    for name in ("acc,none", "nll_per_token,none", "nll_per_token_micro,none"):
        expected = whole["results"]["arc_easy"][name]
        # Other batches: logits below 10, and what every layer adds, round by some 2^-24.
        assert resumed["results"]["arc_easy"][name] == pytest.approx(expected, abs=1e-5)


def test_a_question_is_the_same_however_it_was_chosen(data_dir: str) -> None:
    everything = texts(evaluate(adapter(), data_dir))
    chosen = evaluate(adapter(), data_dir, samples={"gsm8k": [4, 1]})
    assert texts(chosen) == {4: everything[4], 1: everything[1]}


def test_texts_and_scores_survive_pickling() -> None:
    text = adapter("hard_greedy", 1).generate_until([request()])[0]
    again = pickle.loads(pickle.dumps(text))
    assert isinstance(text, GenText) and isinstance(again, GenText)
    assert again == text and again.meta == text.meta and again.generation is None
    score = pickle.loads(pickle.dumps(ScoreTuple(-1.5, True, 3)))
    assert (score, score.n_tokens) == ((-1.5, True), 3)
