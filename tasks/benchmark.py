"""The tasks as lm-eval sees them: documents, requests, and the scores of a generative question.

The YAML files of tasks/ name these classes. A task reads its questions through `softeval.tasks.data`, so
one definition serves the hub and local files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from softeval.decoding.rows import Limits
from softeval.errors import UserError
from softeval.lmeval.settings import ROW, TaskSettings
from softeval.lmeval.text import GenText
from softeval.records import StopReason
from softeval.scoring.boxed import boxed_content
from softeval.scoring.judge import Item, ScoreKind, Verdict, scorer
from softeval.tasks.data import LoadedSplit, load
from softeval.tasks.problems import has_choices, read_problem
from softeval.tasks.prompts import paper_prompt

Document = dict[str, Any]


class BenchmarkTask(ConfigurableTask):
    """A task whose documents come from `softeval.tasks.data`.

    Its YAML names the data set in ``dataset_kwargs: {name: ...}`` and the split in ``test_split``.

    Attributes:
        settings: what the run asked for.
        source: where the documents came from.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        config = {key: value for key, value in config.items() if key != "class"}
        self.settings = TaskSettings.from_metadata(config.get("metadata") or {})
        super().__init__(config=self.configured(config))

    def configured(self, config: dict[str, Any]) -> dict[str, Any]:
        """The YAML's configuration completed with what depends on the run."""
        return config

    def documents(self, name: str, loaded: LoadedSplit) -> Iterator[Document]:
        """One document a row, in order."""
        raise NotImplementedError

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Read the questions; called by lm-eval while the task is made.

        Raises:
            UserError: what `softeval.tasks.data.load` raises.
        """
        name = (dataset_kwargs or {})["name"]
        split = str(self.config.test_split)
        loaded = load(name, self.settings.data_dir, split)
        self.source = loaded.source
        documents = [
            {ROW: row, **document} for row, document in enumerate(self.documents(name, loaded))
        ]
        self.dataset = {split: datasets.Dataset.from_list(documents)}

    def fewshot_docs(self) -> None:
        """No examples: every task is zero-shot."""

    def get_config(self, key: str) -> Any:
        """As lm-eval, which keeps a 0 of its own and drops --num_fewshot without a word."""
        return None if key == "num_fewshot" else super().get_config(key)

    def set_config(self, key: str, value: Any, update: bool = False) -> None:
        """As lm-eval.

        Raises:
            UserError: examples were asked for.
        """
        if key == "num_fewshot" and value:
            raise UserError(
                f"{self.task_name} is zero-shot: leave --num_fewshot out, or take a task of lm-eval"
            )
        super().set_config(key, value, update)

    def doc_iterator(
        self,
        *,
        rank: int = 0,
        limit: int | None = None,
        world_size: int = 1,
        samples: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Document]]:
        """(place, document) pairs of this process.

        lm-eval labels place p with ``samples[p]``; yielding the documents in the order asked for
        makes that true also where the order is not rising. A repeated index is left out.

        Raises:
            UserError: an index beyond the data set.
        """
        if not samples:
            return super().doc_iterator(rank=rank, limit=limit, world_size=world_size)
        docs = self.eval_docs
        if not all(0 <= index < len(docs) for index in samples):
            raise UserError(
                f"{self.task_name}: samples {list(samples)} must lie in 0..{len(docs) - 1}"
            )
        chosen = [
            (place, docs[index])
            for place, index in enumerate(samples)
            if index not in samples[:place]
        ]
        return islice(chosen, rank, None, world_size)

    def build_all_requests(self, *, cache_requests: bool = False, **kwargs: Any) -> None:
        """As lm-eval, without its request cache.

        Raises:
            UserError: the request cache was asked for; it serves old prompts and settings while
                the results report the new ones.
        """
        if cache_requests:
            raise UserError("--cache_requests serves stale requests; leave it out")
        super().build_all_requests(**kwargs)


class GenerativeTask(BenchmarkTask):
    """A question in the paper's prompt, n samples each, scored as mathematics or by letter."""

    def configured(self, config: dict[str, Any]) -> dict[str, Any]:
        n = self.settings.num_samples
        return config | {
            "repeats": n,
            # Keeps all n samples, and only them: with several processes lm-eval appends copies.
            "filter_list": [{"name": "none", "filter": [{"function": "take_first_k", "k": n}]}],
            "metric_list": [_mean_metric(m) for m in self.metric_names()],
            "generation_kwargs": {"until": [], "do_sample": False}
            | {"max_gen_toks": self.settings.max_gen_toks},
        }

    def use_limits(self, limits: Limits) -> None:
        """Ask for these caps, where they were not known yet when the task was loaded."""
        cap = limits.max_cot_tokens + limits.max_answer_tokens
        self.set_config("generation_kwargs", {"max_gen_toks": cap}, update=True)

    def metric_names(self) -> list[str]:
        """What is reported: each a mean over questions of a value in 0..1."""
        passes = [f"pass@{k}" for k in self.settings.pass_at]
        return [*passes, "no_answer", "timeout", "error", "truncated"]

    def documents(self, name: str, loaded: LoadedSplit) -> Iterator[Document]:
        kind = ScoreKind.LETTER if has_choices(name) else ScoreKind.MATH
        for row in loaded.rows:
            problem = read_problem(name, row)
            yield {
                "question": problem.question,
                "prompt": paper_prompt(problem.question),
                "target": problem.target,
                "kind": str(kind),
                "error": problem.error,
                "rules": str(self.settings.scorer),
                "pass_at": list(self.settings.pass_at),
            }

    def construct_requests(self, doc: Document, ctx: str, **kwargs: Any) -> Any:
        """As lm-eval.

        Raises:
            UserError: the number of samples was changed behind the task's back.
        """
        if self.config.repeats != self.settings.num_samples:
            raise UserError(
                f"{self.task_name}: repeats was set to {self.config.repeats} after loading; give "
                "num_samples in the model arguments or the metadata instead"
            )
        return super().construct_requests(doc, ctx, **kwargs)


def sample_scores(doc: Document, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of one question from its samples.

    Args:
        doc: the document.
        results: one list, the n samples: `GenText`, or plain text of a model that is not ours,
            whose answer is then what its last box holds.

    Returns:
        pass@k for each k of the document (unbiased, over the n samples), and the shares of samples
        without an answer, not scored in time, not scored for another reason, and (of `GenText`)
        whose CoT ran into its cap.
    """
    # Statistics stand above tasks in the order of imports; this is the one use of them here.
    from softeval.statistics import pass_at_k

    samples = results[0]
    verdicts = judge(doc, samples)
    ks = doc["pass_at"]
    values = pass_at_k(len(verdicts), sum(v.correct for v in verdicts), ks)
    scores = {f"pass@{k}": float(value) for k, value in zip(ks, values, strict=True)}
    for status in ("no_answer", "timeout", "error"):
        scores[status] = _share(v.status == status for v in verdicts)
    ours = [s for s in samples if isinstance(s, GenText)]
    if ours:
        scores["truncated"] = _share(s.meta["stop_reason"] == StopReason.LENGTH for s in ours)
    return scores


def judge(doc: Document, samples: Sequence[str]) -> list[Verdict]:
    """Verdict on each sample of a document; the scorer remembers what it has judged before."""
    kind, error = ScoreKind(doc["kind"]), doc["error"]
    items = [Item(answer_of(sample), doc["target"], kind, error) for sample in samples]
    return scorer(doc["rules"]).score_many(items)


def answer_of(sample: str) -> str | None:
    """The answer of a sample; None where no box was closed."""
    return sample.meta["answer"] if isinstance(sample, GenText) else boxed_content(sample)


def _mean_metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": name.startswith("pass@")}


def _share(flags: Iterator[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)
