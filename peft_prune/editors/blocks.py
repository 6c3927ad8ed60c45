"""Run a part of a model: hooks that go away, blocks that are skipped, a pass that ends early."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ..models.experts import place_of, routed, weighted_keys
from ..models.inference import by_rows
from ..models.sharding import settle


class Enough(Exception):
    """Ends a forward pass whose later layers nobody reads."""


@contextmanager
def until_enough(model: nn.Module) -> Iterator[None]:
    """A forward pass of ``model`` that may end early."""
    try:
        yield
    except Enough:
        settle(model)


def states_of(output: Any) -> Tensor:
    """Hidden states of a block, which returns them alone or in front of others."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    """A hook that is removed at the end."""
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced(blocks: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Blocks that do nothing but what ``forward`` does."""
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            if before is None:
                del block.forward
            else:
                block.forward = before


def read_inputs(
    model: Any, ids: Tensor, mask: Tensor, modules: Sequence[str], take: Callable[[str, Tensor], None]
) -> None:
    """Run a batch up to the last of these modules, and hand on what goes into each of them.

    Args:
        model: The model without tuners around it.
        ids: Token ids, (rows, positions).
        mask: Of the attention, (rows, positions).
        modules: Names in the model.
        take: Called with a module's name and its input, (rows, positions, in); for an expert with gate · k where a
            token is routed to it and 0 elsewhere, and not at all where none is.
    """
    places = {name: place_of(name) for name in modules}
    experts = {place[0]: dict[int, str]() for place in places.values() if place is not None}
    for name, place in places.items():
        if place is not None:
            experts[place[0]][place[1]] = name
    waiting = {name for name, place in places.items() if place is None} | set(experts)

    def reading(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            take(name, by_rows(args[0], len(ids)))
            waiting.discard(name)
            if not waiting:
                raise Enough

        return hook

    def reading_experts(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for index, keys in weighted_keys(module, *routed(module, args, kwargs)):
                if index in experts[name]:
                    take(experts[name][index], by_rows(keys, len(ids)))
            waiting.discard(name)
            if not waiting:
                raise Enough

        return hook

    with ExitStack() as stack:
        for name in experts:
            holder = model.get_submodule(name)
            stack.enter_context(hooked(holder.register_forward_pre_hook(reading_experts(name), with_kwargs=True)))
        for name in (name for name, place in places.items() if place is None):
            stack.enter_context(hooked(model.get_submodule(name).register_forward_pre_hook(reading(name))))
        with until_enough(model):
            model(input_ids=ids, attention_mask=mask, use_cache=False)
