"""The wheel, built and installed without an index, and used where no repository is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

MAPPED = {"tasks": "softeval/tasks", "trainers": "softeval/trainers", "reports": "softeval/reports"}
LEFT = {"__pycache__", ".pytest_cache", ".ruff_cache"}
CALLS = """
import sys
from softeval.cli.main import run
small = ["--limit", "2", "-n", "2", "--max-cot-tokens", "30", "--device", "cpu", "--quiet"]
for call in (
    ["ls", "tasks"], ["ls", "modes"],
    ["run", *small, "--modes", "hard_greedy,soft_sample", "-o", "runs/small"],
    ["ls", "runs"], ["show", "runs/small"], ["report", "runs/small", "-o", "report.html"],
    ["notebook", "runs/small", "--no-open"],
    ["train", "--config", "llama-3.2-3b+gsm8k+fuzzy", "--model", sys.argv[1], "--dry-run"],
    ["sweep", "demo", "--dry-run"],
):
    assert run(call) == 0, call
"""


def pip(*arguments: str | Path) -> None:
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the repository gets no build/ and lends none."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("softeval", *MAPPED, "README.md", "LICENSE", "pyproject.toml"):
        source, target = ROOT / name, folder / "source" / name
        if source.is_file():
            shutil.copy(source, target)
        else:
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(*LEFT))
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    pip("wheel", *offline, "--wheel-dir", folder, folder / "source")
    [found] = folder.glob("softeval-*.whl")
    return found


@pytest.mark.slow
def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = set()
    for folder, place in {"softeval": "softeval", **MAPPED}.items():
        for path in (ROOT / folder).rglob("*"):  # does not follow the links
            if path.is_file() and not LEFT & set(path.parts) and path.suffix != ".pyc":
                wanted.add(f"{place}/{path.relative_to(ROOT / folder).as_posix()}")
    assert len(wanted) > 250
    assert wanted - packed == set()
    others = {name.split("/")[0] for name in packed}
    assert all(name == "softeval" or name.endswith(".dist-info") for name in others)


@pytest.mark.slow
def test_the_installed_wheel_evaluates_and_reports(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    path = {"PYTHONPATH": str(tmp_path / "site"), "SOFTEVAL_CACHE": str(tmp_path / "cache")}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def output(*words: str | Path) -> str:
        environment = {n: v for n, v in os.environ.items() if not n.startswith("SOFTEVAL_")} | path
        done = subprocess.run(
            list(map(str, words)), cwd=elsewhere, env=environment, text=True, capture_output=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert output(tmp_path / "site" / "bin" / "softeval", "--help").startswith("Usage: softeval")
    where = "import softeval; print(softeval.__file__)"
    assert output(sys.executable, "-c", where).startswith(str(tmp_path / "site"))
    model = tmp_path / "site" / "softeval" / "checkpoints" / "base"
    told = output(sys.executable, "-c", CALLS, model)
    for text in ("math500", "soft_sample", "runs/small"):
        assert text in told
    page = (elsewhere / "report.html").read_text()
    assert "<svg" in page and "runs/small" in page
    assert list((elsewhere / "runs" / "small").glob("*.ipynb"))
