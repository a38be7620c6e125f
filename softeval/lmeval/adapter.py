"""softeval as a model of lm-eval: generation under a CoT mode, log-likelihoods as `hf` has them.

A sub-class of lm-eval's HFLM that brings its own decoder and keeps tokenisation, chat templates and
log-likelihoods. Guards against lm-eval's pitfalls are listed in docs/lm-eval.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from softeval.decoding.decoder import Decoder, Question
from softeval.environment import package_versions
from softeval.errors import UserError
from softeval.lmeval.arguments import (
    known_tokenizer,
    likelihood_batch,
    loaded_model,
    quiet,
    read_arguments,
    refuse_unknown,
)
from softeval.lmeval.requests import (
    GenerationStore,
    SavingHook,
    choice_key,
    group_requests,
    texts_of,
)
from softeval.model.chat import render_chat
from softeval.model.language_model import BUNDLED_CHECKPOINT, LanguageModel
from softeval.model.mends import long_rope_limit
from softeval.model.weights import weights_hash
from softeval.modes import Mode, mode_record
from softeval.options import GenerationOptions, fixed_size
from softeval.records import Generation, SampleKey, ScoreTuple

# lm-eval's registering decorator hides the type of its class from checkers.
_HFLM: Any = HFLM


class SoftEvalLM(_HFLM):
    """A checkpoint under one CoT mode.

    Args:
        pretrained: checkpoint directory, hub id, or a model from `softeval.load_model`.
        mode: name of the CoT mode, or a mode. Its options are arguments, too (temperature,
            noise_scale, …).
        options: settled already, in place of the arguments that follow.
        batch_size: rows at a time, or "auto".
        add_bos_token: as in lm-eval's hf model.
        max_batch_size: as in lm-eval's hf model, for log-likelihoods.
        arguments: further fields of `softeval.options.GenerationOptions`; pass_at, scorer and
            data_dir are read by the tasks.

    Raises:
        UserError: an unknown or unusable argument, or a checkpoint that cannot be used.
    """

    def __init__(
        self,
        pretrained: str | LanguageModel = BUNDLED_CHECKPOINT,
        *,
        mode: Any = "hard_greedy",
        options: GenerationOptions | None = None,
        batch_size: int | str | None = "auto",
        max_batch_size: int | None = None,
        add_bos_token: bool | None = None,
        **arguments: Any,
    ) -> None:
        if options is None:
            given = {**arguments, "mode": mode, "batch_size": batch_size}
            options, mode = read_arguments(given)
            refuse_unknown(arguments, mode)
        self.options, self.mode = options, mode
        self.store: GenerationStore | None = None
        self.record_top = 0
        self.chat_date = self.options.chat_date or date.today()
        self.language_model = loaded_model(pretrained, self.options)
        with quiet("lm_eval.models.huggingface"):
            super().__init__(
                pretrained=self.language_model.model,
                backend="causal",
                tokenizer=known_tokenizer(self.language_model),
                max_length=self.language_model.max_length,
                batch_size=likelihood_batch(self.options.batch_size, self.language_model),
                max_batch_size=max_batch_size or 64,
                add_bos_token=add_bos_token,
            )
        # Absolute, because lm-eval asks the hub about whatever could be the name of a repository.
        path = Path(self.language_model.path).expanduser()
        self.pretrained = str(path.resolve()) if path.exists() else self.language_model.path
        self.revision = self.options.revision or "main"
        self._join_processes()

    def configure(self, mode: Mode | None = None, **changes: Any) -> None:
        """Change the mode, or fields of `softeval.options.GenerationOptions`; the model stays."""
        self.mode = mode or self.mode
        self.options = self.options.model_copy(update=changes)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One text a request, each a `GenText`, in their order.

        Raises:
            UserError: an argument that has no effect here, or a prompt that does not fit.
        """
        places = group_requests(requests, self.tok_encode, self.options, self.mode)
        prompts = {(q.task, q.doc_id): requests[at[0]].args[0] for q, at in places.items()}
        done = self._generate(prompts, list(places), show=not disable_tqdm and self.rank == 0)
        return texts_of(requests, places, done, self.store, self.mode.name)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """lm-eval's own log-likelihoods, each with its number of tokens (`ScoreTuple`)."""
        store = self.store
        if store is None:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        found = [store.get_likelihood(*choice_key(request)) for request in requests]
        missing = [r for r, score in zip(requests, found, strict=True) if score is None]
        self.cache_hook = SavingHook(store, missing)
        fresh = iter(super().loglikelihood(missing, disable_tqdm=disable_tqdm) if missing else [])
        self.cache_hook = CacheHook(None)
        return [next(fresh) if score is None else score for score in found]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for texts, context, continuation in requests:
            self._check_length(texts, len(context) + len(continuation))
        if isinstance(self.cache_hook, SavingHook):
            self.cache_hook.n_tokens = {texts: len(tokens) for texts, _, tokens in requests}
        scores = self._score_by_length(requests, **kwargs)
        for (log_prob, _), (texts, _, _) in zip(scores, requests, strict=True):
            self._check_finite(texts, log_prob)
        return [
            ScoreTuple(log_prob, greedy, len(tokens))
            for (log_prob, greedy), (_, _, tokens) in zip(scores, requests, strict=True)
        ]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context.

        Raises:
            UserError: the tokenizer has nothing for it.
        """
        found = super().prefix_token_id
        if found is None:
            raise UserError(
                "the tokenizer has neither a BOS nor an EOS token, one of which must stand before a"
                " text without context; leave such requests out"
            )
        return found

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Ids of a text as lm-eval's hf model has them, by the rule that all of softeval follows.

        Raises:
            UserError: a token that the embedding has no row for.
        """
        never = add_special_tokens is None and self.add_bos_token is False
        special = False if never else add_special_tokens
        ids = self.language_model.vocabulary.encode(string, special)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages in the chat template; unlike lm-eval, no system message is dropped.

        Raises:
            UserError: no template, or one that does not take these messages.
        """
        if not self.options.uses_chat:  # lm-eval's own flag asks for it, of the tasks too
            self.configure(apply_chat_template=True)
        return render_chat(
            self.tokenizer,
            chat_history,
            day=self.chat_date,
            open_reply=add_generation_prompt,
        )

    def _score_by_length(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """lm-eval's scores; requests on either side of LongRoPE's limit never share a batch."""
        limit = long_rope_limit(self.language_model.model.config)
        groups: dict[bool, list[int]] = {}
        for place, (_, context, continuation) in enumerate(requests):
            long = limit is not None and len(context) + len(continuation) - 1 > limit
            groups.setdefault(long, []).append(place)
        scores: dict[int, tuple[float, bool]] = {}
        for places in groups.values():
            group = [requests[place] for place in places]
            found = super()._loglikelihood_tokens(group, **kwargs)
            scores |= dict(zip(places, found, strict=True))
        return [scores[place] for place in range(len(requests))]

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse lm-eval's --use_cache.

        Raises:
            UserError: always; lm-eval itself never calls this for another reason.
        """
        raise UserError(
            "--use_cache mixes checkpoints, modes and samples; use `softeval run`, which resumes"
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into the results: its own facts, and all that names this model."""
        options, limits = self.options, self.options.limits
        return (
            super().get_model_info()
            | self.mode_facts
            | {
                "softeval_version": package_versions().get("softeval", "not installed"),
                "path": self.language_model.path,
                "weights_sha256": self.weights_sha256,
                "logits_dtype": str(self.language_model.logits_dtype),
                "seed": options.seed,
                "max_cot_tokens": limits.max_cot_tokens,
                "max_answer_tokens": limits.max_answer_tokens,
                "generation_config_ignored": self._generation_config(),
            }
        )

    @property
    def mode_facts(self) -> dict[str, Any]:
        """What names the mode among the results: its record, and the samples of a question."""
        record = mode_record(self.mode) | self.mode.facts(self.language_model.embedding)
        return {"mode": record.pop("name"), **record, "num_samples": self.options.num_samples}

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of the weights; lm-eval's own is empty for a local checkpoint."""
        return weights_hash(self.language_model.model)

    def _generate(
        self,
        prompts: Mapping[tuple[str, int], str],
        questions: Sequence[Question],
        *,
        show: bool,
    ) -> dict[SampleKey, Generation]:
        """Every sample of every question, from the store or from the decoder."""
        done = self._stored([key for question in questions for key in question.keys])
        left = [
            replace(q, samples=tuple(k.sample for k in q.keys if k not in done)) for q in questions
        ]
        decoder = Decoder(
            self.language_model,
            self.mode,
            self.options.limits,
            seed=self.options.seed,
            batch_size=fixed_size(self.options.batch_size),
            record_top=self.record_top,
        )
        total = sum(len(question.samples) for question in left)
        for generation in tqdm(decoder.run(left), self.mode.name, total, disable=not show):
            key = generation.key
            if self.store is not None:
                self.store.add(generation, prompts[key.task, key.doc_id])
            done[key] = generation
        return done

    def _stored(self, keys: Sequence[SampleKey]) -> dict[SampleKey, Generation]:
        if self.store is None:
            return {}
        found = {key: self.store.get(key, self.mode.name) for key in keys}
        return {key: generation for key, generation in found.items() if generation is not None}

    def _check_length(self, texts: Any, tokens: int) -> None:
        """lm-eval would cut the beginning of the context off, with a warning at most."""
        if tokens > self.max_length + 1:
            start = texts[0][:40] if texts else ""
            raise UserError(
                f"a request of {tokens} tokens exceeds the context of {self.max_length}: "
                f"{start!r}...; leave the question out with --limit or --samples"
            )

    def _check_finite(self, texts: Any, log_prob: float) -> None:
        if not math.isfinite(log_prob):
            start = texts[0][-40:] if texts else ""
            dtype = str(self.language_model.dtype).removeprefix("torch.")
            raise UserError(
                f"the log-likelihood after {start!r} is {log_prob} in {dtype}; try --dtype float32, "
                "or check the checkpoint"
            )

    def _generation_config(self) -> dict[str, Any]:
        """Settings in the checkpoint's generation_config; the decoder applies none of them."""
        config = getattr(self.language_model.model, "generation_config", None)
        return {} if config is None else config.to_diff_dict()

    def _join_processes(self) -> None:
        """Take rank and number of processes from accelerate.

        HFLM does so only with several GPUs visible, and then takes the rank within the machine.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return
        from accelerate import Accelerator, InitProcessGroupKwargs

        waiting = InitProcessGroupKwargs(timeout=timedelta(weeks=52))
        on_cpu = self.language_model.device.type == "cpu"
        self.accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[waiting])
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
