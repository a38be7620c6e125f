"""`softeval run`: the command line of an evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softeval.cli.main import interrupted
from softeval.cli.options import AsJson, Quiet, with_options
from softeval.cli.tables import print_table, score_tables
from softeval.display import make_display
from softeval.files import GB
from softeval.model import BUNDLED_CHECKPOINT
from softeval.processes import Processes
from softeval.runs.config import RunConfig, make_config
from softeval.scoring.judge import is_judged
from softeval.terminal import calm_libraries, say, say_json

if TYPE_CHECKING:
    from softeval.runs.run import Run

MISSING_SAMPLES = 3

MODEL: dict[str, Any] = {"rich_help_panel": "Model"}
OUTPUT: dict[str, Any] = {"rich_help_panel": "Output"}


@with_options(RunConfig)
def run(
    given: dict[str, Any],
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-C", help="YAML file of options; the command line wins.", **MODEL
        ),
    ] = None,
    model_args: Annotated[
        str | None,
        typer.Option(
            "--model-args", help="As lm-eval takes them: pretrained=PATH,dtype=bfloat16.", **MODEL
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start anew in a directory that holds a run.", **OUTPUT),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check and say what would be done; read no weights.", **OUTPUT
        ),
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Evaluate a checkpoint under the chain-of-thought modes.

    Started again with the same arguments, it continues where it was stopped. Options can also come
    from environment variables such as SOFTEVAL_RUN_LIMIT.
    """
    resolved = make_config(given, config, model_args)
    calm_libraries()
    if dry_run:
        if not Processes.here().is_main:
            return 0  # of several one speaks
        return _print_plan(resolved, as_json, overwrite)
    from softeval.runs.evaluation import run_evaluation
    from softeval.runs.run import load_run

    try:
        outcome = run_evaluation(resolved, make_display(quiet), overwrite=overwrite)
    except KeyboardInterrupt as error:
        say("softeval: interrupted; the same command continues", err=True)
        return interrupted(error)
    if outcome.is_main:
        _print_run(load_run(outcome.path), as_json)
        if resolved.shard is not None and not as_json:
            merging = ["softeval", "merge", str(outcome.path.parent), "--output-path", "RUN"]
            say(f"That is shard {resolved.shard}; when all are there: {shlex.join(merging)}")
    return MISSING_SAMPLES if outcome.missing else 0


def merge(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR…", help="Directories of shards, or one that holds them; in any order."
        ),
    ],
    output_path: Annotated[
        Path, typer.Option("--output-path", "-o", help="Run directory to write.")
    ],
    as_json: AsJson = False,
) -> None:
    """Put the shards of an evaluation (run --shard) together to one run directory."""
    calm_libraries()
    from softeval.runs.merge import merge as put_together
    from softeval.runs.run import load_run

    _print_run(load_run(put_together(folders, output_path)), as_json)


def _print_run(run: Run, as_json: bool) -> None:
    judged = is_judged(run.info)
    scores: list[Any] = run.scores().to_dict("records") if judged else []
    if as_json:
        result = {
            "path": str(run.path.resolve()),
            "status": run.info["status"],
            "counts": run.info["counts"],
            "scores": scores,
        }
        say_json(result)
        return
    for table in score_tables(scores):
        print_table(table)
    if not judged:
        say(f"Not judged yet: softeval score {run.path}")
    missing = run.info["counts"].get("missing", 0)
    if missing:
        say(f"{missing} samples are missing; the same command tries them again.", err=True)
    say(f"Run directory: {run.path}")


def _print_plan(config: RunConfig, as_json: bool, overwrite: bool) -> int:
    from softeval.runs.plan import make_plan
    from softeval.sweeps.estimate import cost_record, evaluation_cost, shape_of

    plan = make_plan(config, overwrite)
    shape = shape_of(config.model)
    if shape is not None:
        capped = config.model_copy(update={"max_cot_tokens": plan["config"]["max_cot_tokens"]})
        plan["cost"] = cost_record(evaluation_cost(capped, shape))
    if as_json:
        say_json(plan)
        return 0
    for name, text in _words(plan).items():
        say(f"{name + ':':<15}{text}")
    import yaml

    say("\nConfiguration:")
    shown = plan["config"] | {"modes": list(plan["config"]["modes"])}
    say(indent(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).rstrip(), "  "))
    return 0


def _words(plan: Mapping[str, Any]) -> dict[str, str]:
    """What a plan comes to, what matters most first."""
    config, checkpoint, cost = plan["config"], plan["checkpoint"], plan.get("cost")
    told = {"model": f"{config['model'] or BUNDLED_CHECKPOINT}"}
    if isinstance(checkpoint, str):
        told["model"] += f" ({checkpoint})"
    else:
        told["model"] += f" ({checkpoint['model_type']}, context {checkpoint['max_length']:,})"
        told |= {"note": "; ".join(checkpoint["notes"])} if checkpoint["notes"] else {}
    told["run directory"] = f"{config['output_path']} ({plan['run']})"
    for task, row in plan["tasks"].items():
        told[task] = f"{row['questions']} questions, {row['data']}"
    told["modes"] = ", ".join(config["modes"])
    told["samples"] = f"{plan['samples']:,}, at most {plan['max_generated_tokens']:,} tokens"
    if cost is not None:
        hours, size = cost["gpu_hours"], cost["bytes"] / GB
        told["cost"] = (
            f"{hours:.2g} hours of one {cost['card']}, {size:.2g} GB on disk"
            " (arithmetic, every CoT at its cap; `softeval plan` measures)"
        )
    return told
