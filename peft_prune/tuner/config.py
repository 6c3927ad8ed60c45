"""The configuration of a PRUNE_EDIT adapter."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Union

from peft.config import PeftConfig

from ..models.naming import public_name
from ..spectral import Restraint, get_restraint, parse_restraint, restraint_names
from .card import hide_places
from .registration import PRUNE_EDIT

SCHEDULES = ("every", "merge", "threshold", "compounding")


@dataclass
class PruneEditConfig(PeftConfig):
    """Configuration of a PRUNE_EDIT adapter: low-rank edits whose accumulated update is restrained.

    The restraint is PRUNE's (Ma et al., ICLR 2025, arXiv 2405.16821, section 4): the singular values of the
    accumulated update that exceed the base weight's largest one are shrunk. A fresh adapter has rank 0 and changes
    nothing; edits make it grow, layer by layer.

    Raises:
        ValueError: A field has a value that is not accepted; the message names the field, the value and the choice.
    """

    r: int = field(
        default=0,
        metadata={
            "help": "Initial rank of every layer. Leave it at 0 to add edits. Give it a positive value to train the "
            "factors by gradient descent, for instance with transformers.Trainer."
        },
    )
    target_modules: Optional[Union[list[str], str]] = field(
        default=None,
        metadata={
            "help": "Names, or one regular expression, of the linear modules to edit. If not given, the output "
            "projection of every block's MLP is found from the structure of the model.",
            "example": "For example, ['mlp.c_proj'] or '.*mlp.down_proj$'",
        },
    )
    exclude_modules: Optional[Union[list[str], str]] = field(
        default=None,
        metadata={"help": "Names, or one regular expression, of modules to leave out."},
    )
    layers_to_transform: Optional[Union[list[int], int]] = field(
        default=None,
        metadata={"help": "Index or indices of the layers to edit; every layer if not given."},
    )
    layers_pattern: Optional[Union[list[str], str]] = field(
        default=None,
        metadata={
            "help": "Name of the nn.ModuleList that holds the layers, such as 'h'. Needed only together with "
            "layers_to_transform and only where the model uses an uncommon name."
        },
    )
    restraint: str = field(
        default="log",
        metadata={
            "help": "How singular values above the base weight's largest one are shrunk: 'log' (the paper's), "
            "'linear', 'clip', 'scale' (the whole update uniformly), or 'none'."
        },
    )
    alpha: float = field(
        default=1.2,
        metadata={"help": "Base of the logarithm of the 'log' restraint, above 1. A larger base restrains more."},
    )
    restraint_pattern: Optional[dict[str, str]] = field(
        default=None,
        metadata={
            "help": "Restraints of single layers that differ from 'restraint' and 'alpha': a regular expression that "
            "matches a module's whole name in the base model, or the end of it, and a word such as 'log:1.5', 'clip' "
            "or 'none'. The first that matches counts.",
            "example": "For example, {'h.3.mlp.c_proj': 'log:1.5'}",
        },
    )
    restrain_on: Literal["every", "merge", "threshold", "compounding"] = field(
        default="every",
        metadata={
            "help": "When the restraint acts. 'every': after each restrain_every edits. 'merge': once, before the "
            "adapter is merged, saved or exported (the paper's own code). 'threshold': when the condition number has "
            "grown by more than max_condition_growth. 'compounding': restrains what is already restrained, kept for "
            "comparison only. Whatever the choice, a pending restraint is applied before the adapter leaves. Factors "
            "that were only trained (r > 0) hold no edits: under 'merge' they are restrained as well, otherwise only "
            "when restrain() is called."
        },
    )
    restrain_every: int = field(
        default=10,
        metadata={"help": "Number of edits between two restraints, for restrain_on='every' and 'compounding'."},
    )
    max_condition_growth: float = field(
        default=2.0,
        metadata={
            "help": "Factor by which the condition number of W0 + ΔW may exceed that of W0 before the restraint "
            "acts, for restrain_on='threshold'. Keeps a float64 matrix of the layer's smaller side, squared."
        },
    )
    max_rank: Optional[int] = field(
        default=None,
        metadata={
            "help": "Upper limit of a layer's rank. The update is truncated after the restraint, whenever the "
            "restraint acts; no limit if not given."
        },
    )
    init_weights: bool = field(
        default=True,
        metadata={"help": "With r > 0: start as the identity (True) or with small random factors, for tests (False)."},
    )
    bias: str = field(
        default="none",
        metadata={"help": "Which biases are trained along: 'none', 'all' or 'prune_edit_only'."},
    )
    modules_to_save: Optional[list[str]] = field(
        default=None,
        metadata={"help": "Modules apart from the adapter's to be trained and saved in full."},
    )
    strict_base: bool = field(
        default=False,
        metadata={
            "help": "Raise an error, instead of a warning, when a saved adapter is loaded onto a base other than the "
            "one it was made for. Never stored: pass it to from_pretrained."
        },
    )
    base_fingerprint: Optional[str] = field(
        default=None,
        metadata={"help": "Written when the adapter is saved: fingerprint of the base weights it was made for."},
    )
    beneath: Optional[list[str]] = field(
        default=None,
        metadata={
            "help": "Written when the adapter is saved: adapters of other methods that the base carried, by method and "
            "a hash of their values."
        },
    )
    restrained: bool = field(
        default=False,
        metadata={"help": "Written when the adapter is saved: whether the saved factors have been restrained."},
    )
    edits: int = field(
        default=0,
        metadata={"help": "Written when the adapter is saved: number of edits in it."},
    )
    ranks: Optional[dict[str, int]] = field(
        default=None,
        metadata={
            "help": "Written when the adapter is saved: rank of each layer, for loaders that create a layer before "
            "they read its factors. Where a file's factors differ from it, the factors decide."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PRUNE_EDIT
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check_restraint()
        self._check_numbers()
        self._check_targets()
        # Facts about the adapter that this configuration belongs to; a plain attribute, so that a configuration that
        # is used for a second adapter does not carry those of the first.
        self._facts: dict[str, Any] = {}
        self.places: set[str] = set()

    @property
    def restraint_function(self) -> Restraint:
        """The restraint that ``restraint`` and ``alpha`` name."""
        return get_restraint(self.restraint, self.alpha if self.restraint == "log" else None)

    def restraint_of(self, module: str) -> Restraint:
        """The restraint of one module, by its name in the base model."""
        for pattern, text in (self.restraint_pattern or {}).items():
            if re.search(rf"(^|\.)({pattern})$", module):
                return parse_restraint(text)
        return self.restraint_function

    def to_dict(self) -> dict[str, Any]:
        """The fields as saving writes them: with the recorded facts, the base's public name, and no ``strict_base``."""
        fields = {**super().to_dict(), **self._facts}
        del fields["strict_base"]
        return fields | {"base_model_name_or_path": public_name(self.base_model_name_or_path)}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As PEFT's; a model card that was written along names the base as the configuration does, without a path."""
        super().save_pretrained(save_directory, **kwargs)
        name = public_name(self.base_model_name_or_path) or "base"
        for folder in (Path(save_directory), Path(save_directory).resolve().parent):
            hide_places(folder / "README.md", self.places, name)

    def record(self, **facts: Any) -> None:
        """Note facts about the adapter (``restrained``, ``edits`` ...) that its saved configuration must state."""
        self._facts.update(facts)

    def _check_restraint(self) -> None:
        if self.restraint not in restraint_names():
            raise ValueError(f"restraint: {self.restraint!r} is not one of {', '.join(restraint_names())}")
        if self.restrain_on not in SCHEDULES:
            raise ValueError(f"restrain_on: {self.restrain_on!r} is not one of {', '.join(SCHEDULES)}")
        if not (_is_number(self.alpha) and math.isfinite(self.alpha) and self.alpha > 1):
            raise ValueError(f"alpha: {self.alpha!r} must be a finite number above 1")
        for pattern, text in (self.restraint_pattern or {}).items():
            try:
                re.compile(pattern)
                parse_restraint(text)
            except (re.error, ValueError) as error:
                raise ValueError(f"restraint_pattern: {pattern!r}: {text!r}: {error}") from None
        growth = self.max_condition_growth
        if not (_is_number(growth) and growth > 1):
            raise ValueError(f"max_condition_growth: {growth!r} must be a number above 1")

    def _check_numbers(self) -> None:
        for name, smallest, optional in (("r", 0, False), ("restrain_every", 1, False), ("max_rank", 1, True)):
            value = getattr(self, name)
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise ValueError(f"{name}: {value!r} must be an integer of at least {smallest}")
        if self.max_rank is not None and self.r > self.max_rank:
            raise ValueError(f"r: {self.r} is above max_rank, {self.max_rank}")
        if self.bias not in ("none", "all", "prune_edit_only"):
            raise ValueError(f"bias: {self.bias!r} is not one of none, all, prune_edit_only")

    def _check_targets(self) -> None:
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("layers_to_transform cannot be used when target_modules is a regular expression")
        if isinstance(self.target_modules, str) and self.layers_pattern is not None:
            raise ValueError("layers_pattern cannot be used when target_modules is a regular expression")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform as well")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
