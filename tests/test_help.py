"""What is told to someone who asks: pages of help, completions, what to do next, what a run would be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Ended

from softeval.cli.main import COMMANDS, load_command
from softeval.runs.config import RunConfig
from softeval.runs.run import Run
from softeval.trainers.config import TrainConfig

pytest_plugins = ("command_line_fixtures",)

OURS = [name for name in COMMANDS if name != "lm-eval"]  # which lm-eval explains
CONFIGURED = {"run": RunConfig, "train": TrainConfig}


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("name", OURS)
def test_a_page_cuts_no_name_and_fits(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, name: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = softeval(name, "--help").out
    assert max(map(len, shown.splitlines())) <= columns
    assert "env var" not in shown and "…[" not in shown
    names = [p.opts for p in load_command(name).params if p.param_type_name == "option"]
    for option in [option for spellings in names for option in spellings]:
        bare = re.escape(option.lstrip("-"))
        assert re.search(rf"(?m)^ .*--?(\[no-\])?{bare}(?=[ ,]|$)", shown), option
    for field in CONFIGURED[name].model_fields if name in CONFIGURED else ():
        assert re.search(rf"--(\[no-\])?{field.replace('_', '-')}\b", shown)


def test_choices_are_named(softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = " ".join(softeval("run", "--help").out.split())
    assert "[auto, float32, bfloat16, float16] Default: auto" in shown
    assert "[local, slurm, print]" in softeval("sweep", "--help").out


def test_the_bare_name_says_what_to_do_next(softeval: Callable[..., Ended]) -> None:
    ended = softeval()
    assert ended.code == 0 and ended.err == ""
    named = re.findall(r"(?m)^  softeval ([a-z-]+)", ended.out)
    assert len(named) > 2 and set(named) <= COMMANDS.keys()


def test_a_group_shows_its_commands(softeval: Callable[..., Ended]) -> None:
    ended = softeval("ls")
    assert ended.code == 2 and ended.out == ""
    assert ended.err.startswith("Usage: softeval ls") and "softeval:" not in ended.err
    assert all(re.search(rf"(?m)^  {name} ", ended.err) for name in ("tasks", "modes", "runs"))


@pytest.mark.parametrize(
    ("typed", "some", "none"),
    [
        ("run --modes so", "soft_greedy", "hard_greedy"),
        ("run --modes hard_greedy,so", "hard_greedy,soft_sample", "soft_sample"),
        ("run --modes a", "all", "gumbel"),
        ("run --tasks math", "math500", "gsm8k"),
        ("run --dtype b", "bfloat16", "auto"),
        ("train --config demo_", "demo_soft", "gsm8k"),
        ("train --config llama-3.2-3b+gs", "llama-3.2-3b+gsm8k", "gsm8k"),
        ("train --dataset gs", "gsm8k", "math500"),
        ("sweep demo_f", "demo_f1", "paper"),
        ("show --mode soft_s", "soft_sample", "soft_greedy"),
        ("show ru", "runs/mine", "runs"),
        ("report runs/demo", "runs/demo/base", "runs/mine"),
        ("report Base=runs/demo/", "Base=runs/demo/base", "runs/demo/base"),
        ("compare runs/m", "runs/mine", "runs/demo/base"),
    ],
)
def test_a_shell_completes(
    softeval: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: str,
    some: str,
    none: str,
) -> None:
    for run in ("runs/mine", "runs/demo/base"):
        Path(run).mkdir(parents=True)
        (Path(run) / "run.json").write_text("{}")
    monkeypatch.setenv("COMP_WORDS", f"softeval {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    monkeypatch.setenv("_SOFTEVAL_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit) as left:
        softeval()
    told = capsys.readouterr().out.split()
    assert left.value.code == 0 and some in told and none not in told


def test_a_plan_says_first_what_matters(softeval: Callable[..., Ended], finished: Run) -> None:
    ended = softeval("run", "--dry-run", "--limit", "3", "-n", "4", "--modes", "soft_sample")
    head, _, configuration = ended.out.partition("\nConfiguration:\n")
    lines = dict(re.findall(r"(?m)^([\w ]+): +(.*)$", head))
    assert lines["model"].endswith("softeval/checkpoints/base (llama, context 2,048)")
    assert lines["run directory"].endswith("(new)") and lines["modes"] == "soft_sample"
    assert lines["samples"] == f"12, at most {12 * 544:,} tokens"
    assert "hours of one" in lines["cost"] and "GB on disk" in lines["cost"]
    assert "  num_samples: 4\n" in configuration


def test_the_environment_says_that_there_is_no_gpu(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "accelerators: no GPU (" in softeval("env").out
    assert '"accelerators": []' in softeval("env", "--json").out
