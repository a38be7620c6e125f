"""A decode step on a GPU against what the memory allows: hard, soft and fuzzy at 16, 64 and 256 rows.

    python benchmarks/gpu_decode.py [--shape 3b|tiny] [--device cuda] [--rows 16,64,256] [--output FILE.json]

Random weights of Llama 3.2 3B's shape in bfloat16, mean context 450 positions. A step's time is that of
a long CoT less that of a short one, over the steps between, so that prefill and start-up cancel. The
floor is what a step must read, weights, cache and for a mixture E once more, over the bandwidth that
copying a large tensor reaches here. Uses `softeval.generate` alone: run it with another commit on
PYTHONPATH to compare. Kernels and waits of the host are counted by torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import softeval
from softeval.environment import hardware
from softeval.model.language_model import LanguageModel, wrap_model

SHAPES = {
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}
CONTEXT, SHORT, LONG = 450, 16, 144
"""Mean positions of a row while it is timed; steps of the two CoTs whose times are subtracted."""
COUNTED = (8, 24)
"""Steps of the two CoTs whose kernels and waits are subtracted; torch's profiler is slow over more."""
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def build(shape: str, device: str) -> LanguageModel:
    """A random Llama that never ends a CoT by itself."""
    sizes = SHAPES[shape]
    config = LlamaConfig(
        **sizes,
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[1] = 0  # the end token's logit is 0, far below the best
    words = {f"[{i}]": i for i in range(sizes["vocab_size"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[0]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[1]")
    return wrap_model(model, tokenizer, self_check=False)


def wait(device: str) -> None:
    """Until the device has done all that it was asked for."""
    if device != "cpu":
        torch.cuda.synchronize()


def run(lm: LanguageModel, mode: str, rows: int, steps: int) -> int:
    """Decode so many CoT steps of so many rows; the steps that were really taken."""
    prompt = " ".join(f"[{2 + i}]" for i in range(CONTEXT - (SHORT + LONG) // 2))
    found = softeval.generate(
        lm,
        [prompt] if not mode.endswith("greedy") else [f"{prompt} [{i + 2}]" for i in range(rows)],
        mode,
        num_samples=1 if mode.endswith("greedy") else rows,
        max_cot_tokens=steps,
        max_answer_tokens=1,
        batch_size=rows,
    )
    return max(len(sample.shadow_ids) for samples in found for sample in samples)


def timed(lm: LanguageModel, mode: str, rows: int, device: str) -> dict[str, float]:
    """Milliseconds, kernels and waits a step."""
    run(lm, mode, rows, LONG)  # warms up, captures
    seconds = {}
    for steps in (SHORT, LONG) * 3:
        wait(device)
        start = time.perf_counter()
        taken = run(lm, mode, rows, steps)
        wait(device)
        if taken != steps:
            raise SystemExit(f"{mode}: a CoT of {taken} steps where {steps} were asked for")
        seconds[steps] = min(seconds.get(steps, float("inf")), time.perf_counter() - start)
    between = LONG - SHORT
    figures = {"ms": 1e3 * (seconds[LONG] - seconds[SHORT]) / between}
    counts = [counted(lm, mode, rows, steps, device) for steps in COUNTED]
    for name in counts[0]:
        figures[name] = (counts[1][name] - counts[0][name]) / (COUNTED[1] - COUNTED[0])
    return figures


def counted(lm: LanguageModel, mode: str, rows: int, steps: int, device: str) -> dict[str, int]:
    """Kernels and waits of a whole run."""
    if device == "cpu":
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        run(lm, mode, rows, steps)
        wait(device)
    events = profiled.events() or []
    on_gpu = sum(1 for e in events if e.device_type == torch.autograd.DeviceType.CUDA)
    return {"kernels": on_gpu, "waits": sum(1 for e in events if e.name in WAITS)}


def bandwidth(device: str) -> float:
    """Bytes a second that copying reaches, read and written both counted."""
    size = 1 << (30 if device != "cpu" else 26)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = float("inf")
    for _ in range(5):
        wait(device)
        start = time.perf_counter()
        target.copy_(source)
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


def floor_ms(lm: LanguageModel, rows: int, mode: str, speed: float) -> float:
    """Milliseconds to read weights, keys and values, and E for a mixture."""
    config, table = lm.model.config, lm.model.get_input_embeddings().weight
    weights = sum(p.nbytes for p in lm.model.parameters())
    wide = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    cache = rows * CONTEXT * wide * table.element_size()
    mixture = 0 if mode.startswith("hard") else table.nbytes
    return 1e3 * (weights + cache + mixture) / speed


def main() -> None:
    """Print a line an arm, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="3b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", default="16,64,256")
    parser.add_argument("--modes", default="hard_sample,soft_sample,fuzzy_sample")
    parser.add_argument("--compile", action="store_true", help="fuse the model by torch.compile")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    lm = build(chosen.shape, chosen.device)
    if chosen.compile:
        lm.decode_by(graphs=True, fused=True)
    speed = bandwidth(chosen.device)
    print(f"copy {speed / 1e9:.0f} GB/s")
    arms = []
    for rows in map(int, chosen.rows.split(",")):
        for mode in chosen.modes.split(","):
            figures = timed(lm, mode, rows, chosen.device)
            floor = floor_ms(lm, rows, mode, speed)
            arm = {"rows": rows, "mode": mode, **figures, "floor_ms": floor}
            arms.append(arm | {"of_floor": figures["ms"] / floor})
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in arms[-1].items()})
    if chosen.output is not None:
        found = {
            "hardware": hardware(),
            "copy_bytes_per_s": speed,
            "arms": arms,
        }
        chosen.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
