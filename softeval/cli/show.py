"""`softeval show`: a question, how each mode did on it, and samples with what they mixed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softeval.cli.options import AsJson, OneMode, RunFolder
from softeval.errors import UserError
from softeval.records import MIXTURE_SAMPLES, STOP_WORDS
from softeval.scoring.judge import NOT_JUDGED
from softeval.terminal import clean, one_line, say_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from softeval.reports.measured.texts import SampleText
    from softeval.runs.run import Run

POSITIONS, BAR, LEAST_BAR, BESIDE_BAR = 32, 24, 6, 46
"""Bars of a sample; letters of weight 1, most and least; of what stands beside a bar."""
BLOCKS = (("█", "blue"), ("▓", "yellow"), ("▒", "green"))
"""Letter and colour of each entry: never told by colour alone."""


def show(
    run: RunFolder,
    task: Annotated[str | None, typer.Option("--task", "-t", help="Task; default: first.")] = None,
    doc: Annotated[int | None, typer.Option("--doc", help="Question, its doc_id.")] = None,
    mode: OneMode = None,
    sample: Annotated[int | None, typer.Option("--sample", help="Only this sample.")] = None,
    right: Annotated[bool, typer.Option("--right", help="Only right samples.")] = False,
    wrong: Annotated[bool, typer.Option("--wrong", help="Only wrong samples.")] = False,
    every: Annotated[bool, typer.Option("--all", help="All, not one right and one wrong.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a question: a line a mode, then a right and a wrong sample."""
    from softeval.runs.run import load_run

    if right and wrong:
        raise UserError("--right and --wrong leave no sample; give one of them")
    opened = load_run(run)
    chosen = rows = find_samples(opened, task, doc, mode, sample)
    if right or wrong:
        rows = _choose(rows, "correct", right, "of the asked samples only there are")
    question = find_question(opened, rows["task"].iloc[0], int(rows["doc_id"].iloc[0]))
    if as_json:
        samples = rows.drop(columns=["task", "doc_id"]).to_json(orient="records")
        prompt = {key: question[key] for key in ("task", "doc_id", "prompt", "target")}
        say_json(prompt | {"samples": json.loads(samples)})
        return
    if not every and sample is None:
        rows = _examples(opened, rows)
    _print(opened, question, chosen, rows, every)


def find_samples(
    run: Run, task: str | None, doc: int | None, mode: str | None, sample: int | None
) -> Any:
    """Rows of `Run.samples` of one question.

    Raises:
        UserError: no such task, question, mode or sample; it names those that are there.
    """
    rows: Any = run.samples()
    if not len(rows):
        raise UserError(f"no chain of thought in {run.path} to show: it has no finished sample")
    task = task if task is not None else rows["task"].iloc[0]
    rows = _choose(rows, "task", task, "this run's tasks are")
    doc = int(rows["doc_id"].iloc[0]) if doc is None else doc
    rows = _choose(rows, "doc_id", doc, f"questions of {task} are")
    if mode is not None:
        rows = _choose(rows, "mode", mode.replace("-", "_"), "this run's modes are")
    return rows if sample is None else _choose(rows, "sample", sample, "samples are")


def find_question(run: Run, task: str, doc: int) -> dict[str, Any]:
    """A row of `Run.prompts`, and under "question" the part of the prompt that is its own."""
    from softeval.reports.measured.texts import question_of, shared_frame

    prompts: Any = run.prompts()
    prompts = prompts[prompts["task"] == task]
    row = prompts[prompts["doc_id"] == doc].iloc[0].to_dict()
    return row | {"question": question_of(row["prompt"], shared_frame(list(prompts["prompt"])))}


def _choose(table: Any, column: str, value: Any, there: str) -> Any:
    chosen = table[table[column] == value]
    if len(chosen):
        return chosen
    names = [str(name) for name in table[column].unique()]
    listed = ", ".join(names[:10]) + (f", … {names[-1]}" if len(names) > 10 else "")
    raise UserError(f"no {column} {value} in this run; {there} {listed or 'none'}")


def _examples(run: Run, rows: Any) -> Any:
    """The first right and the first wrong sample; those come first whose mixture is recorded."""
    keys = zip(rows["mode"], rows["sample"], strict=True)
    plain = [run.mode(name).feeds_tokens or number >= MIXTURE_SAMPLES for name, number in keys]
    ordered = rows.assign(plain=plain).sort_values("plain", kind="stable")
    return ordered.groupby("correct", sort=False).head(1)


def _print(run: Run, question: dict[str, Any], chosen: Any, rows: Any, whole: bool) -> None:
    """Question and samples; through a pager where they are longer than the terminal."""
    from rich.console import Console
    from rich.rule import Rule
    from rich.text import Text

    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(Rule(Text(clean(f"{question['task']} question {question['doc_id']}"))))
        console.print(Text(clean(question["prompt" if whole else "question"])))
        console.print(Text.assemble(("target: ", "bold"), clean(question["target"])))
        for mode, of_mode in chosen.groupby("mode", observed=True):
            right, answers = of_mode["correct"].sum(), of_mode["answer"].nunique(dropna=False)
            judged = (of_mode["verdict"] != NOT_JUDGED).sum()
            counts = f"{right} of {judged} right, distinct answers: {answers}"
            length = f"{of_mode['n_cot_tokens'].mean():.1f} CoT tokens"
            console.print(Text(clean(f"{mode:13} {counts}, {length}")))
        for row in rows.to_dict("records"):
            _print_sample(console, run, row, whole)
    text = captured.get()
    if sys.stdout.isatty() and text.count("\n") >= console.height:
        import pydoc

        os.environ.setdefault("LESS", "-R")  # less would print colours as letters
        pydoc.pager(text)
    else:
        sys.stdout.write(text)


def _print_sample(console: Console, run: Run, row: dict[str, Any], whole: bool) -> None:
    from rich.rule import Rule
    from rich.text import Text

    from softeval.reports.measured.texts import read_texts

    title = f"{row['mode']} sample {row['sample']}: {_judgement(row)}"
    console.print(Rule(Text(clean(title), "green" if row["correct"] else "red"), align="left"))
    answer = ((clean(row["prefill"]), "dim"), (clean(row["answer_text"]), "bold"))
    console.print(Text.assemble(clean(row["cot_text"]), *answer))
    key = (row["task"], str(row["mode"]), row["doc_id"], row["sample"])
    text = read_texts(run, {key})[key]
    if text.feeds_mixtures and any(map(text.mixes, range(len(text.tokens)))):
        for line in _bars(text, console.width, len(text.tokens) if whole else POSITIONS):
            console.print(line, no_wrap=True, overflow="ellipsis")
    thought, ended = (STOP_WORDS.get(row[k], row[k]) for k in ("stop_reason", "answer_stop"))
    told = (
        f"CoT of {row['n_cot_tokens']} tokens {thought}; answer of {row['n_answer_tokens']} tokens"
        f" {ended}; {row['seconds']:.1f} s"
    )
    console.print(Text(clean(told), "dim"))


def _judgement(row: dict[str, Any]) -> str:
    status = row["verdict"].replace("_", " ")
    if row["verdict"] == NOT_JUDGED:
        return status
    word = "right" if row["correct"] else "wrong"
    return word if row["verdict"] == "ok" else f"{word} ({status})"


def _bars(text: SampleText, width: int, most: int) -> Iterator[Text]:
    """A bar for each position that mixes, the `most` of highest entropy, among the other tokens."""
    from rich.text import Text

    from softeval.reports.measured.texts import temperature_of

    assert text.entropy_T is not None, "mixtures are recorded with entropies"
    yield Text(f"position; entropy at temperature 1; weights{temperature_of(text.mode)}", "dim")
    letters = max(LEAST_BAR, min(BAR, width - BESIDE_BAR))
    heights = text.entropy_T
    mixing = sorted(filter(text.mixes, range(len(text.tokens))), key=lambda t: -heights[t])
    end = 0
    for t in sorted(mixing[:most]):
        if t > end:
            yield Text(f"{'':11}{one_line(''.join(text.tokens[end:t]))}")
        yield Text(f"{t + 1:5} {text.entropy_T[t]:4.2f} ").append(_bar(text.mixtures[t], letters))
        end = t + 1
    yield Text(f"{'':11}{one_line(''.join(text.tokens[end:]))}")


def _bar(entries: list[tuple[str, float]], letters: int) -> Text:
    from rich.text import Text

    from softeval.reports.sections.mixture import written

    line, drawn, total = Text(), 0, 0.0
    for (_, weight), (letter, colour) in zip(entries, BLOCKS, strict=False):
        total += weight
        line.append(letter * (round(letters * total) - drawn), colour)
        drawn = round(letters * total)
    line.append("·" * (letters - drawn) + " ", "dim")
    shares = [f"{clean(written(token))} {100 * w:.0f} %" for token, w in entries if w >= 0.005]
    return line.append("  ".join(shares))
