"""The rules of the house, as code: import directions, file sizes, packaging."""

from __future__ import annotations

import ast
import tomllib

import structure
from conftest import ROOT

LONGEST_FILE = 600
LONGEST_FUNCTION = 80


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


def test_no_file_is_longer_than_600_lines_and_no_function_than_80():
    for module in structure.modules():
        text = module.path.read_text()
        assert text.count("\n") <= LONGEST_FILE, module
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                long = (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
                assert not long, f"{module.name}: {node.name}"


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


def test_a_reader_of_the_decoder_needs_six_files_and_900_lines():
    """Those of its room that `generate` comes through; the model and the modes have rooms of theirs."""
    known = {module.name: module for module in structure.modules()}
    needed = ["softeval.decoding.generate"]
    for name in needed:
        tree = ast.parse(known[name].path.read_text())
        found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        needed += [n for n in sorted(found & known.keys()) if "decoding." in n and n not in needed]
    assert "softeval.decoding.decoder" in needed and len(needed) <= 6
    assert sum(structure.lines(known[name]) for name in needed) <= 900
