"""Real processes of the program, forked from one that has imported it, alone or as torchrun starts them.

Not a test. Starting torch and transformers takes a process as long as what tests let it compute, and
dozens of processes are killed, stopped, or talk to each other in tests. What a start of one's own
and torchrun itself do to a run is tested with these (test_wheel, test_train_resume).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
IMPORTED = [
    "accelerate",
    "forked",
    "lm_eval.evaluator",
    "pyarrow.parquet",
    "softeval.cli.main",
    "softeval.lmeval.adapter",
    "softeval.runs.evaluation",
    "softeval.trainers.trainer",
    "transformers.models.llama.modeling_llama",
]


@cache
def server() -> ForkServerContext:
    """One for all tests of this process. It has no threads, whatever the tests have started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        path = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
        first = context.Process(target=int)
        first.start()
        first.join()  # the imports are done, and in no test's time
    return context


def start(words: Sequence[str | Path], log: Path, **environment: str) -> ForkServerProcess:
    """`python WORDS`, in a process group of its own, with both outputs at the end of a file."""
    known = dict(os.environ) | {"TQDM_DISABLE": "1"} | environment
    child = server().Process(target=become, args=(list(map(str, words)), str(log), known))
    child.daemon = True  # of a test that fails, none is waited for
    child.start()
    return child


def become(words: list[str], log: str, environment: Mapping[str, str]) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    as_module = words[0] == "-m"
    sys.argv = words[1:] if as_module else words
    (runpy.run_module if as_module else runpy.run_path)(sys.argv[0], run_name="__main__")


def start_together(
    size: int, words: Sequence[str | Path], log: Path, **environment: str
) -> list[ForkServerProcess]:
    """Several, which find each other as torchrun's do."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    shared |= {"MASTER_ADDR": "127.0.0.1"}
    places = [{"RANK": rank, "LOCAL_RANK": rank} for rank in range(size)]
    return [
        start(words, log, **environment, **{n: str(value) for n, value in (shared | place).items()})
        for place in places
    ]


def finish(running: Sequence[ForkServerProcess], log: Path) -> None:
    """Wait for all of them; if one fails, none has to wait for it."""
    try:
        while any(process.is_alive() for process in running):
            assert not any(process.exitcode for process in running), log.read_text()
            time.sleep(0.02)
        assert not any(process.exitcode for process in running), log.read_text()
    finally:
        kill(running)


def kill(running: Sequence[ForkServerProcess]) -> None:
    """SIGKILL, and no process is left."""
    for process in running:
        process.kill()
    for process in running:
        process.join()


def together(size: int, *words: str | Path, log: Path, **environment: str) -> None:
    """Run a program in several processes to its end."""
    finish(start_together(size, words, log, **environment), log)


def kill_often(
    parent: Path,
    kills: int,
    begin: Callable[[Path], Sequence[ForkServerProcess]],
    progress: Callable[[Path], int],
    most: int,
    pause: float,
) -> tuple[list[Path], set[int]]:
    """Runs that are killed at random moments and continued to their end, beside one left alone.

    Every other moment is random in time, over what a whole run takes but its last third, as the next
    may be faster; the rest are random in progress, because a run's start and end are the larger part.
    One that ends before its kill is followed by a new one.

    Args:
        parent: of their directories, `whole` and `killed-0` and so on.
        kills: how many.
        begin: starts or continues a run in a directory, which has a log of its name beside it.
        progress: how far the run in a directory is.
        most: up to so much further it comes …
        pause: … and up to so many seconds more, before it is killed.

    Returns:
        The directories of killed runs, and how far these were when they were killed.
    """

    def log(folder: Path) -> Path:
        return folder.with_suffix(".log")

    began, moments = time.monotonic(), random.Random(0)
    finish(begin(parent / "whole"), log(parent / "whole"))
    whole = time.monotonic() - began
    folders, amounts, killed = [parent / "killed-0"], set[int](), 0
    while killed < kills:
        folder = folders[-1]
        wanted = progress(folder) + moments.randint(1, most)
        running = begin(folder)
        if killed % 2:
            time.sleep(moments.uniform(0, whole * 2 / 3))
        else:
            while progress(folder) < wanted and all(child.is_alive() for child in running):
                time.sleep(0.002)
            time.sleep(moments.uniform(0, pause))
        if not all(child.is_alive() for child in running):
            finish(running, log(folder))
            folders.append(parent / f"killed-{len(folders)}")
            continue
        kill(running)
        killed += 1
        amounts.add(progress(folder))
    for folder in folders:
        finish(begin(folder), log(folder))
    return folders, amounts


def signalled(process: ForkServerProcess, number: int) -> int:
    """Exit code of a process whose group gets a signal."""
    assert process.pid is not None
    os.killpg(process.pid, number)
    process.join(240)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode
