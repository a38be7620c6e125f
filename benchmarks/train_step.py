"""What a training step costs: the loss kernel against plain autograd, the step against TRL's.

    python benchmarks/train_step.py loss           # peak memory and seconds of the loss, V = 64,000
    python benchmarks/train_step.py step           # whole steps: TRL's RLOO, ours hard, ours soft
    python benchmarks/train_step.py step --large   # the same with a model of 103 M parameters
    python benchmarks/train_step.py memory         # bytes of its training in 1, 2 and 4 processes

Memory is measured in a process for each contestant: the peak of its resident size during the work,
less what it held before. Times are the machine's mood: read the ratios. The contestants' steps
alternate, and medians are compared; `cpu` counts processor seconds, which a busy machine disturbs
less than the clock. "Naive soft" keeps logits and p of all positions and leaves the rest to autograd.

Equal work in `step`: B = 2 prompts of 64 tokens, G = 32, 80 tokens to generate for each, no early
end, passes of 16 sequences, AdamW, float32. TRL has no prefill; ours feeds a few prefill tokens more.

`memory` counts the bytes of all tensors that there are after an update and after its training pass
(model, masters, moments, gradients), and not the resident size, of which Python and its libraries are
0.6 GB. Peaks of a rollout, a pass and an optimizer step are resident sizes above what the process had before it
made a model. Both beside the estimate that `softeval train` makes; 103 M parameters, 4 sequences.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

N, D, V, CHUNK = 4096, 256, 64_000, 2**23 // 64_000
TEMPERATURE = 0.5
PROMPT, COT, ANSWER, PROMPTS, GROUP, MICRO = 64, 64, 16, 2, 32, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", choices=["loss", "step", "memory", "variant", "one-step", "one-memory"]
    )
    parser.add_argument("variant", nargs="?", choices=[*VARIANTS, *CONTESTANTS, *DTYPES])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.what == "variant":
        print(json.dumps(measure_variant(VARIANTS[arguments.variant])))
    elif arguments.what == "one-step":
        print(json.dumps(measure_step(arguments.variant, arguments.large)))
    elif arguments.what == "one-memory":
        measure_memory(arguments.variant)
    elif arguments.what == "memory":
        compare_memory()
    elif arguments.what == "loss":
        compare_losses()
    else:
        compare_steps(arguments.large, arguments.rounds)


# --- the loss -------------------------------------------------------------------------------------


class Problem:
    """Hidden states, head and embedding of a soft CoT of N positions."""

    def __init__(self) -> None:
        from softeval.model.embedding import InputEmbedding
        from softeval.model.output_head import HeadRule, OutputHead

        torch.manual_seed(0)
        self.hidden = torch.randn(N, D, requires_grad=True)
        self.weight = nn.Parameter(torch.randn(V, D) * 0.1)
        self.embedding = InputEmbedding(nn.Embedding(V, D), V)
        self.target = torch.randn(N, D)
        self.ids = torch.randint(0, V, (N,))
        self.head = OutputHead(self.weight, None, HeadRule(V, chunk=CHUNK))


def soft_naive(p: Problem) -> Tensor:
    probs_NV = ((p.hidden @ p.weight.T) / TEMPERATURE).softmax(-1)
    return (p.target - probs_NV @ p.embedding.weight).square().sum()


def soft_checkpointed(p: Problem) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    def part(hidden: Tensor, target: Tensor) -> Tensor:
        probs = ((hidden @ p.weight.T) / TEMPERATURE).softmax(-1)
        return (target - probs @ p.embedding.weight).square().sum()

    parts = zip(p.hidden.split(CHUNK), p.target.split(CHUNK), strict=True)
    return sum(checkpoint(part, h, t, use_reentrant=False) for h, t in parts)  # type: ignore[return-value]


def soft_ours(p: Problem) -> Tensor:
    from softeval.trainers.chunked import mixtures

    mixed = mixtures(p.hidden, p.head, p.embedding, TEMPERATURE).mixed_ND
    return (p.target - mixed).square().sum()


def hard_naive(p: Problem) -> Tensor:
    log_probs = (p.hidden @ p.weight.T).log_softmax(-1)
    return log_probs.gather(-1, p.ids[:, None]).sum()


def hard_ours(p: Problem) -> Tensor:
    from softeval.trainers.chunked import token_log_probs

    return token_log_probs(p.hidden, p.ids, p.head).sum()


VARIANTS: dict[str, Callable[[Problem], Tensor]] = {
    "soft_naive": soft_naive,
    "soft_checkpointed": soft_checkpointed,
    "soft_ours": soft_ours,
    "hard_naive": hard_naive,
    "hard_ours": hard_ours,
}


def measure_variant(loss: Callable[[Problem], Tensor]) -> dict[str, float]:
    """Forward and backward once, in this process."""
    problem = Problem()
    # The parameters' own gradients are every variant's; they are no extra memory of the loss.
    for parameter in (problem.hidden, problem.weight, problem.embedding.module.weight):
        parameter.grad = torch.zeros_like(parameter)  # type: ignore[union-attr]
    before = peak_megabytes()
    started = time.perf_counter()
    loss(problem).backward()
    seconds = time.perf_counter() - started
    return {"megabytes": peak_megabytes() - before, "seconds": seconds}


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def compare_losses() -> None:
    print(f"N {N}, D {D}, V {V}, chunks of {CHUNK}, float32, {torch.get_num_threads()} threads")
    found = {}
    for name in VARIANTS:
        found[name] = in_own_process("variant", name)
    print(f"{'variant':20}{'extra MB':>10}{'seconds':>10}{'memory':>10}{'time':>8}")
    for name, value in found.items():
        naive = found[f"{name.split('_')[0]}_naive"]
        ratios = [value[key] / naive[key] for key in ("megabytes", "seconds")]
        numbers = f"{value['megabytes']:10.0f}{value['seconds']:10.2f}"
        print(f"{name:20}{numbers}{ratios[0]:10.3f}{ratios[1]:8.2f}")


# --- the step -------------------------------------------------------------------------------------


def make_model(large: bool, dtype: torch.dtype = torch.float32) -> Any:
    """A random Llama and a tokenizer of words without colon or brace: nothing ends early."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from softeval.model.language_model import wrap_model

    vocab, width, layers, heads = (32_000, 640, 12, 10) if large else (1000, 256, 6, 4)
    words = {"<pad>": 0, "<eos>": 1} | {f"w{n}": n for n in range(2, vocab)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    lm = wrap_model(LlamaForCausalLM(config).to(dtype).eval(), tokenizer)
    lm.eos_ids = frozenset()
    return lm


def prompts() -> list[str]:
    return [" ".join(f"w{2 + (7 * n + p) % 900}" for n in range(PROMPT)) for p in range(PROMPTS)]


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"wall": wall, "cpu": cpu}


def our_steps(lm: Any, method: str, naive: bool = False) -> Iterator[dict[str, float]]:
    """Whole steps of ours: rollout, training pass, optimizer. Rewards are made up."""
    from softeval.decoding.decoder import Decoder, Question
    from softeval.model.output_head import can_share, output_head
    from softeval.model.stopping import Limits
    from softeval.modes import get_mode
    from softeval.trainers.algorithms import ALGORITHMS
    from softeval.trainers.losses import Policy
    from softeval.trainers.optimization import MasterWeights, Optimization, Schedule
    from softeval.trainers.training_pass import PassPlan, TrainingPass

    mode = get_mode(f"{method}_sample")
    policy = Policy(mode)
    decoder = Decoder(
        lm, mode, Limits(COT, ANSWER), answer_temperature=1.0, keep_inputs=not mode.feeds_tokens
    )
    weights = MasterWeights(lm.model)
    optimization = Optimization(weights, Schedule(1e-6, 0, 10**6))
    share = can_share(lm.model)
    passes = TrainingPass(lm, output_head(lm), weights, policy, micro_batch=MICRO, share=share)
    ids = [tuple(lm.tokenizer.encode(text)) for text in prompts()]
    step = 0
    while True:
        samples = tuple(range(step * GROUP, (step + 1) * GROUP))
        clock = Clock()
        rollouts = list(decoder.run([Question("b", p, i, samples) for p, i in enumerate(ids)]))
        decoded = clock.read()
        rewards_PG = torch.rand(PROMPTS, GROUP, dtype=torch.float64)
        advantages = ALGORITHMS["rloo"].advantages(rewards_PG).flatten()
        if naive:
            naive_pass(lm, rollouts, advantages, mode)
        else:
            passes.run(rollouts, advantages, PassPlan(len(rollouts)))
        weights.reduce()
        optimization.step(step, weights.norm())
        step += 1
        yield {**clock.read(), "rollout_cpu": decoded["cpu"]}


def naive_pass(lm: Any, rollouts: list[Any], advantages: Tensor, mode: Any) -> None:
    """The soft pass as one would first write it: logits and p of every position, plain autograd."""
    from softeval.trainers.losses import collate, teacher_forced_inputs

    draws, sigma = mode.draws(lm.embedding), mode.sigma(lm.embedding)
    for start in range(0, len(rollouts), MICRO):
        part = rollouts[start : start + MICRO]
        batch = collate(part, lm.device, lm.dtype, mode, draws)
        weight = advantages[start : start + MICRO].float()
        logits = lm.model(inputs_embeds=teacher_forced_inputs(lm.embedding, batch)).logits
        flat = logits.flatten(0, 1)
        mixed = (flat / TEMPERATURE).softmax(-1) @ lm.embedding.weight
        error = batch.fed_ND - mixed[batch.cot.source_N]
        cot = -error.square().sum(-1) / (2 * sigma**2) * weight[batch.cot.row_N]
        chosen = flat.log_softmax(-1)[batch.answer.source_N, batch.answer.ids_N]
        answer = chosen * weight[batch.answer.row_N]
        (-(cot.sum() + answer.sum()) / len(rollouts)).backward()


def trl_steps(lm: Any, steps: int) -> list[dict[str, float]]:
    """Whole steps of TRL's RLOOTrainer on the same model, prompts and number of tokens."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    times: list[dict[str, float]] = []

    class StepClock(TrainerCallback):
        def on_step_begin(self, *args: Any, **options: Any) -> None:
            self.clock = Clock()

        def on_step_end(self, *args: Any, **options: Any) -> None:
            times.append(self.clock.read())

    def reward(completions: list[str], **_: Any) -> list[float]:
        return torch.rand(len(completions)).tolist()

    length = COT + ANSWER
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        settings = RLOOConfig(
            output_dir=folder,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=PROMPTS * GROUP // MICRO,
            num_generations=GROUP,
            max_completion_length=length,
            generation_kwargs={"min_new_tokens": length},
            max_steps=steps,
            learning_rate=1e-6,
            beta=0.0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1000,
        )
        RLOOTrainer(
            model=lm.model,
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": prompts() * steps * 4}),
            processing_class=lm.tokenizer,
            callbacks=[StepClock()],
        ).train()
    return times


CONTESTANTS = ("TRL RLOO", "ours hard", "ours soft", "naive soft")
Steps = Callable[[int], list[dict[str, float]]]


def contestant(name: str, large: bool) -> Steps:
    """A function that does so many steps and gives the times of each."""
    lm = make_model(large)
    if name == "TRL RLOO":
        return lambda number: trl_steps(lm, number)
    kind, method = name.split()
    steps = our_steps(lm, method, naive=kind == "naive")
    return lambda number: [next(steps) for _ in range(number)]


def measure_step(name: str, large: bool) -> dict[str, float]:
    """Peak memory of two steps, in this process."""
    steps = contestant(name, large)
    before = peak_megabytes()
    steps(2)
    return {"megabytes": peak_megabytes() - before}


def compare_steps(large: bool, rounds: int) -> None:
    size = ["--large"] if large else []
    memory = {n: in_own_process("one-step", n, *size)["megabytes"] for n in CONTESTANTS}
    contestants = {name: contestant(name, large) for name in CONTESTANTS}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, steps in contestants.items():
            found[name] += steps(2)[1:]  # the first of each visit warms up
    medians = {
        name: {key: statistics.median(step[key] for step in steps) for key in steps[0]}
        for name, steps in found.items()
    }
    print(f"{rounds} rounds, {torch.get_num_threads()} threads, {'103 M' if large else '6.4 M'}")
    columns = ("wall", "cpu", "MB", "cpu/TRL", "cpu/hard", "wall/TRL", "wall/hard", "MB/TRL")
    print(f"{'':12}" + "".join(f"{column:>10}" for column in columns))
    trl, hard = medians["TRL RLOO"], medians["ours hard"]
    for name, value in medians.items():
        numbers = [value["wall"], value["cpu"], memory[name]]
        numbers += [value[key] / other[key] for key in ("cpu", "wall") for other in (trl, hard)]
        numbers.append(memory[name] / memory["TRL RLOO"])
        print(f"{name:12}" + "".join(f"{number:10.2f}" for number in numbers))


# --- memory ---------------------------------------------------------------------------------------

DTYPES = ("float32", "bfloat16")
PHASES = ("the rollouts", "the training pass", "the optimizer step")


def live_bytes() -> int:
    """Of all tensors that there are, each storage once; a model's, FSDP's and an optimizer's among them."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects complain of being looked at
        tensors = [x for x in gc.get_objects() if isinstance(x, Tensor) and x.device.type == "cpu"]
    whole = [x.to_local() if isinstance(x, DTensor) else x for x in tensors]
    whole += [x.grad for x in whole if x.is_leaf and x.grad is not None]
    storages = {s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for x in whole)}
    return sum(storages.values())


class Resident:
    """Peak of the resident size while it is entered (Linux), above what there was when it was made."""

    def __init__(self) -> None:
        self._before = self._read("VmRSS")

    def __enter__(self) -> Self:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        return self

    def __exit__(self, *error: object) -> None:
        self.peak = self._read("VmHWM") - self._before

    def _read(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith(name))


def measure_memory(dtype: str) -> None:
    """Two updates of this process among its peers; the main one prints bytes and estimate."""
    from softeval.decoding.decoder import Decoder, Question
    from softeval.model.weights import meta_model
    from softeval.processes import Processes
    from softeval.trainers.config import make_config
    from softeval.trainers.losses import Policy
    from softeval.trainers.memory import MemoryModel
    from softeval.trainers.questions import Lengths
    from softeval.trainers.setup import make_trainee
    from softeval.trainers.training_pass import PassPlan, TrainingPass

    processes = Processes.joined(torch.device("cpu"))
    shard = "full" if processes.size > 1 else "none"
    config = make_config(
        {
            "method": "soft", "shard": shard, "prompts_per_step": PROMPTS, "num_generations": 2,
            "max_cot_tokens": 16, "max_answer_tokens": 4, "micro_batch_size": 1,
            "kl_steps": 0, "gradient_split_steps": 0, "validation_size": 1, "max_steps": 2,
        }
    )  # fmt: skip
    resident = Resident()
    lm = make_model(True, getattr(torch, dtype))
    trainee = make_trainee(config, lm, processes, shard == "full")
    mode = config.mode
    decoder = Decoder(lm, mode, config.limits, answer_temperature=1.0, keep_inputs=True)
    asked = [tuple(lm.tokenizer.encode(text)) for text in prompts()]
    mine = processes.share([(p, s) for p in range(PROMPTS) for s in range(2)])
    passes = TrainingPass(lm, trainee.head, trainee.weights, Policy(mode), micro_batch=1)
    found: dict[str, int] = {}
    for step in range(2):  # the first makes AdamW's moments
        found["held"] = live_bytes()
        with resident:
            rollouts = list(decoder.run([Question("b", p, asked[p], (s,)) for p, s in mine]))
        found["the rollouts"] = resident.peak
        advantages = torch.randn(len(rollouts), dtype=torch.float64)
        with resident:
            passes.run(rollouts, advantages, PassPlan(config.sequences))
            trainee.weights.reduce()
        found["the training pass"] = resident.peak
        found["held with gradients"] = live_bytes()
        norm = trainee.weights.norm()
        with resident:
            trainee.optimization.step(step, norm)
        found["the optimizer step"] = resident.peak
        del rollouts
    lengths = Lengths(PROMPT, config.cot_cap, PROMPT + config.limits.room(lm))
    model = meta_model(lm.model.config, getattr(torch, dtype))
    memory = MemoryModel(model, config, lengths, "cpu", processes.size)
    told = memory.estimate()
    expected = {name: told.phases[name] for name in PHASES}
    expected["held"] = sum(told.standing.values())
    expected["held with gradients"] = expected["held"] + told.standing["AdamW's two moments"] // 2
    if processes.is_main:
        count = lm.model.num_parameters()
        print(json.dumps({"count": count, "measured": found, "estimated": expected}))
    processes.leave()


def compare_memory() -> None:
    names = ("held", "held with gradients", *PHASES)
    print("bytes a parameter in each process, measured / estimated")
    print(f"{'':20}" + "".join(f"{name:>24}" for name in names))
    for dtype in DTYPES:
        for size in (1, 2, 4):
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
            command = [sys.executable, *launcher, __file__, "one-memory", dtype]
            # What is freed goes back to the system at once, and is not resident any more.
            own = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
            output = subprocess.run(
                command, env=own, capture_output=True, text=True, check=True
            ).stdout
            found = json.loads(output.splitlines()[-1])
            pairs = [(found["measured"][n], found["estimated"][n]) for n in names]
            shown = [f"{m / found['count']:.2f} / {e / found['count']:.2f}" for m, e in pairs]
            print(f"{dtype}, {size:<10}" + "".join(f"{text:>24}" for text in shown))


if __name__ == "__main__":
    main()
