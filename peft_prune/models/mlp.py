"""Which module of a decoder block is its MLP's output, found from the roles of its parts; or why none is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from .decoder import decoder_blocks, hidden_size, unwrapped
from .experts import ROUTED, SHARED, expert_names, is_experts, why_not

_MIXES = re.compile(r"mask|past|cache|key_value|kv_|^state$")
"""What a forward pass is told that mixes positions, as attention and state spaces do, and an MLP is not."""


_ROUTING = re.compile(r"(?<!shared_)expert|router")
"""A part of a mixture that not every token goes through, or that chooses: no MLP that all tokens share."""


def mlp_output_module(model: Any, layer: int, experts: str = SHARED) -> tuple[str, nn.Module]:
    """Name and module of one block's MLP output projection, or of its experts where these are fused.

    Args:
        model: The model.
        layer: The block's index.
        experts: Which ones of a mixture, as in `mlp_output_modules`.

    Raises:
        UnsupportedModelError: There is no such layer, or its block cannot be edited.
    """
    name = mlp_output_modules(model, [layer], experts=experts)[layer]
    return name, unwrapped(model).get_submodule(name)


def mlp_output_modules(
    model: Any, layers: Iterable[int] | None = None, *, experts: str | None = None
) -> dict[int, str]:
    """Name of the MLP's output projection of each of these layers; of all that have one if none are given.

    It is the map back to the hidden size of what stands beside attention in a block and mixes no positions; of several,
    the widest. In a mixture of experts it is that of the expert that all tokens share, unless routed ones are asked
    for. Names are those of the base model, also where a tuner has wrapped the projection.

    Args:
        model: The model.
        layers: Their indices.
        experts: When the module that holds the routed experts, fused, is taken: "shared" where all tokens share none,
            "routed" also beside a shared one, None never.

    Raises:
        UnsupportedModelError: A layer that is asked for does not exist or has none, or no layer has one.
    """
    blocks, hidden = decoder_blocks(model), hidden_size(model)
    if layers is None:
        found, refused = _sorted_out(blocks, hidden, experts)
        if not found:
            raise UnsupportedModelError(f"model: none of its layers can be edited; {listed(refused)}")
        return found
    found, holders = {}, _holders(blocks)
    for layer in layers:
        if not 0 <= layer < len(blocks):
            raise UnsupportedModelError(f"layer: {layer} does not exist, the model has layers 0 to {len(blocks) - 1}")
        try:
            found[layer] = _mlp_output(blocks, layer, hidden, holders, experts)
        except _Refused as reason:
            raise UnsupportedModelError(f"layer: {layer} ({blocks[layer][0]}) cannot be edited: {reason}") from None
    return found


def key_width(model: Any, experts: str = SHARED) -> int:
    """Width of a key: of what goes into the MLP output of the first layer that can be edited."""
    name = next(iter(mlp_output_modules(model, experts=experts).values()))
    module: Any = unwrapped(model).get_submodule(name)
    if is_experts(module):  # the key of a token holds those of all experts, side by side
        count, *sides = module.down_proj.shape
        return count * sides[0 if module.is_transposed else 1]
    shape = features(module)
    assert shape is not None  # other maps are linear
    return shape[0]


def shape_of(module: Any) -> list[int]:
    """Shape of the weight of an MLP's output: (out, in), or that of all experts where they are fused."""
    return list(module.down_proj.shape) if is_experts(module) else list(reversed(features(module) or ()))


def changed_modules(model: Any, outputs: Iterable[str]) -> list[str]:
    """Names of the linear maps of these outputs of MLPs: their own, or those of each expert."""
    found = []
    for name in outputs:
        module = unwrapped(model).get_submodule(name)
        found += expert_names(name, module) if is_experts(module) else [name]
    return found


def refused_layers(model: Any, *, experts: str | None = None) -> dict[int, str]:
    """The layers that cannot be edited, and why."""
    return _sorted_out(decoder_blocks(model), hidden_size(model), experts)[1]


def listed(refused: Mapping[int, str]) -> str:
    """Layers with their reasons in one line, those of one reason together."""
    groups: dict[str, list[int]] = {}
    for layer, reason in refused.items():
        groups.setdefault(reason, []).append(layer)
    return "; ".join(
        f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}: {reason}" for reason, layers in groups.items()
    )


def features(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear map, also a quantized or wrapped one; None for other modules."""
    layer: Any = module  # quantized ones have no base class in common
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
        return layer.in_features, layer.out_features
    if type(layer).__name__ == "Conv1D":
        return layer.nx, layer.nf
    return None


class _Refused(Exception):
    """Why a block cannot be edited."""


def _sorted_out(
    blocks: Sequence[tuple[str, nn.Module]], hidden: int, experts: str | None
) -> tuple[dict[int, str], dict[int, str]]:
    """Name of the output of each layer that has one, and the reasons of the others."""
    found, refused, holders = {}, {}, _holders(blocks)
    for layer in range(len(blocks)):
        try:
            found[layer] = _mlp_output(blocks, layer, hidden, holders, experts)
        except _Refused as reason:
            refused[layer] = str(reason)
    return found, refused


def _mlp_output(
    blocks: Sequence[tuple[str, nn.Module]],
    layer: int,
    hidden: int,
    holders: Mapping[int, Sequence[int]],
    experts: str | None,
) -> str:
    block_name, block = blocks[layer]
    name = _within(block, hidden, experts)
    for parameter in block.get_submodule(name).parameters():
        others = [other for other in holders[id(parameter)] if other != layer]
        if others:
            raise _Refused(f"its MLP is layer {others[0]}'s as well, an edit would change both")
    return f"{block_name}.{name}"


def _holders(blocks: Sequence[tuple[str, nn.Module]]) -> dict[int, list[int]]:
    """The layers that hold a parameter, by its identity."""
    found: dict[int, list[int]] = {}
    for layer, (_, block) in enumerate(blocks):
        for parameter in block.parameters():
            found.setdefault(id(parameter), []).append(layer)
    return found


def _within(block: nn.Module, hidden: int, experts: str | None) -> str:
    """Name of the output within its block."""
    parts = _Parts(block)
    if parts.routes:
        return _of_mixture(block, parts, hidden, experts)
    places = [""]
    for mixer in parts.mixers:  # a block within the block holds attention beside an MLP of its own
        children = block.get_submodule(mixer).named_children()
        places += [f"{mixer}.{name}." for name, child in children if features(child) is None and not _mixes(child)]
    for place in places:
        maps = _Parts(block.get_submodule(place[:-1])).maps
        if not place and not parts.mixers:  # maps that stand in a block alone are an attention's own
            maps = {name: shape for name, shape in maps.items() if "." in name}
        found = _way_back(maps, hidden)
        if found is not None:
            return place + found
    beside = f" beside {', '.join(parts.mixers)}" if parts.mixers else ""
    raise _Refused(f"no MLP that ends in a linear map to the hidden size{beside}")


def _of_mixture(block: nn.Module, parts: _Parts, hidden: int, experts: str | None) -> str:
    """Name of the output of the expert that all tokens share, or of the experts where they are asked for."""
    shared = {name: shape for name, shape in parts.maps.items() if "." in name and not _ROUTING.search(name)}
    found = _way_back(shared, hidden)
    if found is not None and experts != ROUTED:
        return found
    if experts is None:
        raise _Refused("a mixture of experts, which has no single MLP to edit")
    fused = [(name, module) for name, module in block.named_modules() if is_experts(module)]
    if len(fused) != 1:
        none_shared, others = (
            (" and no expert that all tokens share", "layers with an ordinary MLP")
            if found is None
            else ("", "the expert that all tokens share (experts='shared')")
        )
        raise _Refused(
            f"a mixture of experts with {len(fused) or 'no'} sets of fused experts{none_shared}; {others} can be edited"
        )
    ((name, module),) = fused
    reason = why_not(module)
    if reason is not None:
        raise _Refused(f"a mixture of experts that cannot be edited: {reason}")
    return name


class _Parts:
    """What stands in a module: the parts that mix positions, and the linear maps outside of them.

    Args:
        maps: (in, out) of each linear map, by name.
        mixers: Names of the parts that mix positions.
        routes: Whether a part beside them chooses among experts.
    """

    def __init__(self, module: nn.Module) -> None:
        self.maps: dict[str, tuple[int, int]] = {}
        self.mixers: list[str] = []
        self.routes = False
        self._walk("", module)

    def _walk(self, prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            shape = features(child)
            if shape is not None:
                self.maps[prefix + name] = shape
            elif _mixes(child):
                self.mixers.append(prefix + name)
            else:
                self.routes |= any("expert" in word for word in (name, *vars(child)))
                self._walk(f"{prefix}{name}.", child)


def _mixes(module: nn.Module) -> bool:
    """Whether a part mixes positions: its forward pass is told what it may look at, or takes whatever it is given."""
    told = inspect.signature(type(module).forward).parameters.values()
    return any(_MIXES.search(one.name) or one.kind is inspect.Parameter.VAR_KEYWORD for one in told)


def _way_back(maps: Mapping[str, tuple[int, int]], hidden: int) -> str | None:
    """The widest map to the hidden size that another leads to from there, the last of several such."""
    found: tuple[int, str] | None = None
    for name, (wide, out) in maps.items():
        led_to = any(
            start == hidden and end and end % wide == 0 for other, (start, end) in maps.items() if other != name
        )
        if out == hidden and led_to and (found is None or wide >= found[0]):
            found = wide, name
    return None if found is None else found[1]
