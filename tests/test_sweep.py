"""`softeval sweep`: what a grid is, what is refused, what is still to do, where it runs, and real ones."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from command_line import Ended
from conftest import ROOT
from forked import start

from softeval.cli import main as cli
from softeval.cli.recipes import read_recipes
from softeval.errors import UserError
from softeval.sweeps import chain, launch
from softeval.sweeps.chain import Command, CommandState, SweepCell
from softeval.sweeps.grid import expand, read_grid

pytest_plugins = ("command_line_fixtures",)

SHIPPED = sorted((ROOT / "softeval" / "sweeps" / "grids").glob("*f?.yaml"))


def cells_of(tmp_path: Path, **content: object) -> list[SweepCell]:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"config": "demo", **content}))
    return cells_in(path, tmp_path / "out")


def cells_in(path: Path, folder: Path) -> list[SweepCell]:
    file = read_grid(path)
    return expand(file, {names: read_recipes(names) for names in file.recipes}, folder)


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
    cells = cells_in(path, Path("out"))
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
        ({"run": {"shard": "1/2"}}, "run: shard belongs under shards"),
        ({"shards": 0}, "shards: input should be greater than or equal to 1"),
        (
            {"shards": 11, "run": {"limit": 10}},
            "shards: 11 of arithmetic, which has 10 questions only",
        ),
        ({"diagnose": {"limits": 3}}, "diagnose.limits"),
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
    ended = softeval("sweep", path, "-o", tmp_path / "out")
    assert ended.code == 2 and told in ended.err and ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


GRIDS = ROOT / "softeval" / "sweeps" / "grids"


def test_the_papers_experiment_is_three_models_sets_methods_and_seeds() -> None:
    """Section 4: 27 recipes, three seeds, six modes on six tasks; the untrained models beside them."""
    cells = cells_in(GRIDS / "paper.yaml", Path("out"))
    assert [cell.name for cell in cells if cell.seed is None] == [
        "base Llama-3.2-3B-Instruct",
        "base Llama-3.1-8B-Instruct",
        "base Qwen2.5-3B-Instruct",
    ]
    trained = [cell for cell in cells if cell.seed is not None]
    assert len(trained) == 81 and len({cell.name for cell in trained}) == 27
    assert {cell.seed for cell in trained} == {0, 1, 2}
    for cell in trained:
        train, run, diagnose = cell.commands
        model, dataset, method = cell.name.split(", ")
        recipe = read_recipes([model, dataset, method])
        found = options(train)
        for name in ("model", "dataset", "method", "learning_rate", "max_cot_tokens"):
            assert found[f"--{name.replace('_', '-')}"] == str(recipe[name]), name
        assert train.processes == (8 if "8b" in model else 1)
        assert options(run)["--modes"] == "all" and len(options(run)["--tasks"].split(",")) == 6
        assert options(diagnose)["--base"] == recipe["model"]


def test_shards_and_diagnosis_are_commands_between_training_and_report(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, grid={}, seeds=0, shards=2, diagnose={"limit": 3}, processes=2)
    base, cell = cells
    train, first, second, merge, diagnose = cell.commands
    assert [c.kind for c in base.commands] == ["run", "run", "merge"]
    assert train.typed.startswith("torchrun --nproc-per-node=2 -m softeval train --")
    assert first.needs == second.needs == (train,)
    assert merge.needs == (first, second) and diagnose.needs == (merge,)
    assert options(second)["--shard"] == "2/2" and second.folder.name == "shard-2-of-2"
    assert options(diagnose)["--limit"] == "3" and diagnose.folder == merge.folder
    assert cell.reported == (train.folder, merge.folder)


def test_shards_of_another_number_are_refused_before_anything_is_started(tmp_path: Path) -> None:
    cells_of(tmp_path, grid={}, seeds=0, shards=2)
    (tmp_path / "out" / "soft-seed-0" / "shards" / "shard-1-of-2").mkdir(parents=True)
    cells_of(tmp_path, grid={}, seeds=0, shards=2)
    with pytest.raises(
        UserError, match="shards holds shards of 2, not 3; divide as there, or give"
    ):
        cells_of(tmp_path, grid={}, seeds=0, shards=3)


def test_recipes_to_choose_from_are_cells(tmp_path: Path) -> None:
    cells = cells_of(
        tmp_path, config=["demo", ["hard", "soft"]], grid={"limit": [10, 20]}, seeds=0, base=False
    )
    assert [cell.name for cell in cells] == [
        f"{method}, limit {n}" for n in (10, 20) for method in ("hard", "soft")
    ]
    assert {options(cell.commands[0])["--method"] for cell in cells} == {"hard", "soft"}


def test_several_evaluations_of_what_each_cell_was_trained_on(tmp_path: Path) -> None:
    names = ["arithmetic_hidden_10", "arithmetic_hidden_50"]
    base, *cells = cells_of(
        tmp_path,
        grid={"dataset": names},
        seeds=0,
        run=[{"tasks": "{dataset}"}, {"tasks": "arithmetic", "modes": "hard_greedy"}],
        diagnose={"limit": 3},
    )
    assert [options(c)["--tasks"] for c in base.commands] == [",".join(names), "arithmetic"]
    for cell, name in zip(cells, names, strict=True):
        train, first, second, diagnose = cell.commands
        assert [options(c)["--tasks"] for c in (first, second)] == [name, "arithmetic"]
        assert first.folder != second.folder and {first.needs, second.needs} == {(train,)}
        assert diagnose.folder == first.folder and diagnose.needs == (first,)
    with pytest.raises(UserError, match="arithmetic_hiden"):
        cells_of(tmp_path, run=[{}, {"tasks": "arithmetic_hiden"}])


def test_an_unknown_grid_is_answered_by_the_known(softeval: Callable[..., Ended]) -> None:
    ended = softeval("sweep", "demo-f1")
    assert ended.code == 2 and "did you mean demo_f1?" in ended.err


# What is there -------------------------------------------------------------------------------


def write_training(
    folder: Path, command: str, last: int = 2, best: int = 0, **more: object
) -> None:
    """What a training of two updates leaves that tells how far it is."""
    curve = [{"step": 0, "success": 0.5}, {"step": 2, "success": 0.5}]
    for name, step in (("last", last), ("best", best)):
        (folder / name).mkdir(parents=True)
        said = {"step": step, "validation": curve} | more
        (folder / name / "softeval_training.json").write_text(json.dumps(said))
    record = {"command": command, "config": {"max_steps": 2}}
    (folder / "train.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, CommandState.DONE),
        ({"last": 1}, CommandState.BEGUN),
        ({"best": 2}, CommandState.BEGUN),  # the first of equals is kept: `best` was not exported
        ({"best": 2, "best_step": 2}, CommandState.DONE),  # of a later stage of a curriculum
        ({"best_step": 2}, CommandState.BEGUN),
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
    record = {"command": command.text, "status": status, "config": {"model": None}}
    (command.folder / "run.json").write_text(json.dumps(record))
    assert command.state == state


def test_an_evaluation_of_what_has_been_trained_further_is_not_done(tmp_path: Path) -> None:
    command, best = Command(("run",), tmp_path / "run"), tmp_path / "train" / "best"
    write_training(tmp_path / "train", "softeval train")
    said = json.loads((best / "softeval_training.json").read_text())
    record = {"command": command.text, "status": "complete", "training": said}
    command.folder.mkdir()
    (command.folder / "run.json").write_text(json.dumps(record | {"config": {"model": str(best)}}))
    assert command.state is CommandState.DONE
    (best / "softeval_training.json").write_text(json.dumps(said | {"step": 4}))
    assert command.state is CommandState.BEGUN
    (best / "softeval_training.json").unlink()  # to save room
    assert command.state is CommandState.DONE


def test_a_dry_run_lists_the_cells_and_writes_nothing(
    softeval: Callable[..., Ended], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"grid": {"noise_scale": [0.1, 1]}, "seeds": [0]}))
    ended = softeval("sweep", path, "--dry-run", "--json")
    known = [c for cell in json.loads(ended.out) for c in cell["commands"]]
    assert [c["state"] for c in known] == ["missing"] * 5 and not Path("runs").exists()
    folder = Path("runs/sweep-mine/noise_scale-1-seed-0/train")
    [text] = [c["command"] for c in known if c["folder"] == str(folder)]
    write_training(folder, text)
    shown = softeval("sweep", path, "--dry-run").out
    rows = [
        [part.strip() for part in line.strip("|").split("|")]
        for line in shown.splitlines()
        if line.startswith("|")
    ]
    assert [row[:-1] for row in rows] == [
        ["cell", "seed", "train", "run"],
        ["---", "---", "---:", "---:"],
        ["base", "–", "–", "missing"],
        ["noise_scale 0.1", "0", "missing", "missing"],
        ["noise_scale 1", "0", "done", "missing"],
    ]
    assert rows[0][-1] == "GPU-hours" and "assumed and not measured" in shown


def test_a_diagnosis_is_done_when_the_run_names_its_command(tmp_path: Path) -> None:
    command = Command(("diagnose", "run", "--base", "x"), tmp_path / "run")
    command.folder.mkdir()
    record: dict[str, object] = {"command": "softeval run", "status": "complete"}
    record["config"] = {"model": None}
    for block, state in ((None, "begun"), ("softeval diagnose run --base x", "done")):
        if block is not None:
            record["diagnose"] = {"command": block}
        (command.folder / "run.json").write_text(json.dumps(record))
        assert command.state == state


def test_what_is_missing_is_printed_a_cell_a_line(
    softeval: Callable[..., Ended], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"config": "demo", "seeds": [0], "title": "Mine"}))
    printed = softeval("sweep", path, "--launcher", "print", "-o", "out").out.splitlines()
    assert len(printed) == 3 and printed[-1].startswith("# then: softeval report out/base/run")
    train, run = printed[1].split(" && ")
    write_training(Path("out/soft-seed-0/train"), train)
    again = softeval("sweep", path, "--launcher", "print", "-o", "out").out.splitlines()
    assert again == [printed[0], run, printed[2]]


def test_slurm_options_want_slurm(softeval: Callable[..., Ended]) -> None:
    ended = softeval("sweep", "demo", "--slurm", "time=3")
    assert ended.code == 2 and "has no effect without --launcher slurm" in ended.err


def test_ablate_is_a_sweep_into_a_folder_of_its_own(softeval: Callable[..., Ended]) -> None:
    shown = json.loads(softeval("ablate", "demo_f1", "--dry-run", "--json").out)
    assert shown[0]["commands"][0]["folder"] == "runs/ablate-demo_f1/base/run"


# What is run ---------------------------------------------------------------------------------


def chains(tmp_path: Path, names: str) -> list[Command]:
    """A training, and a second one that needs it, of each name."""
    found = []
    for name in names:
        first = Command(("train", f"{name}1"), tmp_path / name / "1")
        found += [first, Command(("train", f"{name}2"), tmp_path / name / "2", (first,))]
    return found


class Instant:
    """A launcher whose commands end before the next look, done unless they are to fail."""

    pause = patience = 0.0

    def __init__(self, at_once: int = 1, failing: str = "") -> None:
        self.at_once, self.failing = at_once, failing
        self.queue: list[Command] = []
        self.started: list[str] = []
        self.most = 0

    def start(self, command: Command) -> None:
        self.started.append(command.arguments[-1])
        self.queue.append(command)
        self.most = max(self.most, len(self.queue))

    def running(self) -> set[str]:
        for command in self.queue:
            if command.arguments[-1] != self.failing and not command.folder.exists():
                write_training(command.folder, command.text)
        self.queue = []
        return set()

    def succeeded(self, command: Command) -> bool:
        return False

    def stop(self, number: int) -> None:
        raise AssertionError("nobody stops it")


def test_only_what_is_missing_is_run_and_a_failure_stops_only_what_needs_it(
    tmp_path: Path,
) -> None:
    commands = chains(tmp_path, "abc")
    write_training(commands[4].folder, commands[4].text)
    launcher = Instant(failing="a1")
    failed, stopped = launch.run_missing(commands, launcher, lambda text: None)
    assert launcher.started == ["a1", "b1", "b2", "c2"]
    assert (failed, stopped) == ([commands[0]], 0)


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_so_many_run_at_once_each_after_what_it_needs(tmp_path: Path, at_once: int) -> None:
    launcher = Instant(at_once)
    assert launch.run_missing(chains(tmp_path, "abc"), launcher, lambda text: None) == ([], 0)
    assert launcher.most == min(at_once, 3)
    for name in "abc":
        assert launcher.started.index(f"{name}1") < launcher.started.index(f"{name}2")


def test_jobs_of_an_earlier_sweep_are_waited_for_not_started_again(tmp_path: Path) -> None:
    first, second = chains(tmp_path, "a")

    class Queue(Instant):
        looks = 0

        def running(self) -> set[str]:
            self.looks += 1
            if self.looks == 3:
                write_training(first.folder, first.text)
            return {first.name} if self.looks < 3 else super().running()

    launcher = Queue()
    assert launch.run_missing([first, second], launcher, lambda text: None) == ([], 0)
    assert launcher.started == ["a2"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of Slurm that keep what is submitted, and the folder where that lies."""
    for name, content in (
        ("srun", ""),
        ("sbatch", f'cp "$1" "{tmp_path}/$$.sh"; echo Submitted batch job $$'),
        ("squeue", "echo someone-else"),
    ):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\n{content}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_options_of_slurm_reach_the_jobs_of_their_kind(cluster: Path) -> None:
    options = {"time": "7", "train.mem": "9GB", "run.partition": "small"}
    launcher = launch.Slurm(cluster / "slurm", options)
    train = Command(("train", "x"), cluster / "train")
    for command in (train, Command(("run", "y"), cluster / "run")):
        launcher.start(command)
    texts = [path.read_text() for path in cluster.glob("*.sh")]
    found = {"train" if "softeval-train" in text else "run": text for text in texts}
    assert "--mem=9GB" in found["train"] and "--mem" not in found["run"]
    assert "--partition=small" in found["run"] and "--partition" not in found["train"]
    assert all("--time=7" in text for text in texts)
    assert f"--job-name={train.name}" in found["train"]
    assert launcher.running() == {"someone-else"} and not launcher.succeeded(train)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tran.mem": "9GB"}, "'tran' is none of train, run, merge, diagnose"),
        ({"walltime": "7"}, "--slurm: Unavailable parameter"),
    ],
)
def test_options_that_slurm_does_not_have_are_one_line(
    cluster: Path, options: dict[str, str], told: str
) -> None:
    with pytest.raises(UserError) as refused:
        launch.Slurm(cluster / "slurm", options)
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_jobs_are_left_to_themselves_when_the_sweep_is_interrupted(cluster: Path) -> None:
    launcher = launch.Slurm(cluster / "slurm", {})
    [command] = chains(cluster, "a")[:1]
    squeue = cluster / "bin" / "squeue"
    squeue.write_text(f"#!/bin/sh\ntouch {cluster}/ready\necho {command.name}\n")
    launcher.pause = 0.05
    once_ready(cluster, signal.SIGINT)
    assert launch.run_missing([command], launcher, lambda text: None) == ([], 130)
    assert not list(cluster.glob("*.sh")), "it was there already"


def test_names_in_a_queue_tell_commands_and_folders_apart(tmp_path: Path) -> None:
    train = Command(("train", "x"), tmp_path / "a")
    others = [Command(("train", "y"), tmp_path / "a"), Command(("train", "x"), tmp_path / "b")]
    assert len({c.name for c in (train, *others)}) == 3
    assert Command(("train", "x"), tmp_path / "b" / ".." / "a").name == train.name


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of softeval: says that it is ready, waits, and saves when it is told to stop."""
    script = tmp_path / "waits"
    script.write_text(
        f"#!/bin/sh\ntrap 'touch {tmp_path}/saved; exit 5' TERM INT\n"
        f"echo $@ > {tmp_path}/words; touch {tmp_path}/ready\n"
        "for wait in $(seq 3000); do sleep 0.02; done\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(chain.sys, "executable", str(script))


def once_ready(tmp_path: Path, number: int) -> None:
    """A signal to this process once its child is ready."""

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_the_command_waited_for_and_nothing_more_started(
    tmp_path: Path, number: int
) -> None:
    before = signal.getsignal(number)
    once_ready(tmp_path, number)
    told: list[str] = []
    found = launch.run_missing(chains(tmp_path, "ab"), launch.Local(), told.append)
    assert found == ([], 128 + number) and told == ["0 of 4 done: softeval train a1"]
    assert (tmp_path / "words").read_text() == "-m softeval train a1\n"
    assert (tmp_path / "saved").exists() and signal.getsignal(number) is before


@pytest.mark.usefixtures("waiting")
def test_a_job_whose_time_is_over_saves_and_goes_back_into_the_queue(tmp_path: Path) -> None:
    """As submitit does: a handler of Slurm's warning asks the job, inside its own wait."""
    job = launch.Job(Command(("train", "x"), tmp_path / "train"))
    kept: list[launch.Job] = []

    def warned(*_: object) -> None:
        [child] = [c for c in psutil.Process().children() if "waits" in str(c.cmdline())]
        child.send_signal(signal.SIGUSR2)  # every process of a job is warned
        time.sleep(0.05)
        assert not (tmp_path / "saved").exists()
        kept.append(job.checkpoint().function)
        assert (tmp_path / "saved").exists()

    former = signal.signal(signal.SIGUSR2, warned)
    try:
        once_ready(tmp_path, signal.SIGUSR2)
        assert job() == 5
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert [again.command for again in kept] == [job.command]


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
    "base": False,
}  # fmt: skip


@pytest.mark.slow
def test_each_command_of_a_cell_is_done_once_it_was_run(
    softeval: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, shards, merge and diagnosis, each told from the directories by its own command."""
    path = tmp_path / "tiny.yaml"
    asked = TINY | {"grid": {}, "shards": 2, "diagnose": {"limit": 1, "sets": "own"}}
    path.write_text(yaml.safe_dump(asked | {"train": TINY["train"] | {"max_steps": 1}}))
    [cell] = cells_in(path, Path("out"))
    for number, command in enumerate(cell.commands):
        states = [c.state is CommandState.DONE for c in cell.commands]
        assert states == [place < number for place in range(5)]
        monkeypatch.setattr(sys, "argv", ["softeval", *command.arguments])
        ended = softeval(*command.arguments)
        assert ended.code == 0, ended.err
    assert all(c.state is CommandState.DONE for c in cell.commands)
    assert softeval(*cell.commands[-2].arguments).code == 0  # merged again, it is shown
    assert (cell.commands[-1].folder / "kl.parquet").is_file()


class Fork:
    """A command in a fork of this process, which has imported it; as subprocess would have it."""

    def __init__(self, command: Command) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            if os.environ["DIES"] in str(command.folder) and command.arguments[0] == "train":
                threading.Thread(
                    target=die_once_there, args=[command.folder / "train.json"]
                ).start()
            sys.argv = ["softeval", *command.arguments]
            os._exit(cli.run(list(command.arguments)))

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode


def die_once_there(record: Path) -> None:
    """SIGKILL for this process, once it has written its record."""
    while not record.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def swept(folder: Path, dies: str) -> tuple[int, str]:
    """Exit code and output of a sweep in which the training of a cell dies."""
    log = folder / "log"
    process = start([__file__, "sweep", folder / "tiny.yaml", "-o", folder / "out"], log, DIES=dies)
    process.join()
    assert process.exitcode is not None
    return process.exitcode, log.read_text()


@pytest.mark.slow
def test_a_killed_grid_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    code, shown = swept(tmp_path, dies="noise_scale-0.1-seed-0")
    assert code == 1 and "1 of 2 cells are done" in shown
    out = tmp_path / "out"
    kept = {
        p: p.stat().st_mtime_ns
        for p in out.rglob("*")
        if "seed-0" not in str(p) or "0.33" in str(p)
    }
    kept = {path: at for path, at in kept.items() if path.is_file() and path.parent != out}
    code, shown = swept(tmp_path, dies="none")
    assert code == 0 and "2 of 2 cells are done" in shown
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    page = (out / "report.html").read_text()
    for text in ("<title>Tiny", "noise_scale 0.1", "noise_scale 0.33", "paper 75.5 ± 0.8"):
        assert text in page
    record = json.loads((out / "noise_scale-0.1-seed-0" / "run" / "run.json").read_text())
    assert record["training"]["mode"]["noise_scale"] == 0.1


if __name__ == "__main__":
    Command.start = lambda command, output: Fork(command)
    sys.exit(cli.run(sys.argv[1:]))
