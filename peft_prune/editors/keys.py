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
from ..inference import by_rows, input_device, padded, undisturbed
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


def outputs_at(
    model: Any, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], layer: int, site: str
) -> Tensor:
    """Output of ``layer`` at the subject's last token of each bare prompt, (requests, hidden), float32.

    Args:
        site: "mlp" for the MLP's output, "block" for the block's.
    """
    prompts = [
        prompt for request in requests for prompt in tokenize_prompts(tokenizer, [request.prompt], request.subject)
    ]
    module = mlp_output_module(model, layer)[1] if site == "mlp" else decoder_blocks(model)[layer][1]
    return _at_subjects(model, prompts, module, output=True)


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
        states = by_rows(states, len(positions))
        captured.append(states[torch.arange(len(positions)), positions.to(states.device)].float())
        raise _Enough

    if output:
        handle = module.register_forward_hook(lambda m, args, out: keep(_states(out)))
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


def adds_to_residual(model: Any, layer: int) -> bool:
    """Whether what the MLP puts out reaches the block's output unchanged, and not through a norm of its own."""
    block, mlp = decoder_blocks(model)[layer][1], mlp_output_module(model, layer)[1]
    ids = torch.ones(1, 2, dtype=torch.long, device=input_device(model))
    found: list[Tensor] = []

    def shifted(by: float) -> Any:
        return lambda m, args, out: out + by * torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype, device=out.device)

    for by in (0.0, 1.0):
        with ExitStack() as stack, undisturbed(model):
            stack.callback(mlp.register_forward_hook(shifted(by)).remove)
            stack.callback(block.register_forward_hook(lambda m, a, out: found.append(_states(out).float())).remove)
            unwrapped(model)(input_ids=ids, use_cache=False)
    change = (found[1] - found[0]).reshape(-1, found[0].shape[-1])
    wanted = torch.linspace(-1, 1, change.shape[-1], device=change.device)
    return bool(((change - wanted).norm(dim=-1) < 0.05 * wanted.norm()).all())


def _states(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def with_prefix(prefix: str, prompt: str) -> str:
    """``prompt`` after ``prefix``; an empty prefix leaves the bare prompt."""
    return f"{prefix} {prompt}" if prefix else prompt


class _Enough(Exception):
    """Ends a forward pass whose later layers nobody reads."""
