"""The paper's claims: what the runs say of each, with every difference that it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

from softeval.reports.claims import Difference, Finding, find_claims
from softeval.reports.layout import Paragraph, Part, Section
from softeval.reports.material import Material
from softeval.reports.tables import Table, TableCell
from softeval.statistics.contrast import SCOPE_CHECKPOINTS

CAPTION = (
    "A difference is supported where its 95 % interval lies where the claim says, refuted where it lies"
    " wholly elsewhere; a claim of several is supported if all of them are, and refuted if one is at 95 %"
    " for all together. A word in parentheses decides nothing. Nats are a token's; times, the base's."
)
COLUMNS = ("claim, and its differences", "says", "figure", "if true")
UNITS = {"points": (100, 1), "nats": (1, 4), "times": (1, 2)}
"""By how much a figure is multiplied where it is shown, and its digits."""


def claim_tables(found: Sequence[Finding]) -> dict[str, list[tuple[str, ...]]]:
    """By group, rows of claims and differences: which, on what, word, figure, interval, region."""
    tables: dict[str, list[tuple[str, ...]]] = {}
    for finding in found:
        fixed = any(one.fixed for one in finding.differences)
        on = f"{finding.task}, {SCOPE_CHECKPOINTS}" if fixed else finding.task
        rows = tables.setdefault(finding.group, [])
        rows += [(f"{finding.claim.number} {finding.claim.text}", on, finding.verdict, "", "", "")]
        for one in finding.differences:
            counts = dict.fromkeys(n for n in (one.contrast.seeds_a, one.contrast.seeds_b) if n > 1)
            seeds = f", {' and '.join(map(str, counts))} seeds" if counts else ""
            word = one.word() if one.decides else f"({one.word()})"
            rows += [(f"· {one.name}{seeds}", "", word, *_figure(one), _region(one))]
        rows += [(f"· missing: {missing}", *[""] * 5) for missing in finding.missing]
    return tables


def _figure(one: Difference) -> tuple[str, str]:
    scale, digits = UNITS[one.unit]
    ends = (one.contrast.diff, one.contrast.low, one.contrast.high)
    value, low, high = (f"{round(scale * x, 9):.{digits}f}".replace("-", "−") for x in ends)
    sign = "+" if one.unit != "times" and "−" not in value else ""
    return f"{sign}{value} {one.unit}", f"[{low}, {high}]"


def _region(one: Difference) -> str:
    scale, _ = UNITS[one.unit]
    if one.low == -one.high:
        return f"within ±{scale * one.high:g}"
    ends = [(word, end) for word, end in (("above", one.low), ("below", one.high)) if isfinite(end)]
    return ", ".join(f"{word} {scale * end:g}" for word, end in ends).replace("-", "−")


def _parts(material: Material) -> Iterator[Part]:
    found = find_claims(material.arms)
    if all(finding.verdict == "missing" for finding in found):
        return
    yield Paragraph(CAPTION)
    for group, rows in claim_tables(found).items():
        cells = [
            (TableCell(name, on), TableCell(word), TableCell(figure, interval), TableCell(region))
            for name, on, word, figure, interval, region in rows
        ]
        title = f"What these runs say of the claims of Soft Tokens, Hard Truths: {group}."
        yield Table(title, COLUMNS, (*cells,), f"claims, {group}", text_columns=(1, 3))


SECTION = Section("claims", "Claims", "The claims", {"the claims": _parts})
