"""What PEFT sees of the method: configuration, layer, model (floor 1)."""

from .config import PruneEditConfig
from .layer import PruneEditLayer, PruneEditLinear
from .model import PruneEditModel
from .registration import PRUNE_EDIT, register
from .saving import extend_push_to_hub, extend_saving, extend_transformers_saving

__all__ = ["PRUNE_EDIT", "PruneEditConfig", "PruneEditLayer", "PruneEditLinear", "PruneEditModel"]

register(PruneEditConfig, PruneEditModel)
extend_saving()
extend_transformers_saving()
extend_push_to_hub()
