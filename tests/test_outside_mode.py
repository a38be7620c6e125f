"""A mode of somebody else's file, under a name that says nothing, through every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Ended

from softeval.errors import UserError
from softeval.modes import MODES, get_mode, load_mode_file

pytest_plugins = ("command_line_fixtures",)

MODE_FILE = Path(__file__).with_name("outside_mode.py")
CHECKPOINTS = Path(__file__).parents[1] / "softeval" / "checkpoints"


@pytest.mark.slow
def test_an_outside_mode_goes_through_every_command(
    softeval: Callable[..., Ended], tmp_path: Path
) -> None:
    file = ("--mode-file", str(MODE_FILE))
    asked = ("--modes", "zwoelf,hard_sample", "--limit", "4", "-n", "4", "--max-cot-tokens", "40")
    runs = []
    for name in ("base", "soft"):
        model = ("--model", str(CHECKPOINTS / name), "-o", name, "--quiet")
        ended = softeval("run", *model, *file, *asked, "--mode-args", "loudness=0.2")
        assert ended.code == 0, ended.err
        runs.append(name)
    record = json.loads(Path("base/run.json").read_text())
    [ours] = [entry for entry in record["modes"] if entry["name"] == "zwoelf"]
    assert (ours["family"], ours["is_greedy"], ours["loudness"]) == ("dozen", False, 0.2)

    ended = softeval("diagnose", "soft", "--base", str(CHECKPOINTS / "base"), "--sets", "own,base")
    assert ended.code == 0, ended.err
    assert json.loads(Path("soft/run.json").read_text())["diagnose"]["differing"] == 0

    ended = softeval("attribute", "soft", "--modes", "zwoelf", "--json")
    assert ended.code == 0, ended.err
    counts = {"replayed": 4, "otherwise": 0, "differing": 0}
    assert json.loads(ended.out) == {"zwoelf": counts}

    ended = softeval("compare", "soft", "base", "--mode", "zwoelf")
    assert ended.code == 0 and "zwoelf" in ended.out, ended.err

    ended = softeval("report", *runs, "-o", "report.html")
    assert ended.code == 0, ended.err
    page = Path("report.html").read_text()
    # Its name heads a panel of each figure, and a row or table where modes are told apart.
    for section in ("curves", "entropy", "families", "kl", "attribution"):
        start = page.index(f'id="{section}"')
        assert "zwoelf" in page[start : page.index("</section>", start)], section

    small = ("--dataset", "demo", "--limit", "12", "--steps", "3", "--group-size", "4")
    cheap = ("--validation-size", "4", "--report-to", "none", "--max-cot-tokens", "24")
    trained = softeval("train", "--method", "zwoelf", *file, *small, *cheap, "-o", "out", "--quiet")
    assert trained.code == 0, trained.err
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 3


def test_a_mode_file_that_fails_is_one_line(softeval: Callable[..., Ended], tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    for file, part in ((broken, "ZeroDivisionError"), (tmp_path / "no.py", "no such file")):
        ended = softeval("run", "--mode-file", str(file), "--limit", "1")
        assert ended.code == 2 and part in ended.err
        assert ended.err.count("\n") == 1


def test_a_mode_file_that_was_edited_is_run_again(tmp_path: Path) -> None:
    """In a notebook: its hash is in the identity of a run, so the code must be what was hashed."""
    file, code = tmp_path / "mine.py", MODE_FILE.read_text().replace("zwoelf", "mine")
    code = code.replace("from dataclasses", "from __future__ import annotations\nfrom dataclasses")
    for loudness in (0.1, 0.4):
        file.write_text(code.replace("loudness: float = 0.1", f"loudness: float = {loudness}"))
        for _ in range(2):
            load_mode_file(file)
            assert get_mode("mine").options["loudness"] == loudness
    code = file.read_text()
    file.write_text("1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        load_mode_file(file)
    file.write_text(code)
    load_mode_file(file)
    assert "mine" in MODES
    file.write_text("")
    load_mode_file(file)
    assert "mine" not in MODES


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--modes", "soft_thinking", "--mode-args", "top_m=3"), "no option 'top_m'"),
        (("--modes", "soft_thinking", "--mode-args", "top_n"), "must be name=value"),
        (("--modes", "hard_sample", "--mode-args", "patience=3"), "no option 'patience'"),
        (
            ("--modes", "soft_thinking", "--mode-args", "patience=x"),
            "--mode-args patience 'x': must be of type int",
        ),
        (("--modes", "hard_sample", "--mode-args", "top_p=.9,top_p=.8"), "top_p is given more"),
        (
            ("--modes", "hard_sample", "--mode-args", "temperature=.9", "--temperature", "1"),
            "give it by --temperature alone",
        ),
    ],
)
def test_wrong_mode_arguments_are_one_line(
    options: tuple[str, ...], part: str, softeval: Callable[..., Ended]
) -> None:
    ended = softeval("run", *options, "--limit", "1", "--dry-run")
    assert ended.code == 2 and part in ended.err


def test_training_refuses_an_option_given_both_ways(softeval: Callable[..., Ended]) -> None:
    ended = softeval(
        *("train", "--config", "demo_soft", "--dry-run"),
        *("--noise-scale", "0.9", "--mode-args", "noise_scale=0.1"),
    )
    assert ended.code == 2 and "give it by --noise-scale alone" in ended.err
