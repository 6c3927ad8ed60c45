"""A small language model that ships with the package, and the generated world it knows."""

from .abilities import ability_items, ability_names
from .facts import build_world, edit_requests, known_facts
from .loading import builtin_model_path, load_builtin_model
from .texts import held_out_texts, plain_texts, training_texts

__all__ = [
    "ability_items",
    "ability_names",
    "build_world",
    "builtin_model_path",
    "edit_requests",
    "held_out_texts",
    "known_facts",
    "load_builtin_model",
    "plain_texts",
    "training_texts",
]
