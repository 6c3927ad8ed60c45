"""k: the input of the edited layer at the subject's last token, averaged over contexts; and outputs at that token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..models.decoder import decoder_blocks, unwrapped
from ..models.experts import PLACE, SHARED, is_experts, place_of, routed, weighted_keys
from ..models.inference import by_rows, input_device, padded, undisturbed
from ..models.mlp import mlp_output_module
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .asking import request_contexts, shares, subject_prompts
from .blocks import Enough, hooked, replaced, states_of, until_enough


@dataclass(frozen=True)
class Key:
    """The key of one request, in float32.

    Args:
        mean: Average over the contexts, (in,).
        bare: On the prompt that the edit is verified by, the bare one where it is asked plainly, (in,).
        asked: Average over what is asked without a prefix, (in,): ``bare`` itself where it is asked plainly alone.
        modules: What it goes into: the layer's module, or the experts that stand side by side in it.
    """

    mean: Tensor
    bare: Tensor
    asked: Tensor
    modules: tuple[str, ...] = ()


def compute_keys(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layer: int,
    weights: Sequence[float] | None = None,
    experts: str = SHARED,
) -> list[Key]:
    """Keys of every request at the MLP output projection of ``layer`` (Meng et al. 2022, section 3.1, equation 3).

    Args:
        contexts: Prefixes of the prompt; the first is empty, the bare prompt.
        weights: Of the contexts in the average; all the same if not given.
        experts: Which ones of a mixture, as in `mlp_output_modules`.
    """
    climb = Climb(model, tokenizer, requests, contexts, layer, "mlp", experts)
    grouped = climb.keys_by_context(layer)
    plain = [1 / len(contexts)] * len(contexts) if weights is None else list(weights)
    bare = [1.0] + [0.0] * (len(contexts) - 1)
    means, asked = (shares(climb.contexts, one) for one in (plain, bare))
    return [
        Key(
            mean=rows.new_tensor(mean) @ rows,
            bare=rows[0],
            asked=rows.new_tensor(own) @ rows if any(one.is_chat for one in contexts) else rows[0],
            modules=climb.modules,
        )
        for rows, mean, own, contexts in zip(grouped, means, asked, climb.contexts, strict=True)
    ]


class Climb:
    """Keys at several layers in ascending order, each on the model with the updates of the layers before it.

    Blocks below the layer that was last asked for run no more: no later update changes what goes into it.

    Args:
        prefixes: Of the prompt; the first is empty, the bare prompt.
        last: The layer whose output is asked for.
        site: "mlp" for that output of the MLP, "block" for the block's.
        experts: Which ones of a mixture, as in `mlp_output_modules`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        prefixes: Sequence[str],
        last: int,
        site: str,
        experts: str = SHARED,
    ) -> None:
        self._model, self._experts = model, experts
        self.contexts = [request_contexts(tokenizer, request, prefixes) for request in requests]
        prompts = [prompt for contexts in self.contexts for prompt in subject_prompts(tokenizer, contexts)]
        # what stands behind the subject changes nothing before it
        self._ids, self._mask = padded(
            [prompt.ids[: prompt.subject_last + 1] for prompt in prompts], left=False, device=input_device(model)
        )
        self._positions = torch.tensor([prompt.subject_last for prompt in prompts], device=self._ids.device)
        self._counts = [len(contexts) for contexts in self.contexts]
        self._bare = torch.zeros(len(prompts), dtype=torch.bool, device=self._ids.device)
        self._bare[[0, *accumulate(self._counts[:-1])]] = True
        self._blocks = [block for _, block in decoder_blocks(model)]
        self._place = mlp_output_module(model, last, experts)[1] if site == "mlp" else self._blocks[last]
        self.modules: tuple[str, ...] = ()
        """What the keys that were last asked for go into: one module, or experts side by side."""
        self._start = 0
        self._hidden: Tensor | None = None
        self._hands_on_tuples = False

    def mean_keys(self, layer: int, plain: Sequence[float]) -> Tensor:
        """Averages of the keys at ``layer`` over each request's contexts, (requests, in), float32.

        Args:
            layer: One of the layers, not below the one before.
            plain: What the plain contexts weigh among themselves; see `shares` for those in chat.
        """
        grouped, weights = self.keys_by_context(layer), shares(self.contexts, plain)
        rows = [(own * own.new_tensor(share)[:, None]).sum(0) for own, share in zip(grouped, weights, strict=True)]
        return torch.stack(rows)

    def keys_by_context(self, layer: int) -> tuple[Tensor, ...]:
        """Keys at the MLP output projection of ``layer``, of each request (contexts, in), float32."""
        found: dict[str, Tensor] = {}

        def keep_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found["hidden"] = args[0] if args else kwargs["hidden_states"]

        with hooked(self._blocks[layer].register_forward_pre_hook(keep_input, with_kwargs=True)):
            name, target = mlp_output_module(self._model, layer, self._experts)
            self.modules = (name,)
            captured = self._captured(target, torch.ones_like(self._positions, dtype=torch.bool), output=False)
        self._start, self._hidden = layer, found["hidden"]
        return captured.split(self._counts)

    def outputs(self) -> Tensor:
        """The last layer's output at the subject's last token of each first context, (requests, hidden), float32."""
        return self._captured(self._place, self._bare, output=True)

    def _captured(self, module: nn.Module, rows: Tensor, *, output: bool) -> Tensor:
        """Input or output of ``module`` at the subjects of these rows, float32."""
        positions, found = self._positions[rows], []

        def keep(states: Tensor) -> None:
            states = by_rows(states, len(positions))
            found.append(states[torch.arange(len(positions)), positions.to(states.device)].float())
            raise Enough

        def keep_routed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = (by_rows(one, len(positions)) for one in routed(module, args, kwargs))
            chosen = [one[torch.arange(len(positions)), positions.to(one.device)] for one in given]
            keys = dict(weighted_keys(module, *chosen))
            self.modules = tuple(f"{self.modules[0]}.{PLACE}.{index}" for index in keys)
            found.append(torch.cat(list(keys.values()), dim=1))
            raise Enough

        def note_form(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._hands_on_tuples = isinstance(output, tuple)

        def skipped(*args: Any, **kwargs: Any) -> Any:
            assert self._hidden is not None
            hidden = self._hidden[rows.to(self._hidden.device)]
            return (hidden, None) if self._hands_on_tuples else hidden

        with ExitStack() as stack, undisturbed(self._model):
            stack.enter_context(replaced(self._blocks[: self._start], skipped))
            stack.enter_context(hooked(self._blocks[self._start].register_forward_hook(note_form)))
            if output:
                handle = module.register_forward_hook(lambda m, args, out: keep(states_of(out)))
            elif is_experts(module):
                handle = module.register_forward_pre_hook(keep_routed, with_kwargs=True)
            else:
                handle = module.register_forward_pre_hook(lambda m, args: keep(args[0]))
            stack.enter_context(hooked(handle))
            inner = unwrapped(self._model)
            with until_enough(inner):
                inner(input_ids=self._ids[rows], attention_mask=self._mask[rows], use_cache=False)
        return found[0]


@contextmanager
def added(model: Any, updates: Mapping[str, LowRankUpdate]) -> Iterator[None]:
    """The model as if ``updates`` stood in its modules; for the span of the context, without touching a weight."""
    inner, of_experts = unwrapped(model), dict[str, dict[int, LowRankUpdate]]()
    with ExitStack() as stack:
        for name, update in updates.items():
            place = place_of(name)
            if place is not None and is_experts(inner.get_submodule(place[0])):
                of_experts.setdefault(place[0], {})[place[1]] = update
                continue
            stack.callback(inner.get_submodule(name).register_forward_hook(_adds(update)).remove)
        for name, own in of_experts.items():
            handle = inner.get_submodule(name).register_forward_hook(_adds_to_experts(own), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _adds(update: LowRankUpdate) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].float()
        change = x @ update.A.T.to(x.device, x.dtype) @ update.B.T.to(x.device, x.dtype)
        return output + change.to(output.dtype)

    return hook


def _adds_to_experts(updates: Mapping[int, LowRankUpdate]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        change = output.new_zeros(output.reshape(-1, output.shape[-1]).shape, dtype=torch.float32)
        for index, keys in weighted_keys(module, *routed(module, args, kwargs)):
            if index in updates:
                A, B = (factor.to(keys) for factor in (updates[index].A, updates[index].B))
                change = change + (keys @ A.T @ B.T).to(change.device)
        return output + change.view_as(output).to(output.dtype)

    return hook


def adds_to_residual(model: Any, layer: int, experts: str = SHARED) -> bool:
    """Whether what the MLP puts out reaches the block's output unchanged, and not through a norm of its own."""
    block, mlp = decoder_blocks(model)[layer][1], mlp_output_module(model, layer, experts)[1]
    ids = torch.ones(1, 2, dtype=torch.long, device=input_device(model))
    found: list[Tensor] = []

    def shifted(by: float) -> Any:
        return lambda m, args, out: out + by * torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype, device=out.device)

    for by in (0.0, 1.0):
        with ExitStack() as stack, undisturbed(model):
            stack.callback(mlp.register_forward_hook(shifted(by)).remove)
            stack.callback(block.register_forward_hook(lambda m, a, out: found.append(states_of(out).float())).remove)
            unwrapped(model)(input_ids=ids, use_cache=False)
    change = (found[1] - found[0]).reshape(-1, found[0].shape[-1])
    wanted = torch.linspace(-1, 1, change.shape[-1], device=change.device)
    return bool(((change - wanted).norm(dim=-1) < 0.05 * wanted.norm()).all())
