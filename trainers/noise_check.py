"""Whether the training pass finds the noise that the rollout drew.

χ²/d of a soft or fuzzy position, ‖h̃ - pE‖²/(σ²d), is 1 up to √(2/d) if both passes see one model. Where
they do not (dropout, a wrong mask, another precision), nearly every position is off. A few positions
far off are no such fault: in half precision two nearly equal logits may change places between
the passes, and the mixture jumps to another token there. They are counted, and judged apart.

Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

SLACK = 0.1
"""What rounding of inputs and mixtures in half precision may add to the mean χ²/d."""
JUMP = 0.5
"""What it may add at one position before the mixture counts as another."""
MOST_OUTLIERS = 0.1
"""Share of positions that may lie outside the band of one."""


def noise_band(positions: int, width: int) -> float:
    """How far the mean χ²/d of so many positions may lie from 1: slack and five deviations."""
    return (JUMP if positions == 1 else SLACK) + 5 * math.sqrt(2 / (positions * width))


def noise_fault(sums: Mapping[str, float], width: int) -> str | None:
    """What is wrong with the noise of an update; None where nothing is.

    Args:
        sums: `steps` positions, of which `near` lie within the band of one, and `squared_near`, the
            sum of χ² over those.
        width: d.
    """
    steps, near = int(sums["steps"]), int(sums["near"])
    if steps == 0:
        return None
    if steps - near > MOST_OUTLIERS * steps:
        mean = sums["squared"] / (steps * width)
        return f"{100 * (1 - near / steps):.0f} % of the positions are off (χ²/d {mean:.3g}, not 1)"
    mean, band = sums["squared_near"] / (near * width), noise_band(near, width)
    return None if abs(mean - 1) <= band else f"χ²/d is {mean:.3g}, not 1 within {band:.2g}"
