"""Runs that are killed, torn, or spread over processes end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from forked import ForkServerProcess, kill_often, signalled, start, together
from train_cases import (
    LEAST,
    LINEAR,
    METHODS,
    MOVING,
    STAGED,
    boxing_model,
    command,
    moved_apart,
    own_questions,
    read_metrics,
    run,
    same,
    save_tiny,
    state_tensors,
    timeless,
    tiny_config,
    weights,
)

from softeval import files, processes
from softeval.errors import UserError
from softeval.model.language_model import load_model
from softeval.processes import Interruption
from softeval.trainers import run_files, trainer
from softeval.trainers.optimization import MasterWeights, Optimization
from softeval.trainers.rollout import RolloutCollector, Validation
from softeval.trainers.trainer import train

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """Stands for the power going off: nothing in the program catches it."""


SITES: list[tuple[Any, str]] = [
    (run_files, "append_line"),
    (run_files, "truncate_lines"),
    (os, "replace"),
    (os, "rename"),
    (files, "sync"),
    (shutil, "rmtree"),
    (Optimization, "step"),
    (MasterWeights, "publish"),
    (RolloutCollector, "collect"),
    (trainer, "validate"),
    (trainer, "save_state"),
    (trainer, "export_checkpoint"),
]


def dying(function: Callable[..., Any], fuse: list[int], after: bool) -> Callable[..., Any]:
    """The function, until the fuse has burnt down; then the process dies before or after it."""

    def wrapped(*args: Any, **options: Any) -> Any:
        fuse[0] -= 1
        if fuse[0] == 0 and not after:
            raise Killed
        result = function(*args, **options)
        if fuse[0] == 0:
            raise Killed
        return result

    return wrapped


def killed_run(
    folder: Path, fuse: int, after: bool, patch: pytest.MonkeyPatch, options: dict[str, Any]
) -> bool:
    burning = [fuse]
    with patch.context() as inner:
        for owner, name in SITES:
            inner.setattr(owner, name, dying(getattr(owner, name), burning, after))
        try:
            run(folder, **options)
        except Killed:
            return True
    return False


def check_equal(killed: Path, whole: Path) -> None:
    assert timeless(killed) == timeless(whole)
    for name in ("best", "last"):
        assert same(weights(killed / name), weights(whole / name))
    samples = [
        [file.read_text() for file in folder.glob("samples.jsonl")] for folder in (killed, whole)
    ]
    assert samples[0] == samples[1]
    state = "state/step-000005"
    assert same(state_tensors(killed / state), state_tensors(whole / state))
    assert not list(killed.rglob("*.partial")) and not list(killed.rglob("*.retired"))


MEASURING = {"kl_steps": 2, "gradient_split_steps": 3, "log_completions_steps": 2}
STAGES = STAGED | {"curriculum": {"updates": 2, "first": 2, "stages": 1, "mixing": 0.5}}


@pytest.mark.parametrize(
    ("options", "seed", "times"),
    [
        (METHODS["hard"] | MEASURING | {"reward": "train_cases:drawn_reward"}, 0, 3),
        (METHODS["soft"] | MEASURING, 1, 4),  # fuzzy training is soft at other numbers
        (STAGES | {"max_cot_tokens": 24}, 3, 3),
    ],
    ids=["hard", "soft", "coconut"],
)
def test_a_run_killed_again_and_again_equals_one_left_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    boxing: dict[str, Any],
    options: dict[str, Any],
    seed: int,
    times: int,
) -> None:
    """Bit for bit; a run that outlives its fuse is compared, and the next kill hits a new one."""
    options = boxing | options | {"max_steps": 5, "save_steps": 2, "eval_steps": 3}
    whole = tmp_path / "whole"
    run(whole, **options)
    assert any(line.get("gradient/norm") for line in timeless(whole))
    rng = random.Random(seed)
    folders = [tmp_path / "killed-0"]
    kills, behind_a_state = 0, False
    while kills < times:
        fuse, after = rng.randint(1, 110), rng.random() < 0.5  # of some 140 places
        if killed_run(folders[-1], fuse, after, monkeypatch, options):
            kills += 1
            behind_a_state |= any(folders[-1].glob("state/step-*"))
        else:
            check_equal(folders[-1], whole)
            folders.append(tmp_path / f"killed-{len(folders)}")
    run(folders[-1], **options)
    check_equal(folders[-1], whole)
    assert behind_a_state, "from which the next one went on"


def test_a_kill_inside_the_first_record_is_no_foreign_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the self-check, whose result is the first thing that a training writes.
    options = LEAST | {"model": boxing_model(), "self_check": False}
    assert killed_run(tmp_path / "run", 1, False, monkeypatch, options)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".train.json.partial"]
    run(tmp_path / "run", **options)
    assert not list((tmp_path / "run").rglob("*.partial"))


BEST_SITES = [("save_state", False), ("save_state", True), ("_export", False), ("_export", True)]


@pytest.mark.parametrize(("site", "after"), BEST_SITES)
def test_the_best_is_never_of_updates_done_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, after: bool
) -> None:
    """Killed around its export; the second time the updates are not as good, as on a GPU."""
    options = LEAST | {"model": boxing_model(), "max_steps": 3, "eval_steps": 1, "save_steps": 100}
    plain_export, owner = trainer.Trainer._export, trainer.Trainer if site == "_export" else trainer

    def scripted(*successes: float) -> Any:
        left = iter(successes)
        return lambda *_: Validation(next(left), 0.0, 0.0, 0.0)

    def deadly(*args: Any) -> Any:
        dies = site == "save_state" or args[1] == run_files.BEST
        dies = dies and (folder / "metrics.jsonl").read_text().count("\n") == 3
        if dies and not after:
            raise Killed
        plain(*args)
        if dies:
            raise Killed

    folder, plain = tmp_path / "run", getattr(owner, site)
    with monkeypatch.context() as inner:
        inner.setattr(trainer, "validate", scripted(0.1, 0.2, 0.9))
        inner.setattr(owner, site, deadly)
        with pytest.raises(Killed):
            run(folder, **options)
    assert trainer.Trainer._export is plain_export
    monkeypatch.setattr(trainer, "validate", scripted(0.15, 0.15, 0.15))
    result = run(folder, **options)
    saved = site == "_export" or after
    assert (result.best_step, result.best_success) == ((2, 0.9) if saved else (1, 0.2))
    assert trainer.exported_step(folder / "best") == result.best_step
    record = json.loads((folder / "best" / "softeval_training.json").read_text())
    assert record["validation"][-1]["success"] == result.best_success


def test_a_best_beyond_a_torn_state_is_chosen_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = LEAST | {"model": boxing_model(), "max_steps": 3, "eval_steps": 1}
    left = iter([0.3, 0.1, 0.2, 0.9, 0.1, 0.15])
    monkeypatch.setattr(trainer, "validate", lambda *_: Validation(next(left), 0.0, 0.0, 0.0))
    run(tmp_path / "run", **options)
    (tmp_path / "run" / "state" / "step-000003" / "progress.json").write_text("{")
    result = train(tiny_config(output_path=str(tmp_path / "run"), **options))
    assert "chosen from the validations to come" in capsys.readouterr().err
    assert (result.best_step, result.best_success) == (3, 0.1)
    assert trainer.exported_step(tmp_path / "run" / "best") == 3


def test_sigkill_at_any_moment(tmp_path: Path) -> None:
    """Of one method: what is killed and kept is the same in all, which die in process above."""
    options = METHODS["soft"] | {"max_steps": 6, "save_steps": 2, "eval_steps": 5}
    options |= {"prompts_per_step": 2, "max_cot_tokens": 12}

    def begin(folder: Path) -> list[ForkServerProcess]:
        return [start(command(folder, **options), folder.with_suffix(".log"))]

    def step(folder: Path) -> int:
        metrics = folder / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    folders, _ = kill_often(tmp_path, 2, begin, step, most=4, pause=0.3)
    for folder in folders:
        assert timeless(folder) == timeless(tmp_path / "whole")
        assert same(weights(folder / "last"), weights(tmp_path / "whole" / "last"))


@pytest.mark.parametrize("method", ["hard", "soft"])  # fuzzy training is soft at other numbers
def test_two_processes_equal_one(tmp_path: Path, method: str) -> None:
    """float32 sums in another order: two updates agree to rounding, as stated for the options that
    must not change the result (test_train_trainer)."""
    options = METHODS[method] | LINEAR | MOVING[method]
    options |= {"max_steps": 2, "kl_steps": 2, "gradient_split_steps": 2}
    run(tmp_path / "one", **options)
    assert [line["gradient/norm"] > 0 for line in read_metrics(tmp_path / "one")[1:]] == [True] * 2
    together(2, *command(tmp_path / "two", **options), log=tmp_path / "log")
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for mine, theirs in zip(timeless(tmp_path / "one"), timeless(tmp_path / "two"), strict=True):
        assert mine.keys() == theirs.keys()
        numbers = {name: value for name, value in mine.items() if value is not None}
        for name, value in numbers.items():
            assert value == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name
        assert numbers.keys() == {name for name, value in theirs.items() if value is not None}
    start = load_model().model.state_dict()
    assert moved_apart(tmp_path / "two" / "last", tmp_path / "one" / "last", start) < 1e-3


def test_a_torn_state_is_passed_over_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], boxing: dict[str, Any]
) -> None:
    options = METHODS["soft"] | boxing | {"max_steps": 3, "save_steps": 1}
    run(tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    state = tmp_path / "torn" / "state" / "step-000003" / "__0_0.distcp"
    state.write_bytes(state.read_bytes()[:-1])
    train(tiny_config(output_path=str(tmp_path / "torn"), **options))
    assert "step-000003 is torn; continuing from step 2" in capsys.readouterr().err
    assert timeless(tmp_path / "torn") == timeless(tmp_path / "whole")
    assert same(weights(tmp_path / "torn" / "last"), weights(tmp_path / "whole" / "last"))


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    first = run(tmp_path, **LEAST)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert run(tmp_path, **LEAST) == first
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("lora", [False, True])
def test_another_base_with_the_same_embeddings_is_refused(tmp_path: Path, lora: bool) -> None:
    options = LEAST | {"model": str(save_tiny(tmp_path / "model")), "lora": lora}
    run(tmp_path / "run", **options)
    run(tmp_path / "run", **options)
    lm = load_model(str(tmp_path / "model"))
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(1.5)
    lm.model.save_pretrained(str(tmp_path / "model"))
    with pytest.raises(UserError, match=r"no longer the checkpoint .*--output-path") as found:
        run(tmp_path / "run", **options)
    assert "\n" not in str(found.value)


def test_other_questions_in_place_of_the_first_are_refused(tmp_path: Path) -> None:
    data = own_questions(tmp_path / "own.jsonl")
    options = LEAST | {"model": boxing_model(), "dataset": str(data)}
    run(tmp_path / "run", **options)
    refused = set()
    for n in range(12):  # a label alone; the hold-out stays
        own_questions(data, **{f"q{n}": "2"})
        with pytest.raises(UserError, match=r"questions.*restore them, or give another") as found:
            run(tmp_path / "run", **options)
        refused.add("validation" if "the validation questions" in str(found.value) else "train")
        if len(refused) == 2:
            break
    assert refused == {"train", "validation"}
    own_questions(data)
    run(tmp_path / "run", **options)


def wait_for_updates(folder: Path, running: Callable[[], bool]) -> None:
    """Until two of a run are done."""
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert running()
        time.sleep(0.02)


SIGNALLED = METHODS["soft"] | {"max_steps": 12, "save_steps": 100, "eval_steps": 100}
SIGNALLED |= {"prompts_per_step": 1, "max_cot_tokens": 12}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, **SIGNALLED)
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_update_saves_and_says_how_to_continue(
    tmp_path: Path, undisturbed: Path, number: int, code: int
) -> None:
    process = start(command(tmp_path / "run", **SIGNALLED), tmp_path / "log")
    wait_for_updates(tmp_path / "run", process.is_alive)
    ended, shown = signalled(process, number), (tmp_path / "log").read_text()
    (state,) = (tmp_path / "run" / "state").iterdir()
    step = int(state.name.split("-")[1])
    assert 2 <= step < 12 and len(read_metrics(tmp_path / "run")) == step + 1
    assert ended == code
    assert f"stopped at step {step}; the same command continues" in shown
    assert "Traceback" not in shown
    run(tmp_path / "run", **SIGNALLED)
    assert timeless(tmp_path / "run") == timeless(undisturbed)
    assert same(weights(tmp_path / "run" / "last"), weights(undisturbed / "last"))


def test_processes_that_are_told_at_different_moments_stop_at_one_step(tmp_path: Path) -> None:
    options = SIGNALLED | {"max_steps": 30}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folder, log = tmp_path / "run", tmp_path / "log"
    process = start([*launcher, *command(folder, **options)], log, PYTHONPATH=str(ROOT))
    wait_for_updates(folder, process.is_alive)
    ended, shown = signalled(process, signal.SIGTERM), log.read_text()
    (state,) = (folder / "state").iterdir()
    step = int(state.name.split("-")[1])
    assert ended != 0 and len(read_metrics(folder)) == step + 1
    assert shown.count(f"stopped at step {step}; the same command continues") == 2


def test_a_second_signal_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(processes, "SAME", 0.0)
    with Interruption(said.append) as caught:
        signal.raise_signal(signal.SIGTERM)
        assert caught.number == signal.SIGTERM and len(said) == 1
        monkeypatch.setattr(signal, "SIG_DFL", signal.default_int_handler)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_signals_at_once_are_one_request() -> None:
    with Interruption(lambda message: None) as caught:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert caught.number == signal.SIGINT
