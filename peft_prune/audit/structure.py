"""What a model is made of, from its configuration alone: no weight is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from ..errors import CheckpointError
from .checkpoint import Checkpoint

WRAPPERS = re.compile(r"^(base_model\.model\.|module\.)+|_orig_mod\.|_fsdp_wrapped_module\.|(?<=\.)base_layer\.")
"""What PEFT, torch.compile and data-parallel wrappers put into names."""


@dataclass(frozen=True)
class Structure:
    """The model that a configuration describes, on the meta device.

    Args:
        model: The model.
    """

    model: Any

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Structure:
        """From a checkpoint's configuration.

        Raises:
            CheckpointError: It has none, or transformers cannot build a causal language model from it.
        """
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            with init_empty_weights():
                return cls(AutoModelForCausalLM.from_config(config))
        except (OSError, ValueError, KeyError, AttributeError, TypeError, ImportError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"checkpoint: {folder} describes no causal language model: {reason}") from None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by name, the tied ones as well."""
        return dict(self.model.named_parameters(remove_duplicate=False))

    @property
    def tied(self) -> dict[str, str]:
        """Names of parameters that are another one, with that one's name."""
        return dict(getattr(self.model, "all_tied_weights_keys", None) or {})

    def canonical(self, name: str) -> str:
        """The model's own name of a stored tensor, where it has one; else the name without wrappers.

        A checkpoint of the bare decoder lacks the prefix that the whole model has.
        """
        name = WRAPPERS.sub("", name)
        known, prefix = self.parameters, f"{self.model.base_model_prefix}."
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            if candidate in known:
                return candidate
        return name

    def linear_module(self, name: str) -> tuple[str, bool] | None:
        """Module of a linear layer's weight, and whether it is stored as (in, out); None for any other tensor."""
        module_name, _, ending = name.rpartition(".")
        if ending != "weight" or name not in self.parameters:
            return None
        module = self.model.get_submodule(module_name)
        if not isinstance(module, (nn.Linear, Conv1D)):
            return None
        return module_name, isinstance(module, Conv1D)
