"""Content of run.json and results.json: what was asked, with what, on what, and how it went.

results.json is what lm-eval reports on each cell, as one file in lm-eval's own shape: a generative
task has one entry for each mode, named ``task@mode``; a log-likelihood task keeps its name.

docs/results-schema.md describes the fields of both.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval import environment
from softeval.errors import UserError
from softeval.modes import mode_record
from softeval.runs import rundir
from softeval.runs.request import Request, absolute

if TYPE_CHECKING:
    from softeval.lmeval.adapter import SoftEvalLM
    from softeval.model.language_model import LanguageModel

# Keys of lm-eval's results that hold one entry a task.
PER_TASK = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


def new_record(request: Request, lm: LanguageModel) -> dict[str, Any]:
    """The record at a run's first start."""
    from softeval.scoring.judge import judge_of, scorer_identity

    session, spread = _session(), getattr(lm.model, "hf_device_map", {})
    record: dict[str, Any] = {
        "status": rundir.RUNNING,
        "command": called_command(),
        "config": request.resolved_config,
        "identity": request.identity,
        "model": {
            "path": absolute(lm.path),
            "weights_hash": request.identity["weights"],
            "tokenizer_hash": request.identity["tokenizer"],
            "architecture": type(lm.model).__name__,
            "parameters": sum(p.numel() for p in lm.model.parameters()),
            "dtype": str(lm.dtype).removeprefix("torch."),
            "device": str(lm.device),
            "logits_dtype": str(lm.logits_dtype),
            "max_length": lm.max_length,
            "embedding_rms": lm.embedding.rms,
            "attention": lm.model.config._attn_implementation,
            "adapter": None if lm.adapter is None else lm.adapter._asdict(),
            "device_map": {part: str(place) for part, place in spread.items()} or None,
            "notes": list(lm.notes),
            "self_check": lm.self_check,
            "batch_invariant": lm.batch_invariant,
        },
        "protocol": asdict(request.protocol),
        "modes": [
            mode_record(mode) | {"facts": mode.facts(lm.embedding)} for mode in request.modes
        ],
        "datasets": [{"task": task, **asdict(s)} for task, s in request.sources.items()],
        "seeds": {"samples": request.config.seed},
        "versions": session["versions"],
        "hardware": session["hardware"],
        "scorer": scorer_identity(judge_of(request.config.rules)),
        "started": session["started"],
        "finished": None,
        "seconds": 0.0,
        "counts": {},
        "failures": {},
        "sessions": [session],
    }
    training = read_training(lm.path)
    return record if training is None else record | {"training": training}


def resumed_record(old: Mapping[str, Any], request: Request, lm: LanguageModel) -> dict[str, Any]:
    """The record of a run that is taken up again; versions that changed are listed.

    Its tables are not written yet: the scorer is that of now. Tasks and modes may have been added,
    and with them what names their questions and options; contrasts stay as they were declared.
    """
    from softeval.scoring.judge import judge_of, scorer_identity

    session = _session()
    changes = environment.version_changes(old["versions"], session["versions"])
    sessions = [*old["sessions"], session | {"changes": changes}]
    now = new_record(request, lm)
    declared = {"primary": old["config"].get("primary")}
    return {
        **old,
        "status": rundir.RUNNING,
        "config": now["config"] | declared,
        "identity": {**old["identity"], **request.identity},
        rundir.KEPT: sorted(request.kept),
        "modes": now["modes"],
        "datasets": now["datasets"],
        "scorer": scorer_identity(judge_of(request.config.rules)),
        "failures": {},
        "sessions": sessions,
    }


def finished_record(
    record: Mapping[str, Any],
    counts: Mapping[str, Any],
    failures: Mapping[str, str],
    seconds: float,
) -> dict[str, Any]:
    """The record once the tables are written.

    Args:
        record: as it was at this start.
        counts: what the tables hold, and what is missing.
        failures: message of each cell that ended in an error.
        seconds: since this start.
    """
    kept = (
        {rundir.KEPT: record[rundir.KEPT]} if counts["missing"] and record.get(rundir.KEPT) else {}
    )
    return {
        **{name: value for name, value in record.items() if name != rundir.KEPT},
        **kept,
        "status": rundir.PARTIAL if counts["missing"] else rundir.COMPLETE,
        "finished": _now(),
        "seconds": round(record["seconds"] + seconds, 1),
        "counts": dict(counts),
        "failures": dict(failures),
    }


def read_training(path: str) -> dict[str, Any] | None:
    """How a checkpoint was trained, where softeval did; None elsewhere.

    Raises:
        UserError: the file is there and cannot be read.
    """
    file = Path(path).expanduser() / rundir.TRAINING_FILE
    if not file.is_file():
        return None
    try:
        training = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}); restore or remove it") from None
    rundir.check_shape(file, training, rundir.TrainingShape)
    return training


@dataclass(frozen=True)
class CellResult:
    """What lm-eval returned on one cell.

    Attributes:
        task: name of the task.
        result: of ``lm_eval.evaluate``.
        facts: the adapter's ``mode_facts`` under this cell's mode.
    """

    task: str
    result: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


def merge_results(
    cells: Mapping[str, CellResult], earlier: Mapping[str, Any], kept: Collection[str]
) -> dict[str, Any]:
    """One results file from those of the cells, by title, and what an earlier one says of kept ones."""
    merged: dict[str, Any] = {
        key: {title: of for title, of in earlier.get(key, {}).items() if title in kept}
        for key in (*PER_TASK, "modes")
    }
    for title, cell in cells.items():
        for key in PER_TASK:
            if cell.task in cell.result.get(key, {}):
                merged[key][title] = cell.result[key][cell.task]
        merged["results"][title] = {**merged["results"][title], "alias": title}
    merged["groups"] = {}
    merged["group_subtasks"] = {title: [] for title in merged["results"]}
    merged["modes"] |= {title: dict(cell.facts) for title, cell in cells.items() if cell.facts}
    return merged


def run_facts(lm: SoftEvalLM, request: Request) -> dict[str, Any]:
    """What lm-eval's own results files say beside the scores: model, machine, date, tokenizer."""
    from lm_eval.loggers.utils import add_tokenizer_info, get_commit_from_path

    config = request.config
    versions = environment.package_versions()
    facts: dict[str, Any] = {
        "config": {
            "model": "softeval",
            "model_args": {"pretrained": lm.pretrained},
            **{k: v for k, v in lm.get_model_info().items() if k not in lm.mode_facts},
            "batch_size": config.batch_size,
            "device": str(lm.device),
            "limit": config.limit,
            "gen_kwargs": None,
        },
        "git_hash": get_commit_from_path(Path.cwd()),
        "date": time.time(),
        # lm-eval asks pip, git and nvidia-smi here, for seconds; this is what we know already.
        "pretty_env_info": environment.describe(versions, environment.hardware()),
        "transformers_version": versions.get("transformers", "N/A"),
        "lm_eval_version": versions.get("lm-eval", "N/A"),
        "upper_git_hash": get_commit_from_path(Path.cwd().parent),
    }
    add_tokenizer_info(facts, lm)
    return facts


def config_yaml(config: Mapping[str, Any]) -> str:
    """A record's configuration as a file for --config; it repeats the run."""
    import yaml

    fields = {k: v for k, v in config.items() if k != "output_path"}
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def called_command() -> str:
    """The command line, or that there was none."""
    called = Path(sys.argv[0])
    if called.name == "softeval" or called.parent.name == "softeval":
        return shlex.join(["softeval", *sys.argv[1:]])
    return "softeval.evaluate, from Python"


def _session() -> dict[str, Any]:
    return {
        "started": _now(),
        "versions": environment.package_versions(),
        "hardware": environment.hardware(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
