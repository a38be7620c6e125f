"""What every mode feeds, computed again from its paper's definition.

One prefix at a time through the model without a cache, in plain loops and float64; the prefix is what
was recorded, so that a deviation does not hide in the next step's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from conftest import mostly_slow
from scipy.stats import gamma
from tiny import tiny_lm

import softeval
from softeval.decoding.randomness import SampleRandomness
from softeval.modes import ALL, MODES, get_mode

SEED, STEPS = 3, 3
PROMPTS = ("1+2=", "What is 7 times 8, and why?")
FAMILIES = ("llama", "qwen3", "gemma2", "gpt2")  # gemma2 scales its embeddings, and caps its logits
NEAR = 1e-4


class Place:
    """One step of one sample: what the model shows after the prefix, and the sample's numbers."""

    def __init__(self, family: str, prefix_LD: torch.Tensor, key: Any, step: int) -> None:
        self.lm = tiny_lm(family)
        found = self.lm.model(
            inputs_embeds=prefix_LD[None], use_cache=False, output_hidden_states=True
        )
        self.logits = found.logits[0, -1, : self.lm.vocab].double()
        self.hidden = found.hidden_states[-1][0, -1].double()
        self._random, self._step = SampleRandomness(SEED, key), step
        self.table = self.lm.model.get_input_embeddings()(torch.arange(self.lm.vocab)).double()

    def uniforms(self, width: int) -> list[float]:
        return self._random.uniforms(self._step + 1, width)[-1].tolist()

    def normals(self, width: int) -> torch.Tensor:
        return self._random.normals(self._step + 1, width)[-1].double()

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of a hidden state."""
        logits = self.lm.model.lm_head(hidden.float())[: self.lm.vocab].double()
        cap = getattr(self.lm.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def mix(self, weights: dict[int, float]) -> torch.Tensor:
        assert sum(weights.values()) == pytest.approx(1)
        return sum((w * self.table[i] for i, w in weights.items()), torch.zeros(()))


def softmax(logits: torch.Tensor, temperature: float) -> dict[int, float]:
    return dict(enumerate((logits / temperature).softmax(-1).tolist()))


def scaled(kept: dict[int, float]) -> dict[int, float]:
    return {i: p / sum(kept.values()) for i, p in kept.items()}


def ranked(kept: dict[int, float]) -> list[int]:
    return sorted(kept, key=lambda i: -kept[i])


def filtered(kept: dict[int, float], top_k=0, top_p=1.0, min_p=0.0, top_n=0) -> dict[int, float]:
    """Most likely first."""
    kept = scaled({i: kept[i] for i in ranked(kept)[: top_k or None]})
    nucleus: dict[int, float] = {}
    for i in kept:
        if sum(nucleus.values()) < top_p or top_p == 1:
            nucleus[i] = kept[i]
    nucleus = scaled(nucleus)
    kept = scaled({i: p for i, p in nucleus.items() if p >= min_p * max(nucleus.values())})
    return scaled({i: kept[i] for i in ranked(kept)[: top_n or None]})


def drawn(probs: dict[int, float], uniform: float) -> int:
    """The token whose part of [0, 1), in the order of the ids, holds the uniform."""
    below = 0.0
    for i in sorted(probs):
        below += probs[i]
        if uniform < below:
            return i
    raise AssertionError("probabilities sum to less than 1")


def soft_thinking(at: Place) -> torch.Tensor:
    return at.mix(filtered(softmax(at.logits, 0.6), 30, 0.95, 0.001, 10))


def gumbel(at: Place) -> torch.Tensor:
    w = filtered(softmax(at.logits, 0.6), 30, 0.95, 0.001, 10)
    noise = [-math.log(-math.log(u)) for u in at.uniforms(10)]
    scores = [(math.log(p) + g) / 0.5 for p, g in zip(w.values(), noise, strict=False)]
    return at.mix(dict(zip(w, torch.tensor(scores).double().softmax(-1).tolist(), strict=True)))


def dirichlet(at: Place) -> torch.Tensor:
    w = filtered(softmax(at.logits, 0.6), 30, 0.95, 0.001, 10)
    numbers = at.uniforms(20)
    shares = [
        float(gamma.ppf(body, p + 1)) * power ** (1 / p)  # Gamma(p + 1)·U^(1/p) is Gamma(p)
        for p, body, power in zip(w.values(), numbers[:10], numbers[10:], strict=False)
    ]
    return at.mix(scaled(dict(zip(w, shares, strict=True))))


def mixture_of_inputs(at: Place) -> torch.Tensor:
    p = softmax(at.logits, 0.6)
    y = drawn(filtered(p, top_p=0.95), at.uniforms(1)[0])
    p = scaled({i: p[i] for i in {*ranked(p)[:20], y}})
    h = -sum(q * math.log(q) for q in p.values() if q) / math.log(20)
    return at.mix({i: (h * p[i] + (2 - h) * (i == y)) / 2 for i in p})


def multiplex(weights: str) -> Callable[[Place], torch.Tensor]:
    def fed(at: Place) -> torch.Tensor:
        p = filtered(softmax(at.logits, 1.0), top_p=0.95)
        tokens = [drawn(p, u) for u in at.uniforms(3)]
        parts = {
            "uniform": {i: tokens.count(i) for i in tokens},
            "reweighted": {i: tokens.count(i) * p[i] for i in tokens},
            "unique": {i: p[i] for i in tokens},
        }
        return at.mix(scaled(parts[weights]))

    return fed


def coconut(at: Place) -> torch.Tensor:
    return at.hidden


def realigned(at: Place) -> torch.Tensor:
    head = at.lm.model.lm_head.weight[: at.lm.vocab].double()
    ridge = 1e-5 * torch.eye(head.shape[1]).double()
    fed = at.hidden @ (torch.linalg.inv(head.T @ head + ridge) @ head.T @ at.table)
    return fed * at.table.norm(dim=-1).mean() / fed.norm()


def hidden_noise(at: Place) -> torch.Tensor:
    sigma = 0.33 * at.hidden.square().mean().sqrt()
    return at.mix(softmax(at.head(at.hidden + sigma * at.normals(len(at.hidden))), 0.5))


def logit_noise(at: Place) -> torch.Tensor:
    sigma = 0.33 * at.logits.std(correction=0)
    return at.mix(softmax(at.logits + sigma * at.normals(len(at.logits)), 0.5))


def top_logit_noise(at: Place) -> torch.Tensor:
    ids = ranked(dict(enumerate(at.logits.tolist())))[:5]
    sigma = 0.33 * at.logits[ids].std(correction=0)
    noised = at.logits[ids] + sigma * at.normals(5)
    return at.mix(dict(zip(ids, noised.softmax(-1).tolist(), strict=True)))


ORACLES: dict[str, tuple[str, dict[str, Any], Callable[[Place], torch.Tensor]]] = {
    "soft_thinking": ("soft_thinking", {}, soft_thinking),
    "gumbel": ("gumbel", {}, gumbel),
    "dirichlet": ("dirichlet", {}, dirichlet),
    "mixture_of_inputs": ("mixture_of_inputs", {}, mixture_of_inputs),
    **{
        f"multiplex {kind}": ("multiplex", {"weights": kind}, multiplex(kind))
        for kind in ("uniform", "reweighted", "unique")
    },
    "coconut": ("coconut", {}, coconut),
    "coconut realigned": ("coconut", {"realign": True}, realigned),
    "hidden_noise": ("hidden_noise", {}, hidden_noise),
    "logit_noise": ("logit_noise", {}, logit_noise),
    "top_logit_noise": ("top_logit_noise", {}, top_logit_noise),
}


def test_every_mode_beside_the_papers_has_an_oracle():
    assert {mode for mode, _, _ in ORACLES.values()} >= set(MODES) - set(ALL)


@cache
def samples(family: str, name: str):
    mode, options, _ = ORACLES[name]
    chosen = get_mode(mode, **options)
    return softeval.generate(tiny_lm(family), PROMPTS, chosen, 1, SEED, STEPS, 2, keep_inputs=True)


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ["gemma2"]))
@pytest.mark.parametrize("name", ORACLES)
@torch.inference_mode()
def test_what_is_fed_is_what_the_definition_says(name: str, family: str) -> None:
    lm, oracle = tiny_lm(family), ORACLES[name][2]
    table = lm.model.get_input_embeddings()
    scale = float(table(torch.arange(lm.vocab)).abs().max())
    for prompt, drawn_samples in zip(PROMPTS, samples(family, name), strict=True):
        prompt_PD = table(torch.tensor(lm.tokenizer.encode(prompt)))
        for sample in drawn_samples:
            assert sample.inputs is not None
            fed_TD = sample.inputs
            for step in range(len(fed_TD)):
                place = Place(family, torch.cat([prompt_PD, fed_TD[:step]]), sample.key, step)
                apart = (oracle(place) - fed_TD[step].double()).abs().max()
                assert float(apart) < NEAR * scale, (sample.key, step)
