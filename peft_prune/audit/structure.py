"""What a model is made of, from its configuration alone: no weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import CheckpointError
from .checkpoint import Checkpoint, StoredTensor

_LEADING = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")
_INNER = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer)\.")


def without_wrappers(name: str) -> str:
    """A tensor's name without what PEFT, torch.compile and data-parallel wrappers put into it."""
    return _INNER.sub("", _LEADING.sub("", name))


@dataclass(frozen=True)
class Structure:
    """The model that a configuration describes, on the meta device.

    Args:
        model: The model.
    """

    model: PreTrainedModel

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Structure:
        """From a checkpoint's configuration; code that lies beside it is never run.

        Raises:
            CheckpointError: It has none, or transformers cannot build a causal language model from it.
        """
        if not checkpoint.config:
            raise CheckpointError(f"checkpoint: {checkpoint.folder} has no config.json")
        options: dict[str, Any] = {"trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, **options)
            with init_empty_weights():
                return cls(AutoModelForCausalLM.from_config(config, **options))
        except Exception as error:  # configurations fail in as many ways as there are models
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"checkpoint: {checkpoint.folder} describes no causal language model that transformers has: {reason}"
            ) from None

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by name, the tied ones as well."""
        return dict(self.model.named_parameters(remove_duplicate=False))

    @cached_property
    def tied(self) -> dict[str, str]:
        """Names of parameters that are another one, with that one's name."""
        return dict(getattr(self.model, "all_tied_weights_keys", None) or {})

    def canonical(self, name: str) -> str:
        """The model's own name of a stored tensor, where it has one; else the name without wrappers.

        A checkpoint of the bare decoder lacks the prefix that the whole model has.
        """
        name = without_wrappers(name)
        known, prefix = self.parameters, f"{self.model.base_model_prefix}."
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            if candidate in known:
                return candidate
        return name

    def tied_in(self, stored: Mapping[str, StoredTensor]) -> dict[str, str]:
        """The ties that hold in a checkpoint: those of which it stores one side alone, or the same numbers twice.

        transformers unties what a checkpoint stores twice with different numbers.
        """
        return {
            name: target
            for name, target in self.tied.items()
            if name not in stored or target not in stored or stored[name].equals(stored[target])
        }

    def linear_module(self, name: str) -> tuple[str, bool] | None:
        """Module of a linear layer's weight, and whether it is stored as (in, out); None for any other tensor."""
        module_name, _, ending = name.rpartition(".")
        if ending != "weight" or name not in self.parameters:
            return None
        module = self.model.get_submodule(module_name)
        if not isinstance(module, (nn.Linear, Conv1D)):
            return None
        return module_name, isinstance(module, Conv1D)
