"""`softeval train`: the command line of a training run."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any

import typer

from softeval.cli.help import complete_recipes
from softeval.cli.options import AsJson, Quiet, with_options
from softeval.cli.recipes import read_recipes
from softeval.files import GB
from softeval.processes import Processes, Stopped
from softeval.terminal import calm_libraries, say, say_json
from softeval.trainers.config import TrainConfig, make_config

OUTPUT: dict[str, Any] = {"rich_help_panel": "Output"}


@with_options(TrainConfig)
def train(
    given: dict[str, Any],
    *,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "-C",
            help="Recipe: a YAML file or a shipped name, such as demo_soft or "
            "llama-3.2-3b+gsm8k+fuzzy; later ones and the command line win.",
            rich_help_panel="Task",
            autocompletion=complete_recipes,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the configuration and, from the checkpoint's config.json, the memory needed; "
            "train nothing. For a card that is not here: --device cuda --device-memory 80.",
            **OUTPUT,
        ),
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Train a checkpoint with hard, soft or fuzzy chains of thought, or by COCONUT's curriculum.

    Started again with the same arguments, it continues where it was stopped; Ctrl-C and SIGTERM
    finish the update and save first (exit codes 130 and 143). Options can also come
    from environment variables such as SOFTEVAL_TRAIN_MAX_STEPS. Several processes: torchrun.
    """
    resolved = make_config(given, read_recipes(config or []))
    calm_libraries(bars=False)
    if dry_run and not Processes.here().is_main:
        return 0  # of several one speaks
    if dry_run:
        say_json(resolved.model_dump(mode="json"))
        from softeval.cli.memory import plan_memory
        from softeval.sweeps.estimate import CARD, shape_of, training_cost

        shape = shape_of(resolved.model)
        if shape is not None:
            cost = training_cost(resolved, shape)
            said = f"{cost.gpu_hours:.2g} hours of one {CARD} at assumed shares of its peak"
            say(f"by arithmetic, not measured: {said}; {cost.bytes / GB:.2g} GB on disk", err=True)
        for line in plan_memory(resolved, Processes.here().size):
            say(line, err=True)
        return 0
    from softeval.trainers.trainer import train as run_training

    command = shlex.join(["softeval", *sys.argv[1:]])
    try:
        result = run_training(resolved, quiet=quiet, command=command)
    except Stopped as stopped:
        say(f"softeval: {stopped}", err=True)
        return stopped.exit_code
    if not result.is_main:
        return 0
    summary = {
        "path": str(result.path),
        "best_step": result.best_step,
        "best_success": result.best_success,
        "initial_success": result.initial_success,
    }
    if as_json:
        say_json(summary)
    else:
        say(
            f"Best validation: {100 * result.best_success:.1f} % at step {result.best_step} "
            f"(untrained {100 * result.initial_success:.1f} %)\n"
            f"Checkpoints: {result.path / 'best'}, {result.path / 'last'}"
        )
    return 0
