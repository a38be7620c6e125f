"""What may not be imported yet when a package is imported or help is asked for.

Time itself is never asserted; that `softeval --help` and mistakes come at once follows from this.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from softeval.cli.main import COMMANDS, load_command

HEAVY = {"torch", "transformers", "accelerate", "lm_eval", "datasets", "pandas", "matplotlib"}
HEAVY |= {"scipy.stats", "math_verify", "sympy", "pyarrow"}
CONFIGURATIONS = {"numpy", "pydantic", "yaml", "psutil"}

CALLS = "from softeval.cli.main import run; codes = {{run(call) for call in {}}}"
LISTS = [["--help"], ["--version"], []]
HELP = [["run", "--help"], ["train", "--help"], ["ls", "modes"], ["ls", "tasks"]]
MISTAKES = [["train", "--group-size", "1"], ["run", "--limit", "none"], ["nothing"]]


@pytest.mark.parametrize(
    ("code", "absent", "codes"),
    [
        (CALLS.format(LISTS), HEAVY | CONFIGURATIONS, "{0}"),
        (CALLS.format(HELP), HEAVY, "{0}"),
        pytest.param(CALLS.format(MISTAKES), HEAVY, "{2}", marks=pytest.mark.slow),
        ("import softeval.statistics as codes", HEAVY | CONFIGURATIONS - {"numpy"}, "<module"),
    ],
    ids=["the list of commands", "help of commands", "mistakes", "the statistics"],
)
def test_nothing_heavy_is_imported(code: str, absent: set[str], codes: str) -> None:
    code += f"; import sys; print(sorted({absent!r} & sys.modules.keys()), codes)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].startswith(f"[] {codes}")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_the_commands_say(name: str) -> None:
    said = load_command(name).help.partition("\n\n")[0]
    assert " ".join(said.split()) == COMMANDS[name][1]
