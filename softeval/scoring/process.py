"""One scoring worker as its parent sees it: start, ask, give up on, start again.

Knows pipes, clocks and process ids; nothing of answers. POSIX only. Not safe for use by two threads
at once: `softeval.scoring.judge` lends each worker to one thread at a time.

Our own and not pebble's pool, which was tried (docs/log.md): its workers unpickle what they are
asked, so that the audit hook would have to let `pickle.find_class` pass; being spawned they run the
caller's script again, which a script without `if __name__ == "__main__"` does not survive; a forked
child cannot use the pool; and a worker that cannot start ends all without saying why.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, NamedTuple

from softeval.errors import UserError

WORKER = Path(__file__).with_name("worker.py")
START_SECONDS = 120.0
EXIT_SECONDS = 10.0
# A worker may die while it starts: of somebody else's memory, of a signal. It is started again.
START_ATTEMPTS = 4
START_PAUSE = 0.1  # seconds, doubled after every attempt
# The worker's limit is CPU time. On a crowded machine that takes longer on the wall, but not
# without end: this factor of it later the worker is killed from outside.
WALL_FACTOR = 5.0

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What came of one question: equal or not, or why that is not known."""

    correct: bool
    status: Literal["ok", "timeout", "error"]


class _DiedError(Exception):
    """The worker's end of the pipe is closed."""


class _NotStartedError(Exception):
    """No worker came up in several attempts."""


class _LateError(Exception):
    """No reply before the deadline."""


class ScoringProcess:
    """A worker process, started at the first question and again after every mishap.

    Args:
        cpu_seconds: CPU time for one question; the wall limit is `WALL_FACTOR` times that.
        memory_mb: address space of the worker in MiB.
    """

    def __init__(self, cpu_seconds: float, memory_mb: int) -> None:
        self.cpu_seconds = cpu_seconds
        self.memory_mb = memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._has_started = False

    @property
    def pid(self) -> int | None:
        """Process id of the running worker, None before the start and after a mishap."""
        return self._process.pid if self._process else None

    def ask(
        self, *, answer: str, target: str, rules: str = "softeval", error: float | None = None
    ) -> Outcome:
        """Have one pair judged.

        A worker that dies (and not of its CPU limit) may have been the victim of somebody else, so
        the question is put to one more worker before it counts as an error. So does one whose
        worker does not come up in several attempts: hours of decoding must not end with it.

        Args:
            answer: content of the box.
            target: the label.
            rules: the judge, "softeval" or "math-verify".
            error: how far a number may be from the label's.

        Raises:
            UserError: if no worker ever started and the last one says why.
        """
        request = {"target": target, "answer": answer, "rules": rules, "error": error}
        try:
            outcome = self._attempt(request)
            return outcome or self._attempt(request) or Outcome(False, "error")
        except _NotStartedError as failure:
            logger.warning("no scoring worker: %s", failure)
            return Outcome(False, "error")

    def stop(self) -> None:
        """End the worker at once, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._release()

    def forget(self) -> None:
        """Drop a worker that belongs to the process this one was forked from."""
        if self._process is not None:
            self._process.returncode = 0  # not our child: nothing to wait for
            self._close_pipes()
            self._process = None

    def _attempt(self, request: dict[str, str | float | None]) -> Outcome | None:
        """Ask once; None if the worker died without being to blame for it."""
        self._ensure_started()
        answer = request["answer"]
        try:
            self._send(request)
            reply = self._receive(WALL_FACTOR * self.cpu_seconds)
        except _LateError:
            self.stop()
            return Outcome(False, "timeout")
        except _DiedError:
            code = self._release()
            logger.debug("scoring worker ended with %s on %.80r", code, answer)
            return Outcome(False, "timeout") if code == -signal.SIGPROF else None
        except BaseException:  # Ctrl-C: a late reply must not meet the next question
            self.stop()
            raise
        if reply["last"]:  # the worker asks to be replaced
            self.stop()
        if "error" in reply:
            logger.debug("not scored (%s): %.80r", reply["error"], answer)
            return Outcome(False, "error")
        return Outcome(bool(reply["correct"]), "ok")

    def _ensure_started(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._release()
        failure, pause = None, START_PAUSE
        for attempt in range(START_ATTEMPTS):
            if self._process is not None:
                return
            if attempt:
                time.sleep(pause)
                pause *= 2
            failure = self._start()
        if self._process is None:
            self._give_up(failure)

    def _give_up(self, failure: str | None) -> None:
        if failure is None or self._has_started:
            raise _NotStartedError(failure or "it ended or hung while it started")
        raise UserError(
            f"the scoring worker did not start ({failure}): check `import math_verify` in this "
            f"Python, or give it more memory than {self.memory_mb} MB"
        )

    def _start(self) -> str | None:
        """Start a worker; what it says it failed of, if it came so far as to say it."""
        limits = (str(self.cpu_seconds), str(self.memory_mb), str(os.getpid()))
        self._process = subprocess.Popen(
            # -P: the folder of the script must not shadow the standard library
            [sys.executable, "-P", str(WORKER), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal is for the parent
            # SymPy's order of terms follows string hashes: the same verdict in every run
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )
        try:
            failure = self._receive(START_SECONDS).get("failed")
        except (_DiedError, _LateError):
            self.stop()
            return None
        except BaseException:
            self.stop()
            raise
        if failure is None:
            self._has_started = True
        else:
            self.stop()
        return None if failure is None else str(failure)

    def _send(self, message: dict[str, str | float | None]) -> None:
        assert self._process is not None and self._process.stdin is not None
        rest = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while rest:
                rest = rest[self._process.stdin.write(rest) :]
        except BrokenPipeError:
            raise _DiedError from None

    def _receive(self, seconds: float) -> dict[str, object]:
        """Read one line before the deadline.

        Raises:
            _LateError: if none came.
            _DiedError: if the pipe was closed instead.
        """
        assert self._process is not None and self._process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise _LateError
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    raise _DiedError
                self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _release(self) -> int:
        """Wait for an ended worker, close its pipes and return its exit code."""
        assert self._process is not None
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:  # it closed its pipe and lives on
            self._process.kill()
            code = self._process.wait()
        self._close_pipes()
        self._process = None
        return code

    def _close_pipes(self) -> None:
        assert self._process is not None
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._unread = b""
