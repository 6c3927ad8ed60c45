"""The experiment of Ma et al. 2025 in one call: sequences of edits under every restraint, measured at every mark."""

from .figures import draw_figures
from .measuring import Material
from .plan import MARKS, RESTRAINTS, Plan, Schedule, Unit, Variant
from .results import COLUMNS, Results, require_table, write_table
from .run import Experiment
from .summary import comparisons_against, correlations, markdown, require_comparable, spearman, summarize

__all__ = [
    "COLUMNS",
    "MARKS",
    "RESTRAINTS",
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
