"""How every figure looks, and how it becomes inline SVG that follows the page.

Seaborn gives theme and palette and draws bars. Lines and points are drawn here: it would compute
intervals by itself, from raw data; ours are simultaneous, or crossed over seeds and problems.

Neither has it a call for one legend over all panels, axes of k and percent, pale stretches, zones and
reference lines, hatching between models, and the SVG: small, the same bytes every time, with a text
alternative, in the colours of the page, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from softeval.reports.escaping import printed, visible
from softeval.statistics.profiles import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, FAINT = "#1f2328", "#5b626b", "#d9dde2", "#8a929b"
_NAMED = {MUTED: "muted", RULE: "rule", FAINT: "faint"}
PAGE_COLOURS = {INK: "currentColor"} | {c: f"var(--{name},{c})" for c, name in _NAMED.items()}
# Names of the first colours of seaborn's "colorblind" palette, and their places in it. The page
# has each under the same name, lighter in the dark.
PALETTE = {"blue": 0, "orange": 1, "green": 2, "vermillion": 3, "purple": 4, "sky": 9}

WIDTH = 9.0  # inches; the page scales the drawing to its column
PHONE_WIDTH = 3.4  # so that its smallest text is 11 pixels high on 390
SMALLEST = 7.6  # points
PAGE_SCALE = 1.6  # pixels a point: the full width of the page at WIDTH
LONGEST_NAME = 40
LEGEND_LETTERS = 110  # over the width of a figure
SEED_POINTS = 300  # thin lines of single seeds are left out where they would hide the mean

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same metrics everywhere
    "grid.color": RULE,
    "text.color": INK,
    "xtick.bottom": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
SETTINGS: dict[str, Any] = {
    "axes.grid.axis": "y",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "path.simplify": False,
    "text.parse_math": False,  # a task name with a dollar sign is a name
}


@dataclass(frozen=True)
class Look:
    """Colour by name, dashes ("" for none) and marker of one series: never told by colour alone."""

    name: str
    dashes: tuple[float, ...] | str
    marker: str

    @property
    def colour(self) -> str:
        """As matplotlib takes it."""
        import seaborn

        if self.name not in PALETTE:
            return {"ink": INK, "muted": MUTED, "faint": FAINT}[self.name]
        return seaborn.color_palette("colorblind").as_hex()[PALETTE[self.name]]

    @property
    def line(self) -> Any:
        """Line style as matplotlib takes it."""
        return (0, self.dashes) if self.dashes else "-"


LOOKS = {
    "base": Look("ink", "", "o"),
    "hard": Look("vermillion", (5, 2), "s"),
    "fuzzy": Look("green", (1, 1.5), "D"),
    "soft": Look("blue", (6, 2, 1, 2), "^"),
}
OTHER_LOOKS = (
    Look("purple", (3, 1, 1, 1, 1, 1), "v"),
    Look("orange", (8, 2), "P"),
    Look("sky", (2, 2), "X"),
    Look("muted", "", "*"),
)
Looks = Mapping[str, Look]


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each name: fixed for the paper's methods, in order of appearance for others."""
    spare = iter(OTHER_LOOKS * (len(names) // len(OTHER_LOOKS) + 1))
    return {name: LOOKS.get(name) or next(spare) for name in dict.fromkeys(names)}


@contextmanager
def styled() -> Iterator[None]:
    """Within: figures are drawn in the report's style; matplotlib's own settings come back after."""
    import matplotlib
    import seaborn

    with ExitStack() as settings:
        settings.enter_context(matplotlib.rc_context())
        settings.enter_context(seaborn.plotting_context("paper"))
        settings.enter_context(seaborn.axes_style("whitegrid", STYLE))
        matplotlib.rcParams.update(SETTINGS)
        yield


_phone: ContextVar[bool] = ContextVar("phone", default=False)


@contextmanager
def for_phone() -> Iterator[None]:
    """Within: figures are as wide as a phone, their panels below one another."""
    before = _phone.set(True)
    try:
        yield
    finally:
        _phone.reset(before)


def a_row(most: int) -> int:
    """How many panels stand side by side: `most`, on a phone one."""
    return 1 if _phone.get() else most


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure that no global state knows of; sizes in inches."""
    size = (PHONE_WIDTH if _phone.get() else width, height)
    return _figure_class()(figsize=size, layout="constrained")


def panel_row(
    panels: int, height: float, width: float = WIDTH, **how: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, on a phone below one another; `height` in inches of one."""
    columns = a_row(panels)
    figure = new_figure(height * (panels // columns), width)
    return figure, list(figure.subplots(panels // columns, columns, squeeze=False, **how).flat)


@cache
def _figure_class() -> type[Figure]:
    """Figures that Jupyter shows without any backend."""
    from matplotlib.figure import Figure

    class Drawing(Figure):
        def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=110, facecolor="white")
            panels = [a.get_title("left") or a.get_ylabel() or a.get_xlabel() for a in self.axes]
            named = "; ".join(" ".join(text.split()) for text in panels if text)
            return buffer.getvalue(), {"alt": str(self.get_label()) or f"Figure of {named}"}

    return Drawing


# Marks ---------------------------------------------------------------------------------------


Span = tuple[str, np.ndarray]
"""A name, and rows of places, means, lower and upper ends."""


def spans(name: str, at: ArrayLike, mean: ArrayLike, low: ArrayLike, high: ArrayLike) -> Span:
    """Points of one series with their intervals, as `lines` and `dots` take them.

    What is not finite is not drawn: a point without its mean, an end without its point.
    """
    rows_4N = np.stack([np.atleast_1d(np.asarray(row, float)) for row in (at, mean, low, high)])
    rows_4N = rows_4N[:, np.isfinite(rows_4N[:2]).all(0)]
    rows_4N = np.where(np.isfinite(rows_4N), rows_4N, rows_4N[1])
    return name, rows_4N[:, np.argsort(rows_4N[0], kind="stable")]


def lines(axes: Axes, series: Sequence[Span], named: Looks, bars: float = 0, **how: Any) -> None:
    """Lines with bands, or points with bars.

    Args:
        axes: to draw on.
        series: from `spans`.
        named: look of each name.
        bars: width of bars that show the intervals, in points; 0 shows bands.
        **how: for `Axes.plot`; also `orient="y"` where the places are on the y axis.
    """
    horizontal = how.pop("orient", "x") == "y"
    for name, (at, mean, low, high) in series:
        look = named[name]
        place = (mean, at) if horizontal else (at, mean)
        shown = {"color": look.colour, "ls": look.line, "marker": look.marker, "mew": 0} | how
        axes.plot(*place, **shown)
        if not bars:
            axes.fill_between(at, low, high, color=look.colour, alpha=0.13, lw=0)
        else:
            draw = axes.hlines if horizontal else axes.vlines
            draw(at, low, high, colors=look.colour, lw=bars)


def dots(axes: Axes, series: Sequence[Span], named: Looks, **how: Any) -> None:
    """Points with intervals, horizontal ones with `orient="y"`."""
    lines(axes, series, named, **{"bars": 1.0, "ls": "", "ms": 6, **how})


def profiles(axes: Axes, drawn: Sequence[tuple[str, np.ndarray, Profile]], named: Looks) -> None:
    """Means by position with their bands; thin lines for seeds; pale where little is at risk.

    Args:
        axes: to draw on.
        drawn: (name, x, profile) of each line.
        named: look of each name.
    """
    for name, x, profile in drawn:
        known = np.isfinite(profile.mean)
        axes.plot(x[known], profile.mean[known], color=named[name].colour, alpha=0.35, lw=1)
        if len(profile.lines) > 1 and profile.lines.size <= SEED_POINTS:
            for seed in profile.lines:
                kept = np.where(profile.grey, np.nan, seed)
                axes.plot(x, kept, color=named[name].colour, lw=0.4)
    stretches = [
        spans(name, x[rows], profile.mean[rows], profile.low[rows], profile.high[rows])
        for name, x, profile in drawn
        for rows in _stretches(profile)
    ]
    lines(axes, stretches, named, marker="")


def _stretches(profile: Profile) -> Iterator[slice]:
    """Unbroken runs of positions that are not greyed out."""
    shown = np.concatenate([[False], ~profile.grey & np.isfinite(profile.mean), [False]])
    edges = np.flatnonzero(shown[1:] != shown[:-1])
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield slice(start, stop)


# Axes and legend -----------------------------------------------------------------------------


def percent_axis(axes: Axes, label: str | None = None) -> None:
    """The y axis shows fractions as percentages."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    if label:
        axes.set_ylabel(label)


def k_axis(axes: Axes, largest: int) -> None:
    """The x axis is k on a log scale of base 2, ticks at powers of two."""
    ticks = [2**i for i in range(largest.bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.set_xlabel("k")


def vertical_grid(axes: Axes) -> None:
    """Grid lines for values that lie along the x axis."""
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x")


def label_lowest(places: np.ndarray, used: np.ndarray, label: str) -> None:
    """Axes of a grid whose last row may have gaps: label the x axis of the lowest used of each column."""
    for column, filled in zip(places.T, used.T, strict=True):
        lowest = column[np.flatnonzero(filled)[-1]]
        lowest.set_xlabel(label, visible=True)  # shared axes hide what is not in the last row
        lowest.tick_params(labelbottom=True)


def legend(figure: Figure, named: Looks, markers: bool = True) -> None:
    """One frameless legend above the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=look.colour, ls=look.line, marker=look.marker if markers else "")
        for look in named.values()
    ]
    names = [printed(name, LONGEST_NAME) for name in named]
    letters = LEGEND_LETTERS * figure.get_figwidth() / WIDTH
    columns = max(1, min(len(names), 6, int(letters / (max(map(len, names), default=1) + 6))))
    figure.legend(handles, names, loc="outside upper left", ncols=columns)


# SVG -----------------------------------------------------------------------------------------


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
        text.set_text(printed(text.get_text()))  # pyright: ignore[reportAttributeAccessIssue]
    buffer = io.StringIO()
    with (
        warnings.catch_warnings(),
        styled(),
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
    import seaborn

    palette = seaborn.color_palette("colorblind").as_hex()
    named = {palette[place]: f"var(--{name},{palette[place]})" for name, place in PALETTE.items()}
    variables = PAGE_COLOURS | named
    svg = re.sub("#[0-9a-f]{6}", lambda found: variables.get(found[0], found[0]), svg)
    return re.sub(r"'DejaVu Sans'(, sans-serif)?", "var(--sans,sans-serif)", svg)


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
