"""`softeval report`, `compare`, `plan` and `notebook`: the command line of the reports.

Everything heavy is imported inside the commands.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softeval.cli.help import complete_runs
from softeval.cli.options import AsJson, OneMode, OneTask, RunFolder
from softeval.cli.tables import TextTable, print_table
from softeval.terminal import say, say_json

if TYPE_CHECKING:
    from softeval.reports.compare import PlannedMetric, Spent
    from softeval.reports.contrasts import Comparison

DEFAULT_OUTPUT = Path("report.html")
SideA = Annotated[
    str,
    typer.Argument(
        help="Run directory, or several seeds: RUN,RUN,…; RUN:MODE names one mode.",
        autocompletion=complete_runs,
    ),
]
Margin = Annotated[
    float, typer.Option("--margin", help="Equivalence margin, points.", min=0.01, max=100)
]
Ks = Annotated[
    list[int] | None, typer.Option("--k", help="The k of pass@k; repeat for more.", min=1)
]


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Run directories, or LABEL=RUN; training directories among them give curves.",
            autocompletion=complete_runs,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The HTML file to write.")
    ] = DEFAULT_OUTPUT,
    title: Annotated[str | None, typer.Option("--title", help="Heading of the report.")] = None,
    paper_reference: Annotated[
        bool,
        typer.Option(
            "--paper-reference", help="Lay the paper's numbers beside those of the same models."
        ),
    ] = False,
    margin: Margin = 2.0,
    contrast: Annotated[
        list[str] | None,
        typer.Option(
            "--contrast",
            help="A primary contrast, e.g. soft-hard:hard_sample@32 (two methods) or"
            " soft_sample:hard_sample@32 (two modes); repeat for more. Default: those that the runs"
            " declared (softeval run --primary), else against hard training under hard inference.",
        ),
    ] = None,
    extrapolate: Annotated[
        int | None,
        typer.Option(
            "--extrapolate", help="Also draw what three models make of pass@k up to this k.", min=2
        ),
    ] = None,
    problems: Annotated[
        int, typer.Option("--problems", help="Questions a task in the browser of samples.", min=1)
    ] = 40,
    seed: Annotated[int, typer.Option("--seed", help="Of the random choice among them.")] = 0,
    all_seeds: Annotated[
        bool,
        typer.Option("--all-seeds", help="Show samples of every training seed, not the first's."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML report about one or many runs."""
    from softeval.reports.page import ReportOptions, build_report, check_output, write_report

    options = ReportOptions(
        title=title,
        paper_reference=paper_reference,
        margin=margin / 100,
        contrasts=tuple(contrast or ()),
        problems=problems,
        seed=seed,
        all_seeds=all_seeds,
        extrapolate=extrapolate,
    )
    check_output(output)
    with warnings.catch_warnings(record=True) as caught:
        page = build_report(runs, options)
    for warning in caught:
        say(f"softeval: warning: {warning.message}", err=True)
    size = write_report(output, page)
    if as_json:
        say_json({"output": str(output), "bytes": size})
    else:
        say(f"report: {output} ({size / 1e6:.1f} MB)")


def compare(
    a: SideA,
    b: Annotated[str, typer.Argument(help="What it is compared with, likewise.")],
    task: OneTask = None,
    mode: OneMode = None,
    k: Ks = None,
    margin: Margin = 2.0,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, two modes, or the seeds of two methods, question by question."""
    from softeval.reports.compare import compare_runs, comparison_record

    compared = compare_runs(
        _folders(a),
        _folders(b),
        task=task,
        mode=mode,
        ks=k or (),
        margin=margin / 100,
    )
    if as_json:
        say_json([comparison_record(one) for one in compared])
    else:
        _print_comparison(compared, margin)


def leaderboard(
    folder: Annotated[Path, typer.Argument(help="Folder with run directories at any depth.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write it as an HTML file.")
    ] = None,
    task: OneTask = None,
) -> None:
    """List all runs below a folder, the best first, a table for each set of questions."""
    from softeval.reports.leaderboard import NOTE, find_boards, leaderboard_page
    from softeval.reports.page import check_output, write_report

    if output is not None:
        check_output(output)
    boards, notes = find_boards(folder, task)
    for board in boards:
        table = board.table
        rows = [
            [f"{c.text} {c.note}{' *' if c.strong else ''}".strip() for c in r] for r in table.rows
        ]
        print_table(TextTable(list(table.columns), rows, table.caption, names=3))
        say()
    for line in (NOTE.replace("Shaded", "*"), *notes):
        say(line)
    if output is not None:
        write_report(output, leaderboard_page(folder, boards, notes))
        say(f"leaderboard: {output}")


def claims(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Run directories of an untrained model and what was trained from it, or LABEL=RUN.",
            autocompletion=complete_runs,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Say which of the paper's claims runs of trained and untrained models support or refute."""
    from softeval.reports.claims import claim_records, find_claims
    from softeval.reports.measured.arms import measure
    from softeval.reports.notes import notes, rules_notes, unfinished_notes
    from softeval.reports.page import split_label
    from softeval.reports.sections.claims import CAPTION, COLUMNS, claim_tables

    arms = measure([split_label(run) for run in runs])
    for note in (*notes(arms), *unfinished_notes(arms), *rules_notes(arms)):
        say(note, err=True)
    found = find_claims(arms)
    if as_json:
        say_json(list(claim_records(found)))
    else:
        for group, rows in claim_tables(found).items():
            cells = [
                [f"{name} [{on}]" if on else name, word, f"{figure} {interval}", region]
                for name, on, word, figure, interval, region in rows
            ]
            print_table(TextTable(COLUMNS, cells, group, names=1, widest=33))
        say(f"\n{CAPTION}")


def plan(
    a: SideA,
    b: Annotated[str, typer.Argument(help="What it is to be compared with, likewise.")],
    difference: Annotated[
        float,
        typer.Option("--difference", "-d", help="Difference to find, points.", min=0.01, max=100),
    ] = 2.0,
    power: Annotated[
        float, typer.Option("--power", help="How often to find it, a share.", min=0.5, max=0.999)
    ] = 0.8,
    task: OneTask = None,
    mode: OneMode = None,
    k: Ks = None,
    as_json: AsJson = False,
) -> None:
    """Say how many questions, samples or seeds a wanted difference of two sides needs."""
    from softeval.reports.compare import plan_runs

    planned = plan_runs(
        _folders(a), _folders(b), difference / 100, power, task=task, mode=mode, ks=k or ()
    )
    if as_json:
        say_json([_plan_record(one, power) for one in planned])
        return
    columns = ["task", "metric", "questions", "samples", "seeds", "detectable"]
    columns += ["questions needed", "samples needed", "seeds needed"]
    print_table(TextTable(columns, [_plan_row(one, power) for one in planned]))
    say()
    say(
        f"Detectable: the difference in points that as many questions, samples and seeds find in"
        f" {100 * power:g} % of cases at p ≤ .05, one comparison by itself. Needed to find"
        f" {difference:g} points: so many of one, all else as it is; – where no number of it is enough,"
        " or, for samples, n < 2k. Hours: of a device, for evaluating both sides, at the seconds that a"
        " sample took in these runs; training comes on top."
    )


def _plan_record(one: PlannedMetric, power: float) -> dict[str, Any]:
    plan, needed = one.plan, _needed(one, power)
    return {
        "task": one.metric.task,
        "mode": one.metric.mode,
        "k": one.metric.k,
        "questions": plan.problems,
        "samples": one.samples,
        "seeds_a": plan.seeds[0],
        "seeds_b": plan.seeds[1],
        "detectable": plan.mde(power) or None,
        "cost": _cost_record(one.cost()),
        **{f"{name}_needed": number for name, number in needed.items()},
        **{
            f"{name}_needed_cost": number and _cost_record(one.cost(**{name: number}))
            for name, number in needed.items()
        },
    }


def _cost_record(cost: Spent | None) -> dict[str, float] | None:
    return cost and {"hours": cost.seconds / 3600, "bytes": cost.bytes}


def _plan_row(one: PlannedMetric, power: float) -> list[str]:
    from softeval.reports.tables import detectable_text

    seeds = dict.fromkeys(one.plan.seeds)
    return [
        one.metric.task,
        one.metric.name.replace("_", " "),
        str(one.plan.problems),
        str(one.samples),
        " / ".join(map(str, seeds)),
        detectable_text(one.plan.mde(power) or float("nan")),
        *(
            "–" if number is None else f"{number:,}{_hours(one.cost(**{name: number}))}"
            for name, number in _needed(one, power).items()
        ),
    ]


def _hours(cost: Spent | None) -> str:
    return "" if cost is None else f" ({cost.seconds / 3600:,.2g} h)"


def _needed(one: PlannedMetric, power: float) -> dict[str, int | None]:
    """Questions, samples and seeds needed; of runs that never differ nothing can be said."""
    found = {
        "questions": one.needs.problems,
        "samples": one.samples_needed,
        "seeds": one.needs.seeds,
    }
    return dict.fromkeys(found) if one.plan.mde(power) == 0 else found


def notebook(
    run: RunFolder,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to put it; default: in the run.")
    ] = None,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Only write it; do not start Jupyter.")
    ] = False,
) -> None:
    """Open a copy of the analysis notebook for a run."""
    from softeval.reports.notebook import open_notebook, write_notebook

    written = write_notebook(run, output)
    say(f"notebook: {written}")
    if not no_open:
        open_notebook(written)


def _folders(text: str) -> list[str]:
    """Folders of a comma-separated list; a folder that has a comma in its name is one folder."""
    return [text] if Path(text).exists() else [part for part in text.split(",") if part]


def _print_comparison(compared: list[Comparison], margin: float) -> None:
    columns = ["task", "metric", "questions", "A", "B", "A − B", "95 % interval", "detectable"]
    print_table(TextTable([*columns, "p", "verdict"], [_row(one) for one in compared]))
    say()
    for line in _notes(compared, margin):
        say(line)


def _row(one: Comparison) -> list[str]:
    from softeval.reports.tables import detectable_text, number, p_text, points

    contrast = one.contrast
    if one.metric.is_nll:
        shown = (contrast.mean_a, contrast.mean_b, contrast.diff, contrast.low, contrast.high)
        values = [number(v) for v in shown]
        detectable = number(contrast.mde)
    else:
        values = [
            points(contrast.mean_a),
            points(contrast.mean_b),
            points(contrast.diff, sign=True),
        ]
        values += [points(contrast.low), points(contrast.high)]
        detectable = detectable_text(contrast.mde)
    a, b, difference, low, high = values
    word: str = one.verdict.word
    if word == "equivalent":
        found = one.verdict.equivalence
        shown = number if one.metric.is_nll else points
        word += f" (90 % interval [{shown(found.low)}, {shown(found.high)}])"
    interval = f"[{low}, {high}]"
    name = one.metric.name.replace("_", " ")
    if one.a.mode != one.b.mode:
        name = name.replace(" pass@", f" − {one.b.mode.replace('_', ' ')} pass@")
    fewer = contrast.problems < one.questions
    questions = f"{contrast.problems} of {one.questions}" if fewer else f"{one.questions}"
    values = [a, b, difference, interval, detectable, p_text(one.verdict.p), word]
    return [one.metric.task, name, questions, *values]


def _notes(compared: list[Comparison], margin: float) -> list[str]:
    from softeval.reports.compare import NLL_MARGIN

    scopes = list(dict.fromkeys(one.contrast.scope for one in compared))
    tests = list(dict.fromkeys(one.contrast.test for one in compared))
    zones = [f"{margin:g} points"] if any(not one.metric.is_nll for one in compared) else []
    zones += [f"{NLL_MARGIN:g} nats"] if any(one.metric.is_nll for one in compared) else []
    judged = f"Holm-adjusted over these {len(compared)} comparisons"
    lines = [
        "Percent and points, NLL in nats per token. A − B is positive when A is higher.",
        f"p: {', '.join(tests)}; {judged}. Equivalent: 90 % interval within ±{' or ±'.join(zones)}.",
        f"Scope: {'; '.join(scopes)}.",
    ]
    excluded = max(one.contrast.excluded for one in compared)
    lines += [one.warning for one in compared[:1] if one.warning]
    if excluded:
        lines.append(f"Up to {excluded} problems were left out: too few samples for k.")
    return lines
