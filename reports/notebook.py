"""`softeval notebook`: a copy of the analysis notebook that opens one run."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from softeval.errors import UserError
from softeval.files import write_text
from softeval.runs.rundir import read_record

NAME = "analysis.ipynb"
PARAMETERS = "parameters"  # tag of the cell that names the run, as papermill has it


def write_notebook(run: str | Path, output: str | Path | None = None) -> Path:
    """Write the notebook for a run; one that is there already is kept, with all edits.

    Args:
        run: run directory.
        output: the notebook's file, or a folder for it; None puts it into the run directory.

    Returns:
        The notebook's path.

    Raises:
        UserError: not a run directory, a place that cannot be written to, or one that holds the
            notebook of another run.
    """
    folder = Path(run)
    read_record(folder)
    target = folder / NAME if output is None else Path(output)
    target = target / NAME if target.is_dir() else target
    if target.suffix != ".ipynb":
        raise UserError(f"--output {target} is no folder; give one, or a file that ends in .ipynb")
    opens = f"RUN = {str(folder.resolve())!r}\n"
    if target.exists():
        other = _opens(target)
        if other not in (None, opens):
            raise UserError(f"{target} is a notebook of another run; give another --output")
        return target
    text = (files("softeval.reports") / "notebooks" / NAME).read_text(encoding="utf-8")
    notebook = json.loads(text)
    (cell,) = _parameter_cells(notebook)
    cell["source"] = [
        opens,
        "OTHERS = []  # more runs to lay beside",
    ]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write {target} ({error.strerror}); give another --output"
        ) from None
    return target


def _opens(path: Path) -> str | None:
    """The line by which a notebook names its run; None where an edit has taken it away."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        lines = "".join(_parameter_cells(notebook)[0]["source"]).splitlines(keepends=True)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return next((line for line in lines if line.startswith("RUN = ")), None)


def _parameter_cells(notebook: Any) -> list[Any]:
    return [c for c in notebook["cells"] if PARAMETERS in c["metadata"].get("tags", ())]


def open_notebook(path: Path) -> None:
    """Open a notebook in Jupyter, and wait until it is left.

    Raises:
        UserError: Jupyter is not installed.
    """
    if find_spec("jupyterlab") is None:
        raise UserError("Jupyter is not installed: pip install jupyter, or open the file elsewhere")
    subprocess.run([sys.executable, "-m", "jupyter", "lab", str(path)], check=False)
