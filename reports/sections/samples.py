"""The browser of samples: which are shown, and the data that `static/browser.js` reads."""

from __future__ import annotations

from importlib.resources import files

from markupsafe import Markup

from softeval.reports.escaping import script_json
from softeval.reports.layout import Own, Paragraph, Part, Section
from softeval.reports.material import Material
from softeval.reports.sections.packing import pack
from softeval.reports.sections.sample_texts import read_prompts, read_samples
from softeval.reports.sections.selection import choose_problems, choose_samples, sources

SCRIPT = (files("softeval.reports") / "static" / "browser.js").read_text(encoding="utf-8")
"""The one script of a page; its policy allows no other."""


def _parts(material: Material) -> list[Part]:
    arms, options = material.arms, material.options
    if not arms.keys:
        return [Paragraph("These runs hold no samples.")]
    problems = choose_problems(arms, options.problems, options.seed)
    shown = sources(arms, options.all_seeds)
    texts = read_samples(list(choose_samples(arms, problems, shown)))
    packed = pack(arms, shown, problems, read_prompts(arms.runs, problems), texts)
    several = any(arm.seeds > 1 for arm in arms.arms) and not options.all_seeds
    first = " of the first training seed of each method (--all-seeds: of all)" if several else ""
    note = (
        f"{len(packed['samples']):,} of {packed['total']:,} samples shown:"
        f" {len(packed['problems'])} questions{first}, half of them those on which modes and"
        " checkpoints differ most, a quarter those of the highest entropy, a quarter random"
        f" (seed {options.seed}); a right and a wrong sample of each cell where there are both."
    )
    values = {"note": note, "data": Markup(script_json(packed)), "script": Markup(SCRIPT)}
    return [Own("samples.html.j2", values)]


SECTION = Section("samples", "Samples", "Samples", {"Samples": _parts})
