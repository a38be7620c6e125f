"""Lay out the pages of the site: the repository's Markdown, and reports of the demo's runs.

    python docs/assemble.py RUNS TARGET

RUNS holds the demo's run directories (`make demo`). Links between the files are made to fit the
site; one that leads out of it becomes the name of the file in the repository.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from softeval.reports.material import ReportOptions
from softeval.reports.page import build_report, write_report

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
REPORTS = {
    "one-model.html": ("One model under seven modes", ["base"]),
    "trained.html": ("Before and after training by soft CoTs", ["base", "soft"]),
    "four-models.html": ("Four models", ["base", "hard", "soft", "fuzzy"]),
}
"""Files of the gallery: title, and the runs of each."""


def fitted(text: str) -> str:
    """The text of a file of the repository, its links those of the site."""

    def link(match: re.Match[str]) -> str:
        path, anchor = match[2].removeprefix("docs/").removeprefix("../"), match[3] or ""
        if (ROOT / "docs" / path).is_file():
            return f"[{match[1]}]({path}{anchor})"
        if path in PAGES:
            return f"[{match[1]}]({PAGES[path]}{anchor})"
        return f"{match[1]} (`{path}`)" if path not in match[1] else match[1]

    # Links to elsewhere, and within a page, stay.
    return re.sub(r"\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)", link, text)


def main(runs: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        ROOT / "docs", target, ignore=shutil.ignore_patterns("*.py", "*.yml", "__pycache__")
    )
    sources = {f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")}
    for source, name in {**sources, **PAGES}.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        (target / name).write_text(fitted(text), encoding="utf-8")
    lines = [
        "# Reports\n",
        "Written by `softeval report` from the runs of `make demo`; each is one file.\n",
    ]
    for name, (title, chosen) in REPORTS.items():
        write_report(
            target / name, build_report([runs / run for run in chosen], ReportOptions(title=title))
        )
        lines.append(f"- [{title}]({name})")
    (target / "gallery.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
