"""Directories that are whole or absent, and the state of a run."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from softeval.errors import UserError
from softeval.trainers import atomic
from softeval.trainers.atomic import is_whole, recover, write_directory
from softeval.trainers.checkpoint import Progress, load_state, save_state, saved_states
from softeval.trainers.run_files import append_line, truncate_lines


def write_text(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text)

    return fill


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(6))
def test_a_replacement_cut_off_anywhere_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    place = tmp_path / "best"
    write_directory(place, write_text("old"))
    calls = iter(range(100))

    def dying(function: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: object, **options: object) -> None:
            if next(calls) == call:
                raise Killed
            function(*args, **options)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", dying(os.rename))
        patch.setattr(atomic.shutil, "rmtree", dying(atomic.shutil.rmtree))
        try:
            write_directory(place, write_text("new"))
        except Killed:
            killed = True
        else:
            killed = False
    recover(place)
    texts = {path.read_text() for path in place.iterdir()}
    assert texts in ({"old"}, {"new"})
    assert len(list(place.iterdir())) == 2
    assert killed or texts == {"new"}
    write_directory(place, write_text("newer"))
    assert {path.read_text() for path in place.iterdir()} == {"newer"}


def damage_truncate(state: Path) -> None:
    path = state / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def damage_flip(state: Path) -> None:
    path = state / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def damage_missing(state: Path) -> None:
    (state / "progress.json").unlink()


def damage_manifest(state: Path) -> None:
    (state / "manifest.json").write_text("{")


def damage_empty_manifest(state: Path) -> None:
    (state / "manifest.json").write_text("{}")


DAMAGES = [
    damage_truncate,
    damage_flip,
    damage_missing,
    damage_manifest,
    damage_empty_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_state_is_seen_and_the_one_before_it_used(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for step in (5, 10):
        save_state(tmp_path, Progress(step=step), {"weight.a": torch.full((3,), step)}, keep=2)
    newest = saved_states(tmp_path)[-1]
    assert is_whole(newest)
    damage(newest)
    found = load_state(tmp_path)
    assert found is not None
    assert found.progress.step == 5 and found.torn == ("step-000010",)
    assert found.tensors["weight.a"].tolist() == [5, 5, 5]
    damage(saved_states(tmp_path)[0])
    with pytest.raises(UserError, match=r"every state .* is torn"):
        load_state(tmp_path)


def test_nothing_saved_is_no_state(tmp_path: Path) -> None:
    assert load_state(tmp_path / "none") is None
    (tmp_path / ".step-000005.partial").mkdir()
    assert load_state(tmp_path) is None


def test_old_states_are_dropped_by_their_number(tmp_path: Path) -> None:
    for step in (9, 10, 100, 1000000):
        save_state(tmp_path, Progress(step=step), {}, keep=2)
    assert [path.name for path in saved_states(tmp_path)] == ["step-000100", "step-1000000"]


def test_progress_and_random_states_come_back(tmp_path: Path) -> None:
    progress = Progress(3, 17, 0.123456789, 2, 0.75, 8, [{"step": 2.0, "success": 0.75}])
    save_state(tmp_path, progress, {"x": torch.arange(3)}, keep=2)
    drawn = [random.random(), float(np.random.rand()), float(torch.rand(1))]
    state = load_state(tmp_path)
    assert state is not None and state.progress == progress
    state.restore_random()
    assert drawn == [random.random(), float(np.random.rand()), float(torch.rand(1))]


def test_lines_after_the_state_and_cut_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(5):
        append_line(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 5, "rew')
    truncate_lines(path, 9)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3, 4]
    truncate_lines(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]
    truncate_lines(path, -1)
    assert path.read_text() == ""
