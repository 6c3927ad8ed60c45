"""The configuration of a PRUNE_EDIT adapter."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Union

from peft.config import PeftConfig
from peft.utils.peft_types import TaskType

from ..errors import AdapterError
from ..models.experts import CHOICES
from ..models.naming import public_name
from ..spectral import LogRestraint, Restraint, get_restraint, parse_restraint, restraint_names, restraint_text
from .accepted import ACCEPTED, shown
from .card import hide_places
from .header import ranks_in_file
from .patterns import require_bounded
from .registration import PRUNE_EDIT

SCHEDULES = ("every", "merge", "threshold", "compounding", "compensated")
STEPWISE = ("compounding", "compensated")
"""Schedules under which what acts depends on every restraint so far, not on the raw sum alone."""
CONSOLIDATIONS = ("demand", "auto", "save", "every")
CONSOLIDATED_FROM = 20
"""Edits from which on `consolidate="auto"` consolidates."""


def require_consolidation(value: Any) -> None:
    """Raise ValueError where ``value`` is no choice of when a session consolidates."""
    if value not in CONSOLIDATIONS:
        raise ValueError(f"consolidate: {shown(value)} is not one of {', '.join(CONSOLIDATIONS)}")


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
        metadata={
            "help": "Index or indices of the layers to edit; every layer if not given. Holds for every form of "
            "target_modules, and for the targets that are found from the model's structure."
        },
    )
    layers_pattern: Optional[Union[list[str], str]] = field(
        default=None,
        metadata={
            "help": "Name of the nn.ModuleList that holds the layers, such as 'h'. Needed only together with "
            "layers_to_transform and only where the model uses an uncommon name."
        },
    )
    experts: Literal["shared", "routed"] = field(
        default="shared",
        metadata={
            "help": "Which experts of a mixture are targets, where target_modules is not given: 'shared', the expert "
            "that all tokens share, and the routed ones where there is none; 'routed', the routed ones also beside a "
            "shared one. An editor has a setting of the same name."
        },
    )
    restraint: str = field(
        default="log",
        metadata={
            "help": "How singular values above the base weight's largest one are shrunk: 'log' (the paper's), "
            "'linear', 'clip', 'scale' (the whole update uniformly), or 'none'. 'sphere' and 'revive' take directions "
            "of the base weight out of the update instead. A value may stand behind a colon: 'log:1.5' is 'log' with "
            "that alpha, 'sphere:0.5' has that strength, 'revive:0.3' protects that share of the energy."
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
    restrain_on: Literal["every", "merge", "threshold", "compounding", "compensated"] = field(
        default="every",
        metadata={
            "help": "When the restraint acts. 'every': after each restrain_every edits. 'merge': once, before the "
            "adapter is merged, saved or exported (the paper's own code). 'threshold': when max_condition_growth, "
            "max_update_norm or max_output_perturbation is exceeded. 'compounding': restrains what is already "
            "restrained, kept for comparison only. 'compensated': restrains what was added since the last time by "
            "itself, and puts what that took back into the next edit; nothing bounds the sum. Whatever the choice, a "
            "pending restraint is applied before the adapter leaves. Factors that were only trained (r > 0) hold no "
            "edits: under 'merge' they are restrained as well, otherwise only when restrain() is called."
        },
    )
    restrain_every: int = field(
        default=10,
        metadata={
            "help": "Number of edits between two restraints, for restrain_on='every', 'compounding' and 'compensated'."
        },
    )
    max_condition_growth: float = field(
        default=2.0,
        metadata={
            "help": "Factor by which the condition number of W0 + ΔW may exceed that of W0 before the restraint "
            "acts, for restrain_on='threshold'. Keeps a float64 matrix of the layer's smaller side, squared. Where W0 "
            "is singular its condition number is infinite and tells nothing: there max_update_norm acts, at 1 if it "
            "is not given."
        },
    )
    max_update_norm: Optional[float] = field(
        default=None,
        metadata={
            "help": "Multiple of the base weight's largest singular value that the spectral norm of the effective "
            "update may exceed before the restraint acts, for restrain_on='threshold'. Follows what edits cost more "
            "closely than the condition number; below 1 the restraint has nothing to shrink."
        },
    )
    max_output_perturbation: Optional[float] = field(
        default=None,
        metadata={
            "help": "Mean squared change of the layer's output on ordinary inputs, over the mean squared output, that "
            "the effective update may exceed before the restraint acts, for restrain_on='threshold'. Needs the "
            "second moment of the layer's inputs: a session takes it from its statistics, and "
            "model.set_second_moments gives it."
        },
    )
    max_rank: Optional[int] = field(
        default=None,
        metadata={
            "help": "Upper limit of a layer's rank. The update is truncated after the restraint, whenever the "
            "restraint acts; no limit if not given."
        },
    )
    consolidate: Literal["demand", "auto", "save", "every"] = field(
        default="demand",
        metadata={
            "help": "When a session consolidates: trains the effective factors of all edits together against the "
            "base's own predictions, within the singular values that the restraint left. 'demand': when "
            "session.consolidate() is called. 'save': before session.save. 'auto': the same where at least "
            f"{CONSOLIDATED_FROM} edits stand and a restraint acts on their raw sum. 'every': after each "
            "consolidate_every edits, and before session.save. What was consolidated once stays so: after an undo, for "
            "instance, it is done again."
        },
    )
    consolidate_every: int = field(
        default=100,
        metadata={"help": "Number of edits between two consolidations, for consolidate='every'."},
    )
    consolidate_window: Optional[int] = field(
        default=None,
        metadata={
            "help": "For consolidate='every': how many of the edits that were consolidated before are read again "
            "beside those made since, so that each consolidation takes as long as the one before. All are read, "
            "beginning anew with F of the raw factors, if not given."
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
    consolidated: int = field(
        default=0,
        metadata={
            "help": "Written when the adapter is saved: how many of its edits were consolidated, 0 for none; those "
            "that were added later stand beside them as they were computed."
        },
    )
    ranks: Optional[dict[str, int]] = field(
        default=None,
        metadata={
            "help": "Written when the adapter is saved: rank of each layer, for loaders that create a layer before "
            "they read its factors. Where a file's factors differ from it, the factors decide."
        },
    )

    def __post_init__(self) -> None:
        if self.task_type is not None and self.task_type not in list(TaskType):
            raise ValueError(f"task_type: {shown(self.task_type)} is not one of {', '.join(TaskType)}")
        super().__post_init__()
        self.peft_type = PRUNE_EDIT
        for name, (accepts, wanted) in ACCEPTED.items():
            value = getattr(self, name)
            if not accepts(value):
                raise ValueError(f"{name}: {shown(value)} must be {wanted}")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check_restraint()
        self._check_thresholds()
        self._check_ranks()
        self._check_patterns()
        # Facts about the adapter that this configuration belongs to; a plain attribute, so that a configuration that
        # is used for a second adapter does not carry those of the first.
        self._facts: dict[str, Any] = {}
        self.places: set[str] = set()
        # Ranks of the layers in the file that this configuration was loaded with, where one stood beside it.
        self._ranks_in_file: dict[str, int] | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: Optional[str] = None, **kwargs: Any
    ) -> PruneEditConfig:
        """PEFT's, and the ranks are those of the factors in the file beside it, before anything is allocated.

        Raises:
            AdapterError: The file beside the configuration is damaged.
        """
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        config._ranks_in_file = ranks_in_file(Path(pretrained_model_name_or_path, subfolder or ""))
        return config

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """The fields of a configuration's file.

        Raises:
            AdapterError: It holds no JSON object.
        """
        try:
            fields = super().from_json_file(path_json_file, **kwargs)
        except (ValueError, RecursionError, TypeError) as error:
            raise AdapterError(f"adapter: {path_json_file} is no JSON document: {error}") from None
        if not isinstance(fields, dict):
            raise AdapterError(f"adapter: {path_json_file} must hold a JSON object")
        return fields

    def rank_of(self, module: str) -> int:
        """Rank that a layer is made with, by its name in the base model."""
        if self._ranks_in_file is not None:
            return self._ranks_in_file.get(module, 0)
        return (self.ranks or {}).get(module, self.r)

    @property
    def ranks_are_of_a_file(self) -> bool:
        """Whether `rank_of` is what a file holds, which bounds it."""
        return self._ranks_in_file is not None

    def is_chosen_layer(self, module: str) -> bool:
        """Whether ``layers_to_transform`` and ``layers_pattern`` take in a module, by its name."""
        chosen = self.chosen_layers
        return chosen is None or self.layer_of(module) in chosen

    @property
    def chosen_layers(self) -> set[int] | None:
        """The layers of ``layers_to_transform``; None for every layer."""
        if self.layers_to_transform is None:
            return None
        return (
            {self.layers_to_transform} if isinstance(self.layers_to_transform, int) else set(self.layers_to_transform)
        )

    def layer_of(self, module: str) -> int | None:
        """The index of the layer that a module stands in: the first number in its name, or that behind the pattern."""
        patterns = self.layers_pattern or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = re.match(rf"(?:^|.*?\.)(?:{pattern})\.(?P<index>\d+)\.", module)
            if found:
                return int(found["index"])
        return None

    @property
    def restraint_function(self) -> Restraint:
        """The restraint that ``restraint`` and ``alpha`` name."""
        return get_restraint("log", self.alpha) if self.restraint == "log" else parse_restraint(self.restraint)

    def set_restraint(self, restraint: Restraint) -> None:
        """Name this restraint, for every layer that ``restraint_pattern`` does not name another one for."""
        if isinstance(restraint, LogRestraint):
            self.restraint, self.alpha = restraint.name, restraint.alpha
        else:
            self.restraint = restraint_text(restraint)

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

    def consolidates(self, edits: int) -> bool:
        """Whether an adapter of so many standing edits is to be consolidated before a session saves it."""
        if self.consolidate != "auto":
            return edits > 0 and self.consolidate != "demand"
        return edits >= CONSOLIDATED_FROM and self.restraint != "none" and self.restrain_on not in STEPWISE

    def _check_restraint(self) -> None:
        name, colon, _ = self.restraint.partition(":")
        if name not in restraint_names():
            raise ValueError(f"restraint: {shown(self.restraint)} is not one of {', '.join(restraint_names())}")
        if colon:
            self.set_restraint(parse_restraint(self.restraint))
        if self.restrain_on not in SCHEDULES:
            raise ValueError(f"restrain_on: {shown(self.restrain_on)} is not one of {', '.join(SCHEDULES)}")
        require_consolidation(self.consolidate)
        if self.consolidate in ("save", "every") and self.restrain_on in STEPWISE:
            raise ValueError(
                f"consolidate: {self.consolidate!r} starts from F of the raw factors, which under restrain_on="
                f"{self.restrain_on!r} is not what acts; 'demand' is accepted with it"
            )
        if self.consolidate_window is not None and (self.consolidate != "every" or self.restrain_on != "merge"):
            raise ValueError(
                "consolidate_window: acts with consolidate='every' and restrain_on='merge' alone, since another "
                "restraint in between has all consolidated anew; they are "
                f"{self.consolidate!r} and {self.restrain_on!r}"
            )
        if not (math.isfinite(self.alpha) and self.alpha > 1):
            raise ValueError(f"alpha: {self.alpha!r} must be a finite number above 1")
        for pattern, text in (self.restraint_pattern or {}).items():
            require_bounded("restraint_pattern", pattern)
            try:
                parse_restraint(text)
            except ValueError as error:
                raise ValueError(f"restraint_pattern: {pattern!r}: {text!r}: {error}") from None

    def _check_thresholds(self) -> None:
        if not self.max_condition_growth > 1:
            raise ValueError(f"max_condition_growth: {self.max_condition_growth!r} must be a number above 1")
        for name in ("max_update_norm", "max_output_perturbation"):
            value = getattr(self, name)
            if value is None:
                continue
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: {value!r} must be a finite number above 0, or left out")
            if self.restrain_on != "threshold":
                raise ValueError(
                    f"{name}: acts with restrain_on='threshold' alone, restrain_on is {self.restrain_on!r}"
                )

    def _check_ranks(self) -> None:
        for name, smallest, optional in (
            ("r", 0, False), ("restrain_every", 1, False), ("max_rank", 1, True), ("edits", 0, False),
            ("consolidate_every", 1, False), ("consolidate_window", 0, True), ("consolidated", 0, False)
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise ValueError(f"{name}: {shown(value)} must be an integer of at least {smallest}")
        if self.max_rank is not None and self.r > self.max_rank:
            raise ValueError(f"r: {self.r} is above max_rank, {self.max_rank}")
        if self.bias not in ("none", "all", "prune_edit_only"):
            raise ValueError(f"bias: {shown(self.bias)} is not one of none, all, prune_edit_only")

    def _check_patterns(self) -> None:
        if self.experts not in CHOICES:
            raise ValueError(f"experts: {shown(self.experts)} is not one of {', '.join(CHOICES)}")
        for name in ("target_modules", "exclude_modules", "layers_pattern"):
            if isinstance(getattr(self, name), str):
                require_bounded(name, getattr(self, name))
        for name in ("layers_pattern", "modules_to_save"):  # PEFT reads the latter as expressions as well
            value = getattr(self, name)
            for pattern in [] if value is None or isinstance(value, str) else value:
                require_bounded(name, pattern)
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform as well")
