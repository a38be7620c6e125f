"""Data sets: local files, manifest, hub and bundled, and what their rows mean."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from adapter_cases import first_rows
from conftest import mostly_slow

from softeval.errors import UserError
from softeval.tasks.catalogue import Benchmark, find_benchmarks, task_catalogue
from softeval.tasks.data import DatasetSource, Origin, load, load_problems, rows_hash
from softeval.tasks.problems import read_row

ROWS = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(3)]

EXPECTED = {  # name: rows, first question, first target
    "gsm8k": (1319, "Janet’s ducks lay 16 eggs", "18"),
    "math500": (500, "Convert the point $(0,3)$", "\\left( 3, \\frac{\\pi}{2} \\right)"),
    "olympiadbench": (675, "Xenia and Sergey play", "2"),
    "hellaswag_cot": (10042, "Which choice continues the text best?\nRoof shingle removal", "D"),
    "mmlu_cot": (14042, "Find the degree for the given field extension", "B"),
    "arc_challenge_cot": (1172, "An astronomer observes", "C"),
    "arc_easy_cot": (2376, "Which statement best explains why photosynthesis", "A"),
    "math": (12000, "How many vertical asymptotes", "2"),
    "deepscaler": (3660, "The operation $\\otimes$ is defined", "-\\frac{2}{3}"),
}


def benchmark(name: str) -> Benchmark:
    (found,) = find_benchmarks([name])
    return found


def load_rows(name: str, data_dir: str | None = None, split: str | None = None) -> list[Any]:
    return load(benchmark(name), data_dir, split).rows


def source_of(name: str, data_dir: str | None = None) -> DatasetSource:
    return load(benchmark(name), data_dir).source


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_manifest(folder: Path, *entries: dict[str, Any]) -> None:
    (folder / "MANIFEST.json").write_text(json.dumps({"datasets": list(entries)}))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_real_data_gives_the_known_problems(name: str, shared: Path) -> None:
    problems, source = load_problems(benchmark(name), str(shared / "data"))
    rows, question, target = EXPECTED[name]
    assert len(problems) == source.rows == rows
    # The data directory has only a part of DeepScaleR.
    assert rows == benchmark(name).rows or name == "deepscaler"
    assert problems[0].question.startswith(question)
    assert problems[0].target == target
    assert source.origin is Origin.LOCAL
    assert source.fidelity  # the manifest's word reaches the run record


def test_every_benchmark_is_bundled_or_tested_on_real_data() -> None:
    absent = {"aime24", "aime25", "amc23", "minerva_math"}  # not among the real data here
    single = {name for name, entry in task_catalogue().items() if entry.kind == "generative"}
    bundled = {"arithmetic", "arithmetic_hidden", "arithmetic_long"}
    assert single == {*EXPECTED, *bundled, *absent}


def test_the_bundled_dataset_needs_neither_hub_nor_directory() -> None:
    problems, source = load_problems(benchmark("arithmetic"))
    assert (source.origin, source.location) == (Origin.BUNDLED, "arithmetic_test.jsonl")
    assert len(problems) == source.rows == 200
    assert load_problems(benchmark("arithmetic"), "/no/such/directory") == (problems, source)
    assert len(load_rows("arithmetic", split="validation")) == 100
    with pytest.raises(UserError, match="arithmetic has no split 'dev'"):
        load_rows("arithmetic", split="dev")


@pytest.mark.parametrize(
    "name", mostly_slow(["hellaswag", "mmlu", "arc_challenge", "arc_easy"], ["arc_challenge"])
)
def test_every_letter_names_the_correct_choice(name: str, shared: Path, tmp_path: Path) -> None:
    """The answers of the log-likelihood task, whose right one the letter must name."""
    data = first_rows(shared / "data", tmp_path, [name], rows=500)
    asked, scored = (load(benchmark(task), data).problems for task in (f"{name}_cot", name))
    for problem, choice in zip(asked, scored, strict=True):
        words = choice.choices[choice.gold]
        listed = words if name != "mmlu" else ""  # there the choices scored are letters
        assert f"\n{problem.target}. {listed}" in problem.question
        assert name != "mmlu" or problem.target == words


def test_arc_digits_become_letters(shared: Path) -> None:
    loaded = load(benchmark("arc_challenge_cot"), str(shared / "data"))
    pairs = zip(loaded.rows, loaded.problems, strict=True)
    digits = [(row, problem) for row, problem in pairs if row["answerKey"] in "12345"]
    assert len(digits) > 10
    for row, problem in digits:
        assert problem.target == "ABCDE"[int(row["answerKey"]) - 1]


def test_the_manifest_prefers_the_complete_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS[:1])
    write_rows(tmp_path / "b.jsonl", ROWS)
    write_rows(tmp_path / "gsm8k_test.jsonl", ROWS[:2])
    entry = {"name": "gsm8k", "split": "test"}
    write_manifest(
        tmp_path, entry | {"file": "a.jsonl", "rows": 1}, entry | {"file": "b.jsonl", "rows": 3}
    )
    assert load_rows("gsm8k", str(tmp_path)) == ROWS


def test_an_alias_of_the_manifest_stands_in(tmp_path: Path) -> None:
    row = {"problem": "1+1?", "answer": "2"}
    write_rows(tmp_path / "x.jsonl", [row])
    write_rows(tmp_path / "y.jsonl", [row | {"answer": "3"}])
    write_manifest(
        tmp_path,
        {"name": "math_train", "split": "train", "file": "y.jsonl", "rows": 99},
        {"name": "math_train_prm800k", "split": "train", "file": "x.jsonl", "rows": 1},
    )
    assert load_rows("math", str(tmp_path)) == [row]


@pytest.mark.parametrize(
    "name", ["gsm8k_test.jsonl", "gsm8k_test.jsonl.gz", "gsm8k/test.jsonl", "gsm8k.jsonl"]
)
def test_usual_file_names_are_found_without_a_manifest(name: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / name, ROWS)
    loaded = load(benchmark("gsm8k"), str(tmp_path))
    assert loaded.rows == ROWS
    assert loaded.source.location == str(path)


def test_another_split_is_another_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "gsm8k_test.jsonl", ROWS)
    write_rows(tmp_path / "gsm8k_train.jsonl", ROWS[:1])
    assert len(load_rows("gsm8k", str(tmp_path), "train")) == 1


def test_the_hash_knows_order_and_content_but_not_further_fields(tmp_path: Path) -> None:
    def hashed(rows: list[dict[str, Any]]) -> str:
        write_rows(tmp_path / "gsm8k_test.jsonl", rows)
        return source_of("gsm8k", str(tmp_path)).sha256

    base = hashed(ROWS)
    assert hashed([row | {"extra": 1} for row in ROWS]) == base
    assert hashed([dict(reversed(row.items())) for row in ROWS]) == base
    assert hashed(ROWS[::-1]) != base
    assert hashed(ROWS[:2]) != base
    assert hashed([*ROWS[:2], ROWS[2] | {"answer": "#### 5"}]) != base


def test_the_hub_is_the_default_and_gives_the_same_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(path: str, name: str | None, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list([row | {"more": "x"} for row in ROWS])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    write_rows(tmp_path / "gsm8k_test.jsonl", ROWS)
    hub = source_of("gsm8k")
    assert asked == [("openai/gsm8k", "main", "test")]
    assert (hub.origin, hub.location) == (Origin.HUB, "openai/gsm8k (main)")
    assert hub.sha256 == source_of("gsm8k", str(tmp_path)).sha256


def test_an_unreachable_hub_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"^cannot load gsm8k .*--data-dir DIR$"):
        load_rows("gsm8k")


def test_a_hub_row_without_a_field_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list([{"question": "?"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    with pytest.raises(UserError, match=r"openai/gsm8k, row 0: no answer"):
        load_rows("gsm8k")


BAD = {
    "no directory": ({}, "no data directory"),
    "no file": ({"other.jsonl": "{}"}, r"no file for gsm8k \(test\).*gsm8k_test.jsonl"),
    "not JSON": (
        {"gsm8k_test.jsonl": '{"question": "a", "answer": "b"}\n\n{x'},
        "line 3: not JSON",
    ),
    "not an object": ({"gsm8k_test.jsonl": "[1]"}, "line 1: not a JSON object"),
    "missing field": (
        {"gsm8k_test.jsonl": '{"question": "a", "answer": "b"}\n{"question": "a"}'},
        r"gsm8k_test.jsonl, line 2: no answer; every row needs question, answer",
    ),
    "null field": (
        {"gsm8k_test.jsonl": '{"question": null, "answer": "b"}'},
        "line 1: no question",
    ),
    "empty": ({"gsm8k_test.jsonl": "\n"}, "holds no rows"),
    "not UTF-8": ({"gsm8k_test.jsonl": b"\xff\xfe"}, "not UTF-8"),
    "torn gzip": ({"gsm8k_test.jsonl.gz": gzip.compress(b"{}")[:-4]}, "not a whole gzip file"),
    "no gzip": ({"gsm8k_test.jsonl.gz": "{}"}, "not a whole gzip file"),
    "folder": ({"MANIFEST.json": '{"datasets": [{"name": "gsm8k"}]}'}, "must hold"),
    "bad manifest": ({"MANIFEST.json": "nonsense"}, "must hold"),
    "listed, absent": (
        {"MANIFEST.json": '{"datasets": [{"name": "gsm8k", "split": "test", "file": "z"}]}'},
        "lists z, which is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_a_remedy(case: str, tmp_path: Path) -> None:
    contents, message = BAD[case]
    folder = tmp_path / "data"
    if contents:
        folder.mkdir()
    for name, content in contents.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        load_rows("gsm8k", str(folder))
    assert "\n" not in str(caught.value)


def test_a_file_that_differs_from_the_manifest_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "gsm8k_test.jsonl", ROWS)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = {
        "name": "gsm8k",
        "split": "test",
        "file": path.name,
        "sha256": sha256,
        "fidelity": "exact",
    }
    write_manifest(tmp_path, entry)
    assert source_of("gsm8k", str(tmp_path)).fidelity == "exact"
    write_rows(path, ROWS[:2])
    with pytest.raises(UserError, match="not the file that MANIFEST"):
        load_rows("gsm8k", str(tmp_path))


def test_an_unreadable_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "softeval.tasks.local_data.os.access", lambda *_: False
    )  # root reads everything
    with pytest.raises(UserError, match="cannot read the data directory"):
        load_rows("gsm8k", str(tmp_path))


def test_gsm8k_takes_what_follows_the_last_mark(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "#### is a mark\n#### 1,234 "}
    assert read_row(benchmark("gsm8k"), row).target == "1,234"
    write_rows(tmp_path / "gsm8k_test.jsonl", [row, {"question": "q", "answer": "42"}])
    with pytest.raises(UserError, match=r"gsm8k_test.jsonl, row 1: answer: no '#### ' in '42'"):
        load_rows("gsm8k", str(tmp_path))


def test_several_olympiad_answers_are_one_list() -> None:
    row = {"question": "q", "final_answer": ["1", "2"], "context": "Given c.", "error": "0.1"}
    problem = read_row(benchmark("olympiadbench"), row)
    assert (problem.question, problem.target, problem.error) == ("Given c.\nq", "1, 2", 0.1)
    plain = read_row(benchmark("olympiadbench"), {"question": "q", "final_answer": "3"})
    assert (plain.question, plain.target, plain.error) == ("q", "3", None)


def test_rows_hash_is_over_canonical_lines() -> None:
    expected = hashlib.sha256('{"a":"é","b":1}\n'.encode()).hexdigest()
    assert rows_hash([{"b": 1, "a": "é", "c": 2}], ["b", "a"]) == expected
