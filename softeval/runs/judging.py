"""From finished samples to tables: each is journalled, judged once, and put in order at the end.

`JudgedJournal` is the store that the adapter writes to. A generation is journalled first; then its
answer is judged in threads of their own, so that a slow verdict never holds up the decoder, and the
verdict is journalled, too. Everything else reads it there: lm-eval's scores, the display and the
tables. A run that is taken up again judges what a kill left without a verdict, and what other rules
or other versions of them have judged.

The same samples give the same tables, however often the run was stopped and however many processes
made them.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from softeval.display import Display
from softeval.errors import UserError
from softeval.records import GROUP, Generation, SampleKey, ScoreTuple
from softeval.runs.cells import Cell
from softeval.runs.journal import Journal, Name
from softeval.runs.tables import (
    GROUP_SIZE,
    Row,
    TableWriter,
    kept_rows,
    likelihood_row,
    prompt_row,
    read_table,
)
from softeval.scoring.judge import (
    NOT_JUDGED,
    Item,
    NotJudging,
    Rules,
    ScoreKind,
    Scorer,
    Verdict,
    judge_of,
    rules_of,
    scorer_identity,
)

Document = Mapping[str, Any]
Questions = Mapping[tuple[str, int], Document]


@lru_cache(maxsize=8)
def judge_name(scorer: Scorer | NotJudging) -> str:
    """Short hash of everything that a scorer's verdicts depend on."""
    identity = json.dumps(scorer_identity(scorer), sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def check_verdicts(
    folder: Path, found: Mapping[str, Any], rules: Rules | None, finished: bool
) -> None:
    """Refuse to go on from verdicts of other rules, or to add to those of another version of them.

    Raises:
        UserError: naming what judges them again.
    """
    known = rules_of(found)
    if rules is None and known is not None:
        raise UserError(f"{folder} is judged by {known}; leave --predict-only out")
    if known != rules or not (finished or found.get("scorer") == scorer_identity(judge_of(rules))):
        by = f"another version of {rules}" if known == rules else known or "nobody yet"
        raise UserError(
            f"{folder} is judged by {by}; `softeval score {folder} --scorer {rules}` judges it"
        )


def judged(
    journal: Journal,
    scorer: Scorer | NotJudging,
    generations: Sequence[Generation],
    documents: Sequence[Document],
) -> list[Verdict]:
    """The verdict on each generation: as journalled, else given now, and journalled.

    Args:
        journal: where they are.
        scorer: judges; verdicts of another one do not count.
        generations: what is judged.
        documents: question of each, with "target", "kind" and perhaps "error".
    """
    name = judge_name(scorer)
    known = [journal.verdict(g.key, g.mode, name) for g in generations]
    items = [
        Item(g.answer, d["target"], ScoreKind(d["kind"]), d.get("error"))
        for g, d, verdict in zip(generations, documents, known, strict=True)
        if verdict is None
    ]
    fresh = iter(scorer.score_many(items, both=True))
    found = []
    for generation, verdict in zip(generations, known, strict=True):
        if verdict is None:
            verdict = next(fresh)
            journal.add_verdict(generation.key, generation.mode, name, verdict)
        found.append(verdict)
    return found


class JudgedJournal:
    """A journal whose samples are judged as they come in; a context manager around one cell.

    Args:
        journal: where results are kept.
        display: what is told of them.
        scorer: judges.
        documents: question by doc_id, with "target" and "kind".
    """

    def __init__(
        self,
        journal: Journal,
        display: Display,
        scorer: Scorer | NotJudging,
        documents: Mapping[int, Document],
    ) -> None:
        self._journal = journal
        self._display = display
        self._scorer = scorer
        self._documents = documents
        self._waiting: queue.Queue[Generation | None] = queue.Queue()
        self._counting = threading.Lock()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._judge_waiting, daemon=True) for _ in range(scorer.workers)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if isinstance(error[1], BaseException):
            # Nobody waits for verdicts any more; the next start gives those that are left.
            self._failure = self._failure or error[1]
        for _ in self._threads:
            self._waiting.put(None)
        if error[1] is None:
            self._wait()
            self._display.leave()

    def get(self, key: SampleKey, mode: str, /) -> Generation | None:
        """The generation where it is finished; counted as done."""
        found = self._journal.get(key, mode)
        if found is not None:
            self._count(found, fresh=False)
        return found

    def add(self, generation: Generation, prompt: str, /) -> None:
        """Journal a finished generation, then count it and have it judged."""
        self._journal.add(generation, prompt)
        self._count(generation, fresh=True)

    def verdict(self, key: SampleKey, mode: str, /) -> Verdict:
        """The verdict on a generation that was got or added; waits for it."""
        self._wait()
        found = self._journal.verdict(key, mode, judge_name(self._scorer))
        assert found is not None, "what was got or added is judged"
        return found

    def get_likelihood(self, task: str, doc_id: int, choice: int, /) -> ScoreTuple | None:
        """The score of a continuation where it is finished; counted as done."""
        found = self._journal.get_likelihood(task, doc_id, choice)
        if found is not None:
            self._display.count(done=1)
        return found

    def add_likelihood(self, task: str, doc_id: int, choice: int, score: ScoreTuple, /) -> None:
        """Journal the score of a continuation, then count it."""
        self._journal.add_likelihood(task, doc_id, choice, score)
        self._display.count(done=1, fresh=1, tokens=score.n_tokens)

    def _count(self, generation: Generation, fresh: bool) -> None:
        tokens = len(generation.shadow_ids) + len(generation.answer_ids)
        self._waiting.put(generation)
        self._display.count(done=1, fresh=int(fresh), tokens=tokens if fresh else 0)

    def _wait(self) -> None:
        """Until all that waits is judged; raises what went wrong in the threads."""
        self._waiting.join()
        if self._failure is not None:
            raise self._failure

    def _judge_waiting(self) -> None:
        while (generation := self._waiting.get()) is not None:
            try:
                if self._failure is None:
                    self._judge(generation)
            except BaseException as failure:  # noqa: BLE001 - carried to the main thread, which raises it
                self._failure = failure
            finally:
                self._waiting.task_done()
        self._waiting.task_done()

    def _judge(self, generation: Generation) -> None:
        document = self._documents[generation.key.doc_id]
        (verdict,) = judged(self._journal, self._scorer, [generation], [document])
        with self._counting:
            if verdict.status != NOT_JUDGED:
                self._display.score(1, int(verdict.correct))


def compact(
    folder: Path,
    journal: Journal,
    cells: Sequence[Cell],
    scorer: Scorer | NotJudging,
    token_text: Callable[[int], str],
    kept: Collection[str] = (),
) -> dict[str, Any]:
    """Write the tables of a run from its journal.

    Args:
        folder: the run directory.
        journal: with every process's results.
        cells: what the run asked for; anything else in the journal is left out.
        scorer: judges what has no verdict yet.
        token_text: text of a token id.
        kept: titles of cells whose rows are copied from the tables that are there.

    Returns:
        Samples and log-likelihood questions that were expected, those that are missing, samples by
        verdict, and rows of each table: the counts of run.json.

    Raises:
        OSError: the disk is full; the earlier tables stay.
    """
    generative = [cell for cell in cells if cell.mode is not None]
    questions = {(c.name, doc_id): doc for c in generative for doc_id, doc in c.documents.items()}
    expected = _expected_names(generative)
    found: dict[tuple[str, str], list[Name]] = {_place(cell): [] for cell in generative}
    for key, mode in journal.names():
        if (key, mode) in expected:
            found[key.task, mode].append((key, mode))
    likelihoods = sorted(
        [*_kept(folder, "likelihoods", cells, kept), *_likelihood_rows(cells, journal, kept)],
        key=_question_key,
    )
    fresh = {_question_key(row): row for row in _prompt_rows(journal, questions)}
    earlier = {_question_key(row): row for row in _kept(folder, "prompts", generative, kept)}
    prompts = [row for _, row in sorted((earlier | fresh).items())]
    hashes = {_question_key(row): row["prompt_hash"] for row in prompts}
    verdicts: Counter[str] = Counter()
    grouped = any(row.get(GROUP) is not None for row in prompts)
    with TableWriter(folder, token_text, grouped=grouped) as writer:
        for cell in sorted(generative, key=_place):
            if cell.title in kept:
                for sample, positions in kept_rows(folder, *_place(cell)):
                    writer.append(sample, positions)
                    verdicts[sample["verdict"]] += 1
                continue
            judged_now = _judged_in_groups(found[_place(cell)], journal, questions, scorer)
            for generation, verdict, document in judged_now:
                hashed = hashes[generation.key.task, generation.key.doc_id]
                writer.add(generation, hashed, document["target"], verdict, document.get("error"))
                verdicts[verdict.status] += 1
        writer.write("prompts", prompts)
        writer.write("likelihoods", likelihoods)
    asked = sum(len(cell.documents) for cell in cells if cell.mode is None)
    return {
        "expected": len(expected) + asked,
        "missing": len(expected) - verdicts.total() + asked - len(likelihoods),
        "verdicts": dict(verdicts),
        "rows": writer.counts,
    }


def _place(cell: Cell) -> tuple[str, str]:
    """Where a cell stands in the tables."""
    return cell.name, "" if cell.mode is None else cell.mode.name


def _question_key(row: Row) -> tuple[str, int]:
    return row["task"], row["doc_id"]


def _kept(folder: Path, table: str, cells: Sequence[Cell], kept: Collection[str]) -> Iterator[Row]:
    """The rows of a table about the questions of kept cells."""
    tasks = {cell.name for cell in cells if cell.title in kept}
    if tasks:
        rows = read_table(folder, table).to_pylist()
        yield from (row for row in rows if row["task"] in tasks)


def _expected_names(cells: Sequence[Cell]) -> set[Name]:
    return {
        (SampleKey(cell.name, doc_id, sample), cell.mode.name)
        for cell in cells
        if cell.mode is not None
        for doc_id in cell.documents
        for sample in range(cell.num_samples)
    }


def _judged_in_groups(
    names: Sequence[Name], journal: Journal, questions: Questions, scorer: Scorer | NotJudging
) -> Iterator[tuple[Generation, Verdict, Document]]:
    for start in range(0, len(names), GROUP_SIZE):
        found = [journal.get(*name) for name in names[start : start + GROUP_SIZE]]
        generations = [generation for generation in found if generation is not None]
        documents = [questions[g.key.task, g.key.doc_id] for g in generations]
        verdicts = judged(journal, scorer, generations, documents)
        yield from zip(generations, verdicts, documents, strict=True)


def _prompt_rows(journal: Journal, questions: Questions) -> list[Row]:
    found = [
        (task, doc_id, prompt.text, questions[task, doc_id])
        for (task, doc_id), prompt in sorted(journal.prompts().items())
        if (task, doc_id) in questions
    ]
    return [
        prompt_row(task, doc_id, text, document["target"], document.get("group"))
        for task, doc_id, text, document in found
    ]


def _likelihood_rows(
    cells: Sequence[Cell], journal: Journal, kept: Collection[str]
) -> Iterator[Row]:
    """One row a question whose every choice is scored."""
    scores = journal.likelihoods()
    for cell in (c for c in cells if c.mode is None and c.title not in kept):
        for doc_id, document in sorted(cell.documents.items()):
            choices = range(len(document["choices"]))
            found = [scores.get((cell.name, doc_id, choice)) for choice in choices]
            known = [score for score in found if score is not None]
            if len(known) < len(found):
                continue
            gold = int(document["gold"])
            best = int(np.argmax([score.log_prob for score in known]))
            nll, tokens = -known[gold].log_prob, known[gold].n_tokens
            yield likelihood_row(cell.name, doc_id, gold, best, nll, tokens)
