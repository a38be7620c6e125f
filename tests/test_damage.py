"""Damaged files: whatever happens to a byte, a number is right or the damage is named in one line."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_generation, write_run

from softeval.errors import UserError
from softeval.records import SampleKey, ScoreTuple
from softeval.runs.journal import Journal
from softeval.runs.parquet_files import sequences
from softeval.runs.rescore import rescore
from softeval.runs.run import load_run
from softeval.scoring.judge import Scorer, Verdict

Read = Callable[[Path], Any]

BLOCK = 512
TABLES = ("samples", "positions", "prompts", "tokens", "likelihoods")


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One random corruption: a bit, a byte, a cut, a zeroed block or a removed block."""
    at = rng.randrange(len(content))
    changed = bytearray(content)
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


def verdicts(file: Path, read: Read, rounds: int, seed: int) -> Counter[str]:
    """What `read` makes of the file's folder after each of so many corruptions of the file."""
    content, rng = file.read_bytes(), random.Random(seed)
    right = read(file.parent)
    found: Counter[str] = Counter()
    for _ in range(rounds):
        # A file of its own each time: an earlier reader may still have the last one mapped.
        file.unlink()
        file.write_bytes(damaged(content, rng))
        found[_verdict(file, read, right)] += 1
    return found


def _verdict(file: Path, read: Read, right: Any) -> str:
    try:
        return "same" if read(file.parent) == right else "silent"
    except UserError as error:
        message = str(error)
    return "named" if file.name in message and "\n" not in message else f"unclear: {message}"


def journal_content(folder: Path) -> Any:
    """Everything a journal holds, as comparable values; what is missing is made again."""
    journal = Journal(folder)
    try:
        found = {name: journal.get(*name) for name in journal.names()}
        return Held(
            {name: repr([*vars(g).items()]) for name, g in found.items()}
            | {key: (p.text, tuple(p.ids)) for key, p in journal.prompts().items()}
            | {key: (*score, score.n_tokens) for key, score in journal.likelihoods().items()}
            | {("judged", n): v for n in journal.names() if (v := journal.verdict(*n, "j"))}
        )
    finally:
        journal.close()


class Held(dict[Any, Any]):
    """Content that equals the whole one as long as nothing in it differs: the rest is made again."""

    def __eq__(self, whole: object) -> bool:
        assert isinstance(whole, dict)
        return all(key in whole and whole[key] == value for key, value in self.items())


def make_journal(folder: Path) -> Path:
    journal = Journal(folder)
    for index in range(6):
        made = make_generation(SampleKey("t", index // 2, index % 2), length=30, top=2)
        journal.add(made, f'question "{made.key.doc_id}", "crc32": "of" both')
        journal.add_verdict(made.key, made.mode, "j", Verdict(index > 2, "ok"))
        journal.add_likelihood("arc", index, 0, ScoreTuple(-1.5 * index, index > 2, index))
    journal.close()
    return folder / "rank-0000.jsonl"


def run_content(folder: Path) -> Any:
    """Record, every table and the scores, as comparable values."""
    run = load_run(folder)
    read = (run.samples, run.positions, run.mixtures, run.prompts, run.tokens, run.likelihoods)
    tables = [table().to_json() for table in read]
    return tables, run.scores().to_json(), dict(run.info), report_content(folder)


def report_content(folder: Path) -> Any:
    """The tables as the report reads them: streamed."""
    run = load_run(folder)
    groups = [
        table.to_pandas().to_json()
        for table in sequences(run.table_path("positions"), ["doc_id"], ["entropy"])
    ]
    return groups, [batch.to_pydict() for batch in run.batches("samples", ["doc_id", "correct"])]


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "run"
    return write_run(folder, questions=3, samples=3, positions=6, likelihood_tasks=("arc",))


@pytest.mark.parametrize("rounds", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_damage_of_a_journal_costs_samples_and_no_more(tmp_path: Path, rounds: int) -> None:
    shard = make_journal(tmp_path)
    content, rng = shard.read_bytes(), random.Random(rounds)
    right = journal_content(tmp_path)
    kept = []
    for _ in range(rounds):
        shard.write_bytes(damaged(content, rng))
        left = journal_content(tmp_path)
        assert left == right, "what is left is right"
        kept.append(len(left) / len(right))
        make_journal(tmp_path)
        again = journal_content(tmp_path)
        assert again.keys() == right.keys() and again == right, "what is lost is made again"
    assert min(kept) < 1 and sum(kept) / rounds > 0.75


@pytest.mark.parametrize("name", ["samples.parquet", "run.json"])
def test_no_damage_of_a_run_is_silent(made_run: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(made_run, tmp_path / "run"))
    found = verdicts(folder / name, run_content, 12, seed=1)
    assert not found.keys() - {"same", "named"} and found["named"] > 6, found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run.json", *(f"{table}.parquet" for table in TABLES)])
def test_no_damage_of_any_file_is_silent(made_run: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(made_run, tmp_path / "run"))
    found = verdicts(folder / name, run_content, 40, seed=2)
    assert not found.keys() - {"same", "named"} and found["named"] > 20, found


def test_a_record_changed_by_hand_says_how_to_take_it(made_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made_run, tmp_path / "run"))
    file = folder / "run.json"
    file.write_text(file.read_text().replace('"status": "complete"', '"status": "partial"'))
    with pytest.raises(UserError, match='remove its line "crc32"'):
        load_run(folder)
    file.write_text(
        json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "crc32"})
    )
    assert not load_run(folder).complete


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", ["{", '{"results": {"a": 1}, "modes": {"a": {"mode": "m"}}}', "[]"]
)
def test_results_that_are_none_do_not_end_in_a_traceback(
    made_run: Path, tmp_path: Path, content: str
) -> None:
    folder = Path(shutil.copytree(made_run, tmp_path / "run"))
    (folder / "results.json").write_text(content)
    with Scorer(workers=1) as judge, pytest.raises(UserError, match=r"results\.json"):
        rescore(folder, judge)
