"""Exact KL between a checkpoint and its base model along given prefixes.

At each CoT position both models see the same prefix and the whole next-token distributions are
compared, at temperature 1, in float32, over the ids that both know. A soft prefix is fed as the same
weights of each model's own embeddings, with the same noise vector added (`Mode.replay`).

Knows nothing of run directories. Never holds more than one chunk of positions × vocabulary.

Shapes: T CoT positions, P prompt tokens, D width, n positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from softeval.errors import UserError
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import last_hidden, output_head
from softeval.modes import Mode, Seen, Taken


@dataclass(frozen=True, eq=False)
class Prefix:
    """A CoT to replay.

    Attributes:
        prompt_ids: token ids of the prompt.
        shadow_ids: (T,) the CoT's shadow tokens; all that is needed in a hard mode.
        inputs: (T, D) what was fed to the checkpoint, in a soft or fuzzy mode.
        record: (T, R) what the mode recorded of its steps besides, where it records any.
    """

    prompt_ids: np.ndarray
    shadow_ids: np.ndarray
    inputs: Tensor | None = None
    record: Tensor | None = None


@dataclass(frozen=True, eq=False)
class PositionKL:
    """KL at each CoT position, (T,) nats: forward KL(base‖checkpoint), reverse KL(checkpoint‖base)."""

    forward: np.ndarray
    reverse: np.ndarray


class ModelComparison:
    """A checkpoint beside its base model.

    Raises:
        UserError: the two do not share one tokenizer, or their logits cannot be had in chunks.
    """

    def __init__(self, checkpoint: LanguageModel, base: LanguageModel) -> None:
        if checkpoint.tokenizer.get_vocab() != base.tokenizer.get_vocab():
            raise UserError(
                f"{checkpoint.path} and {base.path} have different tokenizers, so their "
                "distributions cannot be compared; give the model it was trained from"
            )
        self.checkpoint = _Replayer(checkpoint)
        self.base = _Replayer(base)

    @torch.inference_mode()
    def kl(self, prefix: Prefix, mode: Mode) -> PositionKL:
        """KL along one prefix made under `mode`."""
        own_TD = self.checkpoint.fed(prefix)
        hidden_TD = self.checkpoint.hidden(prefix, own_TD)
        base_TD = self._through_base(prefix, mode, own_TD, hidden_TD)
        base_hidden_TD = self.base.hidden(prefix, base_TD)
        parts = [
            (exact_kl(log_p_nV, log_q_nV), exact_kl(log_q_nV, log_p_nV))
            for log_p_nV, log_q_nV in zip(
                self.checkpoint.log_probs(hidden_TD),
                self.base.log_probs(base_hidden_TD),
                strict=True,
            )
        ]
        return PositionKL(
            forward=_cut(torch.cat([forward for _, forward in parts])).cpu().numpy(),
            reverse=_cut(torch.cat([reverse for reverse, _ in parts])).cpu().numpy(),
        )

    @torch.inference_mode()
    def noise_floor(self, prefixes: list[Prefix]) -> list[np.ndarray]:
        """KL(base‖base) at each position, nats: one prefix at a time against all in one batch.

        What two passes of the same weights differ by is rounding; a KL not well above it is none.
        """
        fed = [self.base.fed(prefix) for prefix in prefixes]
        together = self.base.hidden_batch(prefixes, fed)
        floor = []
        for prefix, inputs_TD, batched_TD in zip(prefixes, fed, together, strict=True):
            alone = self.base.log_probs(self.base.hidden(prefix, inputs_TD))
            batched = self.base.log_probs(batched_TD)
            pairs = zip(alone, batched, strict=True)
            floor.append(_cut(torch.cat([exact_kl(p, q) for p, q in pairs])).cpu().numpy())
        return floor

    def _through_base(
        self, prefix: Prefix, mode: Mode, own_TD: Tensor, hidden_TD: Tensor
    ) -> Tensor:
        """(T, D) the same CoT through the base model's embedding."""
        if mode.feeds_tokens or prefix.inputs is None:
            return self.base.fed(prefix)
        own, other = self.checkpoint.lm.embedding, self.base.lm.embedding
        shadow_T = torch.as_tensor(prefix.shadow_ids, device=own_TD.device)
        record_TR = None if prefix.record is None else prefix.record.to(own_TD.device)
        head = self.checkpoint.head if mode.needs_head else None
        steps, fed, start = Taken(own_TD, shadow_T, record_TR), [], 0
        for logits_nV in self.checkpoint.logits(hidden_TD):
            chunk = slice(start, start := start + len(logits_nV))
            seen = Seen(logits_nV, own, hidden_TD[chunk], head)
            fed.append(mode.replay(seen, steps.part(chunk), other))
        return torch.cat(fed).to(self.base.lm.dtype)


class _Replayer:
    """Teacher-forced passes of one model."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.head = head = output_head(lm)
        self._rule = head.rule
        self._weight = head.rule.prepare(head.weight_WD)
        self._bias = head.rule.prepare(head.bias_W)

    def fed(self, prefix: Prefix) -> Tensor:
        """(T, D) what the CoT feeds: the kept inputs, or the embeddings of its tokens."""
        lm = self.lm
        if prefix.inputs is not None:
            return prefix.inputs.to(device=lm.device, dtype=lm.dtype)
        return lm.embedding.rows(torch.as_tensor(prefix.shadow_ids, device=lm.device))

    def hidden(self, prefix: Prefix, fed_TD: Tensor) -> Tensor:
        """(T, D) last hidden states that predict the CoT's positions."""
        return self.hidden_batch([prefix], [fed_TD])[0]

    def hidden_batch(self, prefixes: list[Prefix], fed: list[Tensor]) -> list[Tensor]:
        """The same for several prefixes in one forward pass, padded on the right."""
        lm = self.lm
        rows = []
        for prefix, fed_TD in zip(prefixes, fed, strict=True):
            prompt_PD = lm.embedding.rows(torch.as_tensor(prefix.prompt_ids, device=lm.device))
            rows.append(torch.cat([prompt_PD, fed_TD.to(prompt_PD.dtype)])[:-1])
        hidden = last_hidden(lm.model, pad_sequence(rows, batch_first=True))
        return [
            hidden[index, len(prefix.prompt_ids) - 1 : len(row)]
            for index, (prefix, row) in enumerate(zip(prefixes, rows, strict=True))
        ]

    def logits(self, hidden_TD: Tensor) -> Iterator[Tensor]:
        """(n, V) logits, chunk by chunk."""
        assert self._weight is not None
        for hidden_nD in hidden_TD.split(self._rule.chunk):
            yield self._rule.project(hidden_nD, self._weight, self._bias)

    def log_probs(self, hidden_TD: Tensor) -> Iterator[Tensor]:
        """(n, V) log-probabilities at temperature 1 in float32, chunk by chunk."""
        for logits_nV in self.logits(hidden_TD):
            yield logits_nV.float().log_softmax(-1)


def exact_kl(log_p_nV: Tensor, log_q_nV: Tensor) -> Tensor:
    """(n,) KL(p‖q) over the vocabulary, nats; rounding may leave it just below zero."""
    return (log_p_nV.exp() * (log_p_nV - log_q_nV)).sum(-1)


def _cut(kl_n: Tensor) -> Tensor:
    """Without rounding below zero, and without a negative zero."""
    return kl_n.clamp_min(0) + 0.0
