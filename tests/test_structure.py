"""The rules of the house, as code: import directions, file sizes, packaging, a light command line."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import ROOT

# Lowest first. A module may import its own floor and those below it, at the top of the file.
FLOORS = [
    {"errors", "boxed", "records", "modes", "randomness", "terminal"},
    {
        "vocabulary",
        "chat",
        "checkpoint",
        "embedding",
        "stopping",
        "rotary",
        "experts",
        "check_cache",
        "model",
        "cache",
        "noise",
        "trace",
        "rows",
        "batch_size",
        "feeding",
    },
    {"self_check", "output_head", "decoding", "generation", "divergence"},
    {"data", "local_data", "prompts", "problems", "gold", "arithmetic", "tasks"},
    {"answer_text", "grading", "scoring", "scoring_process", "scoring_worker"},
    {"lmeval"},
    {
        "catalogue",
        "cli_options",
        "config",
        "parquet_files",
        "processes",
        "progress_bars",
        "record_shape",
        "environment",
        "rundir",
        "tables",
    },
    {"journal", "cells", "identity", "context", "compaction", "results", "run_record", "plan"},
    {"reports.statistics"},
    {"display", "score_table", "running_score", "evaluation", "rescore", "diagnosis", "kl_file"},
    {"reports", "trainers"},
    {"run", "cli", "cli_*", "__main__"},
]


def sources() -> list[Path]:
    folders = ("softeval", "tasks", "trainers", "reports")
    files = [p for f in folders for p in (ROOT / f).rglob("*.py")]
    return [p for p in files if not any(q.is_symlink() for q in p.parents)]


def floor_of(module: str) -> int | None:
    name = module.removeprefix("softeval.")
    for height, names in enumerate(FLOORS):
        if any(fnmatch(name, n) or name.startswith(n + ".") for n in names):
            return height
    return None


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts if parts[0] == "softeval" else ("softeval", *parts))
    return name.removesuffix(".__init__")


def imports(path: Path) -> list[str]:
    """Modules imported when the file is imported (not inside functions or for types only)."""
    found: list[str] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return [name for name in found if name.startswith("softeval.")]


def test_imports_run_one_way():
    wrong = []
    for path in sources():
        if module_of(path) == "softeval":
            continue
        here = floor_of(module_of(path))
        for name in imports(path):
            there = floor_of(name)
            if here is None or there is None or there > here:
                wrong.append(f"{module_of(path)} imports {name}")
    assert not wrong


def test_trainers_never_import_reports():
    for path in (ROOT / "trainers").rglob("*.py"):
        assert "softeval.reports" not in path.read_text(), path


def test_statistics_import_neither_torch_nor_pandas():
    code = (
        "import sys, softeval.reports.statistics; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_file_is_longer_than_600_lines_and_no_function_than_80():
    for path in sources():
        text = path.read_text()
        assert text.count("\n") <= 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{path}: {node.name}"


def test_every_package_is_declared_for_the_wheel():
    declared = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    found = {module_of(p) for p in sources() if p.name == "__init__.py"}
    assert declared == found


def test_the_links_in_the_package_point_at_the_real_folders():
    for name in ("tasks", "trainers", "reports"):
        link = ROOT / "softeval" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


@pytest.mark.parametrize("heavy", ["torch", "transformers", "lm_eval", "pandas", "matplotlib"])
def test_importing_softeval_or_its_command_line_is_light(heavy):
    code = f"import sys, softeval, softeval.cli; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
