"""Ctrl-C and termination: the update under way is finished and its state saved, then the run ends.

A second signal ends the run at once. What launches several processes sends a signal on to each of them
within moments, so one that follows the first closely is the same.

Knows nothing of training.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

SAME = 1.0
"""Seconds within which two signals are one request."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run ended on request, its state saved.

    Args:
        step: updates done.
        number: of the signal.
    """

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped at step {step}; the same command continues")
        self.exit_code = 128 + number


class Interruption:
    """Catches the two signals while it is entered; elsewhere than in the main thread none.

    Args:
        say: told once, when the first one comes.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.number = 0
        self._say = say
        self._first = 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {n: signal.signal(n, self._receive) for n in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._first = number, now
            self._say("stopping after this update; a second signal stops at once, without saving")
        elif now - self._first > SAME:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
