"""Statistics of the reports: arrays in, frozen dataclasses out, pure numpy and scipy.

Follows the definitions of docs/statistics.md. Knows nothing of runs, files, models or figures.
"""

from softeval.statistics.contrast import (
    SCOPE_A_IS_FIXED,
    SCOPE_B_IS_FIXED,
    SCOPE_CHECKPOINTS,
    SCOPE_SEEDS_AND_PROBLEMS,
    Contrast,
    compare_methods,
)
from softeval.statistics.crossed import (
    CrossedMean,
    SeedSpread,
    crossed_mean,
    seed_permutation_floor,
    seed_spread,
)
from softeval.statistics.curves import (
    Band,
    Crossing,
    CrossingEvidence,
    CurveOrder,
    crossing,
    crossing_evidence,
    curve_band,
    curve_order,
    difference_band,
)
from softeval.statistics.divergence import (
    KLSummary,
    SequenceScores,
    print_kl,
    sequence_scores,
    summarise_kl,
)
from softeval.statistics.equivalence import (
    MARGIN,
    Equivalence,
    Verdict,
    holm,
    judge,
    judge_family,
    not_distinguishable_from_best,
    tost,
)
from softeval.statistics.extrapolation import Extrapolation, extrapolate
from softeval.statistics.interval import (
    Interval,
    mean_interval,
    problem_interval,
    wilson_interval,
)
from softeval.statistics.likelihood import nll_difference
from softeval.statistics.paired import (
    Discordance,
    SignFlip,
    discordance,
    mcnemar,
    sign_flip,
)
from softeval.statistics.passk import (
    TooFewSamples,
    pass_at_k,
    pass_at_k_curve,
    questions_standing,
    se_within,
    within_problem_variance,
)
from softeval.statistics.positions import (
    PositionSums,
)
from softeval.statistics.power import Plan, Spread, plan_comparison, spread_of
from softeval.statistics.profiles import (
    Profile,
    position_profile,
)
from softeval.statistics.summary import PassAtK, count_correct, summarise_samples

__all__ = [
    "MARGIN",
    "SCOPE_A_IS_FIXED",
    "SCOPE_B_IS_FIXED",
    "SCOPE_CHECKPOINTS",
    "SCOPE_SEEDS_AND_PROBLEMS",
    "Band",
    "Contrast",
    "CrossedMean",
    "Crossing",
    "CrossingEvidence",
    "CurveOrder",
    "Discordance",
    "Equivalence",
    "Extrapolation",
    "Interval",
    "KLSummary",
    "PassAtK",
    "Plan",
    "PositionSums",
    "Profile",
    "SeedSpread",
    "SequenceScores",
    "SignFlip",
    "Spread",
    "TooFewSamples",
    "Verdict",
    "compare_methods",
    "count_correct",
    "crossed_mean",
    "crossing",
    "crossing_evidence",
    "curve_band",
    "curve_order",
    "difference_band",
    "discordance",
    "extrapolate",
    "holm",
    "judge",
    "judge_family",
    "mcnemar",
    "mean_interval",
    "nll_difference",
    "not_distinguishable_from_best",
    "pass_at_k",
    "pass_at_k_curve",
    "plan_comparison",
    "position_profile",
    "print_kl",
    "problem_interval",
    "questions_standing",
    "se_within",
    "seed_permutation_floor",
    "seed_spread",
    "sequence_scores",
    "sign_flip",
    "spread_of",
    "summarise_kl",
    "summarise_samples",
    "tost",
    "wilson_interval",
    "within_problem_variance",
]
