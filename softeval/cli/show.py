"""`softeval show`: a question, how each mode did on it, and samples with what they mixed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softeval.cli.options import AsJson, OneMode, RunFolder
from softeval.errors import UserError
from softeval.records import AnswerStop, StopReason
from softeval.terminal import clean, one_line, say_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from softeval.reports.measured.texts import SampleText
    from softeval.runs.run import Run

CERTAIN = 0.995
"""Positions whose first entry weighs at least this are printed as text, without a bar."""
POSITIONS = 32
BAR, LEAST_BAR, BESIDE_BAR = 24, 6, 46
"""Letters of a bar of weight 1: most, least, and what stands beside it."""
BLOCKS = (("█", "blue"), ("▓", "yellow"), ("▒", "green"))
"""Letter and colour of each entry, so that colour alone says nothing."""


def show(
    run: RunFolder,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task; default: the first.")
    ] = None,
    doc: Annotated[
        int | None, typer.Option("--doc", help="Question, by its doc_id; default: the first.")
    ] = None,
    mode: OneMode = None,
    sample: Annotated[int | None, typer.Option("--sample", help="Only this sample.")] = None,
    right: Annotated[bool, typer.Option("--right", help="Only right samples.")] = False,
    wrong: Annotated[bool, typer.Option("--wrong", help="Only wrong samples.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="All samples, whole; default: one right and one wrong.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print a question: a line a mode, then a right and a wrong sample."""
    from softeval.runs.run import load_run

    if right and wrong:
        raise UserError("--right and --wrong leave no sample; give one of them")
    opened = load_run(run)
    found = find_samples(opened, task, doc, mode, sample)
    if right or wrong:
        found.keep(correct=right)
    if as_json:
        say_json(found.record)
        return
    if not every and sample is None:
        found.keep_examples()
    _print(opened, found, every)


@dataclass
class Found:
    """A question and samples of it.

    Attributes:
        task: its task.
        doc_id: its number.
        prompt: as it was given to the model.
        question: the part of the prompt that is its own.
        target: the label.
        samples: rows of `Run.samples`; those that are printed.
        summary: a line a mode about all of them, whatever is printed.
    """

    task: str
    doc_id: int
    prompt: str
    question: str
    target: str
    samples: Any
    summary: list[str]

    def keep(self, correct: bool) -> None:
        """Keep right or wrong samples; UserError where there are none."""
        self.samples = self.samples[self.samples["correct"] == correct]
        if self.samples.empty:
            word, other = ("right", "--wrong") if correct else ("wrong", "--right")
            raise UserError(f"no {word} sample of question {self.doc_id}; try {other} or --doc")

    def keep_examples(self) -> None:
        """Keep the first right and the first wrong sample, those of a recorded mixture first."""
        mixed = self.samples.sort_values("mixed", ascending=False, kind="stable")
        self.samples = mixed.groupby("correct", sort=False).head(1).sort_index()

    @property
    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        rows = self.samples.drop(columns=["task", "doc_id", "mixed"])
        return {
            "task": self.task,
            "doc_id": self.doc_id,
            "prompt": self.prompt,
            "target": self.target,
            "samples": json.loads(rows.to_json(orient="records")),
        }


def find_samples(
    run: Run, task: str | None, doc: int | None, mode: str | None, sample: int | None
) -> Found:
    """A question with the samples asked for.

    Raises:
        UserError: no such task, question, mode or sample; it names those that are there.
    """
    from softeval.records import MIXTURE_SAMPLES
    from softeval.reports.measured.texts import question_of, shared_frame

    samples = run.samples()
    task = task if task is not None else next(iter(samples["task"]), None)
    chosen = _choose(samples, "task", task, "this run's tasks are")
    doc = int(chosen["doc_id"].iloc[0]) if doc is None else doc
    chosen = _choose(chosen, "doc_id", doc, f"questions of {task} are")
    if mode is not None:
        chosen = _choose(chosen, "mode", mode.replace("-", "_"), "this run's modes are")
    summary = [_summary(name, rows) for name, rows in chosen.groupby("mode", observed=True)]
    if sample is not None:
        chosen = _choose(chosen, "sample", sample, "samples are")
    keys = zip(chosen["mode"], chosen["sample"], strict=True)
    mixed = [not run.mode(name).feeds_tokens and n < MIXTURE_SAMPLES for name, n in keys]
    chosen = chosen.assign(mixed=mixed)
    asked: Any = run.prompts()
    asked = asked[asked["task"] == task]
    prompt = asked[asked["doc_id"] == doc].iloc[0]
    question = question_of(prompt["prompt"], shared_frame(list(asked["prompt"])))
    return Found(str(task), doc, prompt["prompt"], question, prompt["target"], chosen, summary)


def _choose(table: Any, column: str, value: Any, there: str) -> Any:
    chosen = table[table[column] == value]
    if len(chosen):
        return chosen
    names = [str(name) for name in table[column].unique()]
    listed = ", ".join(names[:10]) + (f", … {names[-1]}" if len(names) > 10 else "")
    raise UserError(f"no {column} {value} in this run; {there} {listed or 'none'}")


def _summary(mode: Any, rows: Any) -> str:
    answers = rows["answer"].nunique(dropna=False)
    return (
        f"{mode:13} {rows['correct'].sum()} of {len(rows)} right,"
        f" {answers} distinct answer{'s' if answers != 1 else ''},"
        f" {rows['n_cot_tokens'].mean():.1f} CoT tokens"
    )


# On the terminal --------------------------------------------------------------------------------


def _print(run: Run, found: Found, whole: bool) -> None:
    """The question and its samples; through a pager where they are longer than the terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as captured:
        _print_question(console, found, whole)
        for row in found.samples.to_dict("records"):
            _print_sample(console, run, row, whole)
    text = captured.get()
    if on_terminal() and text.count("\n") >= console.height:
        import pydoc

        os.environ.setdefault("LESS", "-R")  # less would print colours as letters
        pydoc.pager(text)
    else:
        sys.stdout.write(text)


def on_terminal() -> bool:
    """Whether somebody reads the output as it is printed."""
    return sys.stdout.isatty()


def _print_question(console: Console, found: Found, whole: bool) -> None:
    from rich.rule import Rule
    from rich.text import Text

    console.print(Rule(Text(clean(f"{found.task} question {found.doc_id}"))))
    console.print(Text(clean(found.prompt if whole else found.question)))
    console.print(Text.assemble(("target: ", "bold"), clean(found.target)))
    for line in found.summary:
        console.print(Text(clean(line)))


def _print_sample(console: Console, run: Run, row: dict[str, Any], whole: bool) -> None:
    from rich.rule import Rule
    from rich.text import Text

    from softeval.reports.measured.texts import read_texts
    from softeval.reports.sections.mixture import at_temperature

    title = f"{row['mode']} sample {row['sample']}: {_verdict(row)}"
    console.print(Rule(Text(clean(title), "green" if row["correct"] else "red"), align="left"))
    answer = ((clean(row["prefill"]), "dim"), (clean(row["answer_text"]), "bold"))
    console.print(Text.assemble(clean(row["cot_text"]), *answer))
    key = (row["task"], str(row["mode"]), row["doc_id"], row["sample"])
    text = read_texts(run, {key})[key]
    if text.feeds_mixtures and any(map(_mixes, text.mixtures)):
        temperatures = f"position, entropy (nats, temperature 1), weights{at_temperature(text)}"
        console.print(Text(temperatures, "dim"))
        for line in _bars(text, console.width, len(text.tokens) if whole else POSITIONS):
            console.print(line, no_wrap=True, overflow="ellipsis")
    console.print(Text(clean(_measures(row)), "dim"))


def _verdict(row: dict[str, Any]) -> str:
    if row["verdict"] != "ok":
        return f"wrong ({row['verdict'].replace('_', ' ')})"
    return "correct" if row["correct"] else "wrong"


def _measures(row: dict[str, Any]) -> str:
    thought, answer = row["stop_reason"], row["answer_stop"]
    if thought in list(StopReason) and answer in list(AnswerStop):  # else whoever wrote it knows
        thought, answer = StopReason(thought).words, AnswerStop(answer).words
    return (
        f"CoT of {row['n_cot_tokens']} tokens {thought};"
        f" answer of {row['n_answer_tokens']} tokens {answer}; {row['seconds']:.1f} s"
    )


def _bars(text: SampleText, width: int, most: int) -> Iterator[Text]:
    """The mixture line by line: a bar for a position that mixes, one line for tokens in a row."""
    from rich.text import Text

    from softeval.reports.sections.mixture import windows

    letters = max(LEAST_BAR, min(BAR, width - BESIDE_BAR))
    assert text.entropy_T is not None, "mixtures are recorded with entropies"
    end, plain = 0, ""
    for shown in windows(text.entropy_T, most):
        if shown.start > end:
            yield from _plain(plain)
            plain = ""
            peak = text.entropy_T[end : shown.start].max()
            yield Text(f"  ⋯ {shown.start - end} positions of entropy up to {peak:.2f}", "dim")
        for t in range(shown.start, shown.stop):
            if _mixes(text.mixtures[t]):
                yield from _plain(plain)
                plain = ""
                yield _bar(text, t, letters)
            else:
                plain += text.tokens[t]
        end = shown.stop
    yield from _plain(plain)
    if end < len(text.tokens):
        peak = text.entropy_T[end:].max()
        yield Text(f"  ⋯ {len(text.tokens) - end} positions of entropy up to {peak:.2f}", "dim")


def _mixes(entries: Sequence[tuple[str, float]]) -> bool:
    return bool(entries) and entries[0][1] < CERTAIN


def _plain(tokens: str) -> Iterator[Text]:
    from rich.text import Text

    if tokens:
        yield Text(f"{'':11}{one_line(tokens)}")


def _bar(text: SampleText, position: int, letters: int) -> Text:
    from rich.text import Text

    from softeval.reports.sections.mixture import written

    assert text.entropy_T is not None
    line = Text(f"{position + 1:5} {text.entropy_T[position]:4.2f} ")
    drawn, total = 0, 0.0
    for (_, weight), (letter, colour) in zip(text.mixtures[position], BLOCKS, strict=False):
        total += weight
        upto = round(letters * total)
        line.append(letter * (upto - drawn), colour)
        drawn = upto
    line.append("·" * (letters - drawn) + " ", "dim")
    shares = [(clean(written(t)), w) for t, w in text.mixtures[position] if w >= 0.005]
    return line.append("  ".join(f"{token} {100 * weight:.0f} %" for token, weight in shares))
