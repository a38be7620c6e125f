"""`softeval show`, `ls` and `env`: what is there to see: samples, runs, tasks, modes, versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softeval import environment
from softeval.cli.help import Contents, Page
from softeval.cli.options import AsJson, OneMode, RunFolder
from softeval.errors import UserError
from softeval.terminal import clean, say, say_json

if TYPE_CHECKING:
    from softeval.runs.run import Run

DEFAULT_FOLDER = Path("runs")

ls = typer.Typer(
    cls=Contents, no_args_is_help=True, rich_markup_mode=None, help="List tasks, modes or runs."
)


def show(
    run: RunFolder,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task; default: the first.")
    ] = None,
    doc: Annotated[int, typer.Option("--doc", help="Question, by its doc_id.")] = 0,
    mode: OneMode = None,
    sample: Annotated[int | None, typer.Option("--sample", help="Only this sample.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a question with its samples."""
    from softeval.runs.run import load_run

    opened = load_run(run)
    found = find_samples(opened, task, doc, mode, sample)
    if as_json:
        say_json(found)
    else:
        _print_samples(found)


def find_samples(
    run: Run, task: str | None, doc: int, mode: str | None, sample: int | None
) -> dict[str, Any]:
    """A question's prompt, target and chosen samples.

    Raises:
        UserError: no such task, question, mode or sample; it names those that are there.
    """
    samples = run.samples()
    task = task if task is not None else next(iter(samples["task"]), None)
    chosen = _choose(samples, "task", task, "this run's tasks are")
    chosen = _choose(chosen, "doc_id", doc, f"questions of {task} are")
    if mode is not None:
        chosen = _choose(chosen, "mode", mode.replace("-", "_"), "this run's modes are")
    if sample is not None:
        chosen = _choose(chosen, "sample", sample, "samples are")
    prompts = run.prompts()
    prompt = prompts[(prompts["task"] == task) & (prompts["doc_id"] == doc)].iloc[0]
    return {
        "task": task,
        "doc_id": doc,
        "prompt": prompt["prompt"],
        "target": prompt["target"],
        "samples": json.loads(chosen.drop(columns=["task", "doc_id"]).to_json(orient="records")),
    }


def _choose(table: Any, column: str, value: Any, there: str) -> Any:
    chosen = table[table[column] == value]
    if len(chosen):
        return chosen
    names = [str(name) for name in table[column].unique()]
    listed = ", ".join(names[:10]) + (f", … {names[-1]}" if len(names) > 10 else "")
    raise UserError(f"no {column} {value} in this run; {there} {listed or 'none'}")


def _print_samples(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.rule import Rule
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Rule(Text(clean(f"{found['task']} question {found['doc_id']}"))))
    console.print(Text(clean(found["prompt"])))
    console.print(Text.assemble(("target: ", "bold"), clean(found["target"])))
    for row in found["samples"]:
        title = f"{row['mode']} sample {row['sample']}: {_verdict(row)}"
        console.print(Rule(Text(clean(title), "green" if row["correct"] else "red"), align="left"))
        console.print(
            Text.assemble(
                clean(row["cot_text"]),
                (clean(row["prefill"]), "dim"),
                (clean(row["answer_text"]), "bold"),
            )
        )
        console.print(Text(clean(_measures(row)), "dim"))


def _verdict(row: dict[str, Any]) -> str:
    if row["verdict"] != "ok":
        return f"wrong ({row['verdict']})"
    return "correct" if row["correct"] else "wrong"


def _measures(row: dict[str, Any]) -> str:
    return (
        f"{row['n_cot_tokens']} CoT tokens, ended by {row['stop_reason']};"
        f" {row['n_answer_tokens']} answer tokens, ended by {row['answer_stop']};"
        f" {row['seconds']:.1f} s"
    )


@ls.command(cls=Page)
def tasks(
    include_path: Annotated[
        str | None,
        typer.Option("--include-path", help="Folder with YAMLs of tasks of your own."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks."""
    from softeval.tasks.catalogue import task_catalogue

    rows = [
        {"task": entry.name, "kind": entry.kind, "members": ",".join(entry.members)}
        for entry in task_catalogue(include_path).values()
    ]
    _print(rows, as_json)


@ls.command(cls=Page)
def modes(as_json: AsJson = False) -> None:
    """List the CoT modes with their options."""
    from softeval.modes import MODES

    rows = [
        {
            "mode": mode.name,
            "family": mode.family,
            "samples": "one" if mode.is_greedy else "many",
            "options": " ".join(f"{name}={value}" for name, value in mode.options.items()),
        }
        for mode in MODES.values()
    ]
    _print(rows, as_json)


@ls.command(cls=Page)
def runs(
    folder: Annotated[
        Path, typer.Argument(help="Folder that holds run directories.")
    ] = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder and in its folders, the one written last first."""
    from softeval.runs.rundir import find_runs, read_record

    if not folder.is_dir() and folder != DEFAULT_FOLDER:
        raise UserError(f"no folder {folder}; give one that holds run directories")
    rows = []
    for path in find_runs(folder, nested=True):
        try:
            record = read_record(path)
        except UserError as error:
            say(f"softeval: {error}", err=True)
            continue
        config = record.get("config", {})
        rows.append(
            {
                "run": str(path),
                "status": record.get("status", "?"),
                "model": config.get("model") or "(bundled)",
                "tasks": ",".join(config.get("tasks", [])),
                "modes": ",".join(config.get("modes", [])),
            }
        )
    _print(rows, as_json)


def _print(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """JSON, or columns; the header only where there are rows."""
    if as_json:
        say_json(list(rows))
        return
    if not rows:
        say("none", err=True)
        return
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say("  ".join(cells).rstrip())


def env(
    as_json: AsJson = False,
) -> None:
    """Print package versions, hardware and settings."""
    import torch  # lets `hardware` name the accelerators

    found = {
        "versions": environment.package_versions(),
        "hardware": environment.hardware(),
        "settings": environment.settings(),
    }
    if as_json:
        say_json(found)
        return
    if not found["hardware"]["accelerators"]:
        why = "torch finds none" if torch.version.cuda else "this torch is built without CUDA"
        found["hardware"]["accelerators"] = f"no GPU ({why})"
    for title, values in found.items():
        say(f"{title}:")
        say(indent(environment.describe(values), "  "))
