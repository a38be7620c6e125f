"""`softeval show`: samples of a run, to read in the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softeval.errors import UserError
from softeval.terminal import clean, say_json

if TYPE_CHECKING:
    from softeval.runs.run import Run


def register(app: typer.Typer) -> None:
    """Add `show`."""
    app.command("show")(show)


def show(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task; default: the first.")
    ] = None,
    doc: Annotated[int, typer.Option("--doc", help="Question, by its doc_id.")] = 0,
    mode: Annotated[str | None, typer.Option("--mode", help="Only this CoT mode.")] = None,
    sample: Annotated[int | None, typer.Option("--sample", help="Only this sample.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
