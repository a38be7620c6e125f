"""From shards to tables: every sample scored, in one order, streamed.

The same samples give the same tables, however often the run was stopped and however many processes
made them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softeval.records import Generation, SampleKey
from softeval.runs.cells import Cell
from softeval.runs.journal import GenerationName, Journal
from softeval.runs.tables import (
    GROUP_SIZE,
    LikelihoodRow,
    PromptRow,
    ScoredSample,
    TableWriter,
    prompt_hash,
)
from softeval.scoring.judge import Item, ScoreKind, Scorer

Questions = Mapping[tuple[str, int], Mapping[str, Any]]


@dataclass(frozen=True)
class Compacted:
    """What a compaction found.

    Attributes:
        rows: rows of each table.
        expected: samples and log-likelihood questions that the run asked for.
        missing: those that are not there.
        verdicts: samples by verdict.
    """

    rows: dict[str, int]
    expected: int
    missing: int
    verdicts: dict[str, int]


def compact(
    folder: Path,
    journal: Journal,
    cells: Sequence[Cell],
    scorer: Scorer,
    token_text: Callable[[int], str],
) -> Compacted:
    """Write the tables of a run from its journal.

    Args:
        folder: the run directory.
        journal: with every process's results.
        cells: what the run asked for; anything else in the journal is left out.
        scorer: judges the answers.
        token_text: text of a token id.

    Raises:
        OSError: the disk is full; the earlier tables stay.
    """
    generative = [cell for cell in cells if cell.mode is not None]
    questions = {(c.name, doc_id): doc for c in generative for doc_id, doc in c.documents.items()}
    expected = _expected_names(generative)
    found = [name for name in journal.names() if name in expected]
    likelihoods = list(_likelihood_rows(cells, journal))
    prompts = _prompt_rows(journal, questions)
    hashes = {(row.task, row.doc_id): prompt_hash(row.prompt) for row in prompts}
    verdicts: dict[str, int] = {}
    with TableWriter(folder, token_text) as writer:
        for sample in _scored(found, journal, questions, hashes, scorer):
            writer.add(sample)
            verdicts[sample.verdict] = verdicts.get(sample.verdict, 0) + 1
        writer.add_prompts(prompts)
        writer.add_likelihoods(likelihoods)
    asked = sum(len(cell.documents) for cell in cells if cell.mode is None)
    missing = len(expected) - len(found) + asked - len(likelihoods)
    return Compacted(writer.counts, len(expected) + asked, missing, verdicts)


def _expected_names(cells: Sequence[Cell]) -> set[GenerationName]:
    return {
        GenerationName(cell.name, cell.mode.name, doc_id, sample)
        for cell in cells
        if cell.mode is not None
        for doc_id in cell.documents
        for sample in range(cell.num_samples)
    }


def _scored(
    names: Sequence[GenerationName],
    journal: Journal,
    questions: Questions,
    hashes: Mapping[tuple[str, int], str],
    scorer: Scorer,
) -> Iterator[ScoredSample]:
    for start in range(0, len(names), GROUP_SIZE):
        generations = [_read(journal, name) for name in names[start : start + GROUP_SIZE]]
        documents = [questions[g.key.task, g.key.doc_id] for g in generations]
        items = [
            Item(g.answer, d["target"], ScoreKind(d["kind"]), d.get("error"))
            for g, d in zip(generations, documents, strict=True)
        ]
        verdicts = scorer.score_many(items, both=True)
        for g, d, verdict in zip(generations, documents, verdicts, strict=True):
            hashed = hashes[g.key.task, g.key.doc_id]
            judged = verdict.correct, verdict.status, verdict.other
            yield ScoredSample(g, hashed, d["target"], *judged, d.get("error"))


def _read(journal: Journal, name: GenerationName) -> Generation:
    found = journal.get(SampleKey(name.task, name.doc_id, name.sample), name.mode)
    assert found is not None, "the journal lists what it holds"
    return found


def _prompt_rows(journal: Journal, questions: Questions) -> list[PromptRow]:
    return [
        PromptRow(task, doc_id, prompt.text, questions[task, doc_id]["target"])
        for (task, doc_id), prompt in sorted(journal.prompts().items())
        if (task, doc_id) in questions
    ]


def _likelihood_rows(cells: Sequence[Cell], journal: Journal) -> Iterator[LikelihoodRow]:
    """One row a question whose every choice is scored."""
    scores = journal.likelihoods()
    for cell in sorted((c for c in cells if c.mode is None), key=lambda c: c.name):
        for doc_id, document in sorted(cell.documents.items()):
            choices = range(len(document["choices"]))
            found = [scores.get((cell.name, doc_id, choice)) for choice in choices]
            known = [score for score in found if score is not None]
            if len(known) < len(found):
                continue
            gold = int(document["gold"])
            best = int(np.argmax([score.log_prob for score in known]))
            nll, tokens = -known[gold].log_prob, known[gold].n_tokens
            yield LikelihoodRow(cell.name, doc_id, gold, best, nll, tokens)
