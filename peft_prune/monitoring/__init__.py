"""What the edits do to the weights, in numbers (floor 3)."""

from .condition import LayerCondition, layer_conditions

__all__ = ["LayerCondition", "layer_conditions"]
