"""The rules of the house, as code: import directions, file sizes, packaging."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from statistics import median

import structure
from conftest import ROOT

LONGEST_FILE = 400
LONGEST_FUNCTION = 80
MEDIAN_FUNCTION = 9
FILES_A_ROOM = 16
LARGER_ROOMS = {"trainers": 17, "reports": 17, "reports.sections": 19, "model": 17}
HOUSE_FILES = 208
HOUSE_LINES = 42_060
"""What the house has reached; both only ever go down for the same features."""


def test_the_house_does_not_grow_unnoticed():
    known = structure.modules()
    assert len(known) <= HOUSE_FILES
    assert sum(structure.lines(module) for module in known) <= HOUSE_LINES


def test_imports_run_one_way():
    wrong = [
        f"{i.importer.name} imports {i.imported.name}"
        for i in structure.imports()
        if structure.floor(i.imported.room) > structure.floor(i.importer.room)
        and not (i.inside and (i.importer.room, i.imported.room) in structure.LAZY)
    ]
    assert not wrong


def test_every_exception_to_it_is_used():
    used = {(i.importer.room, i.imported.room) for i in structure.imports() if i.inside}
    assert structure.LAZY.keys() <= used


def test_trainers_never_import_reports():
    for i in structure.imports():
        assert (i.importer.room, i.imported.room) != ("trainers", "reports"), i


def test_no_file_is_longer_than_400_lines():
    assert [m for m in structure.modules() if structure.lines(m) > LONGEST_FILE] == []


def test_functions_are_short():
    lengths = {
        f"{module.name}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module, node in structure.definitions()
        if not isinstance(node, ast.ClassDef)
    }
    assert [name for name, length in lengths.items() if length > LONGEST_FUNCTION] == []
    assert median(lengths.values()) <= MEDIAN_FUNCTION


def test_no_room_holds_more_than_16_files():
    rooms = Counter(module.room for module in structure.modules())
    full = {r: n for r, n in rooms.items() if n > LARGER_ROOMS.get(r, FILES_A_ROOM)}
    assert full == {}


def test_no_two_classes_share_a_name():
    homes: dict[str, list[str]] = {}
    for module, node in structure.definitions():
        if isinstance(node, ast.ClassDef):
            homes.setdefault(node.name, []).append(module.name)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_every_file_that_the_map_names_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:softeval|tasks|trainers|reports|tests)/[\w./-]*)`", text))
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_map_draws_every_room_and_no_other():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r'\["([\w./]+)', text[text.index("```mermaid") :]))
    rooms = {m.room.replace(".", "/") for m in structure.modules() if m.path.name == "__init__.py"}
    assert drawn == rooms - {"__init__"}


def test_every_package_is_declared_for_the_wheel():
    declared = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    found = {m.name for m in structure.modules() if m.path.name == "__init__.py"}
    assert declared == found


def test_the_links_in_the_package_point_at_the_real_folders():
    for name in ("tasks", "trainers", "reports"):
        link = ROOT / "softeval" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


def test_a_reader_of_the_decoder_needs_six_files_and_1100_lines():
    """Those of its room that `generate` comes through; the model and the modes have rooms of theirs."""
    known = {module.name: module for module in structure.modules()}
    needed = ["softeval.decoding.generate"]
    for name in needed:
        tree = ast.parse(known[name].path.read_text())
        found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        needed += [n for n in sorted(found & known.keys()) if "decoding." in n and n not in needed]
    assert "softeval.decoding.decoder" in needed and len(needed) <= 6
    assert sum(structure.lines(known[name]) for name in needed) <= 1_100
