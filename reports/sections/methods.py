"""How every number is made, with its sources."""

from __future__ import annotations

from softeval.reports.layout import Own, Section
from softeval.reports.material import Material
from softeval.reports.tables import margin_text


def _parts(material: Material) -> list[Own]:
    return [Own("methods.html.j2", {"margin": margin_text(material.options.margin)})]


SECTION = Section("methods", "Methods", "Methods", {"Methods": _parts})
