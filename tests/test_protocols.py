"""Protocols: prompts of real thinking templates, where their CoTs end, and that every flag counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import MemoryStore, adapter, evaluate, write_data
from train_cases import tiny_config, tiny_lm
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import softeval
from softeval.decoding.generate import generate
from softeval.decoding.replay import closing
from softeval.errors import UserError
from softeval.lmeval import load_tasks
from softeval.model.chat import render_chat
from softeval.model.language_model import BUNDLED_CHECKPOINT, LanguageModel, load_model, wrap_model
from softeval.model.stopping import Stopper, stopper_of
from softeval.modes import get_mode
from softeval.options import GenerationOptions, validated
from softeval.protocol import CHAT, PAPER, PLACE, THINK, Example, Protocol, recorded_protocol
from softeval.records import AnswerStop, Generation, StopReason
from softeval.runs.cells import load_cells
from softeval.runs.config import make_config
from softeval.tasks.catalogue import find_benchmarks
from softeval.tasks.data import fewshot_examples
from softeval.trainers.config import make_config as train_config
from softeval.trainers.questions import load_questions, prompt_maker
from softeval.trainers.rollout import training_decoder
from softeval.trainers.run_files import identity_of

# As in Qwen3: the model opens its thought itself, unless it is not to think.
QWEN3 = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
QUESTION = "What is 2+2?"
ASKED = "What is 2+2?\n\nPlease reason step by step, and put your final answer within \\boxed{}."
THOUGHT, ANSWER = "Hmm so it must be four", "\n\nThe answer is \\boxed{4}."


def r1_template(shared: Path) -> str:
    file = shared / "templates" / "deepseek-r1-distill-qwen.tokenizer_config.json"
    if not file.is_file():
        pytest.skip("the published template is not here")
    return json.loads(file.read_text(encoding="utf-8"))["chat_template"]


SLOW = pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=["one token", pytest.param("special token", marks=SLOW), "several tokens"],
)
def thinker(request: pytest.FixtureRequest, shared: Path) -> Any:
    """Qwen's tokenizer: its <think> one added token as in Qwen3, a special one, or text."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen2.5")
    if request.param != "several tokens":
        special = request.param == "special token"
        tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
    tokenizer.chat_template = QWEN3
    return tokenizer


def scripted(tokenizer: Any, *chains: list[int]) -> LanguageModel:
    """A small Qwen with random embeddings that follows a token by the one behind it in a chain."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
    )
    model: Any = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    layer = model.model.layers[0]
    for part in (layer.self_attn.o_proj, layer.mlp.down_proj, model.lm_head):
        part.weight.zero_()
    embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
    for before, after in (pair for chain in chains for pair in pairwise(chain)):
        head[after] += embedding[before] / embedding[before].norm()
    head *= 10
    return wrap_model(model, tokenizer, "scripted", self_check=False)


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def thinking(tokenizer: Any, prompt: str, mode: str = "hard_greedy", **how: Any) -> Generation:
    """What a model that thinks and answers as above makes of a prompt."""
    said = encode(tokenizer, f"{THOUGHT}</think>") + encode(tokenizer, ANSWER)
    assert len(set(said)) == len(said), "a chain has no token twice"
    lm = scripted(tokenizer, [encode(tokenizer, prompt)[-1], *said, tokenizer.eos_token_id])
    how = {"protocol": THINK, "max_cot_tokens": 40, "max_answer_tokens": 40} | how
    return generate(lm, prompt, mode, keep_inputs=True, **how)[0][0]


def prompt_in(tokenizer: Any, protocol: Protocol = THINK) -> str:
    return protocol.whole_prompt(QUESTION, (), lambda said: render_chat(tokenizer, said))


@pytest.mark.parametrize("mode", ["hard_greedy", pytest.param("soft_greedy", marks=SLOW)])
def test_a_qwen3_style_model_thinks_and_answers(thinker: Any, mode: str) -> None:
    prompt = prompt_in(thinker)
    assert prompt == (f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n<think>\n")
    made = thinking(thinker, prompt, mode)
    stop = encode(thinker, "</think>")
    assert made.shadow_ids.tolist() == [*encode(thinker, THOUGHT), *stop]
    assert made.stop_reason is StopReason.ANSWER_PREFIX
    assert (made.prefill_text, made.prefill_ids.tolist()) == ("", [])
    assert made.answer_ids.tolist() == [*encode(thinker, ANSWER), thinker.eos_token_id]
    assert (made.answer_text, made.answer) == (ANSWER, "4")
    assert made.answer_stop is AnswerStop.EOS
    lm = scripted(thinker)
    assert made.inputs is not None and len(made.inputs) == len(made.shadow_ids)
    if mode == "hard_greedy":  # each token of the thought is fed, its end with it
        assert made.inputs.equal(lm.embedding.rows(torch.as_tensor(made.shadow_ids)))
    assert closing(made, stopper_of(thinker, THINK)) == len(stop)


def test_at_the_cap_the_thought_is_closed_for_the_model(thinker: Any) -> None:
    made = thinking(thinker, prompt_in(thinker), max_cot_tokens=3)
    assert made.cot_text == "Hmm so it" and made.stop_reason is StopReason.LENGTH
    assert made.prefill_text == "\n</think>"
    assert made.prefill_ids.tolist() == encode(thinker, "\n</think>")
    assert made.answer == "4"


def test_the_published_r1_template_opens_the_thought_once(thinker: Any, shared: Path) -> None:
    for template, added in ((r1_template(shared), False), (r1_template(shared), True)):
        if added:  # as later versions of it do
            template = template.replace(
                "{{'<｜Assistant｜>'}}{%", "{{'<｜Assistant｜><think>\\n'}}{%"
            )
        thinker.chat_template = template
        try:
            prompt = prompt_in(thinker)
            told = prompt_in(thinker, replace(THINK, system="Be brief."))
            example = Example("1+1?", "One and one.", "2")
            shown = replace(THINK, num_fewshot=1).whole_prompt(
                QUESTION, [example], lambda said: render_chat(thinker, said)
            )
        finally:
            thinker.chat_template = QWEN3
        bos = thinker.bos_token or ""
        assert prompt == f"{bos}<｜User｜>{ASKED}<｜Assistant｜><think>\n"
        assert told == f"{bos}Be brief.<｜User｜>{ASKED}<｜Assistant｜><think>\n"
        assert "<｜Assistant｜>One and one. \\boxed{2}<｜end▁of▁sentence｜><｜User｜>" in shown
        if added:
            continue
        made = thinking(thinker, prompt)
        assert made.cot_text.removesuffix("</think>") == THOUGHT and made.answer == "4"


def test_an_answer_prefix_follows_the_stop_and_its_box_is_closed(thinker: Any) -> None:
    protocol = replace(THINK, answer_prefix="The result: \\boxed{")
    prefix = encode(thinker, "\nThe result: \\boxed{")
    thought = encode(thinker, f"{THOUGHT}</think>")
    prompt = prompt_in(thinker, protocol)
    start = encode(thinker, prompt)[-1]
    lm = scripted(thinker, [start, *thought], [prefix[-1], *encode(thinker, "7}")])
    made = generate(lm, prompt, protocol=protocol, max_cot_tokens=40, max_answer_tokens=9)[0][0]
    assert made.prefill_ids.tolist() == prefix
    assert (made.answer, made.answer_stop) == ("7", AnswerStop.CLOSED)


def test_after_a_modes_own_stop_a_prefill_of_one_token_is_fed_once(thinker: Any) -> None:
    """The thought ends with a line break, so that only </think> is missing."""
    thought, stop = encode(thinker, "Hmm.\n\n"), encode(thinker, "</think>")
    prompt, answer = prompt_in(thinker), [*encode(thinker, ANSWER), thinker.eos_token_id]
    lm = scripted(thinker, [encode(thinker, prompt)[-1], *thought], [stop[-1], *answer])
    mode = get_mode("soft_thinking", entropy_threshold=1e9, patience=1 + len(thought))
    how = {"max_cot_tokens": 40, "max_answer_tokens": 40}
    made = generate(lm, prompt, mode, protocol=THINK, **how)[0][0]
    assert (made.cot_text, made.stop_reason) == ("Hmm.\n\n", StopReason.MODE)
    assert (made.prefill_text, made.prefill_ids.tolist()) == ("</think>", stop)
    assert made.answer == "4"


def test_a_template_that_ends_the_thought_is_refused() -> None:
    for rendered in ("Q<think></think>", "Q</think>\n\n"):
        with pytest.raises(UserError, match="nothing could be thought"):
            THINK.whole_prompt(QUESTION, chat=lambda said, text=rendered: text)


def test_the_last_box_counts_where_the_prefix_opens_none(thinker: Any) -> None:
    stopper = Stopper(thinker, THINK)
    text = "\n\nNot \\boxed{3} but \\boxed{\\frac{1}{2}}, \\boxed{"
    assert stopper.closed_answer(encode(thinker, text)) == "\\frac{1}{2}"
    assert stopper.closed_answer(encode(thinker, "3}")) is None
    assert not stopper.may_end_answer and Stopper(thinker).may_end_answer


@pytest.mark.parametrize("stop", ["####", "答案：", "So the answer is"])
def test_a_stop_is_found_whatever_its_last_character(thinker: Any, stop: str) -> None:
    stopper = Stopper(thinker, replace(PAPER, cot_stop=stop))
    ids = encode(thinker, f"First 3, then 4. {stop}")
    fired = [n for n in range(1, len(ids) + 1) if stopper.ends_cot(ids[:n])]
    assert fired == [len(ids)] and ids[-1] in stopper.may_end_cot
    assert stopper.prefill_text("x", StopReason.EOS) == f" {stop} \\boxed{{"


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    return write_data(tmp_path)


# Flags, each against the same run without it.


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return load_model(BUNDLED_CHECKPOINT, device="cpu")


@pytest.fixture
def asked(bundled: LanguageModel, tmp_path: Path) -> Callable[..., softeval.Run]:
    """Runs two questions in a directory of their own."""

    def run(name: str, **options: Any) -> softeval.Run:
        how = {"modes": "hard_greedy", "limit": 1, "max_cot_tokens": 24, "lm": bundled} | options
        return softeval.evaluate(output_path=str(tmp_path / name), **how)

    return run


@pytest.mark.slow
def test_every_flag_changes_the_run_and_its_identity(
    asked: Callable[..., softeval.Run], bundled: LanguageModel, tmp_path: Path
) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Compute: QUESTION\n")
    plain = asked("plain")
    assert plain.protocol == PAPER and "protocol" not in plain.info["identity"]
    flags: dict[str, tuple[dict[str, Any], Callable[[Any, Any], bool]]] = {
        "prompt": ({"prompt": "plain"}, lambda p, s: p.startswith("What is")),
        "file": ({"prompt": str(file)}, lambda p, s: p.startswith("Compute: What is")),
        "system": ({"system_instruction": "Hi."}, lambda p, s: p.startswith("Hi.\n\nA conv")),
        "shots": ({"num_fewshot": 2}, lambda p, s: p.count("\\boxed{") == 2 + 3 * 2),
        "stop": ({"cot_stop": "="}, lambda p, s: s.cot_text.endswith("=")),
        "prefix": ({"answer_prefix": "I say \\boxed{"}, lambda p, s: "I say \\boxed{" in s.prefill),
        "open": ({"answer_prefix": "so"}, lambda p, s: s.prefill.endswith("so")),
    }
    for name, (options, expected) in flags.items():
        run = asked(name, **options)
        prompt, sample = run.prompts()["prompt"][0], next(run.samples().itertuples())
        assert expected(prompt, sample), (name, prompt, sample)
        assert run.protocol != PAPER and run.info["identity"]["protocol"] == run.protocol.changes
        assert run.protocol.describe().startswith("paper, ")
        with pytest.raises(UserError, match="other arguments"):
            asked("plain", **options)
        assert asked(name, **options).info["finished"] == run.info["finished"]


@pytest.mark.slow
def test_the_chat_wraps_the_question_not_the_papers_prompt(
    asked: Callable[..., softeval.Run], bundled: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled.tokenizer, "chat_template", "<{{ messages[-1].content }}>")
    runs = {
        name: asked(name, **options)
        for name, options in {
            "chat": {"protocol": "chat"},
            "flag": {"apply_chat_template": True},
            "whole": {"apply_chat_template": True, "protocol": "paper"},
            "bare": {"protocol": "chat", "prompt": "plain", "chat_date": "2025-01-02"},
            "none": {"protocol": "chat", "apply_chat_template": False},
        }.items()
    }
    first = {name: str(run.prompts()["prompt"][0]) for name, run in runs.items()}
    question = first["bare"][1:-1]
    assert first["chat"] == first["flag"] == f"<{CHAT.ask(question)}>"
    assert first["whole"] == f"<{PAPER.ask(question)}>" and first["none"] == CHAT.ask(question)
    # What wrapped the paper's prompt before there were protocols has the identity that it had.
    assert "protocol" not in runs["whole"].info["identity"]
    assert runs["whole"].info["identity"]["apply_chat_template"] is True


def test_examples_are_of_the_training_split_and_never_the_question_itself() -> None:
    (benchmark,) = find_benchmarks(["arithmetic"])
    found = fewshot_examples(benchmark, 3)
    assert len(found) == 4 and found == fewshot_examples(benchmark, 3)
    rows = (benchmark.folder / "arithmetic_train.jsonl").read_text().splitlines()
    assert {e.question for e in found} <= {json.loads(row)["question"] for row in rows}
    protocol = replace(PAPER, num_fewshot=3)
    for asked_itself in (found[0].question, "another"):
        prompt = protocol.whole_prompt(asked_itself, found)
        assert prompt.count("User: [question]") == 4
        assert prompt.count(f"User: {asked_itself} Assistant:") == 1
        assert prompt.endswith(f"User: {asked_itself} Assistant:")
    assert f"Assistant: The final answer is: \\boxed{{{found[0].target}}}\n\nA conv" in prompt


def test_an_example_is_written_as_the_protocol_wants_it() -> None:
    example, spaced = Example("1+1?", "One and one.", "2"), Example(" What  is\n2+2?", "", "4")

    def shown(protocol: Protocol) -> str:
        plain = replace(protocol, num_fewshot=1, chat=False)
        return plain.whole_prompt(QUESTION, [spaced, example])

    bare = replace(THINK, prompt=PLACE)
    assert shown(replace(PAPER, prompt=PLACE)) == (
        "1+1? One and one. The final answer is: \\boxed{2}\n\nWhat is 2+2?"
    )
    assert shown(bare) == "1+1? One and one. \\boxed{2}\n\nWhat is 2+2?<think>\n"
    assert shown(replace(bare, answer_prefix="It is \\boxed{")) == (
        "1+1? <think>\nOne and one.\n</think>\nIt is \\boxed{2}\n\nWhat is 2+2?<think>\n"
    )


def test_examples_of_a_scored_task_are_refused(data_dir: str) -> None:
    options = {"tasks": "arc_easy", "num_fewshot": 2, "data_dir": data_dir}
    with pytest.raises(UserError, match="scored without examples"):
        softeval.evaluate(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "thnik"}, "'paper', 'think' or 'chat'"),
        ({"cot_stop": " \n"}, "white space ends no CoT"),
        ({"num_fewshot": -1}, "greater than or equal to 0"),
        ({"chat_date": "2025-01-01"}, "no effect without --apply-chat-template"),
    ],
)
def test_unusable_protocols_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config(options)


def test_a_record_of_before_there_were_protocols_is_the_papers_in_a_chat_or_not() -> None:
    assert recorded_protocol({}) == PAPER
    assert recorded_protocol({"config": {"apply_chat_template": True}}) == replace(PAPER, chat=True)
    told = {"protocol": asdict(THINK) | {"of_a_later_softeval": 1}}
    assert recorded_protocol(told) == THINK
    not_samples = {"name", "chat", "max_cot_tokens", "max_answer_tokens"}  # in the identity beside
    differing = {name for name, value in asdict(THINK).items() if value != asdict(PAPER)[name]}
    assert THINK.changes.keys() == differing - not_samples


def test_caps_follow_the_protocol_where_none_are_given() -> None:
    limits = validated(GenerationOptions, {"protocol": "think"}).limits
    assert (limits.max_cot_tokens, limits.max_answer_tokens) == (8192, 1024)
    limits = validated(GenerationOptions, {"protocol": "think", "max_answer_tokens": 7}).limits
    assert limits.max_answer_tokens == 7 and limits.protocol == THINK
    own = train_config({"protocol": "think"}).limits
    assert (own.max_cot_tokens, own.max_answer_tokens, own.protocol) == (8192, 1024, THINK)


def test_lm_eval_asks_by_the_same_protocol(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = adapter("hard_greedy", 1, protocol="think")
    monkeypatch.setattr(lm.tokenizer, "chat_template", "<{{ messages[-1].content }}>")
    lm.store = store = MemoryStore()
    evaluate(lm, data_dir, limit=1, apply_chat_template=True)
    assert store.prompts["gsm8k", 0] == f"<{THINK.ask('What is 0 + 0?')}><think>\n"
    (made,) = store.generations.values()
    assert made.prefill_text.endswith("</think>") or made.cot_text.endswith("</think>")
    with pytest.raises(UserError, match="tell lm-eval so by --apply_chat_template"):
        evaluate(lm, data_dir, limit=1)
    plain = adapter("hard_greedy", 1)
    template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    monkeypatch.setattr(plain.tokenizer, "chat_template", template)
    said = [{"role": role, "content": role} for role in ("system", "user")]
    assert plain.apply_chat_template(said) == "<system><user>" and plain.options.uses_chat
    (task,) = load_tasks(["arithmetic"])["tasks"].values()
    task.set_config("num_fewshot", 2)
    assert len(task.examples) == 3 and task.config.num_fewshot == 2
    told = task.fewshot_context(task.eval_docs[0], 2, system_instruction="Hi.")
    assert told.startswith("Hi.\n\n") and told.count("User: [question]") == 3


def test_evaluation_training_and_lm_eval_ask_in_the_same_words(thinker: Any) -> None:
    options = {"protocol": "think", "num_fewshot": 2, "system_instruction": "Be brief."}
    config = make_config(options | {"limit": 1, "modes": "hard_greedy"})
    (cell,) = load_cells(config, config.selected_modes())
    (document,) = cell.documents.values()
    (task,) = load_tasks(["arithmetic"], **options)["tasks"].values()
    examples = fewshot_examples(task.benchmark, 2)
    trained = prompt_maker(train_config(options), thinker, examples)
    chat = partial(render_chat, thinker)
    asked = cell.task.prompt_of(document, chat)
    assert asked == trained(document["question"])
    assert asked == task.fewshot_context(task.eval_docs[0], 2, None, True, chat_template=chat)
    assert asked.count("<|im_start|>user\n") == 3 and asked.count("Be brief.") == 1


def test_training_asks_and_stops_by_the_protocol(tmp_path: Path) -> None:
    lm = tiny_lm()
    options = {
        "prompt": "plain",
        "system_instruction": "What is 9?",
        "num_fewshot": 1,
        "cot_stop": "=",
    }
    config, plain = tiny_config(**options), tiny_config()
    texts = [
        lm.tokenizer.decode(load_questions(c, lm.vocabulary.encode).train[0].prompt_ids)
        for c in (config, plain)
    ]
    assert texts[0].startswith("What is 9?") and texts[0].count("What is") == 3
    assert texts[1].startswith("A conversation")
    decoder = training_decoder(config, lm)
    assert decoder.stopper.protocol.cot_stop == "=" and training_decoder(plain, lm) is not decoder
    assert identity_of(config)["stops"]["cot_stop"] == "=" and "stops" not in identity_of(plain)
    with pytest.raises(UserError, match="end as the paper's do"):
        train_config({"method": "coconut", "cot_stop": "="})
