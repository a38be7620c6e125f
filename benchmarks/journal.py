"""How fast the journal is beside decoding, and what damage costs it and a database.

    python benchmarks/journal.py                    # 200 samples of 300 CoT tokens, 300 corruptions
    python benchmarks/journal.py --tokens 20

Prints entries a second of the journal and of sqlite (one row a sample with its CRC, write-ahead
log), the first also as CoT tokens a second over those of the decoder on the bundled checkpoint, which is as
small as checkpoints get; then how many samples are left, and right, after random corruptions of
either file.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from softeval.decoding.generate import generate
from softeval.model.language_model import BUNDLED_CHECKPOINT, load_model
from softeval.protocol import PAPER
from softeval.records import AnswerStop, Generation, SampleKey, StopReason
from softeval.runs.journal import Journal

BLOCK = 512
SHARD = "rank-0000.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=300, help="of every CoT")
    parser.add_argument("--rounds", type=int, default=300, help="corruptions")
    options = parser.parse_args()
    samples = [_sample(index, options.tokens) for index in range(options.samples)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lines = _time_lines(folder, samples)
        content = (folder / SHARD).read_bytes()
        rows = [line for line in content.splitlines() if b'"kind": "generation"' in line]
        result = {
            "journal_entries_a_second": round(lines),
            "sqlite_entries_a_second": round(_time_sqlite(folder / "normal.db", rows, "NORMAL")),
            "sqlite_synced_a_second": round(_time_sqlite(folder / "full.db", rows, "FULL")),
            "journal_over_decoder": round(lines * options.tokens / _decoder_rate(), 1),
            "samples_left": {
                "journal": _survival(folder / SHARD, _count_lines, options.rounds, len(samples)),
                "sqlite": _survival(
                    folder / "normal.db", _count_rows, options.rounds, len(samples)
                ),
            },
        }
    print(json.dumps(result, indent=2))


def _sample(index: int, tokens: int) -> Generation:
    rng = np.random.default_rng(index)
    return Generation(
        key=SampleKey("task", index // 8, index % 8),
        mode="soft_sample",
        cot_text=" word" * tokens,
        prefill_text=" \\boxed{",
        answer="7",
        answer_text="7}",
        stop_reason=StopReason.EOS,
        answer_stop=AnswerStop.CLOSED,
        prompt_ids=np.arange(60),
        shadow_ids=rng.integers(0, 32_000, tokens),
        prefill_ids=np.arange(3),
        answer_ids=np.arange(2),
        entropy=rng.random(tokens, np.float32),
        mode_entropy=rng.random(tokens, np.float32),
        top1_prob=rng.random(tokens, np.float32),
        top_ids=np.zeros((tokens, 0), np.int64),
        top_probs=np.zeros((tokens, 0), np.float32),
        inputs=None,
        seconds=1.0,
    )


def _time_lines(folder: Path, samples: Iterable[Generation]) -> float:
    """Entries a second, with all that turns a sample into a line."""
    journal, count, started = Journal(folder), 0, time.perf_counter()
    for sample in samples:
        journal.add(sample, "prompt")
        count += 1
    rate = count / (time.perf_counter() - started)
    journal.close()
    return rate


def _time_sqlite(path: Path, rows: list[bytes], synchronous: str) -> float:
    """Entries a second of rows that are ready."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(f"PRAGMA synchronous={synchronous}")
    database.execute("CREATE TABLE entry(id INTEGER PRIMARY KEY, crc INTEGER, data BLOB)")
    started = time.perf_counter()
    for row in rows:
        database.execute("INSERT INTO entry(crc, data) VALUES(?, ?)", (zlib.crc32(row), row))
    rate = len(rows) / (time.perf_counter() - started)
    database.close()
    return rate


def _decoder_rate() -> float:
    """CoT tokens a second of the bundled checkpoint."""
    lm, prompt = load_model(BUNDLED_CHECKPOINT), PAPER.ask("3 + 4 * 2")
    generate(lm, prompt, "soft_sample", num_samples=8)
    started = time.perf_counter()
    (made,) = generate(lm, prompt, "soft_sample", num_samples=256)
    return sum(len(g.shadow_ids) for g in made) / (time.perf_counter() - started)


def _count_lines(path: Path, _samples: int) -> int:
    journal = Journal(path.parent)
    found = len(journal.names())
    journal.close()
    return found


def _count_rows(path: Path, samples: int) -> int:
    """Row by row, going on after an error: more than reading the table in one go gives."""
    database, found = sqlite3.connect(path), 0
    for row in range(1, samples + 1):
        try:
            held = database.execute("SELECT crc, data FROM entry WHERE id = ?", (row,)).fetchone()
        except sqlite3.DatabaseError:
            continue
        found += held is not None and isinstance(held[1], bytes) and zlib.crc32(held[1]) == held[0]
    database.close()
    return found


def _survival(
    path: Path, count: Callable[[Path, int], int], rounds: int, samples: int
) -> dict[str, float]:
    content, rng = path.read_bytes(), random.Random(0)
    left = []
    for _ in range(rounds):
        for stale in path.parent.glob(f"{path.name}-*"):
            stale.unlink()
        path.write_bytes(_damaged(content, rng))
        left.append(count(path, samples) / samples)
    path.write_bytes(content)
    return {
        "mean": round(float(np.mean(left)), 3),
        "nothing_left": round(float(np.mean(np.array(left) == 0)), 3),
        "at_most_one_lost": round(float(np.mean(np.array(left) >= 1 - 1 / samples)), 3),
    }


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """A bit, a byte, a cut, a zeroed block or a removed block."""
    at, changed = rng.randrange(len(content)), bytearray(content)
    match rng.choice(["bit", "byte", "cut", "zeros", "gap"]):
        case "bit":
            changed[at] ^= 1 << rng.randrange(8)
        case "byte":
            changed[at] = rng.randrange(256)
        case "cut":
            del changed[at:]
        case "zeros":
            changed[at : at + BLOCK] = bytes(len(changed[at : at + BLOCK]))
        case _:
            del changed[at : at + BLOCK]
    return bytes(changed)


if __name__ == "__main__":
    main()
