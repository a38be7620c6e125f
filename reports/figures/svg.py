"""A matplotlib figure as one inline SVG: small, the same bytes every time, readable by machines.

Ink becomes `currentColor` and the other colours become variables of the page, so that the drawing
follows light, dark and print. Text stays text.
"""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING

from softeval.reports.escaping import visible
from softeval.reports.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_COLOURS = {
    style.INK: "currentColor",
    style.MUTED: "var(--muted,#5b626b)",
    style.RULE: "var(--rule,#d9dde2)",
    style.BLUE: "var(--blue,#0072b2)",
    style.VERMILLION: "var(--vermillion,#d55e00)",
    style.GREEN: "var(--green,#009e73)",
    style.PURPLE: "var(--purple,#cc79a7)",
    style.ORANGE: "var(--orange,#e69f00)",
    style.SKY: "var(--sky,#56b4e9)",
}
PAGE_SCALE = 1.6  # pixels a point: the full width of the page at style.WIDTH
FONT = "var(--sans,sans-serif)"


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an `<svg role="img">` element with a text alternative.

    Args:
        figure: the drawing.
        name: a word that no other figure of the page has; prefix of every id.
        title: what is shown.
        description: what one sees, for those who cannot.
    """
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_text(style.printed(text.get_text()))  # pyright: ignore[reportAttributeAccessIssue]
    buffer = io.StringIO()
    with (
        warnings.catch_warnings(),
        style.styled(),
        matplotlib.rc_context({"svg.hashsalt": name, "svg.id": None}),
    ):
        # Glyphs that the layout font lacks are drawn by the reader's browser.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        # A name of hundreds of letters leaves no room for axes; the page says all in its tables.
        warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    body = drawn[drawn.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = _slim(_named_ids(_page_colours(body), name))
    size = re.search(r'viewBox="0 0 ([\d.]+) [^"]*"', body)
    assert size is not None, "matplotlib always writes a viewBox"
    inner = body[body.index(">") + 1 :]
    return (
        f'<svg {size.group()} style="max-width:{_page_width(size[1])}px" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(visible(title))}</title><desc id="{name}-d">{escape(visible(description))}'
        f"</desc>{inner}"
    )


def _page_width(points: str) -> int:
    """Widest that a drawing is shown, so that the text of all figures has one size."""
    return round(float(points) * PAGE_SCALE)


def _page_colours(svg: str) -> str:
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"'DejaVu Sans'(, sans-serif)?", FONT, svg)


def _named_ids(svg: str, name: str) -> str:
    """Keep only the ids that something refers to, under names no other figure has."""
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    return re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)


def _slim(svg: str) -> str:
    """Coordinates to a hundredth of a point, never texts; comments and indentation say nothing."""
    svg = re.sub(r"<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'="[^"]*"', lambda m: re.sub(r"(\d\.\d{2})\d+", r"\1", m[0]), svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    svg = re.sub(r"<g>\s*</g>\n?|<g/>\n?|<defs>\s*</defs>\n?", "", svg)
    return svg.strip()
