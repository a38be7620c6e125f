"""Starts an evaluation again and again, each in a fork that is killed at a random moment.

Not a test: a process of its own for test_resume.py, because a fork must not inherit the threads
that other tests have started. Prints how often it killed and how often a run ended undisturbed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

# Imported before the forks, so that most of a start's time is the evaluation itself.
import lm_eval  # noqa: F401
import pyarrow.parquet  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

import softeval.lmeval.adapter  # noqa: F401
from softeval.runs.config import make_config
from softeval.runs.evaluation import run_evaluation
from softeval.runs.rundir import COMPLETE, read_record


def evaluate_in_fork(folder: Path, options: dict[str, object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 2)
        torch.set_num_threads(1)
        run_evaluation(make_config({**options, "output_path": str(folder)}))
        code = 0
    finally:
        os._exit(code)


def finish(folder: Path, options: dict[str, object]) -> float:
    started = time.monotonic()
    _, status = os.waitpid(evaluate_in_fork(folder, options), 0)
    assert status == 0, f"an undisturbed run ended with {status}"
    assert read_record(folder)["status"] == COMPLETE
    return time.monotonic() - started


def kill_often(parent: Path, options: dict[str, object], kills: int, whole: float) -> list[Path]:
    """Kill `kills` starts; runs that end before their kill are followed by a new one.

    Every other moment is random in time over a whole run; the rest are random in progress, a few
    journalled lines after the start and up to 30 ms more, because generating is the smaller part.
    """
    moments = random.Random(0)
    folders = [parent / "killed-0"]
    killed = 0
    while killed < kills:
        lines = journalled(folders[-1])
        pid = evaluate_in_fork(folders[-1], options)
        if killed % 2:
            time.sleep(moments.uniform(0, whole))
        else:
            wait_for_lines(pid, folders[-1], lines + moments.randint(1, 12))
            time.sleep(moments.uniform(0, 0.03))
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if ended:
            folders.append(parent / f"killed-{len(folders)}")
            continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
        print(f"killed with {journalled(folders[-1])} lines", file=sys.stderr)
    for folder in folders:
        finish(folder, options)
    return folders


def journalled(folder: Path) -> int:
    shard = folder / "shards" / "rank-0000.jsonl"
    try:
        return shard.read_bytes().count(b"\n")
    except FileNotFoundError:  # not begun, or finished and put into the tables
        return 0


def wait_for_lines(pid: int, folder: Path, lines: int) -> None:
    """Wait until the journal has so many lines, or the process has ended."""
    while journalled(folder) < lines:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.002)


def main() -> None:
    parent, kills = Path(sys.argv[1]), int(sys.argv[2])
    options = dict(part.split("=", 1) for part in sys.argv[3:])
    whole = finish(parent / "whole", dict(options))
    folders = kill_often(parent, dict(options), kills, whole)
    print(len(folders))


if __name__ == "__main__":
    main()
