"""Decoding speed against transformers' `generate`, lm-eval's hf model, and between the modes.

    python benchmarks/decode.py [--sizes 25m,100m] [--device cpu] [--output FILE.json]

Random Llama models, so lengths are made ragged by ids that end a sequence: of the vocabulary every
`ENDING`-th id is an end-of-sequence id, so a sample's length is geometric, as in real use, up to
the cap. `generate` waits for its longest row; softeval lets waiting rows in. Both do the same
work: softeval's answer phase is cut to one token. One process, the arms in turn, medians of
rounds. Every arm's rate counts the same thing, CoT tokens up to and with the end token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from softeval.decoding.decoder import Decoder, Question
from softeval.environment import hardware
from softeval.model.language_model import LanguageModel, wrap_model
from softeval.model.stopping import Limits
from softeval.modes import MODES

SIZES = {
    "25m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "heads": 6},
    "100m": {"hidden_size": 640, "intermediate_size": 1708, "num_hidden_layers": 13, "heads": 10},
}
VOCAB = {"25m": 16_000, "100m": 32_000}
PROMPT, CAP, SAMPLES, ENDING = 96, 128, 32, 64


def build(size: str, device: str, dtype: torch.dtype) -> LanguageModel:
    """A random Llama whose every ENDING-th id ends a sequence."""
    shape = dict(SIZES[size])
    heads = shape.pop("heads")
    config = LlamaConfig(
        **shape,
        vocab_size=VOCAB[size],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=list(range(1, VOCAB[size], ENDING)),
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()
    # Brackets keep one word from being the beginning of another: lm-eval cuts at the text of the end
    # token, wherever it stands.
    words = {f"[{i}]": i for i in range(VOCAB[size])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[0]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[1]", pad_token="[0]")
    return wrap_model(model, tokenizer, size)


def prompts(lm: LanguageModel, questions: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(2, lm.vocab, (PROMPT,), generator=generator).tolist()
        for _ in range(questions)
    ]


def by_softeval(lm: LanguageModel, questions: int, mode: str) -> int:
    """CoT tokens decoded."""
    decoder = Decoder(
        lm, MODES[mode], Limits(CAP, 1), batch_size=SAMPLES, record_top=0, seed=time.time_ns()
    )
    asked = [
        Question("bench", i, tuple(p), tuple(range(SAMPLES)))
        for i, p in enumerate(prompts(lm, questions))
    ]
    return sum(len(g.shadow_ids) for g in decoder.run(asked))


def by_generate(lm: LanguageModel, questions: int) -> int:
    """The same with transformers: one call a prompt, num_return_sequences samples."""
    total = 0
    ends = torch.tensor(sorted(lm.eos_ids), device=lm.device)
    for prompt in prompts(lm, questions):
        out = lm.model.generate(
            torch.tensor([prompt], device=lm.device),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            num_return_sequences=SAMPLES,
            max_new_tokens=CAP,
        )[:, PROMPT:]
        ended = torch.isin(out, ends)
        total += int(torch.where(ended.any(1), ended.int().argmax(1) + 1, out.shape[1]).sum())
    return total


def by_lm_eval(lm: LanguageModel, questions: int) -> int:
    """The same through lm-eval's hf model: every repeat is a request of its own."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    hf = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=SAMPLES)
    options = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_gen_toks": CAP,
        "until": [],
    }
    requests = [
        Instance("generate_until", {}, (lm.tokenizer.decode(p), dict(options)), 0)
        for p in prompts(lm, questions)
        for _ in range(SAMPLES)
    ]
    texts = hf.generate_until(requests, disable_tqdm=True)
    ends = lm.eos_ids
    total = 0
    for text in texts:  # hf drops nothing behind an end token of the list but the first one
        ids = [int(word[1:-1]) for word in text.split()]
        first = next((i + 1 for i, id in enumerate(ids) if id in ends), len(ids))
        total += min(first, CAP)
    return total


def measure(arms: dict[str, Callable[[], int]], rounds: int) -> dict[str, dict[str, float]]:
    """Median tokens/s of each arm; the arms take turns, so drift hits all alike."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm()  # warm-up
    for _ in range(rounds):
        for name, arm in arms.items():
            started = time.perf_counter()
            tokens = arm()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            rates[name].append(tokens / (time.perf_counter() - started))
    return {
        name: {"median": statistics.median(r), "min": min(r), "max": max(r)}
        for name, r in rates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="25m,100m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", default="all")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    report = {"hardware": hardware(), "threads": torch.get_num_threads(), "sizes": {}}
    for size in args.sizes.split(","):
        lm = build(size, args.device, getattr(torch, args.dtype))
        arms: dict[str, Callable[[], int]] = {
            "generate": partial(by_generate, lm, args.questions),
            "lm_eval_hf": partial(by_lm_eval, lm, args.questions),
            **{mode: partial(by_softeval, lm, args.questions, mode) for mode in MODES},
        }
        if args.arms != "all":
            arms = {name: arms[name] for name in args.arms.split(",")}
        rates = measure(arms, args.rounds)
        report["sizes"][size] = {
            "parameters": sum(p.numel() for p in lm.model.parameters()),
            "tokens_per_second": rates,
        }
        show(size, report["sizes"][size])
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n")


def show(size: str, found: dict) -> None:
    rates = {name: r["median"] for name, r in found["tokens_per_second"].items()}
    print(f"{size}: {found['parameters'] / 1e6:.1f} M parameters")
    for name, rate in rates.items():
        ratios = "".join(
            f"  {rate / rates[base]:.2f}x {base}"
            for base in ("generate", "lm_eval_hf", "hard_sample")
            if base in rates and base != name
        )
        print(f"  {name:13} {rate:9.0f} tokens/s{ratios}")


if __name__ == "__main__":
    main()
