"""Reference solutions of the data sets that have them, as texts to replay."""

from __future__ import annotations

import re
from collections.abc import Callable

from softeval.tasks.data import load
from softeval.tasks.local_data import Row

_CALCULATOR = re.compile(r"<<[^>]*>>")


def _gsm8k(row: Row) -> str:
    """The worked solution without its calculator marks and its final answer line."""
    return _CALCULATOR.sub("", row["answer"].rpartition("#### ")[0])


def _olympiadbench(row: Row) -> str:
    solution = row["solution"]
    return solution if isinstance(solution, str) else solution[0]


_SOLUTIONS: dict[str, Callable[[Row], str]] = {
    "gsm8k": _gsm8k,
    "math500": lambda row: row["solution"],
    "olympiadbench": _olympiadbench,
}


def gold_solutions(name: str, data_dir: str | None, split: str | None) -> list[str] | None:
    """The reference solution of every row of a data set, in order; None where it has none.

    Raises:
        UserError: the data cannot be had.
    """
    if name not in _SOLUTIONS:
        return None
    return [_SOLUTIONS[name](row) for row in load(name, data_dir, split).rows]
