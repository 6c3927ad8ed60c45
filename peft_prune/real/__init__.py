"""Real language models from packages of PyPI: no hub is asked, and nothing of them is part of this package."""

from .loading import load_real_model, real_model_path
from .packages import REAL_MODELS, RealModel, is_installed, real_model

__all__ = [
    "REAL_MODELS",
    "RealModel",
    "is_installed",
    "load_real_model",
    "real_model",
    "real_model_path",
]
