"""One run a directory: who comes second is told, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from train_cases import run

from softeval.errors import UserError
from softeval.trainers import trainer
from softeval.trainers.lock import LOCK, locked

pytestmark = pytest.mark.slow

HOLD = (
    "import sys; from pathlib import Path; from softeval.trainers.lock import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that tries to hold the directory until it is ended."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_directory_in_use_is_refused_until_its_process_dies(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = holder(folder)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=r"another process is training in .*--output-path") as found:
        run(folder, max_steps=1)
    assert "\n" not in str(found.value) and not (folder / "train.json").exists()
    other.kill()
    other.communicate()
    assert (folder / LOCK).exists()
    run(folder, max_steps=1)
    assert not (folder / LOCK).exists()


def test_training_holds_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[str] = []
    plain = trainer.validate

    def watched(*args: Any) -> Any:
        errors.append(holder(tmp_path).communicate()[1])
        return plain(*args)

    monkeypatch.setattr(trainer, "validate", watched)
    run(tmp_path, max_steps=1)
    assert errors and all("another process is training" in error for error in errors)


def test_a_lock_that_its_holder_removed_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened just before the run in it ended and removed it: held, it would keep nobody out."""
    from softeval.trainers import lock

    plain, calls = lock._is_current, []

    def late(descriptor: int, path: Path) -> bool:
        calls.append(path)
        if len(calls) == 1:
            path.unlink()
        return plain(descriptor, path)

    monkeypatch.setattr(lock, "_is_current", late)
    with locked(tmp_path):
        assert len(calls) == 2 and (tmp_path / LOCK).exists()


def test_a_refused_request_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        run(tmp_path / "run", model="/nowhere")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        run(tmp_path / "file")
