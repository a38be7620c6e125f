"""A sweep on a real Slurm of one node: killed in the middle, started again, and one report."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from forked import kill, start
from slurm import slurm

from softeval.cli import main as cli
from softeval.sweeps.launch import Slurm

# Two methods, with one update each: one more than run at a time.
TINY = {
    "title": "On Slurm",
    "config": [["demo_hard", "demo_soft"]],
    "train": {
        "max_steps": 1, "prompts_per_step": 1, "num_generations": 2, "limit": 8, "eval_steps": 1,
        "validation_size": 2, "max_cot_tokens": 8, "kl_steps": 0, "gradient_split_steps": 0,
        "report_to": "none", "device": "cpu", "self_check": False,
    },
    "seeds": [0],
    "run": {
        "limit": 2, "num_samples": 2, "modes": "hard_sample", "max_cot_tokens": 8, "device": "cpu",
        "self_check": False,
    },
    "base": False,
}  # fmt: skip
OPTIONS = ["--launcher", "slurm", "--slurm", "time=20,mem=1500,cpus_per_task=1"]


def whole(folder: Path) -> dict[Path, int]:
    """When each training that is done was, and each evaluation."""
    records = [*folder.glob("*/train/best/softeval_training.json"), *folder.glob("*/run/run.json")]
    return {path: path.stat().st_mtime_ns for path in records}


@pytest.mark.slow
def test_a_killed_sweep_finds_its_jobs_again_and_ends_in_one_report(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    out, log = tmp_path / "out", tmp_path / "log"
    with slurm(tmp_path / "slurm") as environment:
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        sweep = [__file__, "sweep", tmp_path / "tiny.yaml", "-o", out, *OPTIONS]
        first = start(sweep, log, **environment)
        while not list(out.glob("*/train/best/softeval_training.json")):
            assert first.is_alive(), log.read_text()
            time.sleep(0.05)
        kill([first])
        kept = whole(out)
        # One runs at a time: the other waits, and is out of the queue at once.
        subprocess.run(["scancel", str(max(queue(environment)))], env=environment, check=True)
        second = start(sweep, log, **environment)
        second.join()
        assert {path: at for path, at in whole(out).items() if path in kept} == kept
        assert second.exitcode == 0, log.read_text()
        assert "2 of 2 cells are done" in log.read_text()
        jobs = len(list((out / "slurm").glob("*_submitted.pkl")))
    assert jobs == 5, "one for each of four commands, and one for what was cancelled"
    page = (out / "report.html").read_text()
    assert "<title>On Slurm" in page and "demo_hard" in page and "demo_soft" in page
    for record in out.glob("*/run/run.json"):
        assert json.loads(record.read_text())["status"] == "complete"


def queue(environment: dict[str, str]) -> list[int]:
    words = ["squeue", "--me", "--noheader", "--format=%i"]
    found = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return [int(word) for word in found.stdout.split()]


if __name__ == "__main__":
    Slurm.pause = 0.3  # the jobs here take seconds
    sys.exit(cli.run(sys.argv[1:]))
