"""`softeval ablate`: the command line of a grid of trainings, evaluated and reported together."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from softeval.cli.main import FAILED
from softeval.cli.options import AsJson
from softeval.cli.recipes import find_shipped, read_recipes
from softeval.cli.tables import TextTable, print_table
from softeval.runs.cells import chosen_benchmarks
from softeval.runs.config import make_config
from softeval.sweeps.chain import KINDS, SweepCell, run_missing
from softeval.sweeps.grid import expand, read_grid
from softeval.terminal import calm_libraries, say, say_json

REPORT = "report.html"
BROWSED = 8
"""Questions in the report's browser of samples: there are many cells."""


def ablate(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE.yaml",
            help="The grid, a file or a shipped name: f1, f2, f3 (the paper's ablations of noise scale, "
            "placement and temperature), demo_f1, demo_f2, demo_f3 (in miniature, on a CPU).",
        ),
    ],
    output_path: Annotated[
        Path | None,
        typer.Option(
            "--output-path", "-o", help="Where the cells go. Default: runs/ablate-<file>."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and what is there; run nothing.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Train and evaluate every cell of a grid, and report them side by side.

    Each cell is an ordinary softeval train and softeval run in a directory of its own. Started again,
    the command does what is missing, and continues what was stopped.
    """
    calm_libraries()
    path = find_shipped(file, Path(str(files("softeval.sweeps") / "ablations")), "grid")
    grid = read_grid(path)
    folder = output_path or Path("runs") / f"ablate-{path.stem}"
    cells = expand(grid, read_recipes(grid.config), folder)
    chosen_benchmarks(make_config(grid.run))  # an unknown task is said before hours of training
    failed, stopped = [], 0
    if not dry_run:
        failed, stopped = run_missing(cells, lambda text: say(text, err=True))
    if as_json:
        say_json([_record(cell) for cell in cells])
    else:
        _print_cells(cells)
    for command in failed:
        say(f"softeval: failed: {command.text}", err=True)
    if dry_run or stopped:
        return stopped
    done = [cell for cell in cells if not set(cell.commands) & set(failed)]
    if done:
        _report(done, grid.title, folder / REPORT)
    say(f"{len(done)} of {len(cells)} cells are done")
    return FAILED if failed else 0


def _record(cell: SweepCell) -> dict[str, Any]:
    steps = [{"command": c.text, "folder": str(c.folder), "state": c.state} for c in cell.commands]
    return {"cell": cell.name, "seed": cell.seed, "commands": steps}


def _print_cells(cells: Sequence[SweepCell]) -> None:
    rows = []
    for cell in cells:
        states = {command.arguments[0]: command.state.value for command in cell.commands}
        seed = "–" if cell.seed is None else str(cell.seed)
        rows.append([cell.name, seed, *(states.get(kind, "–") for kind in KINDS)])
    print_table(TextTable(["cell", "seed", *KINDS], rows))


def _report(cells: Sequence[SweepCell], title: str | None, output: Path) -> None:
    from softeval.reports.page import ReportOptions, build_report, write_report

    named = [
        f"{cell.name}={command.folder}" if cell.seed is not None else str(command.folder)
        for cell in cells
        for command in cell.commands
    ]
    size = write_report(output, build_report(named, ReportOptions(title=title, problems=BROWSED)))
    say(f"report: {output} ({size / 1e6:.1f} MB)")
