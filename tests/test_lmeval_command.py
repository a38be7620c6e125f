"""lm-eval's own command line with our model and tasks, and several processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from adapter_cases import CAPS, adapter, evaluate, save_lm, texts, write_data
from command_line import Ended
from forked import together
from lm_eval.tasks import manager

from softeval.cli.lm_eval import completed
from softeval.errors import UserError
from softeval.lmeval import TASKS_DIR

pytest_plugins = ("command_line_fixtures",)

OURS = ["run", "--model", "softeval", "--tasks", "gsm8k"]


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_our_tasks_are_included_and_lm_evals_defaults_replaced() -> None:
    arguments = completed(OURS)
    assert arguments[: len(OURS)] == OURS
    assert option(arguments, "--include_path") == str(TASKS_DIR)
    assert option(arguments, "--batch_size") == "auto"
    assert option(arguments, "--device") == "auto"


def test_what_is_given_stays() -> None:
    given = ["--include_path", "mine", "-b", "4", "--device=cpu"]
    assert completed([*OURS, *given]) == [*OURS, *given[:4], "--device", "cpu"]


@pytest.mark.parametrize("given", [["-C", "run.yaml"], ["--config", "run.yaml"]])
def test_a_configuration_file_is_not_overruled(given: list[str]) -> None:
    assert "--batch_size" not in completed([*OURS, *given])


def test_other_models_keep_lm_evals_defaults() -> None:
    arguments = completed(["--model", "hf", "--tasks", "gsm8k", "--use_cache", "x"])
    assert arguments[-2:] == ["--include_path", str(TASKS_DIR)]


def test_listing_and_help_work_as_in_lm_eval() -> None:
    assert completed(["ls", "tasks"]) == ["ls", "tasks", "--include_path", str(TASKS_DIR)]
    assert completed([]) == []
    assert completed(["--help"]) == ["--help"]


@pytest.mark.parametrize("given", [["--use_cache", "x"], ["-c", "x"], ["--cache_requests"]])
def test_caches_are_refused(given: list[str]) -> None:
    with pytest.raises(UserError, match=r"use `softeval run`|leave it out"):
        completed([*OURS, *given])


@pytest.mark.parametrize("name", ["--samples", "-E"])
def test_chosen_samples_are_sorted(name: str, tmp_path: Path) -> None:
    chosen = '{"gsm8k": [5, 1, 5]}'
    assert json.loads(option(completed([*OURS, name, chosen]), name)) == {"gsm8k": [1, 5]}
    (tmp_path / "chosen.json").write_text(chosen)
    given = [*OURS, name, str(tmp_path / "chosen.json")]
    assert json.loads(option(completed(given), name)) == {"gsm8k": [1, 5]}
    with pytest.raises(UserError, match="--samples must be JSON"):
        completed([*OURS, name, "[1, 2]"])


def run_python(code: str, *arguments: str) -> str:
    """Run a script with the tests' folder importable; its output."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("unasked")
def test_lm_evals_command_line_writes_its_result_files(
    softeval: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside lm-eval's own tasks of these names; it takes ten seconds to find all that it has."""
    for folder in ("gsm8k", "arc"):
        shutil.copytree(Path(manager.__file__).with_name(folder), tmp_path / "own" / folder)
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "own" / "manager.py"))
    assert {"gsm8k", "arc_easy"} <= set(manager.TaskManager().all_subtasks)
    data_dir = write_data(tmp_path)
    path = save_lm(tmp_path / "tiny")
    model = f"pretrained={path},mode=soft_sample,num_samples=3,data_dir={data_dir}"
    caps = ",".join(f"{name}={value}" for name, value in CAPS.items())
    ended = softeval(
        "lm-eval", "run", "--model", "softeval", "--model_args", f"{model},{caps}",
        "--tasks", "gsm8k,arc_easy", "--output_path", tmp_path / "out", "--log_samples",
    )  # fmt: skip
    assert "pass@2" in ended.out, ended.err
    (found,) = (tmp_path / "out").glob("*/results_*.json")
    results = json.loads(found.read_text())
    assert results["config"]["mode"] == "soft_sample"
    assert results["configs"]["gsm8k"]["repeats"] == 3
    assert {"pass@1,none", "pass@2,none"} <= set(results["results"]["gsm8k"])
    assert {"acc,none", "nll_per_token_micro,none"} <= set(results["results"]["arc_easy"])
    (logged,) = (tmp_path / "out").glob("*/samples_gsm8k_*.jsonl")
    samples = [json.loads(line) for line in logged.read_text().splitlines()]
    expected = texts(evaluate(adapter(), data_dir))
    assert {s["doc_id"]: s["resps"][0] for s in samples} == expected


@pytest.mark.slow
def test_import_softeval_is_enough_for_simple_evaluate(tmp_path: Path) -> None:
    path, data_dir = save_lm(tmp_path / "tiny"), write_data(tmp_path)
    code = """
import sys, softeval, lm_eval, torch.utils.collect_env
torch.utils.collect_env.get_pretty_env_info = str  # asks pip and the compiler, for seconds
from lm_eval.tasks import TaskManager
from softeval.lmeval import TASKS_DIR
arguments = dict(pretrained=sys.argv[1], data_dir=sys.argv[2], mode="hard_sample",
                 num_samples=2, max_cot_tokens=4, max_answer_tokens=4, device="cpu")
manager = TaskManager(include_path=str(TASKS_DIR), include_defaults=False, metadata=arguments)
found = lm_eval.simple_evaluate(model="softeval", model_args=arguments, tasks=["gsm8k"],
                                task_manager=manager, limit=2, bootstrap_iters=0)
print(sorted(found["results"]["gsm8k"]))
"""
    assert "pass@2,none" in run_python(code, path, data_dir)


PROCESSES = """
import json, sys
from adapter_cases import adapter, evaluate_ranks
found = evaluate_ranks(adapter(), sys.argv[1], ["gsm8k", "arc_easy"])
if found is not None:
    open(sys.argv[2], "w").write(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    data_dir = write_data(tmp_path, rows=3)  # odd: one process runs copies, which must not count
    script, output = tmp_path / "script.py", tmp_path / "found.json"
    script.write_text(PROCESSES)
    together(2, script, data_dir, output, log=tmp_path / "log")
    for task, found in json.loads(output.read_text()).items():
        alone = evaluate(adapter(), data_dir, task)
        assert found["scores"].keys() == alone["results"][task].keys()
        for name, value in alone["results"][task].items():
            if isinstance(value, float):
                # Other batches: logits below 10, and what every layer adds, round by some 2^-24.
                assert found["scores"][name] == pytest.approx(value, abs=1e-5)
        if task == "gsm8k":
            expected = texts(alone)
            assert {int(i): kept[:3] for i, kept in found["texts"].items()} == expected
