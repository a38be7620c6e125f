"""Directories that are whole or absent, and the state of a run."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from train_cases import record, tiny_config

from softeval import files
from softeval.display import make_screen
from softeval.errors import UserError
from softeval.files import check_space, full_disk, replacing_directory
from softeval.processes import Processes
from softeval.trainers.checkpoints import (
    TrainerState,
    load_state,
    save_state,
    saved_states,
)
from softeval.trainers.run_files import (
    Log,
    TrainProgress,
    append_line,
    missing_metrics,
    open_directory,
    truncate_lines,
)

RECORDED = [
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "algorithm",
    "answer_temperature",
    "apply_chat_template",
    "attn_implementation",
    "beta",
    "chat_date",
    "cot_logprob_reduction",
    "curriculum",
    "dataset",
    "detach_embedding_in_mixture",
    "dtype",
    "dynamic_sampling",
    "epsilon",
    "epsilon_high",
    "eval_steps",
    "exclude_tasks",
    "gradient_checkpointing",
    "gradient_split_steps",
    "kl_steps",
    "learning_rate",
    "limit",
    "logits_dtype",
    "lora",
    "lora_alpha",
    "lora_rank",
    "lora_target_modules",
    "loss_chunk_size",
    "lr_schedule",
    "master_weights",
    "max_answer_tokens",
    "max_cot_tokens",
    "max_grad_norm",
    "max_pass_rate",
    "max_prompt_tokens",
    "max_refills",
    "max_steps",
    "method",
    "micro_batch_size",
    "min_lr_ratio",
    "min_pass_rate",
    "mode_args",
    "mode_file",
    "model",
    "noise_norm",
    "noise_scale",
    "num_generations",
    "num_iterations",
    "overlong_cache",
    "overlong_penalty",
    "pass_rate_samples",
    "prompts_per_step",
    "random_numbers",
    "revision",
    "reward",
    "reward_boxed",
    "reward_correct",
    "reward_none",
    "score_error",
    "scorer",
    "seed",
    "select_by",
    "skip_zero_advantage",
    "temperature",
    "trust_remote_code",
    "validation_sets",
    "validation_size",
    "warmup_steps",
    "weight_decay",
]
"""What a training recorded of its configuration in November 2026."""


def damage_truncate(state: Path) -> None:
    path = state / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-3])


def damage_flip(state: Path) -> None:
    path = state / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def damage_missing(state: Path) -> None:
    (state / "progress.json").unlink()


def damage_manifest(state: Path) -> None:
    (state / "manifest.json").write_text("{")


def damage_empty_manifest(state: Path) -> None:
    (state / "manifest.json").write_text("{}")


def test_a_state_has_its_name_once_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softeval.trainers.checkpoints._fingerprint", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_state(tmp_path, TrainerState(step=1), {"x": torch.arange(3)}, keep=2)
    assert not list(tmp_path.iterdir())


DAMAGES = [
    damage_truncate,
    damage_flip,
    damage_missing,
    damage_manifest,
    damage_empty_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_state_is_seen_and_the_one_before_it_used(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for step in (5, 10):
        save_state(tmp_path, TrainerState(step=step), {"weight.a": torch.full((3,), step)}, keep=2)
    damage(saved_states(tmp_path)[-1])
    found = load_state(tmp_path)
    assert found is not None
    assert found.state.step == 5 and found.torn == ("step-000010",)
    kept = {"weight.a": torch.zeros(3, dtype=torch.int64)}
    assert found.names == kept.keys()
    found.fill(kept)
    assert kept["weight.a"].tolist() == [5, 5, 5]
    damage(saved_states(tmp_path)[0])
    with pytest.raises(UserError, match=r"every state .* is torn"):
        load_state(tmp_path)


def test_nothing_saved_is_no_state(tmp_path: Path) -> None:
    assert load_state(tmp_path / "none") is None
    (tmp_path / ".step-000005.partial").mkdir()
    assert load_state(tmp_path) is None


def test_old_states_are_dropped_by_their_number(tmp_path: Path) -> None:
    for step in (9, 10, 100, 1000000):
        save_state(tmp_path, TrainerState(step=step), {}, keep=2)
    assert [path.name for path in saved_states(tmp_path)] == ["step-000100", "step-1000000"]


def test_state_and_random_generators_come_back(tmp_path: Path) -> None:
    state = TrainerState(3, 17, 0.123456789, 2, 0.75, 8, [{"step": 2.0, "success": 0.75}])
    save_state(tmp_path, state, {"x": torch.arange(3)}, keep=2)
    drawn = [random.random(), float(np.random.rand()), float(torch.rand(1))]
    saved = load_state(tmp_path)
    assert saved is not None and saved.state == state
    saved.restore_random()
    assert drawn == [random.random(), float(np.random.rand()), float(torch.rand(1))]


def test_lines_after_the_state_and_cut_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(5):
        append_line(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 5, "rew')
    truncate_lines(path, 9)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3, 4]
    truncate_lines(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]
    truncate_lines(path, -1)
    assert path.read_text() == ""


def test_a_damaged_line_is_named_and_a_torn_last_one_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(4):
        append_line(path, {"step": step})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 4, \xff\n')
    truncate_lines(path, 9)
    assert path.read_bytes() == whole and missing_metrics(tmp_path, 3) == 0
    path.write_bytes(whole.replace(b'{"step": 1}', b'{"st\xff": 1}'))
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged") as found:
        truncate_lines(path, 9)
    assert "\n" not in str(found.value)
    path.unlink()
    assert missing_metrics(tmp_path, 3) == 4


def test_a_full_disk_is_one_line_and_gets_its_room_back(tmp_path: Path) -> None:
    def save() -> None:
        with full_disk(tmp_path), replacing_directory(tmp_path / "state") as partial:
            (partial / "tensors.safetensors").write_bytes(b"half")
            raise SafetensorError("Error: IoError(Os { message: No space left on device })")

    with pytest.raises(UserError, match=r"no space is left .*command continues") as found:
        save()
    assert "\n" not in str(found.value) and not list(tmp_path.iterdir())
    os.symlink("/dev/full", tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="no space is left"), full_disk(tmp_path):
        append_line(tmp_path / "metrics.jsonl", {"step": 1})
    with pytest.raises(OSError, match="other"), full_disk(tmp_path):
        raise OSError("other")


def test_a_disk_too_small_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(files.shutil.disk_usage("/"))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(10**12, 0, 10**9))
    check_space(tmp_path, 10**9)
    with pytest.raises(UserError, match=r"about 2\.0 GB in .*, where 1\.0 GB can be had; free"):
        check_space(tmp_path, 2 * 10**9)
    (tmp_path / "state").write_bytes(bytes(1000))
    check_space(tmp_path, 10**9 + 1000)  # what stands there will be replaced


def test_the_run_is_the_same_one_among_trackers(tmp_path: Path) -> None:
    class Tables:
        def log_table(self, name: str, **table: Any) -> None:
            tables.append((name, table))

    class Accelerator:
        is_main_process = True
        trackers = (Tables(), object())

        def init_trackers(self, project: str, config: Any, init_kwargs: Any) -> None:
            begun.append((project, config, init_kwargs))

    begun: list[Any] = []
    tables: list[Any] = []
    config = tiny_config(report_to=("wandb", "trackio", "tensorboard"))
    folder = tmp_path / "soft-1"
    prints = dict.fromkeys(("base", "train", "validation"), "")
    made = record()
    ids = [open_directory(folder, config, prints, made) for _ in range(2)]
    assert ids[0] == ids[1] and len(ids[0]) == 12
    for step in (0, 7):
        trackers = Log(Accelerator(), config, folder, step, ids[0])
        (folder / "softeval" / "1").mkdir(parents=True, exist_ok=True)
        (folder / "softeval" / "1" / "hparams.yml").write_text("")
    for _, _, options in begun:
        assert options["wandb"]["id"] == ids[0] and options["wandb"]["resume"] == "allow"
        assert options["wandb"]["name"] == "soft-1" and options["trackio"]["resume"] == "allow"
    assert begun[0][2]["trackio"] == begun[1][2]["trackio"]
    assert begun[1][2]["tensorboard"] == {"purge_step": 8}
    assert begun[0][1]["method"] == "soft" and begun[1][1] is None
    row = dict.fromkeys(("question", "cot", "answer", "target", "reward", "advantage"), 1)
    trackers.samples([row], 7)
    assert tables[0][0] == "samples" and tables[0][1]["data"] == [[1] * 6]
    assert open_directory(tmp_path / "other", config, prints, made) != ids[0]


def test_a_training_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """A field that was added since agrees with a record that does not have it."""
    config, prints = tiny_config(), dict.fromkeys(("base", "train", "validation"), "")
    run_id = open_directory(tmp_path / "run", config, prints, record())
    path = tmp_path / "run" / "train.json"
    there = json.loads(path.read_text())
    there["identity"] = {n: v for n, v in there["identity"].items() if n in RECORDED}
    path.write_text(json.dumps(there))
    assert open_directory(tmp_path / "run", config, prints, record()) == run_id


def test_a_training_belongs_to_what_config_json_says_and_to_its_mode_file(tmp_path: Path) -> None:
    """A run that recorded neither goes on; one that did goes on with the same."""
    modes = tmp_path / "modes.py"
    modes.write_text("# none\n")
    config, made = tiny_config(mode_file=str(modes)), record()
    prints = dict.fromkeys(("base", "config", "train", "validation", "tolerances"), "")
    before = {n: value for n, value in prints.items() if n not in ("config", "tolerances")}
    run_id = open_directory(tmp_path / "run", config, before, made)
    path = tmp_path / "run" / "train.json"
    there = json.loads(path.read_text())
    del there["identity"]["mode_source"]
    path.write_text(json.dumps(there))
    assert open_directory(tmp_path / "run", config, prints, made) == run_id
    for prints["config"] in ("1", None):
        assert open_directory(tmp_path / f"run-{prints['config']}", config, prints, made)
        assert open_directory(tmp_path / f"run-{prints['config']}", config, prints, made)
    with pytest.raises(
        UserError, match=r"config\.json or end tokens differ\); restore it, or give"
    ):
        open_directory(tmp_path / "run-1", config, prints | {"config": "2"}, made)
    with pytest.raises(UserError, match="an answer may be from its label is no longer what it was"):
        open_directory(
            tmp_path / "run-1", config, prints | {"config": "1", "tolerances": "2"}, made
        )
    modes.write_text("# another\n")
    with pytest.raises(UserError, match="mode_source"):
        open_directory(tmp_path / "run-1", config, prints, made)


def test_processes_wait_for_a_slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate

    plain, given = accelerate.PartialState, {}

    def watched(**options: Any) -> Any:
        given.update(options)
        return plain(**options)

    monkeypatch.setattr(accelerate, "PartialState", watched)
    Processes.joined(torch.device("cpu"))
    assert given["timeout"].total_seconds() >= 3600


def test_the_progress_line_says_how_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainProgress(make_screen(), 40, 10)
    metrics = {
        "reward/success": 1.0,
        "reward/mean": 71.25,
        "rollout/entropy": 0.0812,
        "kl/tokens": 0.0031,
        "gradient/norm": 2.5,
        "optimizer/learning_rate": 6e-6,
        "time/tokens_per_second": 12.0,
    }
    curve = [{"step": 0, "success": 0.62}, {"step": 12, "success": 0.5}]
    progress.validated(curve[:1])
    progress.step(11, metrics | {"reward/success": 0.0, "kl/tokens": None})
    progress.validated(curve)
    progress.step(40, metrics)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "validation at step 0: 62.0 %"
    assert "KL" not in shown[1] and "success 0 %, mean 0 %" in shown[1]
    assert shown[2] == "validation at step 12: 50.0 % (best 62.0 % at step 0)"
    assert shown[3].startswith("validation success fell from 0.62 to 0.50; the learning rate")
    for part in ("success 100 %, mean 50 %", "reward 71.2", "entropy 0.081", "KL 0.0031"):
        assert part in shown[4]
    assert "lr 6.0e-06" in shown[4] and "validation 50.0 %" in shown[4]
