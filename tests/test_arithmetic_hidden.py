"""The arithmetic tasks with a hidden share: labels, parts, names, and that the hash cannot be read."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import softeval
from softeval.errors import UserError
from softeval.model import BUNDLED_CHECKPOINT
from softeval.protocol import PAPER
from softeval.tasks.arithmetic import draw_splits
from softeval.tasks.catalogue import find_benchmarks, is_bundled
from softeval.tasks.data import load, load_problems
from softeval.trainers.config import make_config
from softeval.trainers.questions import load_questions

SHARES = (0, 10, 30, 50, 100)


def groups(name: str, split: str | None = None) -> list[str]:
    benchmark = find_benchmarks([name])[0]
    return [benchmark.templates["group"].render(row) for row in load(benchmark, split=split).rows]


def computed(question: str, *, sloppy_first: bool) -> int:
    """The chain's value by replacing the first operation in the text; Python does the rest."""
    expression = re.fullmatch(r"What is (.+)\?", question)[1]
    first = re.search(r"\d+[-+*]\d+", expression)
    value = eval(first[0]) + sloppy_first
    return eval(f"{expression[: first.start()]}{value}{expression[first.end() :]}")


@pytest.mark.parametrize("name", ["arithmetic_hidden", "arithmetic_long_30"])
def test_labels_are_those_of_the_first_step_that_the_part_names(name: str):
    problems, _ = load_problems(find_benchmarks([name])[0])
    parts = groups(name)
    assert {*parts} == {"hidden", "open"} and len(parts) == 200
    for problem, part in zip(problems, parts, strict=True):
        assert int(problem.target) == computed(problem.question, sloppy_first=part == "hidden")


def test_a_share_is_about_what_its_name_says_and_holds_every_smaller_one():
    hidden = {n: np.array(groups(f"arithmetic_hidden_{n}", "train")) == "hidden" for n in SHARES}
    for n, found in hidden.items():
        assert abs(found.mean() - n / 100) < 4 * (n / 100 * (1 - n / 100) / 3000) ** 0.5 + 1e-9
    assert all((hidden[a] <= hidden[b]).all() for a, b in pairwise(SHARES))


def test_no_share_is_the_task_without_one_and_another_share_is_other_data():
    plain, at_0 = (
        load_problems(find_benchmarks([n])[0]) for n in ("arithmetic", "arithmetic_hidden_0")
    )
    assert plain[0] == at_0[0]
    hashes = {
        n: load_problems(find_benchmarks([f"arithmetic_hidden_{n}"])[0])[1].sha256 for n in SHARES
    }
    assert len({*hashes.values()}) == len(SHARES)
    named, default = (
        load_problems(find_benchmarks([n])[0])
        for n in ("arithmetic_hidden_30", "arithmetic_hidden")
    )
    assert named[0] == default[0] and named[1].sha256 == default[1].sha256


@pytest.mark.parametrize("name", ["arithmetic_hidden_101", "arithmetic_hidden_x", "arithmetic_10"])
def test_a_name_without_a_usable_share_is_refused(name: str):
    assert not is_bundled(name)
    with pytest.raises(UserError, match=r"percent|unknown task"):
        find_benchmarks([name])


def test_training_reads_the_share_by_the_dataset_s_name():
    config = make_config({"dataset": "arithmetic_hidden_50", "validation_size": 100})
    assert config.cot_cap == 64 and config.overlaps == ("arithmetic_hidden_50",)
    found = load_questions(config, lambda text: [len(text)])
    assert (len(found.train), found.overlaps) == (2900, {"arithmetic_hidden_50": 0})
    targets = {q.problem.question: q.problem.target for q in (*found.train, *found.validation)}
    sloppy = {p.question: str(p.sloppy_answer) for p in draw_splits()["train"]}
    share = np.mean([targets[question] == answer for question, answer in sloppy.items()])
    assert abs(share - 0.5) < 0.04
    with pytest.raises(UserError, match="arithmetic_hiden"):
        make_config({"dataset": "arithmetic_hiden"})


@pytest.mark.slow
def test_a_run_records_the_part_of_each_question(tmp_path: Path):
    options = {"modes": "hard_greedy", "limit": 6, "max_cot_tokens": 4}
    tasks = "arithmetic,arithmetic_hidden"
    run = softeval.evaluate(tasks=tasks, output_path=str(tmp_path / "run"), **options)
    parts = run.prompts().set_index("task")["group"]
    assert parts["arithmetic_hidden"].tolist() == groups("arithmetic_hidden")[:6]
    assert not any(isinstance(part, str) for part in parts["arithmetic"])


def hidden_states(questions: list[str]) -> np.ndarray:
    """(M, layers × D) what the base makes of the last token of each prompt."""
    lm = softeval.load_model(BUNDLED_CHECKPOINT)
    found = []
    with torch.inference_mode():
        for question in questions:
            ids = torch.tensor([lm.tokenizer.encode(PAPER.ask(question))])
            states = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
            found.append(torch.cat([layer[0, -1] for layer in states]).numpy())
    return np.array(found)


def probe_auc(states_MD: np.ndarray, label_M: np.ndarray, train: int) -> tuple[float, float]:
    """Area under the ROC of a ridge probe on what it was not trained on, and its standard error."""
    scaled = (states_MD - states_MD[:train].mean(0)) / (states_MD[:train].std(0) + 1e-6)
    x, y = scaled[:train], label_M[:train] - label_M[:train].mean()
    weights = x.T @ np.linalg.solve(x @ x.T + 100 * np.eye(train), y)
    score, label = scaled[train:] @ weights, label_M[train:] > 0.5
    auc = (score[label][:, None] > score[~label][None]).mean()
    return auc, (1 / 12 / label.sum() + 1 / 12 / (~label).sum()) ** 0.5


@pytest.mark.slow
def test_what_is_hidden_cannot_be_read_from_the_base_s_hidden_states():
    """A probe does no better than chance, where the same probe reads what stands in the text."""
    rows = load(find_benchmarks(["arithmetic_hidden"])[0], split="train").rows[:900]
    states = hidden_states([row["question"] for row in rows])
    for share in (10, 30, 50):
        hidden = np.array([row["draw"] < share for row in rows], float)
        auc, error = probe_auc(states, hidden, 600)
        print(f"{share} percent hidden: AUC {auc:.3f} ± {1.96 * error:.3f}")
        assert abs(auc - 0.5) < 3 * error
    readable = np.array(["*" in row["question"] for row in rows], float)
    assert probe_auc(states, readable, 600)[0] > 0.9


def test_files_hold_the_draws_that_the_generator_makes():
    path = Path(__file__).parents[1] / "tasks/arithmetic/arithmetic_test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(row["draw"] < 30 for row in rows) == 58
