"""Task definitions: their documents, requests, settings and scores."""

from __future__ import annotations

import json
import math
import pickle
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from adapter_cases import first_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from softeval.errors import UserError
from softeval.lmeval import TASKS_DIR, load_tasks, task_manager
from softeval.lmeval.arguments import read_arguments
from softeval.lmeval.requests import ROW, GenText
from softeval.model.stopping import Limits
from softeval.modes import get_mode
from softeval.options import GenerationOptions
from softeval.protocol import PAPER
from softeval.records import ScoreTuple
from softeval.scoring.judge import Verdict
from softeval.tasks.benchmark import (
    BenchmarkTask,
    choice_scores,
    normed_choice_scores,
    ratio,
    sample_scores,
)
from softeval.tasks.catalogue import find_benchmarks
from softeval.tasks.data import load

GENERATIVE = [
    *("gsm8k", "math500", "olympiadbench"),
    *("hellaswag_cot", "mmlu_cot", "arc_challenge_cot", "arc_easy_cot"),
]
BUILT_IN = Path(lm_eval.__file__).parent / "tasks"


def load_rows(name: str, data_dir: str) -> list[dict[str, Any]]:
    return load(find_benchmarks([name])[0], data_dir).rows


def load_one(name: str, **metadata: Any) -> Any:
    return load_tasks([name], **metadata)["tasks"][name]


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A data directory with five GSM8K-like rows."""
    lines = [f'{{"question": "q{i}?", "answer": "#### {i}"}}\n' for i in range(5)]
    (tmp_path / "gsm8k_test.jsonl").write_text("".join(lines))
    return str(tmp_path)


def test_the_demanded_tasks_are_there() -> None:
    single = {*GENERATIVE, "hellaswag", "mmlu", "arc_challenge", "arc_easy", "arithmetic"}
    single |= {"aime24", "aime25", "amc23", "minerva_math", "math", "deepscaler"}
    single |= {"arithmetic_hidden", "arithmetic_long"}
    assert set(task_manager().all_subtasks) == single
    assert set(task_manager().all_tasks) == single | {"arc", "arc_cot"}


@pytest.mark.parametrize("path", sorted(TASKS_DIR.glob("**/*.yaml")), ids=lambda p: p.stem)
def test_every_yaml_is_what_lm_eval_reads_and_names_its_file_and_a_version(path: Path) -> None:
    config = load_yaml(path, resolve_func=False)
    assert config.get("task") == path.stem or config.get("group") == path.stem
    assert config["metadata"]["version"] == 1.0
    if "group" not in config:
        (benchmark,) = find_benchmarks([path.stem])
        assert benchmark.shipped and benchmark.dataset_path == config["dataset_path"]
        assert benchmark.rows


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATIVE)
def test_generative_tasks_put_real_questions_into_the_papers_prompt(
    name: str, shared: Path, tmp_path: Path
) -> None:
    data_dir = first_rows(shared / "data", tmp_path, [name])
    task = load_one(name, data_dir=data_dir)
    problems = load(find_benchmarks([name])[0], data_dir).problems
    assert len(task.eval_docs) == len(problems) == task.source.rows
    task.build_all_requests(limit=3)
    for request, problem in zip(task.instances, problems[:3], strict=True):
        assert request.args[0] == PAPER.ask(problem.question)
        assert task.doc_to_target(request.doc) == problem.target


def test_the_bundled_task_loads_from_the_package() -> None:
    task = load_one("arithmetic", num_samples=2)
    assert (task.source.origin, len(task.eval_docs)) == ("bundled", 200)
    assert task.eval_docs[0]["prompt"] == PAPER.ask(task.eval_docs[0]["question"])


def built_in(yaml: str, rows: list[dict[str, Any]]) -> ConfigurableTask:
    """lm-eval's own task on given rows, instead of the hub's."""
    config = load_yaml(BUILT_IN / yaml)
    table = datasets.Dataset.from_list(rows)
    splits = dict.fromkeys(("train", "validation", "test", "dev"), table)
    for key in ("tag", "dataset_path", "dataset_name"):
        config.pop(key, None)
    return ConfigurableTask(config=config | {"custom_dataset": lambda **_: splits})


def requests_of(task: Any, limit: int) -> list[tuple[Any, ...]]:
    task.build_all_requests(limit=limit)
    return [(*request.args, task.doc_to_target(request.doc)) for request in task.instances]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "yaml"),
    [
        ("hellaswag", "hellaswag/hellaswag.yaml"),
        ("arc_challenge", "arc/arc_challenge.yaml"),
        ("arc_easy", "arc/arc_easy.yaml"),
    ],
)
def test_likelihood_requests_are_those_of_lm_evals_own_task(
    name: str, yaml: str, shared: Path, tmp_path: Path
) -> None:
    data_dir = first_rows(shared / "data", tmp_path, [name], rows=150)
    ours = load_one(name, data_dir=data_dir)
    theirs = built_in(yaml, load_rows(name, data_dir))
    theirs.config.num_fewshot = 0
    assert requests_of(ours, 150) == requests_of(theirs, 150)
    shared_metrics = {"acc", "acc_norm"}
    assert shared_metrics <= set(ours.aggregation()) and shared_metrics <= set(theirs.aggregation())


@pytest.mark.slow
def test_raw_hellaswag_rows_are_cleaned_as_lm_eval_cleans_them(
    tmp_path: Path, shared: Path
) -> None:
    """Of a thousand rows those with something to clean, and every tenth of the others."""
    raw = (shared / "data" / "hellaswag_validation_raw1000.jsonl").read_text().splitlines()
    unclean = [number for number, line in enumerate(raw) if "[" in json.loads(line)["ctx_a"]]
    assert len(unclean) > 50
    rows = [raw[number] for number in sorted({*unclean, *range(0, len(raw), 10)})]
    (tmp_path / "hellaswag_validation.jsonl").write_text("\n".join(rows))
    ours = load_one("hellaswag", data_dir=str(tmp_path))
    theirs = built_in("hellaswag/hellaswag.yaml", load_rows("hellaswag", str(tmp_path)))
    theirs.config.num_fewshot = 0
    assert requests_of(ours, len(rows)) == requests_of(theirs, len(rows))


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["abstract_algebra", "us_foreign_policy", "professional_law"])
def test_mmlu_requests_are_those_of_lm_evals_subject_task(
    subject: str, shared: Path, tmp_path: Path
) -> None:
    data_dir = first_rows(
        shared / "data", tmp_path, ["mmlu"], 60, lambda row: row["subject"] == subject
    )
    ours = load_one("mmlu", data_dir=data_dir)
    theirs = built_in(f"mmlu/default/mmlu_{subject}.yaml", load_rows("mmlu", data_dir))
    theirs.config.num_fewshot = 0
    assert requests_of(ours, 60) == requests_of(theirs, 60)


def test_settings_come_from_the_model_arguments() -> None:
    sampled = {"mode": "soft_sample", "num_samples": "12", "max_cot_tokens": 10, "data_dir": "d"}
    options, mode = read_arguments(sampled)
    assert (options.samples_under(mode), options.ks(12), options.limits.tokens) == (
        12,
        (1, 2, 4, 8),
        42,
    )
    assert (options.data_dir, mode) == ("d", get_mode("soft_sample"))
    assert read_arguments(sampled | {"pass_at": [8, 3]})[0].ks(12) == (3, 8)
    plain, none = read_arguments({"version": 1.0, "config_source": "a.yaml"})
    assert (plain.samples_under(none), plain.ks(1), plain.limits.tokens, none) == (
        1,
        (1,),
        544,
        None,
    )


@pytest.mark.parametrize(
    "greedy",
    [
        {"mode": "hard_greedy"},
        {"mode": "soft_greedy"},
        {"mode": "soft_sample", "noise_scale": 0},
        {"mode": "hard_sample", "temperature": "0.0"},
    ],
)
def test_a_greedy_mode_takes_one_sample(greedy: dict[str, Any]) -> None:
    options, mode = read_arguments(greedy | {"num_samples": 32, "pass_at": [1, 32]})
    assert (options.samples_under(mode), options.ks(1)) == (1, (1,))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"num_samples": 4, "pass_at": [8]}, "--pass-at 8 needs at least 8 samples"),
        ({"num_samples": 0}, "--num-samples 0: input should be greater"),
        ({"num_samples": "many"}, "--num-samples 'many': input should be a valid integer"),
        ({"num_samples": 2.5}, "--num-samples 2.5: input should be a valid integer"),
        ({"max_cot_tokens": -1}, "--max-cot-tokens -1: input should be greater"),
        ({"mode": "softly"}, "unknown mode 'softly'"),
        (
            {"mode": "soft_sample", "noise_scale": "x"},
            "--noise-scale 'x': input should be a valid number",
        ),
    ],
)
def test_bad_settings_are_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_arguments(metadata)


@given(st.integers(1, 2000))
def test_powers_of_two_end_at_the_largest_that_fits(n: int) -> None:
    ks = GenerationOptions().ks(n)
    assert ks[0] == 1 and ks[-1] <= n < 2 * ks[-1]
    assert all(b == 2 * a for a, b in pairwise(ks))


def test_samples_and_metrics_follow_the_settings(small: str) -> None:
    task: BenchmarkTask = load_one("gsm8k", data_dir=small, mode="hard_sample", num_samples=4)
    assert task.config.repeats == 4
    assert list(task.aggregation()) == [
        *("pass@1", "pass@2", "pass@4"),
        *("no_answer", "timeout", "error", "truncated"),
    ]
    assert task.higher_is_better()["pass@4"] and not task.higher_is_better()["no_answer"]
    task.use_limits(Limits(10, 5))
    task.build_all_requests()
    assert task.instances[0].args[-1] == {"until": [], "do_sample": False, "max_gen_toks": 15}


def test_copies_that_lm_eval_appends_are_dropped(small: str) -> None:
    task = load_one("gsm8k", data_dir=small, mode="hard_sample", num_samples=2)
    task.build_all_requests(limit=1)
    task.instances[0].resps = ["a", "b", "b", "b"]
    task.apply_filters()
    assert task.instances[0].filtered_resps == {"none": ["a", "b"]}


def test_repeats_changed_after_loading_are_refused(small: str) -> None:
    task = load_one("gsm8k", data_dir=small)
    task.set_config("repeats", 8)
    with pytest.raises(UserError, match="num_samples"):
        task.build_all_requests()


def test_the_request_cache_is_refused(small: str) -> None:
    with pytest.raises(UserError, match="stale"):
        load_one("gsm8k", data_dir=small).build_all_requests(cache_requests=True)


def test_samples_may_come_in_any_order_and_twice(small: str) -> None:
    task = load_one("gsm8k", data_dir=small)
    pairs = list(task.doc_iterator(samples=[4, 1, 4, 2]))
    assert [(place, doc[ROW]) for place, doc in pairs] == [(0, 4), (1, 1), (3, 2)]
    halves = [list(task.doc_iterator(samples=[4, 1, 2], rank=r, world_size=2)) for r in (0, 1)]
    assert [[doc[ROW] for _, doc in half] for half in halves] == [[4, 2], [1]]
    with pytest.raises(UserError, match=r"0\.\.4"):
        list(task.doc_iterator(samples=[5]))


def test_an_unknown_task_is_named_with_its_neighbour() -> None:
    with pytest.raises(UserError, match="unknown task 'gsm8'; did you mean gsm8k"):
        load_tasks(["gsm8"])


def gen_text(answer: str | None, stop_reason: str = "answer_prefix") -> GenText:
    return GenText("text", {"answer": answer, "stop_reason": stop_reason})


def document(target: str, kind: str = "math", pass_at: tuple[int, ...] = (1, 2, 4)) -> Any:
    judged = {"error": None, "kind": kind, "rules": "softeval"}
    return {"target": target, "pass_at": list(pass_at), **judged}


@settings(deadline=None)  # the first answer starts the scorer
@given(st.lists(st.booleans(), min_size=4, max_size=6))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(correct: list[bool]) -> None:
    samples = [gen_text("7" if c else "8") for c in correct]
    scores = sample_scores(document("7"), [samples])
    for k in (1, 2, 4):
        subsets = list(combinations(correct, k))
        share = sum(any(subset) for subset in subsets) / len(subsets)
        assert math.isclose(scores[f"pass@{k}"], share, abs_tol=1e-12)


def test_letters_are_compared_as_letters() -> None:
    scores = sample_scores(document("C", "letter", (1,)), [[gen_text("(c)"), gen_text("B")]])
    assert scores["pass@1"] == 0.5


def test_shares_of_samples_without_verdict_or_end() -> None:
    samples = [gen_text("7"), gen_text(None), gen_text(" ", "length"), gen_text("8", "length")]
    scores = sample_scores(document("7"), [samples])
    assert scores["no_answer"] == scores["truncated"] == 0.5
    assert scores["timeout"] == scores["error"] == 0.0


def test_verdicts_that_samples_bring_along_are_taken_as_they_are() -> None:
    wrong = GenText("", {"answer": "7", "stop_reason": "eos"}, None, Verdict(False, "timeout"))
    right = GenText("", {"answer": "8", "stop_reason": "eos"}, None, Verdict(True, "ok"))
    scores = sample_scores(
        document("7", pass_at=(1,)), [[wrong, pickle.loads(pickle.dumps(right))]]
    )
    assert scores["pass@1"] == scores["timeout"] == 0.5


def test_plain_text_of_another_model_is_scored_by_its_last_box() -> None:
    text = r"so \boxed{3}. The final answer is: \boxed{7}. User: \boxed{"
    scores = sample_scores(document("7", pass_at=(1,)), [[text]])
    assert scores["pass@1"] == 1.0
    assert "truncated" not in scores


def test_choice_scores() -> None:
    doc = {"gold": 1, "choices": ["a", "bbbb"]}
    results = [ScoreTuple(-1.0, True, 1), ScoreTuple(-2.0, False, 4)]
    assert choice_scores(doc, results) == {
        "acc": 0.0,
        "nll_per_token": 0.5,
        "nll_per_token_micro": (2.0, 4),
    }
    assert normed_choice_scores(doc, results)["acc_norm"] == 1.0
    assert choice_scores(doc, [(-1.0, True), (-2.0, False)]) == {"acc": 0.0}


def test_the_micro_average_weights_by_tokens() -> None:
    assert ratio([(2.0, 4), (6.0, 1)]) == 8.0 / 5
