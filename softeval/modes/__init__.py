"""The CoT modes: what is fed next, and the log-probability of having fed it.

`seam` says what a mode is, `paper` has the six of *Soft Tokens, Hard Truths*, every other module one
mode of another paper; `registry` finds them by name.
"""

from softeval.modes.matched import hard_controls
from softeval.modes.paper import HardMode, MixtureMode, NoiseNorm, NoisyMixtureMode
from softeval.modes.registry import (
    ALL,
    FAMILIES,
    MODES,
    get_mode,
    joined_options,
    load_mode_file,
    mode_from_record,
    mode_order,
    mode_source,
    recorded_modes,
    register_mode,
    select_modes,
    with_options,
)
from softeval.modes.sampling import CDF_BLOCK, invert_cdf
from softeval.modes.seam import (
    Draws,
    Embedding,
    Fused,
    Kernels,
    Mode,
    Randomness,
    Seen,
    Step,
    Taken,
    mode_record,
)

__all__ = [
    "ALL",
    "CDF_BLOCK",
    "FAMILIES",
    "MODES",
    "Draws",
    "Embedding",
    "Fused",
    "HardMode",
    "Kernels",
    "MixtureMode",
    "Mode",
    "NoiseNorm",
    "NoisyMixtureMode",
    "Randomness",
    "Seen",
    "Step",
    "Taken",
    "get_mode",
    "hard_controls",
    "invert_cdf",
    "joined_options",
    "load_mode_file",
    "mode_from_record",
    "mode_order",
    "mode_record",
    "mode_source",
    "recorded_modes",
    "register_mode",
    "select_modes",
    "with_options",
]
