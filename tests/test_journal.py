"""The journal: what is added comes back, and no crash costs more than the line in flight."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_generation

from softeval.errors import UserError
from softeval.records import Generation, SampleKey, ScoreTuple, StopReason
from softeval.runs.journal import Journal
from softeval.scoring.judge import Verdict


def same(ours: Generation, theirs: Generation) -> bool:
    for field in fields(Generation):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(a, np.ndarray):
            if a.shape != b.shape or not np.array_equal(a, b, equal_nan=True):
                return False
        elif a != b:
            return False
    return True


def fill(folder: Path, count: int, rank: int = 0) -> list[Generation]:
    made = [make_generation(SampleKey("t", i // 3, i % 3), length=5, top=2) for i in range(count)]
    journal = Journal(folder, rank)
    for generation in made:
        journal.add(generation, f"question {generation.key.doc_id}")
    journal.close()
    return made


def test_a_generation_comes_back_as_it_was(tmp_path: Path) -> None:
    (made,) = fill(tmp_path, 1)
    found = Journal(tmp_path).get(made.key, made.mode)
    assert found is not None and same(found, made)
    assert found.prompt_ids.dtype == found.shadow_ids.dtype == np.int64
    assert found.entropy.dtype == np.float32


@given(
    text=st.text(st.characters(exclude_categories=[]), max_size=20),
    answer=st.none() | st.text(max_size=5),
    length=st.integers(0, 4),
    reason=st.sampled_from(list(StopReason)),
)
@settings(max_examples=40, deadline=None)
def test_any_text_and_length_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    answer: str | None,
    length: int,
    reason: StopReason,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    key = SampleKey(text or "t", 3, 1)
    made = make_generation(SampleKey("t", 3, 1), length=length, answer=answer, stop_reason=reason)
    made = Generation(**{f.name: getattr(made, f.name) for f in fields(made)} | {"key": key})
    journal = Journal(folder)
    journal.add(made, text)
    journal.close()
    found = Journal(folder).get(key, made.mode)
    assert found is not None and same(found, made)


def test_floats_keep_their_bits(tmp_path: Path) -> None:
    made = make_generation(SampleKey("t", 0, 0), length=4)
    made.entropy[:] = [np.nan, np.inf, 1e-45, np.float32(0.1)]
    journal = Journal(tmp_path)
    journal.add(made, "q")
    found = journal.get(made.key, made.mode)
    assert found is not None
    assert found.entropy.tobytes() == made.entropy.tobytes()


def test_mixtures_are_kept_of_first_samples_only(tmp_path: Path) -> None:
    made = fill(tmp_path, 2)
    journal = Journal(tmp_path)
    first, second = (journal.get(g.key, g.mode) for g in made)
    assert first is not None and second is not None
    assert first.top_ids.shape == (5, 2)
    assert second.top_ids.shape == (5, 0)


@pytest.mark.parametrize("cut", [1, 2, 50, 400])
def test_a_torn_last_line_is_cut_and_the_rest_stays(tmp_path: Path, cut: int) -> None:
    made = fill(tmp_path, 4)
    shard = tmp_path / "rank-0000.jsonl"
    os.truncate(shard, shard.stat().st_size - cut)
    journal = Journal(tmp_path)
    assert [key.doc_id * 3 + key.sample for key, _ in journal.names()] == [0, 1, 2]
    journal.add(made[3], "question 1")
    journal.close()
    again = Journal(tmp_path)
    found = again.get(made[3].key, made[3].mode)
    assert len(again.names()) == 4 and found is not None and same(found, made[3])


def test_every_cut_of_a_shard_keeps_exactly_its_whole_lines(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    shard = tmp_path / "rank-0000.jsonl"
    whole = shard.read_bytes()
    for size in range(0, len(whole), 7):
        shard.write_bytes(whole[:size])
        journal = Journal(tmp_path)
        journal.close()
        assert len(journal.names()) == whole[:size].count(b'"kind": "generation"') - (
            not whole[:size].endswith(b"\n") and b'"generation"' in whole[:size].split(b"\n")[-1]
        )
        assert shard.read_bytes() == whole[: whole[:size].rfind(b"\n") + 1]


@pytest.mark.parametrize("line", range(5))
def test_a_damaged_line_costs_what_it_held_and_nothing_else(tmp_path: Path, line: int) -> None:
    made = fill(tmp_path, 4)  # a prompt, three samples, a prompt, a sample
    shard = tmp_path / "rank-0000.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    lines[line] = b"\0\0" + lines[line][2:]
    shard.write_bytes(b"".join(lines))
    journal = Journal(tmp_path)
    assert journal.damaged == 1
    left = {key.doc_id * 3 + key.sample for key, _ in journal.names()}
    assert left == [{3}, {1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}][line]
    for generation in made:
        journal.add(generation, f"question {generation.key.doc_id}")
    journal.close()
    again = Journal(tmp_path)
    for generation in made:
        found = again.get(generation.key, generation.mode)
        assert found is not None and found.cot_text == generation.cot_text
        assert found.entropy.tolist() == generation.entropy.tolist()


def test_a_verdict_is_of_the_judge_who_gave_it(tmp_path: Path) -> None:
    (made,) = fill(tmp_path, 1)
    name = made.key, made.mode
    journal = Journal(tmp_path)
    journal.add_verdict(*name, "one", Verdict(True, "ok", other=False))
    journal.add_verdict(*name, "two", Verdict(False, "timeout"))
    journal.close()
    again = Journal(tmp_path)
    one, two = again.verdict(*name, "one"), again.verdict(*name, "two")
    assert one is not None and (one.correct, one.status, one.other) == (True, "ok", False)
    assert two == Verdict(False, "timeout") and again.verdict(*name, "three") is None


def test_threads_may_add_at_once(tmp_path: Path) -> None:
    made = [make_generation(SampleKey("t", i, 0)) for i in range(40)]
    journal = Journal(tmp_path)

    def add(generation: Generation) -> None:
        journal.add(generation, "q")
        key = generation.key
        verdict = Verdict(bool(key.doc_id % 2), "ok")
        journal.add_verdict(key, generation.mode, "judge", verdict)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, made))
    journal.close()
    again = Journal(tmp_path)
    assert again.damaged == 0 and len(again.names()) == 40
    verdicts = [again.verdict(*name, "judge") for name in again.names()]
    assert [v is not None and v.correct for v in verdicts] == [i % 2 == 1 for i in range(40)]


def test_every_rank_sees_the_others(tmp_path: Path) -> None:
    first, second = Journal(tmp_path, 0), Journal(tmp_path, 1)
    made = [make_generation(SampleKey("t", i, 0)) for i in range(2)]
    first.add(made[0], "q0")
    second.add(made[1], "q1")
    assert first.get(made[1].key, made[1].mode) is None
    first.refresh()
    found = first.get(made[1].key, made[1].mode)
    assert found is not None and same(found, made[1])
    assert {p.name for p in tmp_path.glob("*.jsonl")} == {"rank-0000.jsonl", "rank-0001.jsonl"}
    first.close()
    second.close()
    # Fewer processes than before: the orphaned shard still counts.
    assert len(Journal(tmp_path, 0).names()) == 2


def test_adding_twice_keeps_the_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    key = SampleKey("t", 0, 0)
    journal.add(make_generation(key, seconds=1.0), "q")
    size = (tmp_path / "rank-0000.jsonl").stat().st_size
    journal.add(make_generation(key, seconds=2.0), "q")
    found = journal.get(key, "hard_sample")
    assert found is not None and found.seconds == 1.0
    assert (tmp_path / "rank-0000.jsonl").stat().st_size == size


def test_another_prompt_for_the_same_question_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(make_generation(SampleKey("t", 0, 0)), "q")
    with pytest.raises(UserError, match="another prompt"):
        journal.add(make_generation(SampleKey("t", 0, 1)), "Q")


def test_modes_and_tasks_are_kept_apart_and_sorted(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for mode in ("soft_sample", "hard_sample"):
        for task in ("b", "a"):
            journal.add(make_generation(SampleKey(task, 0, 0), mode), "q")
    places = [(key.task, mode) for key, mode in journal.names()]
    assert places == [(t, m) for t in ("a", "b") for m in ("hard_sample", "soft_sample")]
    found = journal.get(SampleKey("a", 0, 0), "soft_sample")
    assert found is not None and found.mode == "soft_sample"
    assert journal.get(SampleKey("a", 0, 0), "fuzzy_sample") is None


def test_likelihoods_come_back_exactly(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_likelihood("arc", 3, 1, ScoreTuple(-0.1 / 3, False, 7))
    journal.close()
    again = Journal(tmp_path)
    found = again.get_likelihood("arc", 3, 1)
    assert found is not None and (found, found.n_tokens) == ((-0.1 / 3, False), 7)
    assert again.get_likelihood("arc", 3, 0) is None


def test_a_full_disk_leaves_whole_lines_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [make_generation(SampleKey("t", i, 0)) for i in range(2)]
    journal = Journal(tmp_path)
    journal.add(made[0], "q0")
    size = (tmp_path / "rank-0000.jsonl").stat().st_size
    real = os.write

    def nearly_full(fd: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[: len(data) - 50])

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(OSError, match="No space left"):
        journal.add(made[1], "q1")
    monkeypatch.undo()
    assert (tmp_path / "rank-0000.jsonl").stat().st_size == size
    journal.add(made[1], "q1")
    journal.close()
    assert len(Journal(tmp_path).names()) == 2


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    code = (
        "import sys; from pathlib import Path; from softeval.runs.journal import Journal\n"
        "from softeval.errors import UserError\n"
        "try: Journal(Path(sys.argv[1]))\n"
        "except UserError as error: print(error); sys.exit(2)"
    )
    run = [sys.executable, "-c", code, str(tmp_path)]
    refused = subprocess.run(run, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "another process is writing" in refused.stdout
    journal.close()
    assert subprocess.run(run, check=False).returncode == 0


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock_behind_in_its_workers(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from softeval.runs.journal import Journal\n"
        "from softeval.scoring.judge import Scorer\n"
        "journal = Journal(Path(sys.argv[1])); judge = Scorer(); judge.score('1/2', '0.5')\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process is writing"):
            Journal(tmp_path)
        children = Path(f"/proc/{other.pid}/task/{other.pid}/children").read_text().split()
        opened = [
            os.readlink(fd) for child in children for fd in Path(f"/proc/{child}/fd").iterdir()
        ]
        assert children and not any(str(tmp_path) in name for name in opened)
        other.kill()
    Journal(tmp_path).close()
