"""`softeval notebook`: a copy of the analysis notebook that opens one run."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from softeval.errors import UserError
from softeval.rundir import read_record, write_text

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
        UserError: not a run directory, or a place that cannot be written to.
    """
    folder = Path(run)
    read_record(folder)
    target = folder / NAME if output is None else Path(output)
    target = target / NAME if target.is_dir() else target
    if target.exists():
        return target
    text = (files("softeval.reports") / "notebooks" / NAME).read_text(encoding="utf-8")
    notebook = json.loads(text)
    (cell,) = [c for c in notebook["cells"] if PARAMETERS in c["metadata"].get("tags", ())]
    cell["source"] = [
        f"RUN = {str(folder.resolve())!r}\n",
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


def open_notebook(path: Path) -> None:
    """Open a notebook in Jupyter, and wait until it is left.

    Raises:
        UserError: Jupyter is not installed.
    """
    if find_spec("jupyterlab") is None:
        raise UserError("Jupyter is not installed: pip install jupyter, or open the file elsewhere")
    subprocess.run([sys.executable, "-m", "jupyter", "lab", str(path)], check=False)
