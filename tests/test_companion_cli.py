"""`softeval show`, `ls`, `env` and `lm-eval`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Ended
from synthetic import make_generation, write_run

from softeval.modes import ALL
from softeval.records import SampleKey
from softeval.runs.run import Run, load_run
from softeval.runs.tables import TableWriter, prompt_row
from softeval.scoring.judge import Verdict

pytest_plugins = ("command_line_fixtures",)


def test_show_prints_samples_and_nothing_steers_the_terminal(
    softeval: Callable[..., Ended],
) -> None:
    Path("run").mkdir()
    generation = make_generation(SampleKey("t", 4, 0), "soft_sample", answer="[b]7[/b]\x1b[2J")
    with TableWriter(Path("run"), str) as writer:
        writer.add(generation, "0" * 16, "7", Verdict(False, "ok"))
        writer.write("prompts", [prompt_row("t", 4, "What is [red]x[/red]?\x07", "7")])
    write_run(Path("other"), questions=1, samples=1)
    shutil.copy("other/run.json", "run")
    shown = softeval("show", "run", "--task", "t", "--doc", "4", "--mode", "soft-sample").out
    assert "[b]7[/b]" in shown and "[red]x[/red]" in shown
    assert "\x1b[2J" not in shown and "\x07" not in shown
    found = json.loads(softeval("show", "run", "--doc", "4", "--json").out)
    assert found["target"] == "7" and found["samples"][0]["answer"] == "[b]7[/b]\x1b[2J"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--doc", "99"], "no doc_id 99"),
        (["--task", "gsm8k"], "this run's tasks are arithmetic"),
        (["--mode", "soft"], "this run's modes are"),
        (["--sample", "77", "--mode", "soft_sample"], "no sample 77"),
    ],
)
def test_show_names_what_is_there(
    softeval: Callable[..., Ended], finished: Run, arguments: list[str], message: str
) -> None:
    ended = softeval("show", str(finished.path), *arguments)
    assert ended.code == 2 and message in ended.err


def test_show_of_a_real_run(softeval: Callable[..., Ended], finished: Run) -> None:
    one = ["--doc", "1", "--mode", "hard_sample", "--sample", "2"]
    shown = softeval("show", str(finished.path), *one).out
    samples = finished.samples()
    row = samples[(samples["doc_id"] == 1) & (samples["sample"] == 2)]
    row = row[row["mode"] == "hard_sample"].iloc[0]
    assert row["cot_text"].split()[0] in shown and "hard_sample sample 2" in shown
    assert f"CoT of {row['n_cot_tokens']} tokens" in shown


def test_show_gives_a_line_a_mode_then_a_right_and_a_wrong_sample(
    softeval: Callable[..., Ended],
) -> None:
    write_run(Path("run"), questions=3, samples=8, positions=60)
    samples = load_run("run").samples()
    for doc, rows in samples[samples["mode"] == "soft_sample"].groupby("doc_id"):
        shown = softeval("show", "run", "--doc", str(doc)).out
        (line,) = [line for line in shown.splitlines() if line.startswith("soft_sample ")][:1]
        assert f"{rows['correct'].sum()} of 8 right" in line
        assert f"distinct answers: {rows['answer'].nunique(dropna=False)}" in line
        assert shown.count(" sample 0: ") + shown.count(" sample 1: ") == 2
        assert "answer_prefix" not in shown and "CoT of " in shown
        everything = softeval("show", "run", "--doc", str(doc), "--all").out
        assert everything.count("\nCoT of ") == 3 + 3 * 8
        for word in ("right", "wrong"):
            found = json.loads(
                softeval("show", "run", "--doc", str(doc), f"--{word}", "--json").out
            )
            assert {row["correct"] for row in found["samples"]} == {word == "right"}
    assert softeval("show", "run", "--right", "--wrong").code == 2


def test_show_draws_the_mixture_in_narrow_terminals_and_without_colour(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(Path("run"), questions=1, samples=2, positions=60, top=3)
    one = ["show", "run", "--mode", "soft_sample", "--sample", "0"]
    monkeypatch.setenv("COLUMNS", "66")
    plain = softeval(*one).out
    assert "█" in plain and "temperature 0.5" in plain
    assert "\x1b" not in plain and max(map(len, plain.splitlines())) <= 66
    assert softeval(*one, "--all").out.count(" %") > plain.count(" %")
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = softeval(*one).out
    assert "\x1b[34m█" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[34m" not in softeval(*one).out
    tokens = load_run("run").tokens().set_index("token_id")["text"]
    mixtures = load_run("run").mixtures()
    first = mixtures[(mixtures["mode"] == "soft_sample") & (mixtures["position"] == 0)].iloc[0]
    assert f"{tokens[first['token_id']].strip()} {100 * first['prob']:.0f} %" in plain


def test_show_pages_what_is_longer_than_the_terminal(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(Path("run"), questions=1, samples=2)
    paged: list[str] = []
    monkeypatch.setattr("pydoc.pager", paged.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("LINES", "200")
    assert "target" in softeval("show", "run").out and not paged
    monkeypatch.setenv("LINES", "5")
    assert softeval("show", "run").out == "" and "target" in paged[0]


def test_show_tells_an_answer_that_nobody_judged_from_a_wrong_one(
    softeval: Callable[..., Ended],
) -> None:
    write_run(Path("run"), questions=1, samples=1)
    with TableWriter(Path("run"), str) as writer:
        for sample, status in enumerate(("not_judged", "timeout")):
            generation = make_generation(SampleKey("t", 0, sample), "hard_sample")
            writer.add(generation, "0" * 16, "7", Verdict(False, status))
        writer.write("prompts", [prompt_row("t", 0, "What?", "7")])
    shown = softeval("show", "run", "--all").out
    assert "hard_sample sample 0: not judged" in shown
    assert "hard_sample sample 1: wrong (timeout)" in shown and "0 of 1 right" in shown


def test_every_part_of_a_narrow_leaderboard_names_run_and_mode(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(Path("runs/of-a-long-name"), modes=("hard_sample", "soft_sample"), questions=4)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    shown = softeval("leaderboard", "runs").out
    parts = sum("pass@" in line and "Percent" not in line for line in shown.splitlines())
    assert parts == 2 and shown.count("soft sample") == parts == shown.count("hard sample")


def test_ls_modes_says_what_each_is(softeval: Callable[..., Ended]) -> None:
    rows = json.loads(softeval("ls", "modes", "--json").out)
    assert [row["mode"] for row in rows[:6]] == list(ALL)
    printed = " ".join(softeval("ls", "modes").out.split())
    for row in rows:
        assert row["meaning"] and row["meaning"] in printed
        assert row["temperature"] is None or f"Temperature {row['temperature']:g}." in printed
    assert "σ = γ · rms of embeddings" in printed and "noise_scale=0.33" in printed


def test_ls_lists_runs(softeval: Callable[..., Ended]) -> None:
    write_run(Path("runs/a"), questions=1, samples=1, status="partial")
    (Path("runs/b")).mkdir()
    Path("runs/b/run.json").write_text("{")
    ended = softeval("ls", "runs", "--json")
    (row,) = json.loads(ended.out)
    assert row["run"] == "runs/a" and row["status"] == "partial"
    assert "runs/b/run.json cannot be read" in ended.err
    assert "runs/a" in softeval("ls", "runs").out


def test_ls_tasks_are_those_lm_eval_finds(softeval: Callable[..., Ended]) -> None:
    from softeval.lmeval import task_manager

    listed = json.loads(softeval("ls", "tasks", "--json").out)
    assert sorted(row["task"] for row in listed) == sorted(task_manager().all_tasks)
    kinds = {row["task"]: row["kind"] for row in listed}
    assert kinds["hellaswag"] == "log-likelihood" and kinds["hellaswag_cot"] == "generative"


def test_env_names_versions_and_hardware(softeval: Callable[..., Ended]) -> None:
    found = json.loads(softeval("env", "--json").out)
    assert found["versions"]["torch"] and found["hardware"]["cores"] >= 1
    assert f"torch: {found['versions']['torch']}" in softeval("env").out


def test_lm_eval_gets_its_arguments_as_they_are(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.__main__ as theirs

    given: list[str] = []
    monkeypatch.setattr(theirs, "cli_evaluate", lambda: given.extend(sys.argv[1:]))
    arguments = ["run", "--model_args", "mode=soft_sample", "--tasks", "a_b", "--help", "-x"]
    assert softeval("lm_eval", *arguments).code == 0
    assert given[: len(arguments)] == arguments


def test_ls_finds_runs_one_level_down_and_names_a_folder_that_is_not_there(
    softeval: Callable[..., Ended],
) -> None:
    assert softeval("ls", "runs") == Ended(0, "", "none\n")
    write_run(Path("runs/demo/soft"), questions=1, samples=1)
    (row,) = json.loads(softeval("ls", "runs", "--json").out)
    assert row["run"] == "runs/demo/soft"
    assert json.loads(softeval("ls", "runs", "runs/demo/soft", "--json").out) == [row]
    ended = softeval("ls", "runs", "nosuch")
    assert ended.code == 2 and "no folder nosuch" in ended.err
