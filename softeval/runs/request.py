"""What a run is asked to do, settled before its weights are loaded.

Everything that can be refused is refused here: the device, the checkpoint's config and tokenizer, the
chat template, questions that do not fit the context, and a run directory that holds something else.
`softeval run --dry-run` asks the same.

The identity is what must agree for two calls to give the same samples. Batch size, number of
processes and package versions do not belong to it: they change no sample, or should not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.model import BUNDLED_CHECKPOINT
from softeval.model.chat import example_hash, render_chat
from softeval.modes import Mode, mode_record, mode_source
from softeval.protocol import PROMPTS, Protocol
from softeval.records import RANDOM_NUMBERS
from softeval.runs import rundir
from softeval.runs.cells import Cell, joined, kept_titles, load_cells, refuse_unread
from softeval.runs.config import RunConfig, Shard
from softeval.runs.judging import check_verdicts
from softeval.runs.tables import prompt_hash
from softeval.tasks.data import DatasetSource
from softeval.tasks.local_data import is_jsonl, task_name

if TYPE_CHECKING:
    from softeval.model.checkpoint import Checkpoint
    from softeval.model.language_model import LanguageModel
    from softeval.model.weights import StoredWeights

RUNS = Path("runs")
SHORTEST_DEFAULT_CAP = 64
"""A default cap is never below this; questions that then do not fit are an error that names one."""
_LONGEST_NAME = 80


class Weights:
    """The checkpoint of a run: what names it, read from its files, and the loaded model.

    Args:
        config: of the run.
        checkpoint: as `examine` gives it, or a loaded model.
    """

    def __init__(self, config: RunConfig, checkpoint: Checkpoint | LanguageModel) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self._hashed: StoredWeights | None = None

    @cached_property
    def names(self) -> dict[str, str]:
        """Hashes of weights and tokenizer, precision and device; the identity's part of them.

        Where the files alone do not tell, the checkpoint is loaded for it.
        """
        from softeval.model.checkpoint import Checkpoint, torch_device, torch_dtype
        from softeval.model.weights import (
            config_hash,
            stored_weights,
            tokenizer_hash,
            weights_hash,
        )

        if isinstance(self.checkpoint, Checkpoint):
            self._hashed = stored_weights(self.checkpoint, torch_dtype(self.config.dtype))
        if self._hashed is None:
            lm = self.load()
            sha256, dtype, device = weights_hash(lm.model), lm.dtype, lm.device
        else:
            sha256, dtype = self._hashed.sha256, self._hashed.dtype
            device = torch_device(self.config.device)
        names = {
            "weights": sha256,
            "tokenizer": tokenizer_hash(self.checkpoint.tokenizer),
            "dtype": str(dtype).removeprefix("torch."),
            "device": device.type,
        }
        chosen = self.config.attn_implementation  # runs of before have none to agree with
        known = {"attention": chosen, "config": config_hash(self.checkpoint)}
        return names | {name: value for name, value in known.items() if value is not None}

    def load(self) -> LanguageModel:
        """The loaded model, the same one each time.

        Raises:
            UserError: what `load_checkpoint` raises, and files written since they were hashed.
        """
        from softeval.lmeval.arguments import device_here
        from softeval.model.checkpoint import Checkpoint
        from softeval.model.language_model import load_checkpoint

        found, config = self.checkpoint, self.config
        if isinstance(found, Checkpoint):
            device = device_here(config.device)
            found = load_checkpoint(
                found, config.dtype, device, config.logits_dtype, config.self_check
            )
            if self._hashed is not None:
                self._hashed.require_unwritten()
            self.checkpoint = found
        found.decode_by(graphs=config.graphs, fused=config.compile)
        return found


@dataclass(frozen=True, eq=False)
class Request:
    """An evaluation as asked for, with nothing left open.

    Attributes:
        config: the configuration; the cap on the CoT and the chat template's date are in place.
        modes: with every option.
        cells: in the order in which they run.
        weights: the checkpoint.
        folder: where the run goes.
        found: record of the run that is continued there; None for a new one.
    """

    config: RunConfig
    modes: tuple[Mode, ...]
    cells: Sequence[Cell]
    weights: Weights
    folder: Path
    found: Mapping[str, Any] | None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must agree for two calls to give the same samples."""
        config, protocol = self.config, self.protocol
        known: dict[str, Any] = {
            "tasks": {name: source.sha256 for name, source in sorted(self.sources.items())},
            "modes": {mode.name: mode_record(mode) for mode in self.modes},
            "num_samples": config.num_samples,
            "limit": config.limit,
            "seed": config.seed,
            "random_numbers": RANDOM_NUMBERS,
            "max_cot_tokens": config.max_cot_tokens,
            "max_answer_tokens": config.limits.max_answer_tokens,
            "apply_chat_template": protocol.chat,
            "record_top": config.record_top,
            "logits_dtype": config.logits_dtype,
        }
        if protocol.changes:  # runs in the paper's have none to agree with
            known["protocol"] = protocol.changes
        if protocol.num_fewshot:
            shown = {c.name: c.task.examples for c in self.cells if c.mode is not None}
            known["examples"] = {name: prompt_hash(json.dumps(e)) for name, e in shown.items()}
        if config.chat_date is not None:
            known["chat_date"] = config.chat_date.isoformat()
            tokenizer = self.weights.checkpoint.tokenizer
            known["chat_example"] = example_hash(tokenizer, config.chat_date)
        if config.docs is not None or config.samples is not None:
            known["docs"] = {name: config.docs_of(name) for name in self.sources}
        if config.mode_file is not None:
            known["mode_source"] = mode_source(config.mode_file)
        if config.shard is not None:
            known[rundir.SHARD] = str(config.shard)
        return known | self.weights.names

    @cached_property
    def protocol(self) -> Protocol:
        """How questions are asked; read once, as a template may change while the run goes."""
        return self.config.selected_protocol()

    @cached_property
    def kept(self) -> frozenset[str]:
        """Titles of the cells that a finished run has and that stay as they are."""
        return kept_titles(self.found, self.cells)

    @property
    def fresh_cells(self) -> list[Cell]:
        """Those that are to be run."""
        return [cell for cell in self.cells if cell.title not in self.kept]

    @property
    def is_finished(self) -> bool:
        """Whether every sample is there already."""
        done = (self.found or {}).get("status") == rundir.COMPLETE
        return done and not self.fresh_cells

    @property
    def sources(self) -> dict[str, DatasetSource]:
        """Where the questions of each task came from."""
        return {cell.name: cell.source for cell in self.cells}

    @property
    def resolved_config(self) -> dict[str, Any]:
        """Every field of the configuration with the value in use."""
        resolved = self.config.model_dump(mode="json")
        for name in ("model", "data_dir", "include_path", "mode_file", "prompt", "samples"):
            given = resolved[name]
            if given is not None and given not in PROMPTS and not given.lstrip().startswith("{"):
                resolved[name] = absolute(given)
        files = {task_name(t): absolute(t) for t in self.config.tasks if is_jsonl(t)}
        return resolved | {
            "tasks": [files.get(name, name) for name in self.sources],
            "modes": [mode.name for mode in self.modes],
            "pass_at": list(self.config.ks(self.config.num_samples)),
            "max_answer_tokens": self.config.limits.max_answer_tokens,
            "apply_chat_template": self.protocol.chat,
            "protocol": self.protocol.name,
        }


def examine(config: RunConfig, *, local_files_only: bool = False) -> Checkpoint:
    """The checkpoint that a run names, without its weights.

    Args:
        config: of the run.
        local_files_only: download nothing.

    Raises:
        UserError: a device that is not there, or a checkpoint that cannot be decoded.
    """
    from softeval.lmeval.arguments import known_tokenizer
    from softeval.model.checkpoint import read_checkpoint, torch_device

    torch_device(config.device)
    checkpoint = read_checkpoint(
        config.model or BUNDLED_CHECKPOINT,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        local_files_only=local_files_only,
        attn_implementation=config.attn_implementation,
        device_map=config.device_map,
    )
    known_tokenizer(checkpoint)
    return checkpoint


def settle(
    config: RunConfig,
    cells: Sequence[Cell],
    checkpoint: Checkpoint | LanguageModel,
    overwrite: bool = False,
) -> Request:
    """Settle what is still open: cap, date, identity, folder, and the run that is continued.

    Without --output-path an earlier run of the same arguments is taken up, whatever its date. Only
    reads, so that every process of a run can ask before they know each other.

    Args:
        config: of the run.
        cells: its tasks and modes, with their questions.
        checkpoint: as `examine` gives it, or a loaded model.
        overwrite: a run that is there may go.

    Raises:
        UserError: a prompt that does not fit, or a folder that is no place for this run.
    """
    modes, weights = config.selected_modes(), Weights(config, checkpoint)

    @cache
    def on(day: date | None) -> RunConfig:
        dated = config.model_copy(update={"chat_date": day})
        cap = settled_cot_cap(dated, cells, checkpoint)
        return dated.model_copy(update={"max_cot_tokens": cap})

    def at(folder: Path, found: Mapping[str, Any] | None) -> Request:
        return Request(on(_chat_date(config, found)), modes, cells, weights, folder, found)

    if config.output_path is None and not overwrite:
        for folder, record in _earlier_runs(config):
            request = at(folder, record)
            if not any(rundir.identity_differences(request.identity, record)):
                return _continued(request)
    folder = run_folder(config)
    there = rundir.is_run(folder) and not overwrite
    found = rundir.read_record(folder) if there else None
    both = config if found is None else joined(config, cells, found)
    if both is not config:
        both = both.model_copy(update={"output_path": config.output_path or str(folder)})
        with_both = load_cells(both, both.selected_modes())
        return settle(both, with_both, checkpoint)
    return _continued(at(folder, found))


def settled_cot_cap(
    config: RunConfig, cells: Sequence[Cell], checkpoint: Checkpoint | LanguageModel
) -> int:
    """The cap on the CoT: as given, else the paper's, or what the context leaves.

    Raises:
        UserError: a prompt that the template or the embedding does not take, or one that with the
            caps exceeds the context.
    """
    from softeval.model.stopping import check_context

    if config.uses_chat:
        example_hash(checkpoint.tokenizer, config.chat_date)
    lengths = list(_prompt_lengths(config, cells, checkpoint))
    if config.max_cot_tokens is None and lengths:
        usual = config.limits
        spare = checkpoint.max_length - max(lengths)[0] - usual.room(checkpoint)
        fitting = max(usual.max_cot_tokens + spare, SHORTEST_DEFAULT_CAP)
        cap = min(usual.max_cot_tokens, fitting)
        config = config.model_copy(update={"max_cot_tokens": cap})
    check_context(lengths, config.limits, checkpoint)
    return config.limits.max_cot_tokens


def absolute(path: str) -> str:
    """A path as it is found from every folder; a hub id stays one."""
    local = Path(path).expanduser()
    return str(local.resolve()) if path and local.exists() else path


def run_folder(config: RunConfig) -> Path:
    """Where the run goes: as asked for, else runs/<date>-<model>-<tasks>; a shard under it.

    Raises:
        UserError: no place for this run.
    """
    named = RUNS / f"{date.today():%Y-%m-%d}-{_name(config)}"
    folder = Path(config.output_path or named).expanduser()
    if config.shard is not None:
        refuse_other_shards(folder, config.shard)
        folder /= config.shard.folder
    rundir.check_place(folder)
    return folder


def refuse_other_shards(folder: Path, shard: Shard) -> None:
    """Refuse, by a UserError, to lay a shard beside those of another division, or into a run."""
    others = {p.name.rpartition("-of-")[2] for p in folder.glob("shard-*-of-*")}
    others.discard(str(shard.count))
    if others:
        raise UserError(
            f"{folder} holds shards of {others.pop()}, not {shard.count}; divide as there, or give"
            " another --output-path"
        )
    if rundir.is_run(folder):
        raise UserError(f"{folder} holds a run; give the shards another --output-path")


def _chat_date(config: RunConfig, found: Mapping[str, Any] | None) -> date | None:
    """What chat templates are told: as given, else as the run to continue was, else today."""
    if not config.uses_chat or config.chat_date is not None:
        return config.chat_date
    told = ((found or {}).get("identity") or {}).get("chat_date")
    return date.today() if told is None else date.fromisoformat(told)


def _continued(request: Request) -> Request:
    """The request, once the run that is there is known to be the same.

    Raises:
        UserError: it has other arguments, is finished under other rules, contrasts are declared
            after its first sample, or the protocol has words for no question.
    """
    refuse_unread(request.config, request.cells)
    found, wanted = request.found, request.config.primary
    if found is None:
        return request
    rundir.check_identity(request.folder, request.identity, found)
    if request.kept:
        check_verdicts(request.folder, found, request.config.rules, request.is_finished)
    declared = list((found.get("config") or {}).get("primary") or ())
    if wanted is not None and list(wanted) != declared:
        raise UserError(
            f"{request.folder} was started with --primary {','.join(declared) or 'not given'}: what"
            " was not declared before the first sample cannot be declared now; leave it out and"
            " choose it with `softeval report --contrast`, or give another --output-path"
        )
    return request


def _prompt_lengths(
    config: RunConfig, cells: Sequence[Cell], checkpoint: Checkpoint | LanguageModel
) -> Iterator[tuple[int, str, int]]:
    """(tokens, task, doc_id) of each prompt of the generative tasks."""
    tasks = {cell.name: cell for cell in cells if cell.mode is not None}
    chat = partial(render_chat, checkpoint.tokenizer, day=config.chat_date)
    for name, cell in tasks.items():
        for doc_id, document in cell.every_document.items():  # the cap is that of the whole run
            text = cell.task.prompt_of(document, chat)
            yield len(checkpoint.vocabulary.encode(text)), name, doc_id


def _earlier_runs(config: RunConfig) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Default run directories of this model and these tasks, the newest first."""
    named = re.compile(rf"\d{{4}}-\d\d-\d\d-{re.escape(_name(config))}")
    for folder in rundir.find_runs(RUNS):
        if named.fullmatch(folder.name):
            yield folder, rundir.read_record(folder)


def _name(config: RunConfig) -> str:
    model = Path(config.model or BUNDLED_CHECKPOINT).expanduser().resolve().name
    name = f"{model}-{'+'.join(map(task_name, config.tasks))}"
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:_LONGEST_NAME]
