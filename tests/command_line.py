"""What tests of the command line share; the fixtures are in command_line_fixtures."""

from __future__ import annotations

from typing import NamedTuple

SMALL = ["--limit", "2", "-n", "2", "--max-cot-tokens", "40", "--device", "cpu", "--quiet"]


class Ended(NamedTuple):
    code: int
    out: str
    err: str
