"""Time and memory of a report over a very large run.

    python benchmarks/report.py                 # 1319 questions x 6 modes x 64 samples x 512 tokens
    python benchmarks/report.py --questions 100 --keep /tmp/run

Writes a synthetic run directory with the schemas of a real one (260 million positions), builds
its report in a process of its own, and prints seconds, peak memory and the size of the page.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from softeval import records
from softeval.modes import select_modes
from softeval.runs import rundir

GROUP = 2048  # generations a row group, as the run's own writer makes them
VOCAB = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=1319)
    parser.add_argument("--samples", type=int, default=64, help="in every mode, the greedy too")
    parser.add_argument("--positions", type=int, default=512, help="tokens of every CoT")
    parser.add_argument("--keep", type=Path, help="write the run here, and leave it")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.report is not None:
        build(options.report)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "run"
        if not (folder / rundir.RUN_FILE).is_file():
            started = time.perf_counter()
            write_run(folder, options.questions, options.samples, options.positions)
            print(f"made the run in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        command = [sys.executable, __file__, "--report", str(folder)]
        print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="")


def build(folder: Path) -> None:
    """Build the report and print what it took."""
    from softeval.reports.page import build_report

    own = [0.0]
    threading.Thread(target=watch_own_memory, args=[own], daemon=True).start()
    started = time.perf_counter()
    page = build_report([folder])
    seconds = time.perf_counter() - started
    lengths = pq.read_table(folder / "samples.parquet", columns=["n_cot_tokens"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {
        "positions": sum(lengths["n_cot_tokens"].to_pylist()),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),
        # Pages of the mapped table among it, which the system may take back.
        "peak_gib": round(peak, 2),
        "own_gib": round(max(own), 2),
        "page_mb": round(len(page.encode()) / 1e6, 2),
        "positions_parquet_gb": round((folder / "positions.parquet").stat().st_size / 1e9, 2),
    }
    print(json.dumps(result, indent=2))


def watch_own_memory(found: list[float]) -> None:
    """Append what the process holds besides mapped files, GiB, again and again."""
    status = Path("/proc/self/status")
    while status.exists():
        kilobytes = status.read_text().split("RssAnon:")[1].split()[0]
        found.append(int(kilobytes) / 2**20)
        time.sleep(0.05)


def write_run(folder: Path, questions: int, samples: int, positions: int) -> None:
    """Write a run directory of random numbers, row group by row group."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    modes = sorted(mode.name for mode in select_modes(("all",), {}))
    words = np.array([f" w{i}" for i in range(VOCAB)])
    text = "".join(words[rng.integers(0, VOCAB, positions)])
    tables = {
        name: pq.ParquetWriter(folder / f"{name}.parquet", schema(), compression="zstd")
        for name, schema in (
            ("samples", records.samples_schema),
            ("positions", records.positions_schema),
        )
    }
    for mode in modes:
        keys = np.indices((questions, samples)).reshape(2, -1)
        for start in range(0, keys.shape[1], GROUP):
            doc_R, sample_R = keys[:, start : start + GROUP]
            tables["samples"].write_table(_samples(rng, mode, doc_R, sample_R, positions, text))
            tables["positions"].write_table(_positions(rng, mode, doc_R, sample_R, positions))
    for table in tables.values():
        table.close()
    _write_names(folder, questions, words)
    _write_record(folder, modes, samples)


def _samples(
    rng: np.random.Generator,
    mode: str,
    doc_R: np.ndarray,
    sample_R: np.ndarray,
    positions: int,
    text: str,
) -> pa.Table:
    rows = len(doc_R)
    correct_R = rng.random(rows) < (0.2 + 0.6 * (doc_R % 17) / 17)
    cut_R = rng.integers(0, len(text) // 2, rows)
    columns = {
        "task": ["gsm8k"] * rows,
        "doc_id": doc_R,
        "mode": [mode] * rows,
        "sample": sample_R,
        "prompt_hash": [f"{doc:016x}" for doc in doc_R],
        "cot_text": [text[cut:] for cut in cut_R],
        "prefill": [" \\boxed{"] * rows,
        "answer_text": [f"{doc}}}" for doc in doc_R],
        "answer": [str(doc) for doc in doc_R],
        "target": [str(doc) for doc in doc_R],
        "correct": correct_R,
        "verdict": ["ok"] * rows,
        "stop_reason": ["answer_prefix"] * rows,
        "answer_stop": ["closed"] * rows,
        "n_cot_tokens": np.full(rows, positions),
        "n_answer_tokens": np.full(rows, 3),
        "seconds": np.ones(rows, np.float32),
        "other_correct": correct_R,
        "target_error": [None] * rows,
    }
    return pa.table(columns, records.samples_schema())


def _positions(
    rng: np.random.Generator,
    mode: str,
    doc_R: np.ndarray,
    sample_R: np.ndarray,
    positions: int,
) -> pa.Table:
    shape = (len(doc_R), positions)
    entropy = rng.gamma(1.0, 0.5, shape).astype(np.float32)
    columns = {
        "task": ["gsm8k"] * len(doc_R),
        "doc_id": doc_R,
        "mode": [mode] * len(doc_R),
        "sample": sample_R,
        "entropy": list(entropy),
        "mode_entropy": list(entropy * np.float32(0.5)),
        "top1_prob": list(np.exp(-entropy)),
        "shadow_id": list(rng.integers(0, VOCAB, shape, dtype=np.int32)),
        "mixture_id": [None] * len(doc_R),
        "mixture_prob": [None] * len(doc_R),
    }
    return pa.table(columns, records.positions_schema())


def _write_names(folder: Path, questions: int, words: np.ndarray) -> None:
    prompts = {
        "task": ["gsm8k"] * questions,
        "doc_id": range(questions),
        "prompt_hash": [f"{doc:016x}" for doc in range(questions)],
        "prompt": [f"User: question {doc} Assistant:" for doc in range(questions)],
        "target": [str(doc) for doc in range(questions)],
    }
    pq.write_table(pa.table(prompts, records.prompts_schema()), folder / "prompts.parquet")
    tokens = {"token_id": range(len(words)), "text": words.tolist()}
    pq.write_table(pa.table(tokens, records.tokens_schema()), folder / "tokens.parquet")


def _write_record(folder: Path, modes: list[str], samples: int) -> None:
    record = {
        "status": rundir.COMPLETE,
        "command": "benchmarks/report.py",
        "config": {"num_samples": samples, "limit": None},
        "model": {"path": "synthetic", "weights_hash": "0"},
        "modes": [{"name": mode} for mode in modes],
        "datasets": [{"task": "gsm8k", "name": "gsm8k", "sha256": "0", "split": "test"}],
    }
    rundir.write_record(folder, record)


if __name__ == "__main__":
    main()
