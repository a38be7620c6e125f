"""The script that makes the bundled base checkpoint, and the checkpoint that ships."""

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from softeval.protocol import PAPER
from softeval.tasks.arithmetic import draw_problem, draw_splits
from softeval.trainers.demo_base import (
    CHARACTERS,
    DemoBaseConfig,
    build_model,
    build_tokenizer,
    collate,
    completion_loss,
    draw_batches,
    greedy_success,
    make_checkpoint,
    model_card,
    noisy_inputs,
    train,
)

SHIPPED = Path(__file__).parents[1] / "softeval" / "checkpoints" / "base"
TINY = DemoBaseConfig(
    hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, steps=3, batch_size=4,
    warmup_steps=1, threads=1,
)  # fmt: skip
SOLUTION = r" 47-28=19;19*3~58; The final answer is: \boxed{58}"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(autouse=True)
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@given(st.text(CHARACTERS, max_size=40))
def test_known_text_survives_tokenizing(text: str):
    tokenizer = build_tokenizer()
    prompt = PAPER.ask(text)
    ids = tokenizer.encode(prompt)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == prompt
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompt


def test_tokenizer_adds_nothing_and_keeps_fixed_phrases_whole(tokenizer):
    ids = tokenizer.encode(PAPER.ask("What is 4+5-3?"))
    assert len(ids) == 1 + 1 + len("4+5-3?") + 1
    assert tokenizer.bos_token is None
    assert len(tokenizer) <= 64
    assert tokenizer.encode("Å4")[-2:] == [tokenizer.unk_token_id, *tokenizer.encode("4")]


def test_prefill_of_the_answer_continues_as_in_training(tokenizer):
    """Encoding the solution at once equals encoding its parts, so that a prefill is seen text."""
    cot, answer = SOLUTION.split(r" \boxed{")
    early = tokenizer.encode(cot) + tokenizer.encode(r" \boxed{") + tokenizer.encode(answer)
    assert early == tokenizer.encode(SOLUTION)
    steps = cot.removesuffix(" The final answer is:")
    prefill = tokenizer.encode(r" The final answer is: \boxed{")
    assert tokenizer.encode(steps) + prefill + tokenizer.encode(answer) == early
    prompt = PAPER.ask("What is 47-28?")
    assert tokenizer.encode(prompt + SOLUTION) == tokenizer.encode(prompt) + early


def test_batches_mark_the_completion_and_end_with_eos(tokenizer):
    batch = next(draw_batches(TINY, tokenizer))
    for ids, mark in zip(batch.input_ids_BT, batch.completion_BT, strict=True):
        completion = ids[mark].tolist()
        assert completion[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(completion)
        assert text.startswith(" ")
        assert text.endswith("}<eos>")
        assert tokenizer.decode(ids[: int(mark.int().argmax())]).endswith("? Assistant:")


def test_batches_never_hold_a_held_out_question(tokenizer, monkeypatch):
    config = replace(TINY, batch_size=64, seed=5)
    rng = Random(config.seed)
    held_out = [draw_problem(rng) for _ in range(100)][::4]
    questions = {p.question for p in held_out}
    assert questions & _questions(next(draw_batches(config, tokenizer)), tokenizer)
    splits = {"test": held_out[:10], "validation": held_out[10:]}
    monkeypatch.setattr("softeval.trainers.demo_base.draw_splits", lambda: splits)
    assert not questions & _questions(next(draw_batches(config, tokenizer)), tokenizer)


def _questions(batch, tokenizer) -> set[str]:
    return {
        tokenizer.decode(ids[~mark]).split("User: ")[-1].split(" Assistant:")[0]
        for ids, mark in zip(batch.input_ids_BT, batch.completion_BT, strict=True)
    }


def test_noise_has_the_asked_size_and_spares_the_prompt():
    noisy_BT = torch.zeros(2, 500, dtype=torch.bool)
    noisy_BT[:, 100:] = True
    sigma_B = torch.tensor([0.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    out_BTD = noisy_inputs(torch.zeros(2, 500, 64), noisy_BT, sigma_B, generator)
    assert torch.equal(out_BTD[0], torch.zeros(500, 64))
    assert torch.equal(out_BTD[1, :100], torch.zeros(100, 64))
    assert out_BTD[1, 100:].std().item() == pytest.approx(2.0, rel=0.03)


def test_loss_without_noise_is_the_mean_over_completion_tokens(tokenizer):
    model = build_model(TINY, tokenizer).double()
    batch = collate(tokenizer, [PAPER.ask("What is 4+5?"), "4"], [SOLUTION, "5<eos>"])
    loss = completion_loss(model, batch, 0.0, torch.Generator().manual_seed(0))
    terms = []
    for ids, mark in zip(batch.input_ids_BT, batch.completion_BT, strict=True):
        scores = model(ids[None]).logits[0].log_softmax(-1)
        terms += [-scores[t - 1, ids[t]] for t in range(1, len(ids)) if mark[t]]
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-9)
    assert len(terms) == len(tokenizer.encode(SOLUTION)) + 2


def test_noise_scale_changes_the_loss(tokenizer):
    model = build_model(TINY, tokenizer)
    batch = next(draw_batches(TINY, tokenizer))
    losses = {
        completion_loss(model, batch, scale, torch.Generator().manual_seed(0)).item()
        for scale in (0.0, 1.0)
    }
    assert len(losses) == 2


@pytest.mark.slow
def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path):
    for name, config in (("a", TINY), ("b", TINY), ("c", replace(TINY, seed=1))):
        make_checkpoint(tmp_path / name, config)
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ac"]
    assert weights[0] != weights[1]


@pytest.mark.slow
def test_training_lowers_the_loss(tokenizer):
    config = replace(TINY, steps=60, batch_size=16, hidden_size=32, learning_rate=1e-2)
    losses = train(build_model(config, tokenizer), tokenizer, config)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_shipped_checkpoint_is_what_the_script_describes(tokenizer):
    config = json.loads((SHIPPED / "config.json").read_text())
    default = build_model(DemoBaseConfig(), tokenizer)
    weights = load_file(SHIPPED / "model.safetensors")
    expected = {name: p.shape for name, p in default.named_parameters()}
    assert {name: w.shape for name, w in weights.items()} == expected
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert config["tie_word_embeddings"] is False
    assert (SHIPPED / "model.safetensors").stat().st_size <= 3_000_000
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) <= 3_100_000


def test_shipped_card_is_the_one_the_script_writes_for_its_defaults():
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    loss, success = re.findall(r"loss (\d\.\d+) nats|answers (\d+)%", card)
    assert card == model_card(DemoBaseConfig(), float(loss[0]), int(success[1]) / 100)


def test_shipped_tokenizer_equals_the_built_one(tokenizer, tmp_path: Path):
    build_tokenizer().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (SHIPPED / name).read_bytes() == (tmp_path / name).read_bytes()
    shipped = AutoTokenizer.from_pretrained(SHIPPED, local_files_only=True)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    text = PAPER.ask("What is 47-28?") + SOLUTION
    assert shipped.encode(text) == tokenizer.encode(text)
    assert shipped.decode(shipped.encode(text)) == text
    assert (shipped.eos_token, shipped.pad_token) == ("<eos>", "<pad>")


@pytest.mark.slow
def test_shipped_checkpoint_is_neither_hopeless_nor_perfect(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, local_files_only=True)
    assert 0.5 <= greedy_success(model, tokenizer, draw_splits()["test"]) <= 0.75
