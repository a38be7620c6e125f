"""The statistics start fast and stand alone."""

import subprocess
import sys
from pathlib import Path

from softeval import statistics

HEAVY = ("torch", "pandas", "matplotlib", "transformers", "lm_eval", "scipy.stats")


def test_import_is_light():
    code = (
        "import sys, softeval.statistics;"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented():
    for name in statistics.__all__:
        value = getattr(statistics, name)
        assert isinstance(value, str | float) or value.__doc__
