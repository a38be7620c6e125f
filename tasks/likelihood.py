"""Choice questions scored by log-likelihood: accuracy, and NLL per token of the correct answer.

The requests are those of lm-eval's own hellaswag, mmlu and arc tasks, so that its hf model gives
the same accuracies. NLL is in nats; the tokens are those of the continuation with its leading
space, tokenised together with the context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from softeval.records import ScoreTuple

Document = Mapping[str, Any]
Score = tuple[float, bool]


def choice_scores(doc: Document, results: Sequence[Score]) -> dict[str, Any]:
    """Accuracy and NLL per token of one question.

    Args:
        doc: the document.
        results: one (log-probability, is greedy) a choice; `ScoreTuple` from our adapter.

    Returns:
        acc in {0, 1}; nll_per_token in nats, whose mean over questions is the macro average; and
        nll_per_token_micro, a pair (NLL, tokens) for `ratio`. The last two are left out where the
        model does not tell the number of tokens.
    """
    log_probs = np.array([score[0] for score in results])
    scores: dict[str, Any] = {"acc": float(log_probs.argmax() == doc["gold"])}
    gold = results[doc["gold"]]
    if isinstance(gold, ScoreTuple):
        nll = -gold.log_prob
        scores["nll_per_token"] = nll / gold.n_tokens
        scores["nll_per_token_micro"] = (nll, gold.n_tokens)
    return scores


def normed_choice_scores(doc: Document, results: Sequence[Score]) -> dict[str, Any]:
    """`choice_scores` with acc_norm: accuracy after dividing by the continuation's characters."""
    per_character = [
        score[0] / len(text) for score, text in zip(results, doc["choices"], strict=True)
    ]
    normed = float(np.argmax(per_character) == doc["gold"])
    return choice_scores(doc, results) | {"acc_norm": normed}


def ratio(pairs: Sequence[tuple[float, int]]) -> float:
    """Sum of the NLLs over sum of the tokens: the micro average, in nats per token."""
    return sum(nll for nll, _ in pairs) / sum(tokens for _, tokens in pairs)
