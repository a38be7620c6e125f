"""Stopped at any moment, or made by several processes: the samples are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from softeval.cli import main as cli
from softeval.runs.run import load_run
from softeval.runs.rundir import SHARDS
from softeval.runs.tables import SCHEMAS

TESTS = Path(__file__).resolve().parent
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
    "ACCELERATE_USE_CPU": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(TESTS.parent),
}


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Every table is the same to the byte, but for the seconds of each sample."""
    for name in SCHEMAS:
        if name == "samples":
            continue
        file = f"{name}.parquet"
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), name
    a, b = (load_run(folder).samples().drop(columns="seconds") for folder in (ours, theirs))
    assert len(a) > 0
    assert a.equals(b)
    results = [json.loads((folder / "results.json").read_text()) for folder in (ours, theirs)]
    assert results[0]["results"] == results[1]["results"]
    assert not (ours / SHARDS).exists()


@pytest.mark.slow
def test_stopped_by_signals_it_says_how_to_go_on_and_gives_the_same_samples(tmp_path: Path) -> None:
    options = ["--limit", "2", "-n", "8", "--batch-size", "5", "--max-cot-tokens", "60"]
    options += ["--modes", "hard_sample,soft_sample", "--device", "cpu"]
    command = [sys.executable, "-m", "softeval", "run", *options, "-o"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for number, code, lines in ((signal.SIGINT, 130, 4), (signal.SIGTERM, 143, 20)):
        process = subprocess.Popen(
            [*command, str(stopped)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        shards = stopped / SHARDS
        while sum(f.read_bytes().count(b"\n") for f in shards.glob("rank-*.jsonl")) < lines:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        told = process.communicate(timeout=120)[1]
        assert process.returncode == code, told
        assert told.splitlines()[-1] == "softeval: interrupted; the same command continues"
        assert "Traceback" not in told
    for folder in (stopped, whole):
        assert cli.run(["run", *options, "--quiet", "-o", str(folder)]) == 0
    assert_same_run(stopped, whole)


@pytest.mark.slow
def test_killed_at_any_moment_the_samples_are_the_same(tmp_path: Path) -> None:
    options = [
        "limit=2",
        "num_samples=8",
        "batch_size=5",
        "max_cot_tokens=60",
        "modes=hard_sample,soft_sample",
    ]
    command = [sys.executable, str(TESTS / "kill_and_resume.py"), str(tmp_path), "8", *options]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    amounts = {line for line in done.stderr.splitlines() if line.startswith("killed with")}
    assert len(amounts) >= 4, "the kills must fall into the generation, not beside it"
    for index in range(int(done.stdout)):
        assert_same_run(tmp_path / f"killed-{index}", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_make_the_samples_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--limit", "2", "--num-samples", "3", "--max-cot-tokens", "40"]
    arguments += ["--modes", "hard_greedy,soft_sample", "--quiet", "--device", "cpu"]
    assert cli.run([*arguments, "--output-path", str(tmp_path / "one")]) == 0
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "softeval"]
    done = subprocess.run(
        [sys.executable, *launcher, *arguments, "--output-path", str(tmp_path / "two")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for shown in (capsys.readouterr().out, done.stdout):
        assert shown.count("Run directory:") == 1
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["sessions"][0]["processes"] == 2
