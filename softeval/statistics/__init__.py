"""Statistics: arrays in, frozen dataclasses out, pure numpy and scipy.

The source of each formula stands with it. Knows nothing of runs, files, models or figures. Here
stand the names that several rooms use; the modules are public too.
"""

from softeval.statistics.interval import mean_interval, problem_interval
from softeval.statistics.passk import TooFewSamples, pass_at_k, se_within
from softeval.statistics.summary import summarise_samples

__all__ = [
    "TooFewSamples",
    "mean_interval",
    "pass_at_k",
    "problem_interval",
    "se_within",
    "summarise_samples",
]
