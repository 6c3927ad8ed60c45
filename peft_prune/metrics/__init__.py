"""The metrics as modules of the `evaluate` library: one folder each, loaded from its path, ready to be a Space."""

from .folders import METRICS, metric_path

__all__ = ["METRICS", "metric_path"]
