"""Stopped at any moment, or made by several processes: the samples are those of an undisturbed run."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from forked import ForkServerProcess, finish, kill_often, signalled, start, together

from softeval.cli import main as cli
from softeval.runs.run import load_run
from softeval.runs.rundir import SHARDS
from softeval.runs.tables import SCHEMAS

QUIETLY = {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}


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


OPTIONS = ["--limit", "2", "-n", "4", "--batch-size", "3", "--max-cot-tokens", "40", "--quiet"]
OPTIONS += ["--modes", "hard_sample,soft_sample", "--device", "cpu"]


def begin(folder: Path) -> list[ForkServerProcess]:
    """Start or continue the evaluation in a directory."""
    log = folder.with_suffix(".log")
    return [start(["-m", "softeval", "run", *OPTIONS, "-o", folder], log, **QUIETLY)]


def journalled(folder: Path) -> int:
    """Lines of the samples that a run has finished."""
    return sum(f.read_bytes().count(b"\n") for f in folder.glob(f"{SHARDS}/rank-*.jsonl"))


@pytest.mark.slow
def test_stopped_or_killed_at_any_moment_the_samples_are_the_same(tmp_path: Path) -> None:
    """Ctrl-C, SIGTERM and SIGKILL; what is told is told of the first two."""
    folders, amounts = kill_often(tmp_path, 4, begin, journalled, most=5, pause=0.03)
    assert len(amounts) >= 2, "the kills must fall into the generation, not beside it"
    stopped = tmp_path / "stopped"
    for number, code, lines in ((signal.SIGINT, 130, 3), (signal.SIGTERM, 143, 8)):
        [process] = begin(stopped)
        while journalled(stopped) < lines:
            assert process.exitcode is None
            time.sleep(0.005)
        assert signalled(process, number) == code
        told = stopped.with_suffix(".log").read_text()
        assert told.splitlines()[-1] == "softeval: interrupted; the same command continues"
        assert "Traceback" not in told
    finish(begin(stopped), stopped.with_suffix(".log"))
    for folder in (*folders, stopped):
        assert_same_run(folder, tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_make_the_samples_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--limit", "2", "--num-samples", "3", "--max-cot-tokens", "40"]
    arguments += ["--modes", "hard_greedy,soft_sample", "--quiet", "--device", "cpu"]
    assert cli.run([*arguments, "--output-path", str(tmp_path / "one")]) == 0
    log = tmp_path / "log"
    words = ["-m", "softeval", *arguments, "--output-path", tmp_path / "two"]
    together(2, *words, log=log, **QUIETLY)
    for shown in (capsys.readouterr().out, log.read_text()):
        assert shown.count("Run directory:") == 1
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["sessions"][0]["processes"] == 2
