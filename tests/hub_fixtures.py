"""The hub's client, replaced by one that tells what it was told. Not a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

FakeHub = Callable[..., list[Any]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Replaces the hub's client; gives what it was told."""

    def install(refuses: str = "") -> list[Any]:
        told: list[Any] = []

        class HfApi:
            def create_repo(self, name: str, **options: Any) -> None:
                self._say("create", name, options)

            def upload_folder(self, **options: Any) -> None:
                self._say("upload", options)

            def _say(self, what: str, *values: Any) -> None:
                if what == refuses:
                    raise RuntimeError("401 Unauthorized\nfor url")
                told.append((what, *values))

        monkeypatch.setattr("huggingface_hub.HfApi", HfApi)
        return told

    return install
