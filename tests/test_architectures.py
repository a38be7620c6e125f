"""Every architecture of AutoModelForCausalLM is decoded exactly or refused in one line."""

from __future__ import annotations

import pytest
from architectures import judge, names

UNBUILT = {"gemma4_assistant", "phi4_multimodal"}
"""Architectures of which no tiny model is made; the table says why."""


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_an_architecture_is_exact_or_refused(name: str) -> None:
    found = judge(name, ["hard_greedy", "soft_sample"])
    if found.verdict == "not built":
        assert name in UNBUILT, found.reason
        pytest.skip(found.reason)
    assert found.verdict in ("exact", "text part", "refused"), found.problems
    assert "\n" not in found.reason
    assert (found.verdict != "exact") == bool(found.reason and not found.steps)
