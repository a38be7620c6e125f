r"""Makes the bundled base checkpoint: a tiny Llama that solves the arithmetic task in mixed style.

Builds a character tokenizer of 64 tokens and a Llama of 0.38 M parameters, trains it by supervised
learning on freshly drawn problems (``softeval.tasks.arithmetic``) in the paper's prompt, and saves an
ordinary transformers checkpoint. The inputs of the completion carry Gaussian noise of a random
scale between 0 and 1 times the size of the embeddings (as NEFTune, Jain et al. 2023, does), so that
the noisy vectors of soft and fuzzy decoding are nothing new to the model.

It knows nothing about decoding modes, rewards or reinforcement learning. The same seed gives the
same bytes on the same kind of processor; elsewhere the last bits of a matrix product may differ.
It takes some seven minutes on one core:

    python -m softeval.trainers.demo_base --output-path softeval/checkpoints/base --seed 0

Shapes: B sequences, T positions, D width, V vocabulary.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from softeval.protocol import PAPER, PAPER_PROMPT
from softeval.tasks.arithmetic import ArithmeticProblem, draw_problem, draw_splits, worked_solution
from softeval.trainers.optimization import Schedule

INSTRUCTION = PAPER_PROMPT.split("QUESTION")[0]
"""The paper's prompt up to the question."""

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
"""Padding, end of a sequence, and any character that is not in the vocabulary."""

PHRASES = (INSTRUCTION, "What is ", " Assistant:", " The final answer is:", r" \boxed{")
"""Texts that never vary, one token each; none is special, so decoding keeps them."""

CHARACTERS = "0123456789+-*/=~()[]{}\\.,:;?' abcdefghijklmnopqrstuvwxyz"
"""The task's own characters and enough others to type a plain question."""


@dataclass(frozen=True)
class DemoBaseConfig:
    """Everything that decides the weights."""

    seed: int = 0
    """Seeds the initial weights, the problems, their solutions and the noise."""
    hidden_size: int = 96
    intermediate_size: int = 192
    num_layers: int = 4
    num_heads: int = 4
    max_position_embeddings: int = 2048
    """Room for long prompts with the paper's caps; rotary positions cost no parameters."""
    embedding_std: float = 0.15
    """Standard deviation of the first input embeddings. The usual 0.02 would leave the rows of
    characters that the task never uses far smaller than the others, and σ, which is set from all
    rows, with them."""
    steps: int = 2000
    batch_size: int = 64
    """Sequences per step."""
    learning_rate: float = 3e-3
    """Peak of the cosine schedule, which ends at zero."""
    warmup_steps: int = 50
    weight_decay: float = 0.0
    largest_noise_scale: float = 1.0
    """Noise scale of a sequence is uniform between 0 and this; 0 trains without noise."""
    threads: int = 1
    """Threads of torch. With one, a seed gives the same weights on every run; with two, sums are
    split differently from run to run and the weights with them."""


@dataclass(frozen=True)
class TextBatch:
    """One training batch.

    Attributes:
        input_ids_BT: prompt, completion and end of sequence, padded on the right.
        completion_BT: true where the token belongs to the completion or ends the sequence.
    """

    input_ids_BT: Tensor
    completion_BT: Tensor


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: one token a character, and one for each phrase that never varies.

    It adds no token of its own (no beginning of sequence), and decoding gives the text back
    unchanged as long as every character is known; others become ``<unk>``.
    """
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *PHRASES, *CHARACTERS))}
    pad, eos, unknown = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
        model_max_length=DemoBaseConfig.max_position_embeddings,
    )


def build_model(config: DemoBaseConfig, tokenizer: Any) -> Any:
    """Build the untrained model; input and output embeddings are separate matrices."""
    torch.manual_seed(config.seed)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=config.embedding_std)
    return model


def draw_batches(config: DemoBaseConfig, tokenizer: Any) -> Iterator[TextBatch]:
    """Draw batches without end; no question of the test and validation splits is ever drawn."""
    rng = Random(config.seed)
    splits = draw_splits()
    held_out = {p.question for name in ("test", "validation") for p in splits[name]}
    while True:
        problems: list[ArithmeticProblem] = []
        while len(problems) < config.batch_size:
            problem = draw_problem(rng)
            if problem.question not in held_out:
                problems.append(problem)
        prompts = [PAPER.ask(p.question) for p in problems]
        completions = [worked_solution(p, rng) + str(tokenizer.eos_token) for p in problems]
        yield collate(tokenizer, prompts, completions)


def collate(tokenizer: Any, prompts: list[str], completions: list[str]) -> TextBatch:
    """Tokenize prompts and completions apart, join them and pad on the right."""
    prompt_ids = tokenizer(prompts)["input_ids"]
    completion_ids = tokenizer(completions)["input_ids"]
    rows = [torch.tensor(p + c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    marks = [
        torch.tensor([False] * len(p) + [True] * len(c))
        for p, c in zip(prompt_ids, completion_ids, strict=True)
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    return TextBatch(
        input_ids_BT=pad(rows, batch_first=True, padding_value=tokenizer.pad_token_id),
        completion_BT=pad(marks, batch_first=True, padding_value=False),
    )


def noisy_inputs(
    embeddings_BTD: Tensor, noisy_BT: Tensor, sigma_B: Tensor, generator: torch.Generator
) -> Tensor:
    """Add Gaussian noise of standard deviation ``sigma_B`` where ``noisy_BT`` is true."""
    noise_BTD = torch.randn(embeddings_BTD.shape, generator=generator)
    return embeddings_BTD + noise_BTD * noisy_BT[..., None] * sigma_B[:, None, None]


def completion_loss(
    model: Any, batch: TextBatch, largest_noise_scale: float, generator: torch.Generator
) -> Tensor:
    """Mean cross-entropy (nats a token) of the completion under noisy completion inputs."""
    matrix_VD = model.get_input_embeddings().weight
    size = matrix_VD.detach().square().mean().sqrt()
    sigma_B = torch.rand(len(batch.input_ids_BT), generator=generator) * largest_noise_scale * size
    clean_BTD = matrix_VD[batch.input_ids_BT]
    inputs_BTD = noisy_inputs(clean_BTD, batch.completion_BT, sigma_B, generator)
    logits_BTV = model(inputs_embeds=inputs_BTD, use_cache=False).logits
    targets_BT = batch.input_ids_BT.masked_fill(~batch.completion_BT, -100)
    return cross_entropy(logits_BTV[:, :-1].flatten(0, 1), targets_BT[:, 1:].flatten())


def train(model: Any, tokenizer: Any, config: DemoBaseConfig) -> list[float]:
    """Train ``model`` in place, print the loss now and then, and return it for every step."""
    torch.set_num_threads(config.threads)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay
    )
    factor = Schedule(1.0, config.warmup_steps, config.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    batches = draw_batches(config, tokenizer)
    losses: list[float] = []
    start = time.perf_counter()
    for step in range(1, config.steps + 1):
        loss = completion_loss(model, next(batches), config.largest_noise_scale, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == config.steps:
            recent = losses[-50:]
            seconds = time.perf_counter() - start
            print(f"step {step} loss {sum(recent) / len(recent):.4f} {seconds:.0f} s", flush=True)
    return losses


@torch.inference_mode()
def greedy_success(model: Any, tokenizer: Any, problems: list[ArithmeticProblem]) -> float:
    """Share of problems whose boxed number is right under ordinary greedy decoding."""
    prompts = [PAPER.ask(p.question) for p in problems]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ids_BT = model.eval().generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        max_new_tokens=64,
    )
    texts = tokenizer.batch_decode(ids_BT[:, inputs["input_ids"].shape[1] :])
    right = [rf"\boxed{{{p.answer}}}" in t for p, t in zip(problems, texts, strict=True)]
    return sum(right) / len(right)


def model_card(config: DemoBaseConfig, loss: float, success: float) -> str:
    """The checkpoint's README: what it is, how it was made, what it cannot do."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in asdict(config).items())
    return f"""---
library_name: transformers
tags: [llama, arithmetic, softeval]
---
# softeval demo base

A tiny Llama (separate input and output embeddings, float32) that solves the bundled arithmetic
task of softeval in a mixture of careful and sloppy steps. It is the untrained arm of the demo: the
checkpoint from which the hard, soft and fuzzy ones are trained. It is of no use for anything else.

* Prompt: the paper's, to the letter (`softeval.protocol.PAPER.ask`), then a completion such as
  ` 47-28=19;19*3~58;58+12=70; The final answer is: \\boxed{{70}}` and `<eos>`.
* Tokenizer: one token a character plus one for each fixed phrase; no beginning-of-sequence token;
  characters it does not know become `<unk>`.
* Training: supervised, on problems drawn afresh (none of the test or validation questions), with
  Gaussian noise on the inputs of the completion, of a scale uniform between 0 and
  {config.largest_noise_scale:g} times the root mean square of the embedding entries.
* Result: loss {loss:.4f} nats a completion token (mean of the last 50 steps, noise included);
  greedy decoding answers {success:.0%} of the validation problems.
* Limits: it has seen no more than about 60 positions, although its context is longer, and nothing
  but this task.

Made by `python -m softeval.trainers.demo_base --output-path DIR --seed {config.seed}`.

| parameter | value |
|---|---|
{rows}
"""


def make_checkpoint(output_path: Path, config: DemoBaseConfig) -> None:
    """Train from scratch and save model, tokenizer and card to ``output_path``."""
    tokenizer = build_tokenizer()
    model = build_model(config, tokenizer)
    # Saved before its first use: padding a batch would leave its mark in tokenizer.json.
    tokenizer.save_pretrained(output_path)
    losses = train(model, tokenizer, config)
    success = greedy_success(model, tokenizer, draw_splits()["validation"])
    print(f"parameters {model.num_parameters()} greedy validation success {success:.3f}")
    model.save_pretrained(output_path)
    recent = losses[-50:]
    card = model_card(config, sum(recent) / len(recent), success)
    (output_path / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Make the checkpoint that ships, or one of another seed."""
    parser = argparse.ArgumentParser(description="Make the bundled base checkpoint.")
    parser.add_argument("--output-path", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=DemoBaseConfig.seed)
    arguments = parser.parse_args()
    make_checkpoint(arguments.output_path, DemoBaseConfig(seed=arguments.seed))


if __name__ == "__main__":
    main()
