"""The report: sections put into one self-contained HTML file.

The same inputs give the same bytes: no clock, no random number without a seed, no folder outside
the run directories is looked at.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from softeval.errors import UserError
from softeval.reports.escaping import visible
from softeval.reports.layout import Part, Section
from softeval.reports.material import PROBLEMS, Material, ReportOptions
from softeval.reports.measured.arms import Arms, measure
from softeval.reports.notes import unfinished_notes
from softeval.reports.sections import OPENING, SECTIONS
from softeval.reports.sections.samples import SCRIPT
from softeval.reports.sections.training import is_training
from softeval.reports.tables import margin_text
from softeval.statistics.equivalence import MARGIN


def build_report(folders: Sequence[str | Path], options: ReportOptions | None = None) -> str:
    """The report of some run directories, as HTML.

    Args:
        folders: run directories, each a path or LABEL=path; training directories among them give
            training curves, under their labels.
        options: title, margin and the like.

    Raises:
        UserError: a folder that is no run, a damaged file, runs that do not belong together, or
            none that has got as far as its tables.
    """
    options = options or ReportOptions()
    named = [split_label(str(folder)) for folder in folders]
    training = [(label, folder) for label, folder in named if is_training(folder)]
    if training and len(training) == len(named):
        alone = [folder for _, folder in training]
        raise UserError(
            f"{', '.join(alone)}: training curves alone, and a report is about evaluations; give a"
            f" run beside them (`softeval run --model {alone[0]}/best` makes one)"
        )
    arms = measure([(label, f) for label, f in named if not is_training(f)])
    if not any(run.complete or run.cells or run.answers for run in arms.runs):
        raise UserError(f"there is nothing to report yet: {' '.join(unfinished_notes(arms))}")
    material = Material(arms, tuple(training), options, _facts(arms, options, folders))
    laid_out = [(section, section.parts(material)) for section in (OPENING, *SECTIONS)]
    return render_page(_header(arms, options), [(s, parts) for s, parts in laid_out if parts])


def split_label(text: str) -> tuple[str | None, str]:
    """("soft", "runs/x") of ``soft=runs/x``; (None, text) where the whole text is a folder."""
    label, separator, folder = text.partition("=")
    if separator and label and not Path(text).exists():
        return label, folder
    return None, text


def _header(arms: Arms, options: ReportOptions) -> dict[str, Any]:
    runs = arms.runs
    unfinished = sum(not run.complete for run in runs)
    done = f"{len(runs) - unfinished} of {len(runs)} runs complete"
    return {
        "title": options.title or f"Soft tokens on {', '.join(_tasks(arms)) or 'no task'}",
        "status": f"partial: {done}" if unfinished else "complete",
        "version": _versions(arms),
    }


def _tasks(arms: Arms) -> list[str]:
    return list(dict.fromkeys(task for run in arms.runs for task in run.datasets()))


def _facts(
    arms: Arms, options: ReportOptions, folders: Sequence[str | Path]
) -> tuple[tuple[str, str], ...]:
    """What the page is about and how it was made, for the section on validity."""
    dates = sorted(str(run.info.get("started") or "?")[:10] for run in arms.runs)
    seeds = {arm: f" ({arm.seeds} seeds)" if arm.seeds > 1 else "" for arm in arms.arms}
    trained = [f"{arms.name(arm)}{told}" for arm, told in seeds.items()]
    return (
        ("Models", ", ".join(arms.families)),
        ("Training", ", ".join(trained)),
        ("Tasks", ", ".join(_tasks(arms))),
        ("Modes", ", ".join(mode.replace("_", " ") for mode in arms.modes) or "none"),
        ("Samples", f"{sum(len(c.doc_R) for r in arms.runs for c in r.cells.values()):,}"),
        ("Dates", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"),
        ("Made with", _versions(arms)),
        ("Reproduce", _command(options, folders)),
    )


def _versions(arms: Arms) -> str:
    versions = [str((run.info.get("versions") or {}).get("softeval", "")) for run in arms.runs]
    known = [version for version in dict.fromkeys(versions) if version]
    return f"softeval {', '.join(known)}" if known else "softeval, version not recorded"


def _command(options: ReportOptions, folders: Sequence[str | Path]) -> str:
    words = ["softeval", "report", *map(str, folders)]
    words += ["--title", options.title] if options.title else []
    words += ["--paper-reference"] if options.paper_reference else []
    words += ["--margin", margin_text(options.margin)] if options.margin != MARGIN else []
    for contrast in options.contrasts:
        words += ["--contrast", contrast]
    words += ["--problems", str(options.problems)] if options.problems != PROBLEMS else []
    words += ["--seed", str(options.seed)] if options.seed else []
    words += ["--all-seeds"] if options.all_seeds else []
    words += ["--extrapolate", str(options.extrapolate)] if options.extrapolate else []
    return shlex.join(words)


def render_page(header: Mapping[str, Any], sections: Sequence[tuple[Section, list[Part]]]) -> str:
    """The page as HTML; the header has a title, a status (complete, or partial with the reason) and a version."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("softeval.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    css = Markup((files("softeval.reports") / "static" / "report.css").read_text(encoding="utf-8"))
    template = environment.get_template("report.html.j2")
    return template.render(**header, sections=sections, policy=policy, css=css)


def _shown(value: Any) -> Any:
    """Every text a template prints has its control and direction marks made visible."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


# The page as a file -----------------------------------------------------------------------------


def check_output(output: Path) -> None:
    """Refuse a place for the page that cannot be written to, before the work.

    Raises:
        UserError: a directory, or below something that is no directory or cannot be written to.
    """
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if output.is_dir():
        raise UserError(f"--output {output} is a directory; give a file, like {output}/report.html")
    if there != output.absolute() and not there.is_dir():
        raise UserError(f"cannot write {output} ({there} is a file); give another --output")
    if not os.access(there, os.W_OK):
        raise UserError(f"cannot write {output} ({there} is read-only); give another --output")


def write_report(output: Path, page: str) -> int:
    """Write the page; returns its size in bytes.

    Raises:
        UserError: the file cannot be written.
    """
    content = page.encode("utf-8", "replace")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"cannot write {output} ({error.strerror}); give another --output"
        ) from None
    return len(content)
