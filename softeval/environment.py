"""What a run ran on: package versions and hardware, for run.json and `softeval env`.

Reads metadata only, so that it imports nothing heavy; the device is named where torch is loaded.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "softeval",
    "torch",
    "transformers",
    "tokenizers",
    "lm-eval",
    "datasets",
    "accelerate",
    "math-verify",
    "latex2sympy2-extended",
    "sympy",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "peft",
    "trl",
    "pydantic",
    "typer",
)

# Settings that change what is loaded or how fast; values that could be secrets are not among them.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "OMP_NUM_THREADS",
    "WORLD_SIZE",
)


@cache  # what is read takes a tenth of a second, and does not change under a running process
def package_versions() -> dict[str, str]:
    """Version of Python and of each installed package that can change a result."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def hardware() -> dict[str, Any]:
    """Machine, processors, memory in GiB, and the accelerators where torch is loaded already."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": _memory_gib(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["accelerators"] = [
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        ]
    return found


def settings() -> dict[str, str]:
    """The environment variables of `VARIABLES` that are set, and every SOFTEVAL_* one."""
    names = [*VARIABLES, *sorted(name for name in os.environ if name.startswith("SOFTEVAL_"))]
    return {name: os.environ[name] for name in names if name in os.environ}


def describe(*parts: Mapping[str, Any]) -> str:
    """The facts as lines of "name: value"."""
    return "\n".join(f"{name}: {value}" for part in parts for name, value in part.items())


def version_changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Each package whose version differs, as "torch 2.12 there, 2.13 now"."""
    return [
        f"{name} {then.get(name, 'absent')} there, {now.get(name, 'absent')} now"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _memory_gib() -> float | None:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    return round(pages / 2**30, 1)
