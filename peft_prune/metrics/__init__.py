"""The metrics as modules of the `evaluate` library: one folder each, loaded from its path, written out as a Space."""

from .folders import METRICS, metric_path
from .space import write_space

__all__ = ["METRICS", "metric_path", "write_space"]
