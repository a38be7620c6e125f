"""The report: measurements, blocks and samples put into one self-contained HTML file.

The same inputs give the same bytes: no clock, no random number without a seed, no folder outside
the run directories is looked at.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from softeval.errors import UserError
from softeval.reports import blocks
from softeval.reports.arms import Arms, measure
from softeval.reports.beyond import find_beyond
from softeval.reports.contrasts import Comparison, declaration_notes, find_comparisons
from softeval.reports.curves import find_curves
from softeval.reports.differences import CurveDifference, find_differences
from softeval.reports.drift import find_drift
from softeval.reports.entropy import find_entropy, summaries
from softeval.reports.escaping import script_json, visible
from softeval.reports.grading import other_rules_text, rules_notes
from softeval.reports.latex import to_latex
from softeval.reports.left_out import Sections
from softeval.reports.out_of_domain import find_out_of_domain
from softeval.reports.packing import pack
from softeval.reports.provenance import validity_context
from softeval.reports.sample_texts import read_prompts, read_samples
from softeval.reports.selection import PROBLEMS, choose_problems, choose_samples, sources
from softeval.reports.tables import MainTable, Table, main_tables, margin_text
from softeval.reports.training import is_training, read_all
from softeval.reports.validity import notes
from softeval.reports.verdict import verdict_sentences
from softeval.statistics.equivalence import MARGIN

NO_SAMPLES: dict[str, Any] = {"samples": None, "samples_note": "", "script": Markup("")}


@dataclass(frozen=True)
class ReportOptions:
    """What a user may choose about a report.

    Attributes:
        title: heading; None makes one from the tasks.
        paper_reference: lay the paper's numbers beside the measured ones.
        margin: equivalence margin, a fraction.
        contrasts: primary contrasts; empty for the default ones.
        problems: problems in the browser of samples, a task.
        seed: of the random part of that choice.
        all_seeds: put samples of every training seed into the browser, not of the first only.
        extrapolate: largest k of the extrapolated pass@k curves; None for none.
    """

    title: str | None = None
    paper_reference: bool = False
    margin: float = MARGIN
    contrasts: tuple[str, ...] = ()
    problems: int = PROBLEMS
    seed: int = 0
    all_seeds: bool = False
    extrapolate: int | None = None


def build_report(folders: Sequence[str | Path], options: ReportOptions | None = None) -> str:
    """The report of some run directories, as HTML.

    Args:
        folders: run directories, each a path or LABEL=path; training directories among them give
            training curves.
        options: title, margin and the like.

    Raises:
        UserError: a folder that is no run, a damaged file, or runs that do not belong together.
    """
    options = options or ReportOptions()
    named = [split_label(str(folder)) for folder in folders]
    training = [folder for _, folder in named if is_training(folder)]
    if training and len(training) == len(named):
        raise UserError(
            f"{', '.join(training)}: training curves alone, and a report is about evaluations; give a"
            f" run beside them (`softeval run --model {training[0]}/best` makes one)"
        )
    arms = measure([(label, f) for label, f in named if not is_training(f)])
    return _render(_context(arms, training, options, folders))


def split_label(text: str) -> tuple[str | None, str]:
    """("soft", "runs/x") of ``soft=runs/x``; (None, text) where the whole text is a folder."""
    label, separator, folder = text.partition("=")
    if separator and label and not Path(text).exists():
        return label, folder
    return None, text


def _context(
    arms: Arms,
    training: Sequence[str],
    options: ReportOptions,
    folders: Sequence[str | Path],
) -> dict[str, Any]:
    """Everything the template prints."""
    sections = Sections()
    comparisons = find_comparisons(arms, options.contrasts, options.margin)
    differences = sections.make("curves", "D(k)", lambda: find_differences(arms), [])
    tables = main_tables(arms, options.paper_reference)
    out_of_domain = sections.make(
        "out_of_domain",
        "Out of domain",
        lambda: blocks.out_of_domain_block(find_out_of_domain(arms), options.paper_reference),
        None,
    )
    shown = [t.table for t in (*tables, *([out_of_domain] if out_of_domain else [])) if t.table]
    context = {
        **_header(arms, options, folders),
        "verdict": verdict_sentences(arms, comparisons, differences, options.margin),
        "verdict_note": _verdict_note([c for c in comparisons if c.primary]),
        "notes": [*notes(arms), *declaration_notes(arms), *rules_notes(arms)],
        "other_rules": other_rules_text(arms, comparisons, options.contrasts, options.margin),
        "main_tables": [_main(table) for table in tables],
        "no_results": _no_results(arms),
        "results_note": _results_note(arms, shown if options.paper_reference else None),
        "curves": sections.make("curves", "pass@k", lambda: _curves(arms, differences), []),
        "beyond": sections.make(
            "curves",
            "Extrapolation",
            lambda: blocks.beyond_blocks(find_beyond(arms, options.extrapolate)),
            [],
        ),
        "comparisons": blocks.comparison_blocks(comparisons, options.margin),
        "entropy": sections.make(
            "entropy", "Entropy", lambda: blocks.entropy_blocks(find_entropy(arms)), []
        ),
        "entropy_tables": sections.make(
            "entropy", "Mean entropy", lambda: blocks.entropy_tables(summaries(arms)), []
        ),
        "drift": sections.make("drift", "KL", lambda: blocks.drift_blocks(find_drift(arms)), []),
        "out_of_domain": out_of_domain,
        "training": sections.make(
            "training", "Training", lambda: blocks.training_block(read_all(training)), None
        ),
        "margin": margin_text(options.margin),
        **validity_context(arms),
        **sections.make("samples", "Samples", lambda: _samples(arms, options), NO_SAMPLES),
    }
    return context | {"left_out": sections.left_out, "sections": _sections(context)}


def _curves(arms: Arms, differences: Sequence[CurveDifference]) -> list[blocks.Block]:
    """A figure a group and task, where some mode was sampled more than once."""
    figures = [
        figure
        for figure in find_curves(arms, differences)
        if any(curve.band is not None for panel in figure.panels for curve in panel.curves)
    ]
    return [blocks.curve_block(figure, index) for index, figure in enumerate(figures)]


def _header(arms: Arms, options: ReportOptions, folders: Sequence[str | Path]) -> dict[str, Any]:
    runs = [run.run for run in arms.runs]
    unfinished = sum(not run.complete for run in runs)
    tasks = list(dict.fromkeys(task for run in runs for task in run.datasets()))
    versions = [str((run.record.get("versions") or {}).get("softeval", "")) for run in runs]
    dates = sorted(str(run.record.get("started") or "?")[:10] for run in runs)
    several = "s" if len(runs) != 1 else ""
    done = f"{len(runs) - unfinished} of {len(runs)} runs complete"
    return {
        "title": options.title or f"Soft tokens on {', '.join(tasks) or 'no task'}",
        "status": {
            "kind": "partial" if unfinished else "complete",
            "text": f"partial: {done}" if unfinished else "complete",
        },
        "subtitle": f"{len(runs)} run{several} · {len(arms.arms)} {_kind_of_arms(arms)}"
        f"{'s' if len(arms.arms) != 1 else ''} · modes {', '.join(arms.modes) or 'none'}",
        "facts": [
            ("Models", ", ".join(arms.families)),
            ("Training", ", ".join(_arm_text(arms, arm) for arm in arms.arms)),
            ("Tasks", ", ".join(tasks)),
            ("Samples", f"{sum(len(c.doc_R) for r in arms.runs for c in r.cells.values()):,}"),
            ("Dates", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"),
            ("Made with", _versions(versions)),
            ("Reproduce", _command(options, folders)),
        ],
        "version": versions[0],
        "footer": "One file, no network: it can be kept, sent and printed as it is.",
    }


def _kind_of_arms(arms: Arms) -> str:
    return "training method" if any(arm.trained for arm in arms.arms) else "model"


def _versions(versions: Sequence[str]) -> str:
    known = [version for version in dict.fromkeys(versions) if version]
    return f"softeval {', '.join(known)}" if known else "softeval, version not recorded"


def _arm_text(arms: Arms, arm: Any) -> str:
    return arms.name(arm) + (f" ({arm.seeds} seeds)" if arm.seeds > 1 else "")


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


def _verdict_note(primary: Sequence[Comparison]) -> str:
    """How many comparisons the verdict is made from, and since when they are primary."""
    if not primary:
        return "There is no primary comparison."
    origins = Counter(c.origin for c in primary)
    told = "; ".join(
        f"{n} {origin}" if len(origins) > 1 else origin for origin, n in origins.items()
    )
    return (
        f"Made from {len(primary)} primary comparison{'s' if len(primary) > 1 else ''} ({told}),"
        " Holm-adjusted together. Effects are in points with 95 % intervals, unless another level"
        " is named."
    )


def _no_results(arms: Arms) -> str:
    if any(not (run.cells or run.likelihoods or run.run.complete) for run in arms.runs):
        return "There is no table yet: the run is not finished, see above."
    return "These runs hold no generative task."


def _results_note(arms: Arms, with_paper: Sequence[Table] | None) -> str:
    """How to read the tables; `with_paper` are those in which the paper's numbers were asked for."""
    marked = "Shaded cells are those that cannot be told from the best of their column. "
    scope = (
        "Intervals are over problems and, with several seeds, over training seeds too; ± is the SD"
        " over seeds and is no interval."
    )
    cells = [cell for table in with_paper or () for row in table.rows for cell in row]
    if with_paper is not None and not any(cell.reference for cell in cells):
        scope += (
            " No value of the paper matches these runs: its models, training, whole benchmarks,"
            " decoding and k."
        )
    return (marked if len(arms.arms) > 1 else "") + scope


def _main(main: MainTable) -> dict[str, Any]:
    table = main.table
    return {
        "heading": f"{main.task} · {main.family}",
        "table": table,
        "seeds": main.seed_table(),
        "file": f"{main.task}-{main.family}",
        "csv": _data_address("text/csv", table.csv()),
        "latex": _data_address("application/x-tex", to_latex(table)),
    }


def _data_address(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode('ascii')}"


def _samples(arms: Arms, options: ReportOptions) -> dict[str, Any]:
    if not arms.keys:
        return NO_SAMPLES
    problems = choose_problems(arms, options.problems, options.seed)
    shown = sources(arms, options.all_seeds)
    texts = read_samples(list(choose_samples(arms, problems, shown)))
    packed = pack(arms, shown, problems, read_prompts(arms.runs, problems), texts)
    several = any(arm.seeds > 1 for arm in arms.arms) and not options.all_seeds
    first = " of the first training seed of each method (--all-seeds: of all)" if several else ""
    return {
        "samples": Markup(script_json(packed)),
        "script": Markup(_static("browser.js")),
        "samples_note": f"{len(packed['samples']):,} of {packed['total']:,} samples shown:"
        f" {len(packed['problems'])} questions{first}, half of them those on which modes and"
        " checkpoints differ most, a quarter those of the highest entropy, a quarter random"
        f" (seed {options.seed}); a right and a wrong sample of each cell where there are both.",
    }


def _sections(context: dict[str, Any]) -> list[tuple[str, str]]:
    named = [
        ("verdict", "Verdict"),
        ("results", "Results"),
        ("curves", "pass@k"),
        ("comparisons", "Comparisons"),
        ("entropy", "Entropy"),
        ("drift", "KL"),
        ("out-of-domain", "Out of domain"),
        ("training", "Training"),
        ("validity", "Validity"),
        ("samples", "Samples"),
        ("methods", "Methods"),
    ]
    absent = {"out-of-domain"} if context["out_of_domain"] is None else set()
    absent |= {"training"} if context["training"] is None else set()
    return [(anchor, text) for anchor, text in named if anchor not in absent]


def _render(context: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("softeval.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    digest = base64.b64encode(hashlib.sha256(str(context["script"]).encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    css = Markup(_static("report.css"))
    return environment.get_template("report.html.j2").render(**context, policy=policy, css=css)


def _shown(value: Any) -> Any:
    """Every text a template prints has its control and direction marks made visible."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _static(name: str) -> str:
    return (files("softeval.reports") / "static" / name).read_text(encoding="utf-8")
