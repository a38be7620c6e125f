"""The kind of figure that all drawings are: one that notebooks show by itself.

Imports matplotlib; `style.new_figure` imports this module when the first figure is made.
"""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class Drawing(Figure):
    """A figure outside pyplot's global state, shown by Jupyter without any backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, facecolor="white")
        return buffer.getvalue()
