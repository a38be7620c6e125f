"""Content of run.json: what was asked, with what, on what, and how it went.

docs/results-schema.md describes the fields.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.modes import mode_record
from softeval.runs import environment, rundir
from softeval.runs.identity import Request, absolute
from softeval.runs.record_shape import TRAINING_FILE, check_training

if TYPE_CHECKING:
    from softeval.runs.judging import Compacted


def new_record(request: Request) -> dict[str, Any]:
    """The record at a run's first start."""
    from softeval.scoring.judge import scorer, scorer_identity

    lm = request.lm
    assert lm is not None, "the record names the checkpoint"
    session = _session()
    record: dict[str, Any] = {
        "status": rundir.RUNNING,
        "command": _command(),
        "config": request.resolved_config,
        "identity": request.identity,
        "model": {
            "path": absolute(lm.path),
            "weights_hash": request.weights_hash,
            "tokenizer_hash": request.identity["tokenizer"],
            "architecture": type(lm.model).__name__,
            "parameters": sum(p.numel() for p in lm.model.parameters()),
            "dtype": str(lm.dtype).removeprefix("torch."),
            "device": str(lm.device),
            "logits_dtype": str(lm.logits_dtype),
            "max_length": lm.max_length,
            "embedding_rms": lm.embedding.rms,
            "attention": lm.model.config._attn_implementation,
            "notes": list(lm.notes),
            "self_check": lm.self_check,
            "batch_invariant": lm.batch_invariant,
        },
        "modes": [
            mode_record(mode) | {"facts": mode.facts(lm.embedding)} for mode in request.modes
        ],
        "datasets": [{"task": task, **asdict(s)} for task, s in request.sources.items()],
        "seeds": {"samples": request.config.seed},
        "versions": session["versions"],
        "hardware": session["hardware"],
        "scorer": scorer_identity(scorer(request.config.scorer)),
        "started": session["started"],
        "finished": None,
        "seconds": 0.0,
        "counts": {},
        "failures": {},
        "sessions": [session],
    }
    training = read_training(lm.path)
    return record if training is None else record | {"training": training}


def resumed_record(old: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """The record of a run that is taken up again; versions that changed are listed.

    Its tables are not written yet: the scorer is that of now.
    """
    from softeval.scoring.judge import scorer, scorer_identity

    session = _session()
    changes = environment.version_changes(old["versions"], session["versions"])
    sessions = [*old["sessions"], session | {"changes": changes}]
    return {
        **old,
        "status": rundir.RUNNING,
        "scorer": scorer_identity(scorer(request.config.scorer)),
        "failures": {},
        "sessions": sessions,
    }


def refuse_other_scorer(record: Mapping[str, Any], rules: str, folder: Path) -> None:
    """Refuse to take up a finished run that other rules have judged.

    Raises:
        UserError: with the command that judges it again.
    """
    from softeval.scoring.judge import rules_of

    if rules_of(record) != rules:
        raise UserError(
            f"{folder} is finished and judged by {rules_of(record)};"
            f" `softeval score {folder} --scorer {rules}` judges it again"
        )


def finished_record(
    record: Mapping[str, Any], compacted: Compacted, failures: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    """The record once the tables are written.

    Args:
        record: as it was at this start.
        compacted: what the tables hold.
        failures: message of each cell that ended in an error.
        seconds: since this start.
    """
    return {
        **record,
        "status": rundir.PARTIAL if compacted.missing else rundir.COMPLETE,
        "finished": _now(),
        "seconds": round(record["seconds"] + seconds, 1),
        "counts": {
            "expected": compacted.expected,
            "missing": compacted.missing,
            "verdicts": compacted.verdicts,
            "rows": compacted.rows,
        },
        "failures": dict(failures),
    }


def read_training(path: str) -> dict[str, Any] | None:
    """How a checkpoint was trained, where softeval did; None elsewhere.

    Raises:
        UserError: the file is there and cannot be read.
    """
    file = Path(path).expanduser() / TRAINING_FILE
    if not file.is_file():
        return None
    try:
        training = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}); restore or remove it") from None
    check_training(file, training)
    return training


def _command() -> str:
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
