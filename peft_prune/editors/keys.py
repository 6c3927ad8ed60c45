"""k: the input of the edited layer at the subject's last token, averaged over contexts; and outputs at that token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..architecture import decoder_blocks, mlp_output_module, unwrapped
from ..inference import input_device, padded, undisturbed
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .tokens import TokenizedPrompt, tokenize_prompts


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
    weights: Sequence[float] | None = None,
) -> list[Key]:
    """Keys of every request at the MLP output projection of ``layer`` (Meng et al. 2022, section 3.1, equation 3).

    Args:
        contexts: Prefixes of the prompt; the first is empty, the bare prompt.
        weights: Of the contexts in the average; all the same if not given.
    """
    prompts = [
        prompt
        for request in requests
        for prompt in tokenize_prompts(tokenizer, [with_prefix(c, request.prompt) for c in contexts], request.subject)
    ]
    captured = _at_subjects(model, prompts, mlp_output_module(model, layer)[1], output=False)
    grouped = captured.view(len(requests), len(contexts), -1)
    share = grouped.new_tensor([1 / len(contexts)] * len(contexts) if weights is None else list(weights))
    return [Key(mean=share @ rows, bare=rows[0]) for rows in grouped]


def block_outputs(
    model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], layer: int
) -> Tensor:
    """Output of block ``layer`` at the subject's last token of each bare prompt, (requests, hidden), float32."""
    prompts = [
        prompt for request in requests for prompt in tokenize_prompts(tokenizer, [request.prompt], request.subject)
    ]
    return _at_subjects(model, prompts, decoder_blocks(model)[layer][1], output=True)


@contextmanager
def added(model: Any, updates: Mapping[str, LowRankUpdate]) -> Iterator[None]:
    """The model as if ``updates`` stood in its modules; for the span of the context, without touching a weight."""
    with ExitStack() as stack:
        for name, update in updates.items():
            module = unwrapped(model).get_submodule(name)
            stack.callback(module.register_forward_hook(_adds(update)).remove)
        yield


def _adds(update: LowRankUpdate) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].float()
        change = x @ update.A.T.to(x.device, x.dtype) @ update.B.T.to(x.device, x.dtype)
        return output + change.to(output.dtype)

    return hook


def _at_subjects(model: Any, prompts: Sequence[TokenizedPrompt], module: nn.Module, *, output: bool) -> Tensor:
    """Input or output of ``module`` at each prompt's subject, (prompts, width), float32; what follows is not run."""
    ids, mask = padded([prompt.ids for prompt in prompts], left=False, device=input_device(model))
    positions = torch.tensor([prompt.subject_last for prompt in prompts], device=ids.device)
    captured: list[Tensor] = []

    def keep(states: Tensor) -> None:
        captured.append(states[torch.arange(len(positions)), positions.to(states.device)].float())
        raise _Enough

    if output:
        handle = module.register_forward_hook(lambda m, args, out: keep(out[0] if isinstance(out, tuple) else out))
    else:
        handle = module.register_forward_pre_hook(lambda m, args: keep(args[0]))
    try:
        with undisturbed(model):
            unwrapped(model)(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Enough:
        pass
    finally:
        handle.remove()
    return captured[0]


def with_prefix(prefix: str, prompt: str) -> str:
    """``prompt`` after ``prefix``; an empty prefix leaves the bare prompt."""
    return f"{prefix} {prompt}" if prefix else prompt


class _Enough(Exception):
    """Ends a forward pass whose later layers nobody reads."""
