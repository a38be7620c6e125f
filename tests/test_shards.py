"""Evaluations in shards: which questions each has, what is refused, and that merged they are one run."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Ended
from forked import kill, start
from test_resume import assert_same_run, journalled

from softeval import UserError, evaluate
from softeval.runs.cells import load_cells
from softeval.runs.config import Shard, make_config
from softeval.runs.merge import merge
from softeval.runs.rundir import PARTIAL, read_record, write_record

pytest_plugins = ("command_line_fixtures",)

SMALL: dict[str, Any] = {
    "limit": 8, "num_samples": 2, "max_cot_tokens": 30, "modes": "hard_greedy,soft_sample",
    "device": "cpu", "self_check": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of a small run, evaluated in another order than theirs."""
    folder = tmp_path_factory.mktemp("parts")
    for index in (2, 3, 1):
        evaluate(**SMALL, shard=f"{index}/3", output_path=str(folder))
    return folder


@pytest.fixture
def copied(parts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parts, tmp_path / "parts"))


# Which questions -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 7, 10])
def test_shards_share_out_every_question_once(count: int) -> None:
    def questions(**options: Any) -> list[int]:
        [cell] = load_cells(config := make_config(options), config.selected_modes())
        assert list(cell.every_document) == list(range(10))
        return list(cell.documents)

    options = {"limit": 10, "modes": "hard_greedy", "output_path": "out"}
    found = [questions(**options, shard=f"{i}/{count}") for i in range(1, count + 1)]
    assert sorted(row for rows in found for row in rows) == list(range(10))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def array(monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


@pytest.mark.parametrize(("place", "first"), [(2, 1), (1, 0)])
def test_auto_is_the_place_in_the_array(
    monkeypatch: pytest.MonkeyPatch, place: int, first: int
) -> None:
    array(monkeypatch, ID=place, MIN=first, MAX=first + 6, COUNT=7)
    assert Shard.read("auto") == Shard(2, 7)
    assert make_config({}).shard is None  # never without being asked


@pytest.mark.parametrize(
    "values",
    [
        {"ID": 3, "MIN": 3, "MAX": 3, "COUNT": 1},  # one task submitted anew
        {"ID": 3, "MIN": 3, "MAX": 5, "COUNT": 2},
        {"ID": 1, "MIN": 1, "MAX": 9, "COUNT": 5},  # --array=1-9:2
        {"ID": 1, "MIN": 1, "MAX": 1, "COUNT": 1},
    ],
)
def test_auto_takes_no_array_that_may_not_be_the_whole(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, int]
) -> None:
    array(monkeypatch, **values)
    with pytest.raises(ValueError, match="may not be all; name the shard"):
        Shard.read("auto")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--shard", "0/7", "-o", "out"], "'0/7': write 2/7 for the second of seven"),
        (["--shard", "8/7", "-o", "out"], "'8/7': write"),
        (["--shard", "auto", "-o", "out"], "not a task of a Slurm array"),
        (["--shard", "1/2"], "--shard needs --output-path"),
        (
            ["--quiet", "--shard", "1/9", "--limit", "8", "-o", "out"],
            "arithmetic has 8 questions only",
        ),
    ],
)
def test_a_shard_that_cannot_be_is_one_line(
    softeval: Callable[..., Ended], words: list[str], told: str
) -> None:
    ended = softeval("run", *words)
    assert ended.code == 2 and told in ended.err and ended.err.count("\n") == 1


def test_a_plan_counts_the_shards_own_questions(softeval: Callable[..., Ended]) -> None:
    words = ["--limit", "8", "-n", "2", "--modes", "hard_greedy", "--dry-run", "--json"]
    plan = json.loads(softeval("run", *words, "--shard", "3/3", "-o", "out").out)
    assert plan["samples"] == 2 and plan["config"]["shard"] == "3/3"
    assert plan["config"]["output_path"] == "out/shard-3-of-3"


# Together ------------------------------------------------------------------------------------


def test_merged_they_are_one_run(parts: Path, copied: Path, tmp_path: Path) -> None:
    whole, merged = evaluate(**SMALL, output_path=str(tmp_path / "whole")).path, tmp_path / "merged"
    folders = [copied / f"shard-{i}-of-3" for i in (3, 1, 2)]
    assert merge(folders, merged) == merged
    assert_same_run(merged, whole)
    assert (merged / "config.yaml").read_bytes() == (whole / "config.yaml").read_bytes()
    ours, theirs = (read_record(folder) for folder in (merged, whole))
    for name in ("identity", "counts", "status", "modes", "datasets", "failures", "scorer"):
        assert ours[name] == theirs[name], name
    of_place = {"output_path": ""}
    assert ours["config"] | of_place == theirs["config"] | of_place
    assert len(ours["sessions"]) == 3 and ours["seconds"] >= 0
    # Nothing but what was evaluated is needed, and a second call finds it done.
    shutil.rmtree(copied / "shard-1-of-3" / "shards")
    before = (merged / "run.json").stat().st_mtime_ns
    assert merge([copied], merged) == merged
    assert (merged / "run.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_what_a_killed_merge_has_left_is_not_read(parts: Path, tmp_path: Path) -> None:
    """Links to the journals of another run, and verdicts on its samples."""
    other, merged = tmp_path / "other", tmp_path / "merged"
    for index in range(1, 5):
        evaluate(**SMALL | {"seed": 1}, shard=f"{index}/4", output_path=str(other))
    journals = sorted(other.glob("shard-*/shards/rank-0000.jsonl"))
    (merged / "shards").mkdir(parents=True)
    for number, journal in enumerate(journals, 1):
        (merged / "shards" / f"rank-{number:04d}.jsonl").symlink_to(journal)
    shutil.copy(journals[0], merged / "shards" / "rank-0000.jsonl")
    assert_same_run(merge([parts], merged), merge([parts], tmp_path / "clean"))


def test_a_merged_run_names_the_rules_that_judged_it(copied: Path, tmp_path: Path) -> None:
    now = read_record(copied / "shard-1-of-3")["scorer"]
    edit(copied / "shard-1-of-3", scorer=now | {"rules": "softeval 0"})
    assert read_record(merge([copied], tmp_path / "merged"))["scorer"] == now


def test_likelihoods_are_merged_too(tmp_path: Path) -> None:
    rows = [
        {"question": f"{i}+1", "choices": {"text": ["2", "3"], "label": ["A", "B"]}, "answerKey": "A",
         "id": str(i)}
        for i in range(5)
    ]  # fmt: skip
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "arc_easy_test.jsonl").write_text(text)
    options = {"tasks": "arc_easy", "data_dir": str(tmp_path), "device": "cpu", "self_check": False}
    for index in (1, 2):
        evaluate(**options, shard=f"{index}/2", output_path=str(tmp_path / "parts"))
    whole = evaluate(**options, output_path=str(tmp_path / "whole")).path
    merged = merge([tmp_path / "parts"], tmp_path / "merged")
    for name in ("likelihoods.parquet", "config.yaml"):
        assert (merged / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (json.loads((f / "results.json").read_text()) for f in (merged, whole))
    assert ours | {"date": 0} == theirs | {"date": 0}


def edit(folder: Path, **changes: Any) -> None:
    record = read_record(folder)
    write_record(folder, record | changes)


def remove(folder: Path) -> None:
    shutil.rmtree(folder / "shard-2-of-3")


def unfinish(folder: Path) -> None:
    edit(folder / "shard-3-of-3", status=PARTIAL)


def other_seed(folder: Path) -> None:
    place = folder / "shard-3-of-3"
    edit(place, identity=read_record(place)["identity"] | {"seed": 1})


def doubled(folder: Path) -> None:
    shutil.copytree(folder / "shard-1-of-3", folder / "shard-1-of-3-again-of-3")


def other_count(folder: Path) -> None:
    place = folder / "shard-3-of-3"
    edit(place, identity=read_record(place)["identity"] | {"shard": "3/4"})


def unsharded(folder: Path) -> None:
    place = folder / "shard-1-of-3"
    identity = dict(read_record(place)["identity"])
    del identity["shard"]
    edit(place, identity=identity)


def other_questions(folder: Path) -> None:
    for place in folder.iterdir():
        identity = read_record(place)["identity"]
        edit(place, identity=identity | {"tasks": {"arithmetic": "0"}})


def damaged(folder: Path) -> None:
    journal = folder / "shard-2-of-3" / "shards" / "rank-0000.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"seconds"', b'"secondz"', 1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (remove, "missing: 2/3; `softeval run … --shard 2/3`"),
        (unfinish, "shard-3-of-3 is not finished; its command continues it"),
        (other_seed, "shard-3-of-3 is of another run than"),
        (doubled, "are the same shard; leave one out"),
        (other_count, "shards of 3 and of 4: give those of one"),
        (unsharded, "shard-1-of-3 is no shard"),
        (other_questions, "are not those of the shards; restore them"),
        (damaged, "1 samples are missing, perhaps from a damaged journal among"),
    ],
)
def test_what_is_not_one_whole_run_is_refused(
    copied: Path, tmp_path: Path, change: Callable[[Path], None], told: str
) -> None:
    change(copied)
    with pytest.raises(UserError) as refused:
        merge([copied], tmp_path / "merged")
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "merged" / "run.json").exists()


def test_a_run_that_is_there_is_not_replaced(parts: Path, tmp_path: Path) -> None:
    other = evaluate(**SMALL | {"seed": 1}, output_path=str(tmp_path / "other")).path
    with pytest.raises(UserError, match="holds another run; give another --output-path"):
        merge([parts], other)
    with pytest.raises(UserError, match="is not empty and not a run"):
        merge([parts], parts)


def test_a_shard_stands_for_no_run(softeval: Callable[..., Ended], copied: Path) -> None:
    shard = str(copied / "shard-1-of-3")
    remedy = f"`softeval merge {copied} --output-path RUN`"
    for words in (
        ["report", shard], ["compare", shard, shard], ["plan", shard, shard], ["score", shard],
        ["diagnose", shard, "--base", "x"], ["attribute", shard],
    ):  # fmt: skip
        ended = softeval(*words)
        assert ended.code == 2 and ended.err.count("\n") == 1, words
        assert (
            f"shard-1-of-3 is shard 1/3 of a run; put the shards together with {remedy}"
            in ended.err
        )


def test_shards_of_one_directory_are_of_one_division(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds shards of 3, not 4; divide as there"):
        evaluate(**SMALL, shard="1/4", output_path=str(copied))
    with pytest.raises(UserError, match=r"holds a run with other arguments \(shard: 1/3 there"):
        evaluate(**SMALL, output_path=str(copied / "shard-1-of-3"))


def test_the_cap_is_that_of_the_whole_run(softeval: Callable[..., Ended], tmp_path: Path) -> None:
    """By default it is what the longest prompt of all leaves of the context, not of the shard's."""
    rows = [
        {"question": "1+1?", "answer": "2"},
        {"question": "1" + "+1" * 800 + "?", "answer": "801"},
    ]
    (tmp_path / "two.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    words = ["run", "--tasks", "two.jsonl", "--dry-run", "--json", "--device", "cpu", "-o", "out"]

    def cap(*shard: str) -> int:
        return json.loads(softeval(*words, *shard).out)["config"]["max_cot_tokens"]

    assert cap("--shard", "1/2") == cap("--shard", "2/2") == cap() < 512


# Killed --------------------------------------------------------------------------------------


def kill_once_begun(words: list[str], folder: Path, log: Path) -> None:
    process = start(["-m", "softeval", "run", *words], log)
    while journalled(folder) < 4:
        assert process.exitcode is None, "it was to be killed before its end"
        time.sleep(0.002)
    kill([process])


@pytest.mark.slow
def test_seven_shards_in_any_order_two_of_them_killed_are_one_run(tmp_path: Path) -> None:
    options = SMALL | {"limit": 14, "num_samples": 8}
    order = list(range(1, 8))
    random.Random(0).shuffle(order)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value]
    for number, index in enumerate(order):
        place = tmp_path / "parts" / f"shard-{index}-of-7"
        shard = {"shard": f"{index}/7", "output_path": str(tmp_path / "parts")}
        if number in (1, 4):
            given = [*words, "--no-self-check", f"--shard={index}/7", "-o", str(tmp_path / "parts")]
            kill_once_begun(given, place, tmp_path / "killed.log")
            with pytest.raises(UserError, match=r"not finished|missing"):
                merge([tmp_path / "parts"], tmp_path / "merged")
        evaluate(**options, **shard)
    whole = evaluate(**options, output_path=str(tmp_path / "whole")).path
    merged = merge([tmp_path / "parts"], tmp_path / "merged")
    assert_same_run(merged, whole)
    assert yaml.safe_load((merged / "config.yaml").read_text())["shard"] is None
    assert sorted(os.listdir(merged)) == sorted(os.listdir(whole))
