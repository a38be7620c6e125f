"""What a page is laid out from: sections, and the kinds of part that a section is made of.

The template prints each kind of part in one way. A section that needs more brings a template of its
own, as `Own`. Knows nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from markupsafe import Markup

from softeval.reports.drawing import for_phone, to_svg
from softeval.reports.left_out import attempt
from softeval.reports.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from softeval.reports.material import Material

QUIET, AMBER = "quiet", "level-amber"


@dataclass(frozen=True)
class Heading:
    """A heading below that of the section."""

    kind: ClassVar = "heading"
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph in one of the looks of report.css; "" for running text."""

    kind: ClassVar = "paragraph"
    text: str
    look: str = ""


@dataclass(frozen=True)
class FigureBlock:
    """A figure as the page shows it.

    Attributes:
        title: short; names the region.
        svg: the drawing, with its text alternative inside.
        caption: how to read it.
        table: its numbers; None where a table of the section has them.
        left_out: why there is no drawing; "" where there is one.
        phone: the drawing for a phone, its panels below one another; None for no other.
    """

    kind: ClassVar = "figure"
    title: str
    svg: Markup
    caption: str
    table: Table | None = None
    left_out: str = ""
    phone: Markup | None = None


@dataclass(frozen=True)
class Details:
    """Parts that are shown when they are asked for."""

    kind: ClassVar = "details"
    summary: str
    parts: tuple[Part, ...]
    look: str = ""


@dataclass(frozen=True)
class Own:
    """A part with a template of its own, and what that prints."""

    kind: ClassVar = "own"
    template: str
    values: Mapping[str, Any]


Part = Heading | Paragraph | FigureBlock | Table | Details | Own


@dataclass(frozen=True)
class Section:
    """One section of the page. It is shown where it has at least one part.

    Attributes:
        anchor: its id on the page.
        name: in the navigation.
        title: its heading.
        pieces: what it is made of, by the name under which a reader knows it. A piece that fails is
            left out with its reason, and the others stay.
    """

    anchor: str
    name: str
    title: str
    pieces: Mapping[str, Callable[[Material], Iterable[Part]]]

    def parts(self, material: Material) -> list[Part]:
        """Its parts, those lines first that say what is left out.

        Raises:
            UserError: what was asked for cannot be met.
        """
        left_out: list[Part] = []
        parts: list[Part] = []
        for name, build in self.pieces.items():
            found, why = attempt(name, partial(_listed, build, material), [])
            parts += found
            left_out += [Paragraph(why, AMBER)] if why else []
        return left_out + parts


def _listed(build: Callable[[Material], Iterable[Part]], material: Material) -> list[Part]:
    return list(build(material))


def figure_block(
    name: str,
    title: str,
    told: Sequence[str],
    draw: Callable[[], Figure],
    caption: str,
    table: Table | None = None,
    folded: bool = False,
) -> FigureBlock:
    """A figure, or the line that says why it is left out.

    Args:
        name: a word that no other figure of the page has.
        title: short.
        told: what one sees, for those who cannot.
        draw: draws it.
        caption: how to read it.
        table: its numbers.
        folded: a phone gets the same drawing, to be scrolled: it is wide, or shown on demand.
    """
    description = f"{'; '.join(told)}."
    svg, why = attempt(title, lambda: drawn(draw, name, title, description), Markup())
    phone = None
    if svg and not folded:
        with for_phone():
            phone, _ = attempt(title, lambda: drawn(draw, f"{name}p", title, description), svg)
    return FigureBlock(title, svg, caption, table, why, phone)


def drawn(draw: Callable[[], Figure], name: str, title: str, description: str) -> Markup:
    """A figure as the page holds it."""
    return Markup(to_svg(draw(), name, title, description))
