"""The experiment of Ma et al. 2025 in one call: sequences of edits under every restraint, measured at every mark."""

from .correlation import Correlation, spearman
from .figures import draw_figures
from .measuring import Material
from .plan import MARKS, RESTRAINTS, Plan, Schedule, Unit, Variant
from .results import COLUMNS, Results, require_table, write_table
from .run import Experiment
from .summary import comparisons_against, correlations, require_comparable, summarize
from .tables import markdown

__all__ = [
    "COLUMNS",
    "MARKS",
    "RESTRAINTS",
    "Correlation",
    "Experiment",
    "Material",
    "Plan",
    "Results",
    "Schedule",
    "Unit",
    "Variant",
    "comparisons_against",
    "correlations",
    "draw_figures",
    "markdown",
    "require_comparable",
    "require_table",
    "spearman",
    "summarize",
    "write_table",
]
