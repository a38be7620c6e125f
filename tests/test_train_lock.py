"""One run a directory: who comes second is told, and nothing is left behind."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from train_cases import LEAST, run

from softeval.errors import UserError
from softeval.files import LOCK, locked
from softeval.trainers import trainer

pytestmark = pytest.mark.slow

HOLD = (
    "import sys; from pathlib import Path; from softeval.files import locked\n"
    "with locked(Path(sys.argv[1]), 'training'):\n"
    "    CHILD\n"
    "    print('held', flush=True); sys.stdin.read()"
)
FORKED = "import os, time; pid = os.fork(); pid or time.sleep(60); print(pid)"
STARTED = (
    "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"  # like the judge's workers
)


def holder(folder: Path, child: str = "pass") -> subprocess.Popen[str]:
    """Another process that tries to hold the directory until it is ended."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD.replace("CHILD", child), str(folder)],
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
        run(folder, **LEAST)
    assert "\n" not in str(found.value) and not (folder / "train.json").exists()
    other.kill()
    other.communicate()
    assert (folder / LOCK).exists()
    run(folder, **LEAST)
    assert not (folder / LOCK).exists()


def test_training_holds_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[str] = []
    plain = trainer.validate

    def watched(*args: Any) -> Any:
        errors.append(holder(tmp_path).communicate()[1])
        return plain(*args)

    monkeypatch.setattr(trainer, "validate", watched)
    run(tmp_path, **LEAST)
    assert errors and all("another process is training" in error for error in errors)


@pytest.mark.parametrize("child", [FORKED, STARTED])
def test_children_that_outlive_a_killed_run_do_not_hold_its_directory(
    tmp_path: Path, child: str
) -> None:
    other = holder(tmp_path, child)
    assert other.stdout is not None
    pid = int(other.stdout.readline())
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match="another process is training"),
        locked(tmp_path, "training"),
    ):
        pass
    other.kill()
    other.wait()
    try:
        os.kill(pid, 0)  # it lives
        with locked(tmp_path, "training"):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_lock_that_its_holder_removed_is_taken_anew(tmp_path: Path) -> None:
    """Opened just before the run in it ended and removed it: held, it would keep nobody out."""
    descriptor = os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    def end() -> None:
        (tmp_path / LOCK).unlink()
        os.close(descriptor)

    ending = threading.Timer(0.1, end)
    ending.start()
    with locked(tmp_path, "training"):
        ending.join()
        assert (tmp_path / LOCK).exists()
        with pytest.raises(UserError, match="another"), locked(tmp_path, "training"):
            pass


def test_a_refused_request_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        run(tmp_path / "run", model="/nowhere")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        run(tmp_path / "file")
