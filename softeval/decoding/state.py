"""All that the rows of a batch are, as tensors of fixed shape, and the step that moves them on.

Each row is in a phase. `advance` moves every row by `where` and scatter: no Python a row, nothing
uploaded, nothing downloaded. Rules of text cannot be written so; a token that *could* end a CoT or
an answer therefore holds its row, which stays as it is, whatever is decoded meanwhile, until the
host has looked (`decoder`). So no result depends on how often the host looks.

Shapes: B rows of the batch, N rows of a pass, T and A caps of CoT and answer, Q forced tokens,
D width, V vocabulary. Columns T, A and Q exist, too: rows that write nothing write there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softeval.model.language_model import LanguageModel
from softeval.model.stopping import Stopper
from softeval.modes import Embedding, Step

NOT_FINITE = -1
"""Stands in for the token of a row whose logits hold NaN or infinity."""


class Phase:
    """What a row does with the logits of a pass."""

    IDLE = 0
    """Nothing; no sample is in it."""
    COT = 1
    """It chooses a CoT step."""
    FORCED = 2
    """It is fed the next of its forced tokens: a prefill, or a given CoT."""
    ANSWER = 3
    """It chooses an answer token."""
    HELD = 4
    """Nothing; its last token may have ended something, and the host has not looked yet."""


class State(NamedTuple):
    """What is fed next and where (`fed_BD`, `position_B`), and how each row came there.

    `ended_B`: whether the mode ended the CoT of a held row. `thought_B`: state of the mode, where
    it has one. `forced_BQD`: vectors fed in place of the forced tokens' own, where any are.
    """

    phase_B: Tensor
    position_B: Tensor
    fed_BD: Tensor
    cot_BT: Tensor
    cot_len_B: Tensor
    ended_B: Tensor
    forced_BQ: Tensor
    forced_at_B: Tensor
    forced_len_B: Tensor
    answer_BA: Tensor
    answer_len_B: Tensor
    thought_B: Tensor | None
    forced_BQD: Tensor | None

    def first(self, rows: int) -> State:
        """The first rows, sharing memory."""
        return State(*(part if part is None else part[:rows] for part in self))  # type: ignore[arg-type]

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        for part in self:
            if part is not None:
                part[target] = part[source]


def new_state(
    lm: LanguageModel,
    rows: int,
    caps: tuple[int, int, int],
    thought_B: Tensor | None,
    *,
    forces_vectors: bool,
) -> State:
    """Idle rows; `caps` are T, A and Q."""
    device = lm.device
    counts = [torch.zeros(rows, dtype=torch.long, device=device) for _ in range(6)]
    phase_B, position_B, cot_len_B, forced_at_B, forced_len_B, answer_len_B = counts
    cot_BT, answer_BA, forced_BQ = (
        torch.zeros(rows, cap + 1, dtype=torch.long, device=device) for cap in caps
    )
    fed_BD = torch.zeros(rows, lm.embedding.fed_width, dtype=lm.dtype, device=device)
    forced_BQD = fed_BD.new_zeros(rows, caps[2] + 1, lm.embedding.fed_width)
    return State(
        phase_B,
        position_B,
        fed_BD,
        cot_BT,
        cot_len_B,
        torch.zeros(rows, dtype=torch.bool, device=device),
        forced_BQ,
        forced_at_B,
        forced_len_B,
        answer_BA,
        answer_len_B,
        thought_B,
        forced_BQD if forces_vectors else None,
    )


class Holds(NamedTuple):
    """(V,) which tokens hold a row: those that could end a CoT, and an answer."""

    cot_V: Tensor
    answer_V: Tensor


def holds(lm: LanguageModel, stopper: Stopper) -> Holds:
    """The tokens by which the stop rules of a checkpoint could end something."""
    tables = []
    for ids in (stopper.may_end_cot, stopper.may_end_answer):
        table_V = torch.zeros(lm.vocab, dtype=torch.bool, device=lm.device)
        table_V[sorted(id for id in ids | lm.eos_ids if id < lm.vocab)] = True
        tables.append(table_V)
    return Holds(*tables)


def advance(
    state: State, step: Step | None, answer_N: Tensor | None, held: Holds, embedding: Embedding
) -> None:
    """Move each row on by what it chose, in place.

    Args:
        state: N rows.
        step: a CoT step of all rows, taken by those in their CoT; None where none is.
        answer_N: answer tokens of all rows; None where no row chooses one.
        held: tokens that hold a row.
        embedding: of the tokens that are fed.
    """
    forced_N = state.phase_B == Phase.FORCED
    moves_N = forced_N | (state.phase_B == Phase.COT) | (state.phase_B == Phase.ANSWER)
    fed_ND = embedding.rows(_take_forced(state, forced_N))
    if state.forced_BQD is not None:
        at_N = (state.forced_at_B - 1).clamp(min=0)
        given_ND = state.forced_BQD.gather(1, _wide(at_N, state.forced_BQD)).squeeze(1)
        fed_ND = torch.where(forced_N[:, None], given_ND, fed_ND)
    if answer_N is not None:
        chooses_N = state.phase_B == Phase.ANSWER
        own_ND = embedding.rows(answer_N.clamp(min=0))
        fed_ND = torch.where(chooses_N[:, None], own_ND, fed_ND)
        _write(state.answer_BA, state.answer_len_B, answer_N, chooses_N)
        _hold(state, chooses_N, answer_N, held.answer_V, state.answer_len_B, state.answer_BA)
    if step is not None:
        thinks_N = state.phase_B == Phase.COT
        fed_ND = torch.where(thinks_N[:, None], step.inputs_ND, fed_ND)
        _think(state, thinks_N, step, held)
    state.phase_B.masked_fill_(forced_N & (state.forced_at_B >= state.forced_len_B), Phase.ANSWER)
    state.fed_BD.copy_(torch.where(moves_N[:, None], fed_ND, state.fed_BD))
    state.position_B.add_(moves_N)


def _take_forced(state: State, forced_N: Tensor) -> Tensor:
    """(N,) the forced token whose turn it is, and the next one's turn."""
    ids_N = state.forced_BQ.gather(1, state.forced_at_B[:, None])[:, 0]
    state.forced_at_B.add_(forced_N)
    return ids_N


def _think(state: State, thinks_N: Tensor, step: Step, held: Holds) -> None:
    _write(state.cot_BT, state.cot_len_B, step.shadow_N, thinks_N)
    if step.ends_N is not None:
        state.ended_B.copy_(torch.where(thinks_N, step.ends_N, state.ended_B))
    if state.thought_B is not None and step.state is not None:
        mine = thinks_N.view(-1, *[1] * (state.thought_B.ndim - 1))
        state.thought_B.copy_(torch.where(mine, step.state, state.thought_B))
    _hold(state, thinks_N, step.shadow_N, held.cot_V, state.cot_len_B, state.cot_BT)
    state.phase_B.masked_fill_(thinks_N & state.ended_B, Phase.HELD)


def _write(tokens_BX: Tensor, lengths_B: Tensor, ids_N: Tensor, writes_N: Tensor) -> None:
    """Append a token to the rows that write."""
    at_N = torch.where(writes_N, lengths_B, tokens_BX.shape[1] - 1)
    tokens_BX.scatter_(1, at_N[:, None], ids_N[:, None])
    lengths_B.add_(writes_N)


def _hold(
    state: State,
    rows_N: Tensor,
    ids_N: Tensor,
    table_V: Tensor,
    lengths_B: Tensor,
    tokens_BX: Tensor,
) -> None:
    """Hold the rows whose token could end something, or is none, or is the last there is room for."""
    holds_N = table_V[ids_N.clamp(min=0)] | (ids_N < 0) | (lengths_B >= tokens_BX.shape[1] - 1)
    state.phase_B.masked_fill_(rows_N & holds_N, Phase.HELD)


def _wide(at_N: Tensor, vectors_BQD: Tensor) -> Tensor:
    return at_N[:, None, None].expand(-1, 1, vectors_BQD.shape[-1])
