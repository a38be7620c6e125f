"""Decoding speed against transformers, lm-eval's hf model and an earlier commit, and between the modes.

    python benchmarks/decode.py [--sizes 25m,100m] [--device cpu] [--before FOLDER] [--output FILE.json]

Random Llama models, so lengths are made ragged by ids that end a sequence: of the vocabulary every
`ENDING`-th id is an end-of-sequence id, so a sample's length is geometric, as in real use, up to
the cap. `generate` waits for its longest row; softeval lets waiting rows in. Both do the same
work: softeval's answer phase is cut to one token. The arms take turns, medians of rounds. Every arm's
rate counts the same thing, CoT tokens up to and with the end token. `generate_batch` is transformers'
continuous batching. `--before` is a folder with another commit's files, whose softeval decodes in a
process of its own. `--clock processor` counts processor seconds, for a machine with other work on it.
`--parts first` times the first token after a prompt of 2,000, `--parts table` where the time goes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from softeval.decoding import decoder as decoder_module
from softeval.decoding.decoder import Decoder, Question
from softeval.decoding.trace import Trace
from softeval.environment import hardware
from softeval.model.embedding import InputEmbedding
from softeval.model.feeding import RowFeeder
from softeval.model.language_model import LanguageModel, wrap_model
from softeval.model.stopping import Limits
from softeval.modes import MODES

SIZES = {
    "25m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "heads": 6},
    "100m": {"hidden_size": 640, "intermediate_size": 1708, "num_hidden_layers": 13, "heads": 10},
}
VOCAB = {"25m": 16_000, "100m": 32_000}
PROMPT, CAP, SAMPLES, ENDING = 96, 128, 32, 64
LONG = 2000
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def build(size: str, device: str, dtype: torch.dtype) -> LanguageModel:
    """A random Llama whose every ENDING-th id ends a sequence."""
    shape = dict(SIZES[size])
    heads = shape.pop("heads")
    config = LlamaConfig(
        **shape,
        vocab_size=VOCAB[size],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=LONG + CAP,
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


def prompts(lm: LanguageModel, questions: int, length: int = PROMPT) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(2, lm.vocab, (length,), generator=generator).tolist()
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


SAMPLING = {
    "do_sample": True,
    "top_k": 0,
    "top_p": 1.0,
    "temperature": 1.0,
    "num_return_sequences": SAMPLES,
    "max_new_tokens": CAP,
}
"""Plain sampling, as transformers is asked for it."""


def by_generate(lm: LanguageModel, questions: int) -> int:
    """The same with transformers: one call a prompt, num_return_sequences samples."""
    total = 0
    ends = torch.tensor(sorted(lm.eos_ids), device=lm.device)
    for prompt in prompts(lm, questions):
        out = lm.model.generate(
            torch.tensor([prompt], device=lm.device),
            **SAMPLING,
        )[:, PROMPT:]
        ended = torch.isin(out, ends)
        total += int(torch.where(ended.any(1), ended.int().argmax(1) + 1, out.shape[1]).sum())
    return total


def by_batches(lm: LanguageModel, questions: int) -> int:
    """The same with transformers' continuous batching."""
    asked = prompts(lm, questions)
    config = GenerationConfig(
        **SAMPLING,
        eos_token_id=sorted(lm.eos_ids),
        pad_token_id=0,
    )
    # So many rows at a time as everywhere here; a block holds 256 positions, more than a row has.
    batching = ContinuousBatchingConfig(
        max_requests_per_batch=SAMPLES, num_blocks=2 * SAMPLES, max_batch_tokens=256
    )
    found = lm.model.generate_batch(
        asked, generation_config=config, continuous_batching_config=batching
    )
    return sum(len(one.generated_tokens) for one in found.values())


class Before:
    """Another commit's softeval in a process of its own, which decodes when it is told to.

    Args:
        folder: that commit's files.
        size: of `SIZES`.
        device: and dtype, as here.
        questions: prompts at a time.
        clock: of `CLOCKS`.
    """

    CODE = """
import sys, time, torch
folder, size, device, dtype, questions, clock, samples, prompt = sys.argv[1:]
sys.path[:0] = [folder, folder + "/benchmarks"]
import decode
decode.SAMPLES, decode.PROMPT = int(samples), int(prompt)
lm, now = decode.build(size, device, getattr(torch, dtype)), getattr(time, clock)
for mode in map(str.strip, sys.stdin):
    start = now()
    tokens = decode.by_softeval(lm, int(questions), mode)
    print(tokens, now() - start, flush=True)
"""

    def __init__(
        self, folder: Path, size: str, device: str, dtype: str, questions: int, clock: str
    ) -> None:
        named = [size, device, dtype, str(questions), CLOCKS[clock].__name__]
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(folder), *named, str(SAMPLES), str(PROMPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def decode(self, mode: str) -> tuple[int, float]:
        """CoT tokens decoded, and the seconds it took."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(mode, file=self._process.stdin, flush=True)
        tokens, seconds = self._process.stdout.readline().split()
        return int(tokens), float(seconds)

    def close(self) -> None:
        self._process.communicate()


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


Arm = Callable[[], tuple[int, float]]
"""Decodes once: tokens, and the seconds it took."""


def timed(arm: Callable[..., int], clock: str, *args: Any) -> tuple[int, float]:
    started = CLOCKS[clock]()
    tokens = arm(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return tokens, CLOCKS[clock]() - started


def measure(arms: dict[str, Arm], rounds: int) -> dict[str, dict[str, float]]:
    """Median tokens/s of each arm after a warm-up; the arms take turns, so drift hits all alike."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        for name, arm in arms.items():
            tokens, seconds = arm()
            if round_:
                rates[name].append(tokens / seconds)
    return {
        name: {"median": statistics.median(r), "min": min(r), "max": max(r)}
        for name, r in rates.items()
    }


@torch.inference_mode()
def first_softeval(lm: LanguageModel, prompt: list[int]) -> int:
    rows_PD = lm.embedding.rows(torch.tensor(prompt, device=lm.device))
    feeder = RowFeeder(lm.model, 1, len(prompt))
    feeder.fill([0], feeder.prefill(rows_PD[:-1]))
    return int(feeder.feed(rows_PD[-1:], [len(prompt) - 1]).logits_NW.argmax())


@torch.inference_mode()
def prefill_softeval(lm: LanguageModel, prompt: list[int]) -> int:
    """The same without the step, which is one of a whole tile of rows."""
    feeder = RowFeeder(lm.model, 1, len(prompt))
    return len(feeder.prefill(lm.embedding.rows(torch.tensor(prompt, device=lm.device))).inputs_PD)


def first_generate(lm: LanguageModel, prompt: list[int]) -> int:
    given = torch.tensor([prompt], device=lm.device)
    return int(lm.model.generate(given, do_sample=False, max_new_tokens=1)[0, -1])


def first_tokens(lm: LanguageModel, rounds: int, clock: str) -> dict[str, float]:
    """Median seconds to the first token after a prompt of LONG tokens."""
    (prompt,) = prompts(lm, 1, LONG)
    arms = {
        "softeval": first_softeval,
        "softeval, prefill alone": prefill_softeval,
        "generate": first_generate,
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, arm in arms.items():
            seconds[name].append(timed(arm, clock, lm, prompt)[1])
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


MATRIX = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
ATTENTION = ("aten::_scaled_dot_product", "aten::_flash_attention", "aten::_efficient_attention")
HOST = "host"


@contextmanager
def named_parts(lm: LanguageModel) -> Iterator[None]:
    """Within, the profiler sees which part of a step an operation belongs to."""
    parts: list[tuple[Any, str, str]] = [
        (RowFeeder, "prefill_together", "prefill"),
        (RowFeeder, "step", "layers"),
        (lm.model.get_output_embeddings(), "forward", "head"),
        (decoder_module._Batch, "_think", "distribution and draw"),
        (InputEmbedding, "mix", "mixture"),
        (decoder_module, "measure", "records"),
        (Trace, "write", "records"),
        (decoder_module, "advance", "moving on"),
    ]
    with ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(mock.patch.object(owner, name, _named(part, getattr(owner, name))))
        yield


def _named(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def within(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(f"part: {part}"):
            return function(*args, **kwargs)

    return within


def where_time_goes(lm: LanguageModel, questions: int, mode: str) -> dict[str, float]:
    """Share of a decoding's time by part, what Python takes between operations among it."""
    decode = _named(HOST, by_softeval)
    with named_parts(lm), torch.profiler.profile() as profile:
        decode(lm, questions, mode)
    shares: Counter[str] = Counter()
    for event in profile.events():
        if (part := _part(event)) is not None:
            shares[part] += event.self_cpu_time_total
    return {part: share / shares.total() for part, share in shares.most_common()}


def _part(event: Any) -> str | None:
    """The innermost part that an operation is in; of the layers what kind it is."""
    within = event
    while within is not None and not within.name.startswith("part: "):
        within = within.cpu_parent
    if within is None:
        return None
    part = within.name.removeprefix("part: ")
    if part != "layers":
        return part
    if event.name in MATRIX:
        return "layers: matrix products"
    return "layers: attention" if event.name.startswith(ATTENTION) else "layers: all else"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="25m,100m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", default="hard_sample,soft_sample,fuzzy_sample")
    parser.add_argument("--arms", default="all")
    parser.add_argument("--parts", default="rates,first,table")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--before", type=Path, help="folder with another commit's files")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    report = {"hardware": hardware(), "threads": torch.get_num_threads(), "sizes": {}}
    report |= {"clock": args.clock, "questions": args.questions, "rounds": args.rounds}
    for size in args.sizes.split(","):
        found = report["sizes"][size] = measured(size, args)
        show(size, found)
        if args.output:
            args.output.write_text(json.dumps(report, indent=1) + "\n")


def measured(size: str, args: argparse.Namespace) -> dict[str, Any]:
    """The parts that are asked for, of one size."""
    lm, parts = build(size, args.device, getattr(torch, args.dtype)), args.parts.split(",")
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in lm.model.parameters())}
    modes = args.modes.split(",")
    if "rates" in parts:
        found["tokens_per_second"] = rates(lm, size, modes, args)
    if "first" in parts:
        found["first_token_seconds"] = first_tokens(lm, args.rounds, args.clock)
    if "table" in parts:
        found["shares"] = {mode: where_time_goes(lm, args.questions, mode) for mode in modes}
    return found


def rates(
    lm: LanguageModel, size: str, modes: list[str], args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Tokens/s of every arm."""
    peers = {"generate": by_generate, "lm_eval_hf": by_lm_eval, "generate_batch": by_batches}
    arms: dict[str, Arm] = {
        name: partial(timed, peer, args.clock, lm, args.questions) for name, peer in peers.items()
    }
    for mode in modes:
        arms[mode] = partial(timed, by_softeval, args.clock, lm, args.questions, mode)
    with ExitStack() as stack:
        if args.before:
            before = Before(args.before, size, args.device, args.dtype, args.questions, args.clock)
            stack.callback(before.close)
            arms |= {f"before: {mode}": partial(before.decode, mode) for mode in modes}
        chosen = arms if args.arms == "all" else args.arms.split(",")
        return measure({name: arms[name] for name in chosen}, args.rounds)


def show(size: str, found: dict[str, Any]) -> None:
    print(f"{size}: {found['parameters'] / 1e6:.1f} M parameters")
    for name, seconds in found.get("first_token_seconds", {}).items():
        print(f"  first token after {LONG}, {name}: {seconds:.2f} s")
    for mode, shares in found.get("shares", {}).items():
        print(f"  {mode}: " + ", ".join(f"{part} {share:.1%}" for part, share in shares.items()))
    rates = {name: r["median"] for name, r in found.get("tokens_per_second", {}).items()}
    for name, rate in rates.items():
        ratios = "".join(
            f"  {rate / rates[base]:.2f}x {base}"
            for base in ("generate", "lm_eval_hf", "hard_sample", f"before: {name}")
            if base in rates and base != name
        )
        print(f"  {name:20} {rate:9.0f} tokens/s{ratios}")


if __name__ == "__main__":
    main()
