"""Every architecture of AutoModelForCausalLM is decoded exactly or refused in one line."""

from __future__ import annotations

import re

import pytest
from architectures import judge, names
from conftest import ROOT

UNBUILT = {"gemma4_assistant", "phi4_multimodal"}
"""Architectures of which no tiny model is made; the table says why."""
TABLE = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
TOLD = dict(re.findall(r"(?m)^\| `(.+?)` \| ([a-z ]+?) \|", TABLE))


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_an_architecture_is_exact_or_refused(name: str) -> None:
    found = judge(name, ["hard_greedy", "soft_sample"])
    if found.verdict == "not built":
        assert name in UNBUILT, found.reason
        pytest.skip(found.reason)
    assert found.verdict in ("exact", "text part", "refused"), found.problems
    assert found.verdict == TOLD[name], f"{found.reason}: one that was decoded is refused, or else"
    assert "\n" not in found.reason
    assert (found.verdict != "exact") == bool(found.reason and not found.steps)
