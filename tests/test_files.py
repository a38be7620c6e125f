"""What appears whole or not at all: the earlier file stays until the new one has reached the disk."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest

from softeval import files


def test_a_file_is_replaced_only_at_the_end(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with files.replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError()]
)
def test_whatever_stops_it_the_earlier_file_stays_and_nothing_lies_beside_it(tmp_path, error):
    path = tmp_path / "run.json"
    path.write_text("old")
    with pytest.raises(type(error)), files.replacing(path) as partial:
        _write_half(partial, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def _write_half(path, error):
    path.write_text("half")
    raise error


def test_what_the_block_has_removed_replaces_nothing(tmp_path):
    path = tmp_path / "samples.parquet"
    path.write_text("old")
    with files.replacing(path) as partial:
        partial.write_text("the same")
        partial.unlink()
    assert path.read_text() == "old"


def test_content_reaches_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, order = tmp_path / "a", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("flushed"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda *to: (order.append("named"), replace(*to))[1])
    files.write_bytes(path, b"x")
    assert order == ["flushed", "named"]


def test_json_is_utf8_and_refuses_what_json_does_not_have(tmp_path):
    files.write_json(tmp_path / "a.json", {"γ": "é\ud800"})
    assert "γ" in (tmp_path / "a.json").read_text()
    assert json.loads((tmp_path / "a.json").read_text()) == {"γ": "é\ud800"}
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text()) == {"γ": "é\ud800"}


def write_two(place, text):
    with files.replacing_directory(place) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(6))
def test_a_replacement_cut_off_anywhere_leaves_the_old_or_the_new(tmp_path, monkeypatch, call):
    place = tmp_path / "best"
    write_two(place, "old")
    calls = iter(range(100))

    def dying(function):
        def wrapped(*args, **options):
            if next(calls) == call:
                raise Killed
            function(*args, **options)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", dying(os.rename))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        try:
            write_two(place, "new")
        except Killed:
            killed = True
        else:
            killed = False
    files.recover(place)
    texts = {path.read_text() for path in place.iterdir()}
    assert texts in ({"old"}, {"new"})
    assert len(list(place.iterdir())) == 2
    assert killed or texts == {"new"}
    write_two(place, "newer")
    assert {path.read_text() for path in place.iterdir()} == {"newer"}
