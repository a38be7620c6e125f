"""Other libraries' progress bars, taken out of the way of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """No tqdm bar is drawn inside.

    lm-eval and transformers offer no switch for some of theirs, and tqdm's own is read when it is
    imported, which may be long before.
    """
    from tqdm.std import tqdm

    real = tqdm.__init__

    def quiet(self: Any, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **{**options, "disable": True})

    tqdm.__init__ = quiet  # type: ignore[method-assign]
    try:
        yield
    finally:
        tqdm.__init__ = real  # type: ignore[method-assign]
