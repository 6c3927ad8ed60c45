"""The model from its first edited block on: what goes into that block is computed once for each passage and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..editors.blocks import Enough, hooked, replaced, states_of, until_enough
from ..models.decoder import decoder_blocks, unwrapped
from ..models.inference import by_length, by_rows, input_device, padded
from ..spectral import LowRankUpdate
from ..tuner import PruneEditLayer
from ..tuner.experts import PruneEditExpert
from .passages import Passage

FRONT_BYTES = 1 << 30
"""What is kept of the states in front of the first edited block; beyond, they are computed whenever they are needed."""
SPARED = 0.2
"""Share of a pass's tokens for whose sake it is done in two."""

Factors = Mapping[str, LowRankUpdate]


class Tail:
    """Logits at the places that passages read, with other factors in the place of the adapter's.

    Rows are padded on the right, where a causal model does not look, so that no mask is needed.

    Args:
        model: A PEFT model in evaluation mode.
        layers: Its adapted layers by their name in the base model.
    """

    def __init__(self, model: Any, layers: Mapping[str, PruneEditLayer]) -> None:
        self._model = unwrapped(model)
        self._layers = layers
        named = decoder_blocks(model)
        self._blocks = [block for _, block in named]
        self._first = min(_place_of(name, [own for own, _ in named]) for name in layers)
        self._head = self._model.get_output_embeddings()
        self._fronts: dict[Passage, Tensor] = {}
        self._kept = 0
        self._hands_on_tuples = False

    @property
    def modules(self) -> list[nn.Module]:
        """What runs in every pass: the blocks from the first edited one on, and the output embeddings."""
        return [*self._blocks[self._first :], self._head]

    def logits(self, passages: Sequence[Passage], factors: Factors | None) -> Tensor:
        """(reads, vocabulary) float32, passage by passage; with ``factors`` None those of the base."""

        def of(part: Sequence[Passage]) -> Tensor:
            row, column = _reads(part)

            def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                return (args[0][row, column][None], *args[1:])

            with hooked(self._head.register_forward_pre_hook(gather)):
                return self._run(part, factors).logits[0].float()

        return self._by_length(passages, of)

    @torch.no_grad()
    def states(self, passages: Sequence[Passage], factors: Factors | None) -> Tensor:
        """What goes into the output embeddings at those places, (reads, hidden)."""

        def of(part: Sequence[Passage]) -> Tensor:
            row, column = _reads(part)
            found: list[Tensor] = []

            def take(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                found.append(args[0][row, column])
                raise Enough

            with hooked(self._head.register_forward_pre_hook(take)), until_enough(self._model):
                self._run(part, factors)
            return found[0]

        return self._by_length(passages, of)

    def _by_length(self, passages: Sequence[Passage], of: Callable[[Sequence[Passage]], Tensor]) -> Tensor:
        """What ``of`` gives for them, passage by passage, short and long ones apart where that saves padding."""
        self.remember(passages)  # before the head's places are those of these rows
        found: dict[int, Tensor] = {}
        for group in _groups([len(passage.ids) for passage in passages]):
            reads = of([passages[index] for index in group]).split([len(passages[index].read) for index in group])
            found |= dict(zip(group, reads, strict=True))
        return torch.cat([found[index] for index in range(len(passages))])

    @torch.no_grad()
    def logits_of(self, states: Tensor) -> Tensor:
        """Logits for what `states` gave, (reads, vocabulary) float32, by all that the model does behind its blocks."""

        def put(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (states[None].to(args[0]), *args[1:])

        ids = torch.zeros(1, 1, dtype=torch.long, device=input_device(self._model))
        with hooked(self._head.register_forward_pre_hook(put)), replaced(self._blocks, self._handing_on(None)):
            return self._model(input_ids=ids, use_cache=False).logits[0].float()

    def _run(self, passages: Sequence[Passage], factors: Factors | None) -> Any:
        ids, _ = padded([passage.ids for passage in passages], left=False, device=input_device(self._model))
        fronts = [self._fronts[passage] for passage in passages]
        hidden = nn.utils.rnn.pad_sequence(fronts, batch_first=True)
        with ExitStack() as stack:
            # the block before the first edited one hands on what is kept, those before that do nothing
            stack.enter_context(replaced(self._blocks[: self._first], self._handing_on(hidden)))
            stack.enter_context(acting(self._layers, factors))
            return self._model(input_ids=ids, use_cache=False)

    def _handing_on(self, hidden: Tensor | None) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            states = given if hidden is None else hidden
            return (states, None) if self._hands_on_tuples else states

        return forward

    @torch.no_grad()
    def remember(self, passages: Sequence[Passage]) -> None:
        """Compute what goes into the first edited block for those passages of which it is not kept."""
        missing = [passage for passage in passages if passage not in self._fronts]
        if not missing:
            return
        if self._kept > FRONT_BYTES:
            self._fronts = {own: self._fronts[own] for own in passages if own in self._fronts}
            self._kept = sum(states.nbytes for states in self._fronts.values())
        for group in _groups([len(passage.ids) for passage in missing]):
            self._remember([missing[index] for index in group])

    def _remember(self, passages: Sequence[Passage]) -> None:
        ids, _ = padded([passage.ids for passage in passages], left=False, device=input_device(self._model))
        found: dict[str, Tensor] = {}

        def note_form(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._hands_on_tuples = isinstance(output, tuple)

        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found["hidden"] = by_rows(states_of(args[0] if args else kwargs["hidden_states"]), len(passages))
            if self._first > 0:
                raise Enough

        with ExitStack() as stack:
            stack.enter_context(hooked(self._blocks[self._first].register_forward_pre_hook(take, with_kwargs=True)))
            stack.enter_context(hooked(self._blocks[max(0, self._first - 1)].register_forward_hook(note_form)))
            with until_enough(self._model):
                self._model(input_ids=ids, use_cache=False)
        for passage, states in zip(passages, found["hidden"], strict=True):
            self._fronts[passage] = states[: len(passage.ids)].clone()
            self._kept += self._fronts[passage].nbytes


@contextmanager
def acting(layers: Mapping[str, PruneEditLayer], factors: Factors | None) -> Iterator[None]:
    """These factors in the place of the adapter's, in every layer; the base alone where there are none."""

    def forward_of(layer: PruneEditLayer, update: LowRankUpdate | None) -> Callable[..., Tensor]:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if isinstance(layer, PruneEditExpert):  # it gives what is added to its expert's output
                result = x.new_zeros(len(x), layer.out_features)
            else:
                result = layer.base_layer(x, *args, **kwargs)
            if update is None:
                return result
            change = (x.to(update.dtype) @ update.A.T) @ update.B.T
            return result + change.to(result.dtype)

        return forward

    with ExitStack() as stack:
        for name, layer in layers.items():
            update = None if factors is None else factors[name]
            stack.enter_context(replaced([layer], forward_of(layer, update)))  # type: ignore[list-item]
        yield


def _place_of(module: str, blocks: Sequence[str]) -> int:
    return next(index for index, block in enumerate(blocks) if module.startswith(f"{block}."))


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices by passes: two of them, cut where padding is least, where that spares `SPARED` of one's tokens."""
    order, longest = by_length(lengths)[::-1], max(lengths)
    costs = [count * lengths[order[count - 1]] + (len(order) - count) * longest for count in range(1, len(order) + 1)]
    count = min(range(1, len(order) + 1), key=lambda one: costs[one - 1])
    if costs[count - 1] > (1 - SPARED) * len(order) * longest:
        return [list(range(len(lengths)))]
    return [order[:count], order[count:]]


def _reads(passages: Sequence[Passage]) -> tuple[Tensor, Tensor]:
    row = [index for index, passage in enumerate(passages) for _ in passage.read]
    return torch.tensor(row), torch.tensor([column for passage in passages for column in passage.read])
