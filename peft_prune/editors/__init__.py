"""Editing methods: requests in, low-rank updates out (floor 2). A file here that registers an editor is found."""

from importlib import import_module
from pkgutil import iter_modules

from .base import EDITORS, Earlier, Edit, Editor, Prepared, editor_names, get_editor, register_editor
from .contexts import generate_contexts
from .own_texts import own_moments, own_texts
from .second_moment import SecondMoments, collect_second_moments
from .solving import Solving

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

from .alphaedit import AlphaEdit, AlphaEditHyperparameters  # noqa: E402
from .emmet import EMMET, EMMETHyperparameters  # noqa: E402
from .memit import MEMIT, MEMITHyperparameters  # noqa: E402
from .rome import ROME, ROMEHyperparameters  # noqa: E402

__all__ = [
    "EDITORS",
    "EMMET",
    "MEMIT",
    "ROME",
    "AlphaEdit",
    "AlphaEditHyperparameters",
    "EMMETHyperparameters",
    "Earlier",
    "Edit",
    "Editor",
    "MEMITHyperparameters",
    "Prepared",
    "ROMEHyperparameters",
    "SecondMoments",
    "Solving",
    "collect_second_moments",
    "editor_names",
    "generate_contexts",
    "get_editor",
    "own_moments",
    "own_texts",
    "register_editor",
]
