"""Several processes of one program, as torchrun starts them, but forked from one that has imported it.

    python tests/forked.py 4 -m softeval train …
    python tests/forked.py 4 FILE.py …

Not a test. Starting torch and transformers takes each process as long as what tests let it compute;
what torchrun itself does to a run, signals above all, is tested with torchrun.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import sys
import traceback

# What the programs import, before the forks.
import accelerate  # noqa: F401
import lm_eval.evaluator  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import softeval.lmeval.adapter
import softeval.trainers.trainer  # noqa: F401


def run(words: list[str]) -> int:
    """The exit code of `python WORDS` in this process."""
    as_module = words[0] == "-m"
    sys.argv = words[1:] if as_module else words
    try:
        (runpy.run_module if as_module else runpy.run_path)(sys.argv[0], run_name="__main__")
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 - told, as an interpreter tells it
        traceback.print_exc()
        return 1
    return 0


def fork(rank: int, size: int, port: int, words: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()}
        code = run(words)
        sys.stdout.flush()
        os._exit(code)
    return pid


def start(size: int, words: list[str]) -> set[int]:
    """Ids of the processes."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    return {fork(rank, size, port, words) for rank in range(size)}


def finish(running: set[int]) -> int:
    """Wait for all of them; the first exit code that is not zero, as none then has to wait."""
    first = 0
    while running:
        pid, status = os.wait()
        running.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first = code
            for other in running:  # they would wait for it for ever
                os.kill(other, signal.SIGTERM)
    return abs(first)


if __name__ == "__main__":
    sys.exit(finish(start(int(sys.argv[1]), sys.argv[2:])))
