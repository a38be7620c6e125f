"""Data and tasks that are not ours: half characters, and lm-eval's own tasks without a filter."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from adapter_cases import CAPS, adapter, save_lm, write_data
from command_line import Ended

from softeval import UserError, generate, load_model
from softeval.lmeval.requests import GenText
from softeval.tasks.local_data import read_rows

pytest_plugins = ("command_line_fixtures",)


@pytest.mark.parametrize("half", ["\\ud800", "\\uDFFF", "\\ud83d x"])
def test_half_a_character_in_a_row_is_named(softeval: Callable[..., Ended], half: str) -> None:
    Path("d").mkdir()
    rows = [
        '{"question": "1 + 1", "answer": "#### 2"}',
        f'{{"question": "a{half}b", "answer": "2"}}',
    ]
    Path("d/gsm8k_test.jsonl").write_text("\n".join(rows))
    ended = softeval("run", "--tasks", "gsm8k", "--data-dir", "d", "--device", "cpu", "-o", "run")
    assert ended.code == 2 and ended.err.count("\n") <= 2
    assert "gsm8k_test.jsonl, line 2: question holds \\ud" in ended.err
    assert "half a character" in ended.err


def test_whole_characters_written_in_halves_are_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "\\ud83d\\ude00 \\\\ud800"}\n')
    assert read_rows(file, ["question"]) == [{"question": "😀 \\ud800"}]


def test_half_a_character_in_a_prompt_is_one_line() -> None:
    with pytest.raises(UserError, match="half a character"):
        generate(load_model(device="cpu"), ["1 + 1", "a\ud800b"], max_cot_tokens=3)


def test_a_text_that_is_no_sample_is_a_plain_one() -> None:
    """lm-eval makes `type(result)(label)`, whatever the label is."""
    assert GenText("7") == "7" and GenText(7) == "7" and GenText() == ""
    assert GenText("7").meta == {} and GenText("7").generation is None
    again = pickle.loads(pickle.dumps(GenText("7", {"mode": "m"})))
    assert again == "7" and again.meta == {"mode": "m"}


TASK = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {cap}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
{more}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("no_defaults", "unasked")
@pytest.mark.parametrize(("mode", "repeats"), [("hard_greedy", 1), ("soft_sample", 4)])
def test_an_unfiltered_task_of_lm_eval_runs(
    softeval: Callable[..., Ended], tmp_path: Path, mode: str, repeats: int
) -> None:
    model = save_lm(tmp_path / "tiny")
    data = tmp_path / "mine.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"{i}", "answer": f"{i}"}) + "\n" for i in (1, 2))
    )
    cap = CAPS["max_cot_tokens"] + CAPS["max_answer_tokens"]
    more = f"repeats: {repeats}" if repeats > 1 else ""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/mine.yaml").write_text(TASK.format(data=data, cap=cap, more=more))
    caps = ",".join(f"{name}={value}" for name, value in CAPS.items())
    arguments = f"pretrained={model},mode={mode},num_samples={repeats},{caps}"
    ended = softeval(
        "lm-eval", "run", "--model", "softeval", "--model_args", arguments, "--tasks", "mine",
        "--include_path", tmp_path / "tasks", "--device", "cpu", "--output_path", tmp_path / "out",
        "--log_samples",
    )  # fmt: skip
    assert ended.code == 0 and "exact_match" in ended.out, ended.err[-3000:]
    (logged,) = (tmp_path / "out").glob("*/samples_mine_*.jsonl")
    samples = [json.loads(line) for line in logged.read_text().splitlines()]
    assert [len(sample["resps"][0]) for sample in samples] == [repeats, repeats]
    assert all(sample["exact_match"] in (0.0, 1.0) for sample in samples)


@pytest.mark.slow
@pytest.mark.usefixtures("unasked")
def test_examples_that_are_not_there_are_refused(tmp_path: Path) -> None:
    import lm_eval

    from softeval.lmeval import task_manager

    data_dir = write_data(tmp_path)
    manager = task_manager(data_dir=data_dir, **CAPS)
    ask = {"tasks": ["gsm8k"], "task_manager": manager, "limit": 1, "bootstrap_iters": 0}
    with pytest.raises(UserError, match="--num-fewshot 3: "):
        lm_eval.simple_evaluate(model=adapter("hard_greedy", 1), num_fewshot=3, **ask)
    found = lm_eval.simple_evaluate(model=adapter("hard_greedy", 1), num_fewshot=0, **ask)
    assert found is not None and found.get("n-shot") == {"gsm8k": 0}
