"""The sections of a report, one file each: what it finds, draws and lays out.

To add one: write its file, which ends in a `SECTION`, and add that to `SECTIONS`. `OPENING` stands
above them, below the title.
"""

from softeval.reports.layout import Section
from softeval.reports.sections.ablation import SECTION as ABLATION
from softeval.reports.sections.attribution import SECTION as ATTRIBUTION
from softeval.reports.sections.claims import SECTION as CLAIMS
from softeval.reports.sections.comparisons import SECTION as COMPARISONS
from softeval.reports.sections.curves import SECTION as CURVES
from softeval.reports.sections.entropy import SECTION as ENTROPY
from softeval.reports.sections.families import SECTION as FAMILIES
from softeval.reports.sections.kl import SECTION as KL
from softeval.reports.sections.mixture import SECTION as MIXTURE
from softeval.reports.sections.opening import SECTION as OPENING
from softeval.reports.sections.out_of_domain import SECTION as OUT_OF_DOMAIN
from softeval.reports.sections.results import SECTION as RESULTS
from softeval.reports.sections.samples import SECTION as SAMPLES
from softeval.reports.sections.training import SECTION as TRAINING
from softeval.reports.sections.validity import METHODS
from softeval.reports.sections.validity import SECTION as VALIDITY
from softeval.reports.sections.verdict import SECTION as VERDICT

__all__ = ["OPENING", "SECTIONS"]

SECTIONS: tuple[Section, ...] = (
    VERDICT,
    MIXTURE,
    RESULTS,
    ABLATION,
    CURVES,
    CLAIMS,
    COMPARISONS,
    ENTROPY,
    FAMILIES,
    KL,
    ATTRIBUTION,
    OUT_OF_DOMAIN,
    TRAINING,
    VALIDITY,
    SAMPLES,
    METHODS,
)
