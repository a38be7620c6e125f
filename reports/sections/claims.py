"""The paper's claims: what the runs say of each, with every difference that it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

from softeval.reports.claims import Difference, Finding, find_claims
from softeval.reports.layout import Paragraph, Part, Section
from softeval.reports.material import Material
from softeval.reports.tables import Table, TableCell, points
from softeval.statistics.contrast import SCOPE_CHECKPOINTS

CAPTION = (
    "A difference is supported where its 95 % interval lies where the claim says, refuted where it lies"
    " wholly elsewhere; a claim of several is supported if all of them are, and refuted if one is at 95 %"
    " for all together. Parts of a task are shown beside and decide nothing. Points, nats a token, or"
    " times the untrained model's."
)
COLUMNS = ("claim, and its differences", "says", "figure", "if true")


def claim_rows(found: Sequence[Finding]) -> Iterator[tuple[str, ...]]:
    """What is judged, on what, word, figure, region: each claim, its differences and what is missing."""
    for finding in found:
        on = " · ".join(filter(None, (finding.group, finding.task))) or "–"
        fixed = any(one.fixed for one in finding.differences)
        scope = f" ({SCOPE_CHECKPOINTS})" if fixed else ""
        yield f"{finding.claim.number} {finding.claim.text}", on, finding.verdict + scope, "", ""
        for one in finding.differences:
            word = one.word() if one.decides else f"({one.word()})"
            yield f"· {one.name}", "", word, _figure(one), _region(one)
        for missing in finding.missing:
            yield f"· missing: {missing}", "", "", "", ""


def _figure(one: Difference) -> str:
    found = one.contrast
    low, high = (_number(end, one) for end in (found.low, found.high))
    return f"{_number(found.diff, one, sign=one.unit != 'times')} [{low}, {high}]"


def _region(one: Difference) -> str:
    if one.low == -one.high:
        return f"within ±{100 * one.high:g}"
    ends = [(word, end) for word, end in (("above", one.low), ("below", one.high)) if isfinite(end)]
    scale = 100 if one.unit == "points" else 1
    return ", ".join(f"{word} {scale * end:g}".replace("-", "−") for word, end in ends)


def _number(value: float, one: Difference, sign: bool = False) -> str:
    if one.unit == "points":
        return points(value, sign=sign)
    return f"{value:{'+' if sign else ''}.{2 if one.unit == 'times' else 4}f}".replace("-", "−")


def _parts(material: Material) -> Iterator[Part]:
    found = find_claims(material.arms)
    if all(finding.verdict == "missing" for finding in found):
        return
    yield Paragraph(CAPTION)
    rows = tuple(
        (TableCell(name, on, strong=bool(on)), *map(TableCell, cells))
        for name, on, *cells in claim_rows(found)
    )
    title = "What these runs say of the claims of Soft Tokens, Hard Truths."
    yield Table(title, COLUMNS, rows, "claims", text_columns=(1, 3))


SECTION = Section("claims", "Claims", "The claims", {"the claims": _parts})
