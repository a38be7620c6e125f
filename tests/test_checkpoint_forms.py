"""Forms in which checkpoints come: what works, and what is refused in one line before its weights.

Directories here hold a config and a tokenizer, and weights only where they are to be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import CAPS, roomy_lm, write_data
from command_line import Ended
from conftest import mostly_slow
from safetensors.torch import load_file, save_file
from synthetic import make_generation
from tiny import CHARACTERS, CONFIGS, PADDED, tiny_lm, tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from softeval import UserError, generate, load_model
from softeval.model.checkpoint import read_checkpoint
from softeval.model.language_model import wrap_model
from softeval.model.weights import stored_weights, weights_hash
from softeval.modes import ALL
from softeval.records import SampleKey
from softeval.runs.journal import Journal
from softeval.runs.run import load_run
from softeval.runs.rundir import write_record

pytest_plugins = ("command_line_fixtures",)


def folder(path: Path, config: Any = None, tokenizer: Any = None, **fields: Any) -> Path:
    """A checkpoint without weights; `fields` are written into its config.json."""
    (config or roomy_lm().model.config).save_pretrained(path)
    (tokenizer or tiny_tokenizer()).save_pretrained(path)
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return path


def with_weights(path: Path, tokenizer: Any = None, **fields: Any) -> Path:
    folder(path, tokenizer=tokenizer, **fields)
    config = (path / "config.json").read_text()
    roomy_lm().model.save_pretrained(path)
    (path / "config.json").write_text(config)
    return path


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def refused(path: Path, *parts: str, **options: Any) -> None:
    message = refusal(lambda: load_model(path, **{"device": "cpu", **options}))
    assert all(part in message for part in parts), message


# ---- what the config alone tells


@pytest.mark.parametrize(
    "quantisation",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        {"quant_method": "hqq", "quant_config": {}},
        {"quant_method": "quanto", "weights": "int8"},
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
        {"quant_method": "fbgemm_fp8"},
    ],
    ids=lambda q: q["quant_method"],
)
def test_quantised_weights_need_their_package(tmp_path: Path, quantisation: dict[str, Any]) -> None:
    refused(folder(tmp_path / "m", quantization_config=quantisation), "cannot load the quantised")


@pytest.mark.parametrize(
    ("kind", "fields", "part"),
    [
        ("bloom", {}, "alibi"),
        ("falcon", {"alibi": True, "new_decoder_architecture": False}, "alibi"),
        ("rwkv", {}, "takes no past_key_values"),
        ("openai-gpt", {}, "takes no past_key_values"),
        ("cpmant", {}, "takes no inputs_embeds"),
        ("deepseek_v32", {}, "indexed_attention layers"),
        ("t5", {}, "encoder-decoder"),
        ("vit", {}, "no decoder-only language model"),
    ],
)
def test_architectures_are_refused_by_their_config(
    tmp_path: Path, kind: str, fields: dict[str, Any], part: str
) -> None:
    config = AutoConfig.for_model(kind, eos_token_id=2, **fields)
    refused(folder(tmp_path / "m", config), part)


@pytest.mark.parametrize(
    "kind", ["bert", "rembert", "roformer", "ernie", "big_bird", "megatron-bert", "xlm-roberta"]
)
def test_encoders_are_no_decoders(tmp_path: Path, kind: str) -> None:
    refused(folder(tmp_path / "m", AutoConfig.for_model(kind)), "is an encoder")


def test_a_multimodal_checkpoint_without_a_text_class_is_called_what_it_is(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", AutoConfig.for_model("qwen2_5_vl"))
    refused(path, "is multimodal", "no text-only class for its language model (qwen2_5_vl_text)")


def multimodal(path: Path) -> Any:
    """A tiny Gemma 3 with eyes, on disk too; its head is its embedding."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    text = CONFIGS["gemma3"]().to_dict()
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return whole


def test_the_language_model_of_a_multimodal_checkpoint_is_taken(tmp_path: Path) -> None:
    whole = multimodal(tmp_path)
    lm = load_model(tmp_path, device="cpu")
    assert type(lm.model).__name__ == "Gemma3ForCausalLM" and lm.self_check == "passed"
    assert any("language model of a gemma3" in note for note in lm.notes)
    ids = torch.arange(3, 30)[None]
    with torch.inference_mode():
        assert torch.equal(lm.model(ids).logits, whole(input_ids=ids).logits)
    assert stored_weights(read_checkpoint(str(tmp_path)), "auto") is None  # hashed once loaded
    assert generate(lm, ["A b"], "soft_sample", 1, 0, 4, 2)[0][0].shadow_ids.size


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA adapter with weights of its own beside its base."""
    peft = pytest.importorskip("peft")
    base = with_weights(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(base)
    adapt(model, base, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    return tmp_path / "adapter"


def adapt(model: Any, base: Path, config: Any) -> Any:
    """A model with an adapter of random weights, which is saved beside the base."""
    tuned = pytest.importorskip("peft").get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(base.parent / "adapter")
    return tuned.eval()


def test_an_adapter_is_merged_into_its_base(adapter: Path) -> None:
    lm = load_model(adapter, device="cpu")
    plain = load_model(adapter.parent / "base", device="cpu")
    ids = torch.arange(3, 30)[None]
    tuned = AutoModelForCausalLM.from_pretrained(adapter).eval()
    with torch.inference_mode():
        merged = lm.model(ids).logits
        assert torch.allclose(merged, tuned(ids).logits, atol=1e-4)
        assert not torch.allclose(merged, plain.model(ids).logits, atol=1e-2)
    assert lm.adapter is not None and lm.adapter.base == str(adapter.parent / "base")
    assert len(lm.adapter.sha256) == 64 and plain.adapter is None
    assert weights_hash(lm.model) != weights_hash(plain.model)
    assert not any("lora" in name for name, _ in lm.model.named_parameters())


HEAD: dict[str, Any] = {"target_modules": ["lm_head"]}
TABLE: dict[str, Any] = {"target_modules": ["q_proj", "embed_tokens"]}
BOTH: dict[str, Any] = {"target_modules": ["embed_tokens", "lm_head"]}
SAVED: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}


@pytest.mark.parametrize(
    ("trained", "layers"),
    mostly_slow(
        [("whole", HEAD), ("whole", TABLE), ("whole", SAVED), ("text", SAVED), ("text", BOTH)],
        quick=[("whole", TABLE), ("text", SAVED)],
    ),
    ids=["whole-head", "whole-table", "whole-saved", "text-saved", "text-both"],
)
def test_an_adapter_of_a_multimodal_model_with_one_table_is_merged_as_it_was_trained(
    tmp_path: Path, trained: str, layers: dict[str, Any]
) -> None:
    """Its modules have other names in the language model; head and embedding share their table."""
    peft = pytest.importorskip("peft")
    whole = multimodal(tmp_path / "base")
    model = whole if trained == "whole" else load_model(tmp_path / "base", device="cpu").model
    tuned = adapt(model, tmp_path / "base", peft.LoraConfig(r=2, **layers))
    lm = load_model(tmp_path / "adapter", device="cpu")
    lm.model.save_pretrained(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    ids = torch.arange(3, 30)[None]
    with torch.inference_mode():
        expected = tuned(input_ids=ids).logits
        assert torch.allclose(lm.model(ids).logits, expected, atol=1e-4)
        assert torch.allclose(saved(ids).logits, expected, atol=1e-4)
        plain = load_model(tmp_path / "base", device="cpu").model(ids).logits
        assert not torch.allclose(expected, plain, atol=1e-2)


FAULTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "none": lambda tensors: {},
    "half": lambda tensors: dict(list(tensors.items())[::2]),
    "renamed": lambda tensors: {
        k.replace(".layers.", ".text.layers."): v for k, v in tensors.items()
    },
    "deeper": lambda tensors: (
        tensors | {k.replace(".layers.0.", ".layers.9."): v.clone() for k, v in tensors.items()}
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_does_not_fit_its_base_is_refused(adapter: Path, fault: str) -> None:
    """peft warns and leaves the base, or a part of it, as it was."""
    file = adapter / "adapter_model.safetensors"
    save_file(FAULTS[fault](load_file(file)), file)
    refused(adapter, "and its base name different weights", "lora_")


def test_an_adapter_that_is_no_change_of_weights_is_refused(adapter: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    adapt(
        LlamaForCausalLM.from_pretrained(adapter.parent / "base"), adapter.parent / "base", config
    )
    refused(adapter, "of kind PROMPT_TUNING, which cannot be merged")
    (adapter / "adapter_model.safetensors").unlink()
    refused(adapter, "no adapter_model.safetensors")


def test_an_adapter_whose_base_is_gone_is_one_line(adapter: Path) -> None:
    described = adapter / "adapter_config.json"
    fields = json.loads(described.read_text())
    fields["base_model_name_or_path"] = str(adapter.parent / "moved")
    described.write_text(json.dumps(fields))
    refused(adapter, "no checkpoint at", "moved, the base of the adapter")
    described.write_text("{}")
    refused(adapter, "names no base")


def test_a_model_and_an_adapter_in_one_folder_are_refused(tmp_path: Path) -> None:
    both = with_weights(tmp_path / "both")
    (both / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    refused(both, "a model and an adapter", "merge_and_unload")


def test_attention_and_device_map_are_what_was_asked_for(tmp_path: Path, monkeypatch: Any) -> None:
    path = with_weights(tmp_path / "m")
    kinds = [load_model(path, device="cpu", attn_implementation=a) for a in (None, "eager")]
    assert [lm.model.config._attn_implementation for lm in kinds] == ["sdpa", "eager"]
    refused(
        path, "--attn-implementation flash_attention_2", attn_implementation="flash_attention_2"
    )
    asked, read = [], AutoModelForCausalLM.from_pretrained

    def reading(*args: Any, **given: Any) -> Any:
        asked.append(given["device_map"])
        return read(*args, **given)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", reading)
    spread, single = load_model(path, device_map="auto"), load_model(path, device="cpu")
    assert asked == ["auto", None]
    assert weights_hash(spread.model) == weights_hash(single.model)


def test_the_attention_named_in_the_config_is_replaced_and_said(tmp_path: Path) -> None:
    plain = load_model(with_weights(tmp_path / "plain"), device="cpu")
    for named in ("flash_attention_2", "flex_attention"):
        lm = load_model(with_weights(tmp_path / named, attn_implementation=named), device="cpu")
        assert any(named in note for note in lm.notes)
        assert lm.model.config._attn_implementation == "sdpa"
        ours, theirs = (
            generate(each, "12+", max_cot_tokens=8, max_answer_tokens=4)[0][0]
            for each in (lm, plain)
        )
        assert list(ours.shadow_ids) == list(theirs.shadow_ids)
    eager = load_model(with_weights(tmp_path / "eager", attn_implementation="eager"), device="cpu")
    assert eager.model.config._attn_implementation == "eager" and eager.notes == plain.notes == ()


def test_a_model_loaded_with_another_attention_is_refused() -> None:
    model = LlamaForCausalLM(CONFIGS["llama"]())
    model.config._attn_implementation = "flex_attention"
    assert "attn_implementation='sdpa'" in refusal(lambda: wrap_model(model, tiny_tokenizer()))


def test_trust_remote_code_takes_an_ordinary_checkpoint(tmp_path: Path) -> None:
    lm = load_model(with_weights(tmp_path / "m"), device="cpu", trust_remote_code=True)
    assert lm.vocab == len(tiny_tokenizer())


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "cuda:99", "cpux"])
def test_devices_are_asked_for_before_anything_is_read(tmp_path: Path, name: str) -> None:
    message = refusal(lambda: load_model(tmp_path / "nothing", device=name))
    assert message.startswith(f"--device {name}: ") and "use --device auto or cpu" in message


def test_auto_takes_no_device_without_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    from softeval.model.checkpoint import torch_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert torch_device("auto") == torch.device("cpu")


# ---- whatever the libraries raise


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("AutoConfig", "cannot load"),
        ("AutoTokenizer", "cannot load the tokenizer"),
        ("AutoModelForCausalLM", "cannot load the weights"),
    ],
)
def test_whatever_is_raised_while_loading_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, what: str
) -> None:
    class PanicError(BaseException):
        """As a panic of Rust code comes."""

    path = folder(tmp_path / "m")
    thrown: list[BaseException] = [TypeError("first\nsecond"), ZeroDivisionError(), PanicError("p")]
    for error in thrown:
        with monkeypatch.context() as patch:
            patch.setattr(f"transformers.{place}.from_pretrained", _raiser(error))
            message = refusal(lambda: load_model(path, device="cpu"))
        assert message.startswith(what) and type(error).__name__ in message
        assert "second" not in message
    for error in (KeyboardInterrupt(), MemoryError()):
        monkeypatch.setattr(f"transformers.{place}.from_pretrained", _raiser(error))
        with pytest.raises(type(error)):
            load_model(path, device="cpu")


def test_weights_that_do_not_fit_the_device_are_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = _raiser(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nmore"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    message = refusal(lambda: load_model(folder(tmp_path / "m"), device="cpu"))
    assert "does not fit cpu (CUDA out of memory" in message
    assert message.endswith("try --dtype bfloat16")


def _raiser(error: BaseException) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error

    return call


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: {**content, "model": {**content["model"], "vocab": [1, 2]}},
        lambda content: {**content, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}},
        lambda content: {**content, "model": None},
        lambda content: [],
    ],
)
def test_a_tokenizer_file_that_cannot_be_read_is_one_line(tmp_path: Path, damage: Any) -> None:
    path = folder(tmp_path / "m")
    file = path / "tokenizer.json"
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    refused(path, "cannot load the tokenizer")


# ---- ids


def character_tokenizer(ids: dict[str, int] | None = None, **special: str) -> Any:
    """The tokenizer of the tests with its ids (and special tokens) changed."""
    content = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    content["model"]["vocab"] |= ids or {}
    content["added_tokens"] = []
    backend = Tokenizer.from_str(json.dumps(content))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} if not special else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        **{**names, **{k: v for k, v in special.items() if v}},
    )


def always(id: int) -> Any:
    """A model that gives one id the largest logit everywhere."""
    model = LlamaForCausalLM(CONFIGS["llama"]()).float().eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.lm_head.register_forward_hook(
        lambda module, args, out: out.index_fill(-1, torch.tensor([id]), 50.0)
    )
    return model


def test_a_prompt_beyond_the_embedding_names_its_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(roomy_tokenizer())
    tokenizer.add_tokens([f"<extra{i}>" for i in range(PADDED - len(tokenizer) + 1)])
    lm = wrap_model(tiny_lm().model, tokenizer)
    assert lm.vocab == PADDED
    last = f"<extra{PADDED - len(tiny_tokenizer())}>"
    message = refusal(lambda: generate(lm, f"1{last}", max_cot_tokens=4))
    assert last in message and f"id {PADDED}" in message and "resize" in message


def roomy_tokenizer() -> str:
    import tempfile

    path = tempfile.mkdtemp()
    tiny_tokenizer().save_pretrained(path)
    return path


def gappy_tokenizer() -> Any:
    """Ids with holes: EOS and "z" far behind the rest."""
    return character_tokenizer({"</s>": 105, "z": 107})


@pytest.mark.parametrize("mode", mostly_slow(ALL, ["hard_sample", "soft_sample"]))
def test_an_eos_id_behind_a_gap_ends_the_chain_of_thought(mode: str) -> None:
    """The number of tokens is less than the largest id: EOS could never be chosen."""
    tokenizer = gappy_tokenizer()
    lm = wrap_model(always(105), tokenizer)
    assert len(tokenizer) < lm.vocab == 108 and lm.eos_ids == {105}
    found = generate(lm, "1+1", mode, max_cot_tokens=6)[0][0]
    assert (found.stop_reason, list(found.shadow_ids)) == ("eos", [105])


@pytest.mark.parametrize("mode", mostly_slow(ALL, ["hard_sample", "soft_sample"]))
def test_ids_in_a_gap_are_neither_chosen_nor_mixed_nor_measured(mode: str) -> None:
    tokenizer = gappy_tokenizer()
    gaps = sorted(set(range(108)) - set(tokenizer.get_vocab().values()))
    lm = wrap_model(always(gaps[-1]), tokenizer)
    assert any("never chosen" in note for note in lm.notes)
    others = torch.ones(lm.vocab, dtype=torch.bool)
    others[gaps] = False
    table = lm.model.get_input_embeddings().weight.detach()
    assert lm.embedding.rms == pytest.approx(float(table[:108][others].square().mean().sqrt()))
    with torch.no_grad():
        table[gaps] = 1e4  # would be seen at once
    found = generate(lm, "1+1", mode, 1, 0, 3, 2, keep_inputs=True, record_top=120)[0][0]
    assert not set(found.shadow_ids) & set(gaps) and not set(found.answer_ids) & set(gaps)
    assert abs(found.inputs).max() < 1e2
    assert found.entropy.max() < 1e-3 + float(torch.tensor(len(others) - len(gaps)).log())


def test_the_training_head_masks_the_same_gaps() -> None:
    """The rollout's logits and the training pass's are compared when the head is made."""
    from softeval.model.output_head import output_head

    torch.manual_seed(0)
    lm = wrap_model(LlamaForCausalLM(CONFIGS["llama"]()).eval(), gappy_tokenizer())
    head = output_head(lm)
    logits = head.rule.project(torch.randn(3, 32), head.weight_WD[:108].detach(), None)
    probs = logits.softmax(-1)
    assert float(probs[:, list(lm.vocabulary.gaps)].sum()) == 0
    assert torch.isfinite(logits / 1e-4).all()


@pytest.mark.parametrize("id", [105, 111, 112, 500])
def test_an_eos_id_that_cannot_be_chosen_is_refused(tmp_path: Path, id: int) -> None:
    tokenizer = character_tokenizer({"</s>": id})
    path = folder(tmp_path / "m", tokenizer=tokenizer)
    if id < PADDED:
        wrap_model(tiny_lm().model, tokenizer)
    else:
        refused(path, f"end-of-sequence id {id}", f"{PADDED} rows")


@pytest.mark.parametrize("config", [{"eos_token_id": 111}, {"eos_token_id": [111, 9999]}])
def test_an_eos_id_that_only_the_config_names_is_refused_if_it_is_the_only_one(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    bare = character_tokenizer(bos_token="<s>")
    refused(folder(tmp_path / "bare", tokenizer=bare, **config), "end-of-sequence id 111")
    lm = load_model(with_weights(tmp_path / "both", **config), device="cpu")
    assert lm.eos_ids == {2}


def appending_tokenizer() -> Any:
    tokenizer = character_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def test_an_eos_that_the_tokenizer_appends_is_left_out_of_prompts() -> None:
    from softeval.lmeval.adapter import SoftEvalLM

    tokenizer = appending_tokenizer()
    assert tokenizer.encode("ab")[-1] == 2
    lm = wrap_model(roomy_lm().model, tokenizer)
    assert any("</s>" in note for note in lm.notes)
    plain = [1, *tiny_tokenizer().encode("ab", add_special_tokens=False)]
    found = generate(lm, "ab", max_cot_tokens=3)[0][0]
    assert list(found.prompt_ids) == plain
    adapter = SoftEvalLM(lm, **CAPS)
    assert adapter.tok_encode("ab") == plain
    assert adapter.tok_encode("ab", add_special_tokens=False) == plain[1:]
    assert adapter.tok_encode("<s>") == tokenizer.encode("<s>", add_special_tokens=False)


def test_a_templated_prompt_gets_no_second_bos() -> None:
    tokenizer = appending_tokenizer()
    lm = wrap_model(roomy_lm().model, tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    found = generate(lm, "<s>ab", max_cot_tokens=3)[0][0]
    assert list(found.prompt_ids).count(1) == 1


def test_a_tokenizer_without_bos_and_eos_runs_and_says_what_it_cannot(tmp_path: Path) -> None:
    from softeval.lmeval.adapter import SoftEvalLM

    tokenizer = character_tokenizer(pad_token="<pad>")
    assert tokenizer.bos_token_id is None and tokenizer.eos_token_id is None
    adapter = SoftEvalLM(wrap_model(roomy_lm().model, tokenizer), **CAPS)
    ids = tiny_tokenizer().encode("1+1=", add_special_tokens=False)
    assert adapter.tok_encode("1+1=") == ids
    assert "neither a BOS nor an EOS" in refusal(lambda: adapter.prefix_token_id)


# ---- the command line: exit 2 and one line, before weights and questions


def one_line(ended: Ended, *parts: str) -> None:
    assert ended.code == 2, ended
    lines = [line for line in ended.err.splitlines() if line.startswith("softeval: ")]
    assert lines == ended.err.splitlines()[-1:] and "Traceback" not in ended.err
    assert all(part in ended.err for part in parts), ended.err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
def test_the_device_comes_first(softeval: Callable[..., Ended], dry: list[str]) -> None:
    ended = softeval("run", "--device", "gpu", "--tasks", "gsm8k", "--data-dir", "nowhere", *dry)
    one_line(ended, "--device gpu: ", "use --device auto or cpu")


@pytest.mark.parametrize(
    "dry", [pytest.param([], marks=pytest.mark.slow), ["--dry-run"]], ids=["run", "dry"]
)
@pytest.mark.parametrize(
    ("fields", "options", "part"),
    [
        ({"layer_types": ["hybrid_sliding", "full_attention"], "model_type": "qwen3"}, [], "hybrid_sliding layers"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, [], "quantised"),
        ({}, ["--apply-chat-template"], "has no chat template"),
        ({}, ["--max-cot-tokens", "100000"], "lower --max-cot-tokens"),
        ({"max_position_embeddings": 64}, [], "longer context"),
        ({"vocab_size": 50}, [], "rows"),
        ({"model_type": "neverheard"}, [], "neverheard"),
        ({}, ["--dtype", "float31"], "float31"),
        ({}, ["--output-path", "foreign"], "is not empty and not a run"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_run_without_weights_is_refused_before_they_are_missed(
    softeval: Callable[..., Ended],
    dry: list[str],
    fields: dict[str, Any],
    options: list[str],
    part: str,
) -> None:
    Path("foreign").mkdir()
    (Path("foreign") / "thesis.txt").write_text("x")
    folder(Path("m"), **fields)
    ended = softeval("run", "--model", "./m", "--device", "cpu", "--limit", "1", *options, *dry)
    one_line(ended, part)


def test_a_dry_run_reads_no_weights_and_tells_the_cap(softeval: Callable[..., Ended]) -> None:
    folder(Path("m"), attn_implementation="flash_attention_2")
    options = ["--model", "./m", "--device", "cpu", "--limit", "1"]
    ended = softeval("run", "--dry-run", "--json", *options)
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)
    assert plan["checkpoint"]["model_type"] == "llama"
    assert "flash_attention_2" in plan["checkpoint"]["notes"][0]
    assert plan["config"]["max_cot_tokens"] == 512
    one_line(softeval("run", *options), "cannot load the weights")


@pytest.mark.parametrize("model", ["org/never-downloaded", "never-downloaded"])
def test_a_dry_run_downloads_nothing(softeval: Callable[..., Ended], model: str) -> None:
    ended = softeval("run", "--dry-run", "--json", "--model", model, "--device", "cpu")
    assert ended.code == 0, ended.err
    assert "on the hub" in json.loads(ended.out)["checkpoint"]


@pytest.mark.parametrize("model", ["./absent", "~/absent", "/absent", "a/b/absent"])
def test_a_dry_run_misses_a_directory(softeval: Callable[..., Ended], model: str) -> None:
    one_line(softeval("run", "--dry-run", "--model", model), f"no checkpoint at {model}")


def test_a_dry_run_reads_the_questions_at_hand(softeval: Callable[..., Ended]) -> None:
    Path("bad").mkdir()
    (Path("bad") / "gsm8k_test.jsonl").write_text('{"question": "no label"}\n')
    ended = softeval("run", "--dry-run", "--tasks", "gsm8k", "--data-dir", "bad", "--device", "cpu")
    one_line(ended, "answer")


def test_a_dry_run_finds_a_run_with_other_arguments(softeval: Callable[..., Ended]) -> None:
    common = ["--limit", "1", "-n", "2", "--modes", "hard_sample", "--device", "cpu", "-o", "run"]
    common += ["--max-cot-tokens", "4"]

    def planned(*more: str) -> str:
        ended = softeval("run", *common, *more, "--dry-run", "--json")
        assert ended.code == 0, ended.err
        return json.loads(ended.out)["run"]

    assert planned() == "new"
    assert softeval("run", *common, "--quiet").code == 0
    assert planned() == "finished before; it is shown again and nothing is computed"
    ended = softeval("run", *common, "--seed", "5", "--dry-run")
    one_line(ended, "holds a run with other arguments", "seed")
    assert planned("--seed", "5", "--overwrite").startswith("starts anew")
    run = Path("run")
    write_record(run, {**load_run(run).info, "status": "partial"})
    journal = Journal(run / "shards", 0)
    try:
        journal.add(make_generation(SampleKey("arithmetic", 0, 0)), "a prompt")
        one_line(softeval("run", *common, "--dry-run"), "another process")
        one_line(softeval("run", *common, "--quiet"), "another process")
    finally:
        journal.close()
    assert planned() == "continued; 1 samples are there"


@pytest.mark.parametrize("template", ["{% if %}", "{{ messages[7].content }}", "{{ raise('no') }}"])
def test_a_chat_template_that_fails_is_one_line(
    softeval: Callable[..., Ended], template: str
) -> None:
    folder(Path("m"))
    file = Path("m") / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    ended = softeval("run", "--model", "./m", "--device", "cpu", "--apply-chat-template")
    one_line(ended, "the chat template fails")


def test_what_loading_did_otherwise_is_recorded(softeval: Callable[..., Ended]) -> None:
    with_weights(Path("m"), attn_implementation="flex_attention")
    ended = softeval(
        "run", "--model", "./m", "--device", "cpu", "--limit", "1", "--modes", "hard_greedy",
        "--max-cot-tokens", "3", "--quiet", "-o", "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    model = json.loads(Path("run/run.json").read_text())["model"]
    assert model["attention"] == "sdpa" and "flex_attention" in model["notes"][0]


def test_unreadable_forms_end_with_exit_2(softeval: Callable[..., Ended]) -> None:
    write_data(Path("."))
    path = folder(Path("m"))
    (path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!")
    for command in (["run", "--limit", "1"], ["train", "--steps", "1", "-o", "t"]):
        one_line(softeval(*command, "--model", "./m", "--device", "cpu"), "cannot load the weights")


@pytest.mark.slow
def test_the_vocabulary_of_real_tokenizers_is_what_it_was(shared: Path) -> None:
    """No gaps in them: the largest id is the last one that the tokenizer counts."""
    from softeval.model.vocabulary import Vocabulary

    for name in ("llama-3.2-instruct", "qwen2.5"):
        tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
        vocabulary = Vocabulary(tokenizer, 10**9)
        assert (vocabulary.size, vocabulary.gaps) == (len(tokenizer), ())
        assert vocabulary.appended == ()
    assert len(CHARACTERS) + 3 == Vocabulary(tiny_tokenizer(), PADDED).size
