"""A benchmark as lm-eval sees it: documents, requests, and the scores of a generated answer.

lm-eval makes a `BenchmarkTask` of every YAML that names this class, `softeval run` one of every
definition of `softeval.tasks.catalogue`. All that lm-eval would take from a task's YAML is set here, so that
it renders none of a definition's templates: its own are not sandboxed.

The requests of choice questions are those of lm-eval's own hellaswag, mmlu and arc tasks, so that its
hf model gives the same accuracies. Their NLL is in nats a token; the tokens are those of the
continuation with its leading space, tokenised together with the context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from lm_eval.api.task import ConfigurableTask

from softeval.errors import UserError
from softeval.lmeval.arguments import read_arguments
from softeval.lmeval.requests import ROW, GenText
from softeval.model.stopping import Limits
from softeval.options import GenerationOptions
from softeval.records import ScoreTuple, StopReason
from softeval.scoring.boxed import boxed_content
from softeval.scoring.judge import NOT_JUDGED, Item, ScoreKind, Verdict, scorer
from softeval.tasks.catalogue import LIKELIHOOD, Benchmark
from softeval.tasks.data import Loaded, fewshot_examples, load
from softeval.tasks.local_data import Row
from softeval.tasks.problems import Choice, Problem

Document = dict[str, Any]
Score = tuple[float, bool]


class BenchmarkTask(ConfigurableTask):
    """A benchmark under the options of a run.

    Args:
        config: the definition, or what lm-eval read of its YAML, which then names the file and the
            model arguments under ``metadata``.
        options: what the run asked for; with lm-eval they are among the model arguments.
        samples: samples a question.
        loaded: the questions, where they are read already.

    Attributes:
        benchmark: the definition.
        options: what the run asked for.
        protocol: how its questions become prompts.
        examples: those that may be shown before a question.
        samples: samples a question.
        source: where the documents came from.

    Raises:
        UserError: a definition that cannot be used, or what `softeval.tasks.data.load` raises.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | Benchmark,
        options: GenerationOptions | None = None,
        samples: int = 1,
        loaded: Loaded | None = None,
    ) -> None:
        if not isinstance(config, Benchmark):
            metadata = config.get("metadata") or {}
            options, mode = read_arguments(metadata)
            samples = options.samples_under(mode)
            config = Benchmark.read(config, Path(metadata["config_source"]))
        self.benchmark = config
        self._ask_by(options or GenerationOptions())
        self.samples = samples
        self._loaded = loaded
        super().__init__(config=self._lm_eval_config())

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Read the questions; called by lm-eval while the task is made."""
        loaded = self._loaded or load(self.benchmark, self.options.data_dir)
        self.source = loaded.source
        documents = [
            {ROW: row, **self._document(asked, row), **self._group(loaded.rows[row])}
            for row, asked in enumerate(loaded.problems)
        ]
        self.dataset = {self.benchmark.test_split: datasets.Dataset.from_list(documents)}

    def fewshot_docs(self) -> None:
        """None of lm-eval's: the protocol has its own (`examples`)."""

    def prompt_of(self, doc: Mapping[str, Any], chat: Callable[..., str] | None = None) -> str:
        """The whole prompt of a document; `chat` is the chat template, where the protocol wants one."""
        return self.protocol.whole_prompt(doc["question"], self.examples, chat)

    def fewshot_context(
        self,
        doc: Document,
        num_fewshot: int,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        chat_template: Callable[..., str] | None = None,
        **more: Any,
    ) -> Any:
        """The prompt by the protocol, with what lm-eval's own flags say of it.

        Raises:
            UserError: a protocol with a chat template, which lm-eval was not told to apply.
        """
        if self.benchmark.kind == LIKELIHOOD:
            told = (system_instruction, apply_chat_template)
            return super().fewshot_context(
                doc, num_fewshot, *told, chat_template=chat_template, **more
            )
        if apply_chat_template and not self.protocol.chat:
            self._ask_otherwise(apply_chat_template=True)
        if system_instruction is not None and self.protocol.system != system_instruction:
            self._ask_otherwise(system_instruction=system_instruction)
        if self.protocol.chat and chat_template is None:
            raise UserError(
                f"protocol {self.protocol.name} is a chat: tell lm-eval so by --apply_chat_template"
            )
        return self.prompt_of(doc, chat_template)

    def get_config(self, key: str) -> Any:
        """As lm-eval, which keeps a 0 of its own and drops --num_fewshot without a word."""
        return None if key == "num_fewshot" else super().get_config(key)

    def set_config(self, key: str, value: Any, update: bool = False) -> None:
        """As lm-eval; examples that it is asked for are the protocol's.

        Raises:
            UserError: there are not as many.
        """
        if key == "num_fewshot":
            if value:
                self._ask_otherwise(num_fewshot=value)
            value = self.protocol.num_fewshot
        super().set_config(key, value, update)

    def _ask_by(self, options: GenerationOptions) -> None:
        self.options = options
        self.protocol = options.selected_protocol()
        count = self.protocol.num_fewshot
        self.examples = fewshot_examples(self.benchmark, count, options.data_dir)

    def _ask_otherwise(self, **changes: Any) -> None:
        """Take what lm-eval was told into the protocol."""
        self._ask_by(self.options.model_copy(update=changes))

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

    def use_limits(self, limits: Limits) -> None:
        """Ask for these caps, where they were not known yet when the task was loaded."""
        self.set_config("generation_kwargs", {"max_gen_toks": limits.tokens}, update=True)

    def construct_requests(self, doc: Document, ctx: str, **kwargs: Any) -> Any:
        """As lm-eval.

        Raises:
            UserError: the number of samples was changed behind the task's back.
        """
        generative = self.benchmark.kind != LIKELIHOOD
        if generative and self.config.repeats != self.samples:
            raise UserError(
                f"{self.task_name}: repeats was set to {self.config.repeats} after loading; give "
                "num_samples in the model arguments or the metadata instead"
            )
        return super().construct_requests(doc, ctx, **kwargs)

    def _lm_eval_config(self) -> dict[str, Any]:
        benchmark = self.benchmark
        once = benchmark.kind == LIKELIHOOD
        return {
            "task": benchmark.task,
            "dataset_path": benchmark.dataset_path,
            "dataset_name": benchmark.dataset_name,
            "test_split": benchmark.test_split,
            "num_fewshot": self.protocol.num_fewshot,
            "metadata": benchmark.metadata,
            **(self._likelihood_config() if once else self._generative_config()),
        }

    def _generative_config(self) -> dict[str, Any]:
        passes = [f"pass@{k}" for k in self.options.ks(self.samples)]
        names = [*passes, "no_answer", "timeout", "error", "truncated"]
        # Keeps all n samples, and only them: with several processes lm-eval appends copies.
        first_n = {"function": "take_first_k", "k": self.samples}
        return {
            "output_type": "generate_until",
            "doc_to_text": "prompt",
            "doc_to_target": "target",
            "repeats": self.samples,
            "filter_list": [{"name": "none", "filter": [first_n]}],
            "process_results": sample_scores,
            "metric_list": [_mean(name, higher=name in passes) for name in names],
            "generation_kwargs": {
                "until": [],
                "do_sample": False,
                "max_gen_toks": self.options.limits.tokens,
            },
        }

    def _likelihood_config(self) -> dict[str, Any]:
        normed = self.benchmark.acc_norm
        accuracies = ["acc", "acc_norm"] if normed else ["acc"]
        micro = {"metric": "nll_per_token_micro", "aggregation": ratio, "higher_is_better": False}
        return {
            "output_type": "multiple_choice",
            "description": "description",
            "doc_to_text": "query",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "process_results": normed_choice_scores if normed else choice_scores,
            "metric_list": [
                *(_mean(name, higher=True) for name in accuracies),
                _mean("nll_per_token", higher=False),
                micro,
            ],
        }

    def _group(self, row: Row) -> dict[str, str]:
        """The part of the task that a row belongs to; nothing where the task has no parts."""
        template = self.benchmark.templates.get("group")
        return {} if template is None else {"group": template.render(row)}

    def _document(self, asked: Problem | Choice, row: int) -> Document:
        if isinstance(asked, Choice):
            return asdict(asked)
        if not asked.target.strip():
            raise UserError(f"{self.source.location}, row {row}: the answer is empty; mend the row")
        return {
            "question": asked.question,
            "prompt": self.protocol.ask(asked.question),
            "target": asked.target,
            "kind": str(ScoreKind(self.benchmark.scoring)),
            "error": asked.error,
            "rules": str(self.options.scorer),
            "pass_at": list(self.options.ks(self.samples)),
        }


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
    verdicts = verdicts_on(doc, samples)
    ks = doc["pass_at"]
    values = pass_at_k(len(verdicts), sum(v.correct for v in verdicts), ks)
    if any(verdict.status == NOT_JUDGED for verdict in verdicts):
        values = [math.nan] * len(ks)
    scores = {f"pass@{k}": float(value) for k, value in zip(ks, values, strict=True)}
    for status in ("no_answer", "timeout", "error"):
        scores[status] = _share(v.status == status for v in verdicts)
    ours = [s for s in samples if isinstance(s, GenText)]
    if ours:
        scores["truncated"] = _share(s.meta["stop_reason"] == StopReason.LENGTH for s in ours)
    return scores


def verdicts_on(doc: Document, samples: Sequence[str]) -> list[Verdict]:
    """Verdict on each sample of a document: the run's own; else it is judged now."""
    given = [sample.verdict for sample in samples if isinstance(sample, GenText) and sample.verdict]
    if len(given) == len(samples):
        return given
    kind, error = ScoreKind(doc["kind"]), doc["error"]
    items = [Item(answer_of(sample), doc["target"], kind, error) for sample in samples]
    return scorer(doc["rules"]).score_many(items)


def answer_of(sample: str) -> str | None:
    """The answer of a sample; None where no box was closed."""
    return sample.meta["answer"] if isinstance(sample, GenText) else boxed_content(sample)


def _mean(name: str, *, higher: bool) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": higher}


def _share(flags: Iterator[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)


def choice_scores(doc: Mapping[str, Any], results: Sequence[Score]) -> dict[str, Any]:
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


def normed_choice_scores(doc: Mapping[str, Any], results: Sequence[Score]) -> dict[str, Any]:
    """`choice_scores` with acc_norm: accuracy after dividing by the continuation's characters."""
    per_character = [
        score[0] / len(text) for score, text in zip(results, doc["choices"], strict=True)
    ]
    normed = float(np.argmax(per_character) == doc["gold"])
    return choice_scores(doc, results) | {"acc_norm": normed}


def ratio(pairs: Sequence[tuple[float, int]]) -> float:
    """Sum of the NLLs over sum of the tokens: the micro average, in nats per token."""
    return sum(nll for nll, _ in pairs) / sum(tokens for _, tokens in pairs)
