"""`softeval ablate`: what a grid is, what is refused, what is still to do, and one real grid."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from command_line import Ended
from conftest import ROOT

from softeval.cli.recipes import read_recipes
from softeval.sweeps import chain
from softeval.sweeps.chain import Command, CommandState, SweepCell
from softeval.sweeps.grid import expand, read_grid

pytest_plugins = ("command_line_fixtures",)

SHIPPED = sorted((ROOT / "softeval" / "sweeps" / "ablations").glob("*.yaml"))


def cells_of(tmp_path: Path, **content: object) -> list[SweepCell]:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"config": "demo", **content}))
    file = read_grid(path)
    return expand(file, read_recipes(file.config), tmp_path / "out")


def options(command: Command) -> dict[str, str]:
    """Each flag with the word after it; "" for a flag alone."""
    words = [*command.arguments[1:], "--"]
    pairs = itertools.pairwise(words)
    return {a: "" if b.startswith("--") else b for a, b in pairs if a.startswith("--")}


# The grid ------------------------------------------------------------------------------------


def test_cells_are_the_product_of_each_grid_and_the_union_of_all(tmp_path: Path) -> None:
    grid = [
        {"method": ["soft", "hidden-noise"], "noise-scale": [0.1, 1]},
        {"method": "top_logit_noise", "top_k": [5, 50]},
    ]
    cells = cells_of(tmp_path, grid=grid, seeds=[3, 7])
    names = ["soft, noise_scale 0.1", "soft, noise_scale 1"]
    names += ["hidden-noise, noise_scale 0.1", "hidden-noise, noise_scale 1"]
    names += ["top_logit_noise, top_k 5", "top_logit_noise, top_k 50"]
    expected = [("base", None), *((name, seed) for name in names for seed in (3, 7))]
    assert [(cell.name, cell.seed) for cell in cells] == expected
    assert len({command.folder for cell in cells for command in cell.commands}) == 6 * 2 * 2 + 1


def test_a_cell_is_a_training_and_an_evaluation_of_what_it_made(tmp_path: Path) -> None:
    [cell] = cells_of(
        tmp_path,
        train={"max-steps": 2, "report_to": "none", "skip_zero_advantage": False},
        grid={"method": "top_logit_noise", "top_k": 5, "temperature": 0.5},
        seeds=4,
        run={"num-samples": 2, "modes": ["hard_greedy", "soft_sample"]},
        checkpoint="last",
        base=False,
    )
    train, run = cell.commands
    found = options(train)
    assert (
        found["--no-skip-zero-advantage"] == ""
        and found["--method"] == "top_logit_noise"
        and found["--mode-args"] == "top_k=5"
    )
    assert found["--max-steps"] == "2" and found["--report-to"] == "none"
    assert found["--seed"] == "4" and found["--output-path"] == str(train.folder)
    assert found["--num-generations"] == "32"  # of the recipe: the command stands alone
    assert options(run)["--model"] == str(train.folder / "last")
    assert options(run)["--modes"] == "hard_greedy,soft_sample"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_grids_are_those_of_the_paper(path: Path) -> None:
    """Rows of tables 6, 7 and 8, the miniature beside the paper's own."""
    cells = expand(file := read_grid(path), read_recipes(file.config), Path("out"))
    points = {cell.name for cell in cells if cell.seed is not None}
    assert len(points) == {"f1": 4, "f2": 8, "f3": 4}[path.stem.removeprefix("demo_")]
    small = path.stem.startswith("demo_")
    tasks = {options(cell.commands[-1])["--tasks"] for cell in cells}
    assert tasks == {"arithmetic" if small else "gsm8k"}
    models = {options(cell.commands[0]).get("--model") for cell in cells}
    assert models == {None} if small else {"meta-llama/Llama-3.2-3B-Instruct"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"grid": {}, "seed": 1}, "unknown key 'seed'; did you mean seeds?"),
        ({}, "grid: field required"),
        ({"grid": 3}, "grid.0: input should be a valid dictionary"),
        ({"grid": {"noise_scale": []}}, "grid.0.noise_scale: list should have at least 1 item"),
        ({"grid": {}, "seeds": [0, 0]}, "seeds: [0, 0]: name one or more seeds, each once"),
        ({"grid": {}, "checkpoint": "first"}, "checkpoint: input should be 'best' or 'last'"),
        ({"grid": {"method": "gumble"}}, "--method gumble: unknown mode 'gumble'"),
        ({"grid": {"method": "soft_thinking"}}, "soft_thinking has no density to train with"),
        ({"grid": {"method": "hard", "noise_scale": 1}}, "hard_sample has no option 'noise_scale'"),
        ({"grid": {"top_k": [5, 50]}}, "soft_sample has no option 'top_k'"),
        (
            {"grid": {"learning_rat": 1}},
            "unknown option 'learning_rat'; did you mean learning_rate",
        ),
        ({"grid": {"noise_scale": [0.1, -1]}}, "--noise-scale -1: input should be greater than 0"),
        ({"grid": {"temperature": [0.5, 0.50]}}, "'soft' and 'soft' are the same"),
        ({"grid": [{}, {"temperature": 0.5}]}, "'soft' and 'temperature 0.5' are the same"),
        ({"grid": {"seed": [0, 1]}}, "seed belongs under seeds"),
        ({"grid": {}, "train": {"output_path": "x"}}, "train: output_path is chosen here"),
        ({"grid": {}, "train": {"max_step": 2}}, "unknown option 'max_step'; did you mean"),
        ({"grid": {}, "run": {"model": "x"}}, "run: model is what was trained"),
        ({"grid": {"model": ["a", "b"]}}, "start from several models; set base to false"),
        ({"grid": {}, "run": {"modes": "soft"}}, "unknown mode 'soft'"),
        ({"grid": {}, "run": {"tasks": "gsm9k"}}, "gsm9k"),
        ({"grid": {}, "config": "demo_sft"}, "no recipe 'demo_sft'; did you mean demo_soft"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(
    softeval: Callable[..., Ended], tmp_path: Path, content: dict[str, object], told: str
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"config": "demo", **content}))
    ended = softeval("ablate", path, "-o", tmp_path / "out")
    assert ended.code == 2 and told in ended.err and ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_grid_is_answered_by_the_known(softeval: Callable[..., Ended]) -> None:
    ended = softeval("ablate", "demo-f1")
    assert ended.code == 2 and "did you mean demo_f1?" in ended.err


# What is there -------------------------------------------------------------------------------


def write_training(folder: Path, command: str, last: int = 2, best: int = 0) -> None:
    """What a training of two updates leaves that tells how far it is."""
    curve = [{"step": 0, "success": 0.5}, {"step": 2, "success": 0.5}]
    for name, step in (("last", last), ("best", best)):
        (folder / name).mkdir(parents=True)
        said = {"step": step, "validation": curve}
        (folder / name / "softeval_training.json").write_text(json.dumps(said))
    record = {"command": command, "config": {"max_steps": 2}}
    (folder / "train.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, CommandState.DONE),
        ({"last": 1}, CommandState.BEGUN),
        ({"best": 2}, CommandState.BEGUN),  # the first of equals is kept: `best` was not exported
        ({"command": "softeval train --seed 1"}, CommandState.BEGUN),
    ],
)
def test_a_training_is_done_when_its_best_checkpoint_stands(
    tmp_path: Path, changes: dict[str, object], state: CommandState
) -> None:
    command = Command(("train", "--seed", "0"), tmp_path / "train")
    assert command.state is CommandState.MISSING
    write_training(command.folder, **({"command": command.text} | changes))
    assert command.state is state


@pytest.mark.parametrize(("status", "state"), [("complete", "done"), ("partial", "begun")])
def test_an_evaluation_is_done_when_its_record_says_so(
    tmp_path: Path, status: str, state: str
) -> None:
    command = Command(("run", "--seed", "0"), tmp_path / "run")
    command.folder.mkdir()
    assert command.state is CommandState.BEGUN
    record = {"command": command.text, "status": status}
    (command.folder / "run.json").write_text(json.dumps(record))
    assert command.state == state


def test_a_dry_run_lists_the_cells_and_writes_nothing(
    softeval: Callable[..., Ended], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"grid": {"noise_scale": [0.1, 1]}, "seeds": [0]}))
    ended = softeval("ablate", path, "--dry-run", "--json")
    known = [c for cell in json.loads(ended.out) for c in cell["commands"]]
    assert [c["state"] for c in known] == ["missing"] * 5 and not Path("runs").exists()
    folder = Path("runs/ablate-mine/noise_scale-1-seed-0/train")
    [text] = [c["command"] for c in known if c["folder"] == str(folder)]
    write_training(folder, text)
    shown = softeval("ablate", path, "--dry-run").out.splitlines()
    assert [[part.strip() for part in line.strip("|").split("|")] for line in shown] == [
        ["cell", "seed", "train", "run"],
        ["---", "---", "---:", "---:"],
        ["base", "–", "–", "missing"],
        ["noise_scale 0.1", "0", "missing", "missing"],
        ["noise_scale 1", "0", "done", "missing"],
    ]


# What is run ---------------------------------------------------------------------------------


def chains(tmp_path: Path, names: str) -> list[SweepCell]:
    steps = {
        n: [Command((kind, n), tmp_path / n / kind) for kind in ("train", "run")] for n in names
    }
    return [SweepCell(name, 0, tuple(commands)) for name, commands in steps.items()]


def test_only_what_is_missing_is_run_and_a_failure_stops_its_own_cell_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = chains(tmp_path, "abc")
    write_training(cells[2].commands[0].folder, cells[2].commands[0].text)
    started: list[tuple[str, ...]] = []
    codes = {("train", "a"): -9}
    monkeypatch.setattr(
        chain, "execute", lambda c: started.append(c.arguments) or codes.get(c.arguments, 0)
    )
    failed, stopped = chain.run_missing(cells, lambda text: None)
    assert started == [("train", "a"), ("train", "b"), ("run", "b"), ("run", "c")]
    assert (failed, stopped) == ([cells[0].commands[0]], 0)


def test_an_interruption_starts_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(chain, "execute", lambda command: 143)
    assert chain.run_missing(chains(tmp_path, "ab"), told.append) == ([], 143)
    assert told == ["cell 1 of 2: softeval train a"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_command_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    script = tmp_path / "waits"
    script.write_text(
        f"#!/bin/sh\ntrap 'touch {tmp_path}/saved; exit 5' TERM INT\ntouch {tmp_path}/ready\n"
        "for wait in $(seq 3000); do sleep 0.02; done\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(chain.sys, "executable", str(script))

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=interrupt).start()
    assert chain.execute(Command((), tmp_path)) == 5
    assert (tmp_path / "saved").exists() and signal.getsignal(number) is before


# A real one ----------------------------------------------------------------------------------

TINY = {
    "title": "Tiny",
    "config": "demo_fuzzy",
    "train": {
        "max_steps": 2, "prompts_per_step": 1, "num_generations": 2, "limit": 12, "eval_steps": 2,
        "validation_size": 2, "max_cot_tokens": 12, "kl_steps": 0, "gradient_split_steps": 0,
        "report_to": "none", "device": "cpu",
    },
    "grid": {"noise_scale": [0.1, 0.33]},
    "seeds": [0],
    "run": {"limit": 3, "num_samples": 2, "modes": "hard_greedy,hard_sample", "device": "cpu"},
}  # fmt: skip


def start(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "softeval", "ablate", str(folder / "tiny.yaml"), "-o", "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE)


def kill_training_of(parent: int, name: str) -> None:
    """SIGKILL for the training of a cell, once it has written its record."""
    while True:
        for child in psutil.Process(parent).children():
            with suppress(psutil.Error):  # it may end while it is looked at
                words = child.cmdline()
                folder = next((Path(word) for word in words if name in word), None)
                if "train" in words and folder is not None:
                    record = Path(child.cwd()) / folder / "train.json"
                    while child.is_running() and not record.exists():
                        time.sleep(0.01)
                    return child.kill()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_grid_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    first = start(tmp_path)
    kill_training_of(first.pid, "noise_scale-0.1-seed-0")
    shown, _ = first.communicate(timeout=600)
    assert first.returncode == 1 and "2 of 3 cells are done" in shown
    out = tmp_path / "out"
    kept = {
        p: p.stat().st_mtime_ns
        for p in out.rglob("*")
        if "seed-0" not in str(p) or "0.33" in str(p)
    }
    kept = {path: at for path, at in kept.items() if path.is_file() and path.parent != out}
    second = start(tmp_path)
    shown, _ = second.communicate(timeout=600)
    assert second.returncode == 0 and "3 of 3 cells are done" in shown
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    page = (out / "report.html").read_text()
    for text in ("<title>Tiny", "noise_scale 0.1", "noise_scale 0.33", "paper 75.5 ± 0.8"):
        assert text in page
    record = json.loads((out / "noise_scale-0.1-seed-0" / "run" / "run.json").read_text())
    assert record["training"]["mode"]["noise_scale"] == 0.1
