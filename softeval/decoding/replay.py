"""Changes of a chain of thought (CoT) that is fed once more, each of one thing.

What closed a CoT, the stop or an end token, is the stop rule's and no thought: shuffling
and noise leave it as it was fed. Shares of a cut are of what precedes it; a cut CoT goes on as one
that ended at the cap, with the stop. The decoder feeds the result step by step, as it fed the CoT.

Shapes: T CoT positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from softeval.decoding.randomness import SampleRandomness, Stream
from softeval.model.language_model import LanguageModel
from softeval.model.stopping import Stopper, stopper_of
from softeval.modes import Mode
from softeval.protocol import PAPER, Protocol
from softeval.records import INTERVENTIONS, Generation, StopReason


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What a change may use besides the CoT, whose `inputs` were kept.

    Attributes:
        lm: the checkpoint.
        mode: that the CoT was made under.
        seed: the run's, also for keyed choices.
        others: CoTs of the same task and mode, those of other questions among them.
        protocol: whose stop rule ended them.
    """

    lm: LanguageModel
    mode: Mode
    seed: int
    others: Sequence[Generation] = ()
    protocol: Protocol = PAPER

    @property
    def stopper(self) -> Stopper:
        return stopper_of(self.lm.tokenizer, self.protocol)


Change = Callable[[Generation, Surroundings], Generation | None]


def unchanged(cot: Generation, around: Surroundings) -> Generation:
    """As it was: must give the recorded answer."""
    return cot


@torch.inference_mode()
def top1(cot: Generation, around: Surroundings) -> Generation:
    """Each vector snapped to the embedding of its shadow token."""
    ids = torch.as_tensor(cot.shadow_ids, device=around.lm.device)
    return replace(cot, inputs=around.lm.embedding.rows(ids))


def noise_only(cot: Generation, around: Surroundings) -> Generation | None:
    """Each vector less its mixture: σε of the keyed ε; None where no noise was fed."""
    mode = around.mode
    sigma = mode.facts(around.lm.embedding).get("sigma")
    if not mode.is_gaussian or not sigma:
        return None
    inputs_TD = _inputs(cot)
    width = around.lm.embedding.width
    normal_TD = SampleRandomness(around.seed, cot.key).normals(len(inputs_TD), width)
    noise_TD = torch.zeros_like(inputs_TD, dtype=torch.float32)
    noise_TD[:, :width] = sigma * normal_TD
    body = len(inputs_TD) - closing(cot, around.stopper)
    return replace(cot, inputs=torch.cat([noise_TD[:body].to(inputs_TD), inputs_TD[body:]]))


def shuffled(cot: Generation, around: Surroundings) -> Generation:
    """The vectors in another order, keyed by seed and sample."""
    steps = len(cot.shadow_ids)
    body = steps - closing(cot, around.stopper)
    moved_T = SampleRandomness(around.seed, cot.key).order(body, Stream.SHUFFLE)
    order_T = np.concatenate([moved_T, np.arange(body, steps)])
    return replace(cot, shadow_ids=cot.shadow_ids[order_T], inputs=_inputs(cot)[order_T])


def donor(cot: Generation, around: Surroundings) -> Generation | None:
    """The CoT of another question, of the same sample number, keyed; None where there is no other."""
    key = cot.key
    others = [o for o in around.others if o.key.doc_id != key.doc_id and o.key.sample == key.sample]
    if not others:
        return None
    drawn = SampleRandomness(around.seed, key).uniforms(1, stream=Stream.DONOR).item()
    given = sorted(others, key=lambda o: o.key.doc_id)[int(drawn * len(others))]
    return replace(given, key=key, prompt_ids=cot.prompt_ids)


def cut(share: float, cot: Generation, around: Surroundings) -> Generation:
    """The first part of what was thought, at least one step; what follows is as at the cap."""
    kept = max(1, int(share * (len(cot.shadow_ids) - closing(cot, around.stopper))))
    reason = cot.stop_reason if kept == len(cot.shadow_ids) else StopReason.LENGTH
    inputs_TD = _inputs(cot)[:kept]
    return replace(cot, shadow_ids=cot.shadow_ids[:kept], inputs=inputs_TD, stop_reason=reason)


_CUTS = (partial(cut, share) for share in (0.25, 0.5, 0.75))
CHANGES: Mapping[str, Change] = dict(
    zip(INTERVENTIONS, (unchanged, top1, noise_only, shuffled, donor, *_CUTS), strict=True)
)


def closing(cot: Generation, stopper: Stopper) -> int:
    """Last positions by which the stop rule ended a CoT: the stop, or the end token."""
    if cot.stop_reason is not StopReason.ANSWER_PREFIX:
        return int(cot.stop_reason is StopReason.EOS)
    ids = cot.shadow_ids.tolist()
    tails = (n for n in range(1, len(ids)) if stopper.has_stop(ids[-n:]))
    return next(tails, len(ids))


def _inputs(cot: Generation) -> Tensor:
    assert cot.inputs is not None, "a change needs what was fed"
    return cot.inputs
