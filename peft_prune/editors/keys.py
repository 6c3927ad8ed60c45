"""k: the input of the edited layer at the subject's last token, averaged over contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..architecture import mlp_output_module, unwrapped
from ..inference import input_device, padded, undisturbed
from ..requests import EditRequest
from .tokens import tokenize_prompts


@dataclass(frozen=True)
class Key:
    """The key of one request, in float32.

    Args:
        mean: Average over the contexts, (in,).
        bare: On the bare prompt, (in,).
    """

    mean: Tensor
    bare: Tensor


def compute_keys(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layer: int,
) -> list[Key]:
    """Keys of every request at the MLP output projection of ``layer`` (Meng et al. 2022, section 3.1, equation 3).

    Args:
        contexts: Prefixes of the prompt; the first is empty, the bare prompt.
    """
    prompts = [
        prompt
        for request in requests
        for prompt in tokenize_prompts(tokenizer, [with_prefix(c, request.prompt) for c in contexts], request.subject)
    ]
    ids, mask = padded([prompt.ids for prompt in prompts], left=False, device=input_device(model))
    positions = torch.tensor([prompt.subject_last for prompt in prompts], device=ids.device)
    module = mlp_output_module(model, layer)[1]
    captured: list[Tensor] = []

    def keep(module: Any, args: tuple[Tensor, ...]) -> None:
        captured.append(args[0][torch.arange(len(positions)), positions.to(args[0].device)].float())
        raise _Enough

    handle = module.register_forward_pre_hook(keep)
    try:
        with undisturbed(model):
            unwrapped(model)(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Enough:
        pass
    finally:
        handle.remove()
    grouped = captured[0].view(len(requests), len(contexts), -1)
    return [Key(mean=rows.mean(dim=0), bare=rows[0]) for rows in grouped]


def with_prefix(prefix: str, prompt: str) -> str:
    """``prompt`` after ``prefix``; an empty prefix leaves the bare prompt."""
    return f"{prefix} {prompt}" if prefix else prompt


class _Enough(Exception):
    """Ends a forward pass whose later layers nobody reads."""
