"""What a run is asked to do, what of it must agree to continue it, and where it goes.

Batch size, number of processes and package versions do not belong to the identity: they change no
sample, or should not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.model.chat import example_hash
from softeval.modes import Mode, mode_record
from softeval.runs import rundir
from softeval.runs.cells import Cell
from softeval.runs.config import DEFAULT_MAX_COT_TOKENS, RunConfig
from softeval.tasks.data import DatasetSource
from softeval.tasks.local_data import is_jsonl, task_name

if TYPE_CHECKING:
    from softeval.model.language_model import LanguageModel

RUNS = Path("runs")
BUNDLED_NAME = "base"
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Request:
    """An evaluation as asked for.

    Attributes:
        config: the configuration.
        modes: with their parameters.
        sources: data of each task.
        max_cot_tokens: the cap; None until it is settled.
        lm: the checkpoint; None until it is loaded.
    """

    config: RunConfig
    modes: tuple[Mode, ...]
    sources: Mapping[str, DatasetSource]
    max_cot_tokens: int = 0
    lm: LanguageModel | None = None
    weights_hash: str = ""
    default_cot_cap: int = field(default=DEFAULT_MAX_COT_TOKENS, repr=False)

    @classmethod
    def of(cls, config: RunConfig, modes: Sequence[Mode], cells: Sequence[Cell]) -> Request:
        """Before the checkpoint is loaded."""
        sources = {cell.name: cell.source for cell in cells}
        return cls(config, tuple(modes), sources, config.max_cot_tokens or 0)

    def with_cot_cap(self, cap: int) -> Request:
        """With the cap on the CoT settled."""
        return replace(self, max_cot_tokens=cap)

    def with_model(self, lm: LanguageModel) -> Request:
        """With the checkpoint loaded and hashed."""
        from softeval.model.language_model import weights_hash

        return replace(self, lm=lm, weights_hash=weights_hash(lm.model))

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for two calls to give the same samples, as far as it is known yet."""
        config = self.config
        known: dict[str, Any] = {
            "tasks": {name: source.sha256 for name, source in sorted(self.sources.items())},
            "modes": {mode.name: mode_record(mode) for mode in self.modes},
            "num_samples": config.num_samples,
            "limit": config.limit,
            "seed": config.seed,
            "max_answer_tokens": config.max_answer_tokens,
            "apply_chat_template": config.apply_chat_template,
            "record_top": config.record_top,
            "logits_dtype": config.logits_dtype,
        }
        if config.chat_date is not None:
            known["chat_date"] = config.chat_date.isoformat()
        if self.max_cot_tokens:
            known["max_cot_tokens"] = self.max_cot_tokens
        if self.lm is not None:
            known |= {
                "weights": self.weights_hash,
                "tokenizer": tokenizer_hash(self.lm.tokenizer),
                "dtype": str(self.lm.dtype).removeprefix("torch."),
                "device": self.lm.device.type,
            }
        if self.lm is not None and config.apply_chat_template:
            known["chat_example"] = example_hash(self.lm.tokenizer, config.chat_date)
        return known

    @property
    def resolved_config(self) -> dict[str, Any]:
        """Every field of the configuration with the value in use."""
        resolved = self.config.model_dump(mode="json")
        for name in ("model", "data_dir", "include_path"):
            if resolved[name] is not None:
                resolved[name] = absolute(resolved[name])
        files = {task_name(t): absolute(t) for t in self.config.tasks if is_jsonl(t)}
        resolved |= {
            "tasks": [files.get(name, name) for name in self.sources],
            "modes": [mode.name for mode in self.modes],
            "pass_at": list(self.config.ks),
            "max_cot_tokens": self.max_cot_tokens,
        }
        return resolved

    def as_yaml(self) -> str:
        """The configuration as a file for --config; it repeats the run."""
        import yaml

        fields = {k: v for k, v in self.resolved_config.items() if k != "output_path"}
        return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 over what turns texts into ids and back, and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    template = str(getattr(tokenizer, "chat_template", None))
    return hashlib.sha256(f"{text}\n{template}".encode()).hexdigest()


def absolute(path: str) -> str:
    """A path as it is found from every folder; a hub id stays one."""
    local = Path(path).expanduser()
    return str(local.resolve()) if path and local.exists() else path


def bundled_checkpoint() -> Path:
    """Where the checkpoint inside the package lies; asked without importing torch."""
    from importlib.resources import files

    return Path(str(files("softeval"))) / "checkpoints" / "base"


def default_folder(config: RunConfig, today: date | None = None) -> Path:
    """runs/<date>-<model>-<tasks>."""
    return RUNS / f"{today or date.today():%Y-%m-%d}-{_name(config)}"


def choose_folder(request: Request, overwrite: bool, *, probe: bool = True) -> Path:
    """Where the run goes; before the checkpoint is loaded.

    Without --output-path an earlier run of the same arguments is taken up, whatever its date.

    Args:
        request: of the run.
        overwrite: a run that is there may go.
        probe: make the folder and try to write to it.

    Raises:
        UserError: it cannot be written to, or holds a run with other arguments.
    """
    folder = _folder_of(request, overwrite)
    if rundir.is_run(folder) and not overwrite:
        _check_known(request, folder)
    (rundir.prepare if probe else rundir.check_place)(folder)
    return folder


def with_chat_date(request: Request, overwrite: bool) -> Request:
    """With the date that chat templates are told: that of the run to continue, else today's.

    Only reads, so that every process of a run can ask before they know each other.
    """
    config = request.config
    if not config.apply_chat_template or config.chat_date is not None:
        return request
    folder = _folder_of(request, overwrite)
    told = None
    if rundir.is_run(folder) and not overwrite:
        told = rundir.read_record(folder).get("identity", {}).get("chat_date")
    day = date.today() if told is None else date.fromisoformat(told)
    return replace(request, config=config.model_copy(update={"chat_date": day}))


def settle_folder(
    request: Request, folder: Path, overwrite: bool
) -> tuple[Path, dict[str, Any] | None]:
    """The folder once the checkpoint is known, and the record of the run to continue there, if any.

    Raises:
        UserError: the folder holds a run with other arguments or another checkpoint.
    """
    if overwrite or not rundir.is_run(folder):
        return folder, None
    record = rundir.read_record(folder)
    today = default_folder(request.config)
    found_by_date = request.config.output_path is None and folder != today
    if found_by_date and any(rundir.differing_fields(request.identity, record["identity"])):
        # Same arguments on another day, but the checkpoint has changed since.
        rundir.prepare(today)
        return settle_folder(request, today, overwrite)
    rundir.check_identity(folder, request.identity, record)
    return folder, record


def _folder_of(request: Request, overwrite: bool) -> Path:
    """The folder that is asked for, that of an earlier run of the same arguments, or a new one."""
    if request.config.output_path is not None:
        return Path(request.config.output_path).expanduser()
    earlier = None if overwrite else _same_run(request)
    return earlier or default_folder(request.config)


def _check_known(request: Request, folder: Path) -> None:
    """Refuse at once what already differs, before a long load."""
    record = rundir.read_record(folder)
    there = record.get("identity", {})
    known = request.identity
    rundir.check_identity(folder, known, {"identity": {k: there.get(k) for k in known}})
    _check_primary(request.config.primary, folder, record)


def _check_primary(wanted: Sequence[str] | None, folder: Path, record: Mapping[str, Any]) -> None:
    """Primary contrasts are declared before the first sample; later is too late."""
    declared = list((record.get("config") or {}).get("primary") or ())
    if wanted is not None and list(wanted) != declared:
        raise UserError(
            f"{folder} was started with --primary {','.join(declared) or 'not given'}: what was not"
            " declared before the first sample cannot be declared now; leave it out and choose it"
            " with `softeval report --contrast`, or give another --output-path"
        )


def _same_run(request: Request) -> Path | None:
    """The newest default run directory whose known identity is that of the request."""
    for folder in rundir.find_runs(RUNS):
        if not re.fullmatch(rf"\d{{4}}-\d\d-\d\d-{re.escape(_name(request.config))}", folder.name):
            continue
        there = rundir.read_record(folder).get("identity", {})
        known = request.identity
        if not any(rundir.differing_fields(known, {k: there.get(k) for k in known})):
            return folder
    return None


def _name(config: RunConfig) -> str:
    model = BUNDLED_NAME if config.model is None else Path(config.model).expanduser().resolve().name
    name = f"{model}-{'+'.join(map(task_name, config.tasks))}"
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:_LONGEST_NAME]
