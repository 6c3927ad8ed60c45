"""A forward pass over what a vector added at one token can change: later layers and positions, logits that are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..models.decoder import decoder_blocks, unwrapped
from ..models.experts import SHARED
from ..models.inference import by_rows
from ..models.mlp import mlp_output_module
from .blocks import Enough, hooked, replaced, states_of, until_enough
from .rows import Batch


class LaterLayers:
    """Runs the model on what a vector added at the subject's last token can change, and on nothing else.

    That is the positions from that token on, whose earlier ones are kept as keys and values, and the layers from the
    edited one on.
    """

    def __init__(
        self,
        model: Any,
        batch: Batch,
        layer: int,
        site: str,
        autocast: torch.dtype | None,
        *,
        takes_mlp: bool = False,
        experts: str = SHARED,
    ) -> None:
        self._model = unwrapped(model)
        self.batch = batch
        self._site = site
        self._target = mlp_output_module(model, layer, experts)[1]
        blocks = [block for _, block in decoder_blocks(model)]
        self._earlier, self._edited = blocks[:layer], blocks[layer]
        self._last_mlp = _mlp_of(model, len(blocks) - 1) if layer < len(blocks) - 1 else None
        self._is_narrow: bool | None = None
        self._head = self._model.get_output_embeddings()
        self._autocast = autocast
        self._accepted = inspect.signature(self._model.forward).parameters
        self._past: list[dict[str, Any]] = []
        self._cache: Any = None
        self._hands_on_tuples = False
        self._takes_mlp = takes_mlp
        self.outputs: Tensor
        self.mlp_outputs: Tensor

    def __enter__(self) -> LaterLayers:
        captured: dict[str, Any] = {}

        def keep_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured["input"] = args[0] if args else kwargs["hidden_states"]

        def keep_form(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._hands_on_tuples = isinstance(output, tuple)

        def keep_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            captured["output"] = by_rows(states_of(output), len(self.batch.ids))

        def keep_mlp(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            captured["mlp"] = by_rows(output, len(self.batch.ids))

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            captured["behind"] = states_of(output)
            raise Enough

        place = self._edited if self._site == "block" else self._target
        with ExitStack() as stack, torch.no_grad():
            self._run_prefix()
            stack.enter_context(hooked(self._edited.register_forward_pre_hook(keep_input, with_kwargs=True)))
            stack.enter_context(hooked(place.register_forward_hook(keep_output)))
            if self._takes_mlp:
                stack.enter_context(hooked(self._target.register_forward_hook(keep_mlp)))
            stack.enter_context(hooked(self._edited.register_forward_hook(keep_form)))
            stack.enter_context(hooked(self._edited.register_forward_hook(leave)))
            with until_enough(self._model):
                self._forward(self.batch, None)
        self._hidden = captured["input" if self._site == "mlp" else "behind"].detach()
        self.outputs = captured["output"][:, self._column].detach()
        self.mlp_outputs = captured["mlp"][:, self._column].detach() if self._takes_mlp else self.outputs
        return self

    def __exit__(self, *error: object) -> None:
        del self._hidden
        self._past, self._cache = [], None

    def states(self, keep: Tensor, rows: Batch, delta: Tensor) -> Tensor:
        """What goes into the output embeddings where the loss reads logits, (reads, hidden)."""
        found: list[Tensor] = []

        def take(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.append(args[0][0])
            raise Enough

        with self._reading(rows), hooked(self._head.register_forward_pre_hook(take)):
            with until_enough(self._model):
                self._run(keep, rows, delta)
        return found[0]

    def logits(self, keep: Tensor, rows: Batch, delta: Tensor, ahead: Sequence[Tensor] = ()) -> Tensor:
        """Logits for the states ``ahead``, then those of these rows where the loss reads them, float32."""

        def join(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # one matrix, not a batch of one: its gradient is then one product, without a copy of the embeddings
            return (torch.cat([*(states.to(args[0]) for states in ahead), args[0][0]]), *args[1:])

        def as_batch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output[None]

        with (
            self._reading(rows),
            hooked(self._head.register_forward_pre_hook(join)),
            hooked(self._head.register_forward_hook(as_batch)),
        ):
            return self._run(keep, rows, delta)[0].float()

    def _run(self, keep: Tensor, rows: Batch, delta: Tensor) -> Tensor:
        hidden = self._hidden[keep]
        added = delta[rows.request]

        def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        def edit(output: Tensor) -> Tensor:
            states = by_rows(output, len(added))
            place = torch.zeros(states.shape[1], dtype=output.dtype, device=output.device)
            place[self._column] = 1
            moved = states + place[:, None] * added.to(output.dtype)[:, None]
            return moved if moved.shape == output.shape else moved.view_as(output)

        def as_block(states: Tensor) -> Callable[..., Any]:
            return lambda *args, **kwargs: (states, None) if self._hands_on_tuples else states

        with ExitStack() as stack:
            if self._site == "mlp":
                stack.enter_context(hooked(self._edited.register_forward_pre_hook(start, with_kwargs=True)))
                stack.enter_context(
                    hooked(self._target.register_forward_hook(lambda module, args, output: edit(output)))
                )
            else:
                stack.enter_context(replaced([self._edited], as_block(edit(hidden))))
            stack.enter_context(replaced(self._earlier, as_block(hidden)))
            stack.enter_context(self._narrowed(rows))
            return self._forward(rows, keep)

    @contextmanager
    def _narrowed(self, rows: Batch) -> Iterator[None]:
        """The last block's MLP, which mixes no positions, on those positions alone whose logits are read.

        That it does mix none is looked at once, where it can be seen.
        """
        mlp = self._last_mlp
        if mlp is None or self._is_narrow is False:
            yield
            return
        own = mlp.forward
        row, column = rows.read_row, rows.read_column - self._start

        def forward(*args: Any, **kwargs: Any) -> Any:
            if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].ndim != 3:
                self._is_narrow = False
                return own(*args, **kwargs)
            x = args[0]
            if self._is_narrow is None:
                with torch.no_grad():
                    whole = own(x)
                    self._is_narrow = isinstance(whole, Tensor) and whole.shape == x.shape
                    if self._is_narrow:
                        part = own(x[row, column][None])[0]
                        self._is_narrow = bool(torch.allclose(part, whole[row, column], rtol=1e-3, atol=1e-4))
            if not self._is_narrow:
                return own(x)
            part = own(x[row, column][None])[0]
            return part.new_zeros(x.shape).index_put((row, column), part)

        with replaced([mlp], forward):
            yield

    @property
    def _start(self) -> int:
        """First column that is run at every step."""
        return self.batch.subject if self._past else 0

    @property
    def _column(self) -> int:
        """Column of the subject's last token among those."""
        return self.batch.subject - self._start

    def _run_prefix(self) -> None:
        """Keys and values of everything before the subject's last token, which no edit can change."""
        width = self.batch.subject
        # a recurrent state moves on with every pass and cannot be taken back
        if not width or "past_key_values" not in self._accepted or getattr(self._model, "_is_stateful", False):
            return
        mask = self.batch.mask[:, :width].clone()
        # a row that is padding alone would give NaN; it is masked where it is read
        mask[mask.sum(1) == 0] = 1
        options = {"use_cache": True, **self._options(mask, 0, width)}
        if "logits_to_keep" in self._accepted:
            options["logits_to_keep"] = 1
        with self._precision():
            cache = self._model(input_ids=self.batch.ids[:, :width], attention_mask=mask, **options).past_key_values
        layers = getattr(cache, "layers", [])
        if layers and all(getattr(layer, "keys", None) is not None for layer in layers):
            self._cache, self._past = cache, [dict(vars(layer)) for layer in layers]

    def _forward(self, rows: Batch, keep: Tensor | None) -> Tensor:
        options: dict[str, Any] = {"use_cache": False}
        if self._past:
            for layer, values in zip(self._cache.layers, self._past, strict=True):
                vars(layer).update({name: _rows_of(value, keep) for name, value in values.items()})
            options = {"use_cache": True, "past_key_values": self._cache}
        options |= self._options(rows.mask, self._start, rows.mask.shape[1])
        with self._precision():
            return self._model(input_ids=rows.ids[:, self._start :], attention_mask=rows.mask, **options).logits

    def _options(self, mask: Tensor, start: int, end: int) -> dict[str, Any]:
        if "position_ids" not in self._accepted:
            return {}
        return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, start:end]}

    def _precision(self) -> Any:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.batch.ids.device.type, dtype=self._autocast)

    @contextmanager
    def _reading(self, rows: Batch) -> Iterator[None]:
        def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0][rows.read_row, rows.read_column - self._start][None], *args[1:])

        with hooked(self._head.register_forward_pre_hook(gather)):
            yield


def _mlp_of(model: Any, layer: int) -> nn.Module | None:
    """The child of a block that holds its MLP's last map, where that is more than the map itself."""
    block_name, block = decoder_blocks(model)[layer]
    try:
        name, _ = mlp_output_module(model, layer)
    except UnsupportedModelError:
        return None  # this block cannot be edited, but it can be run
    child, _, rest = name.removeprefix(block_name + ".").partition(".")
    return block.get_submodule(child) if rest else None


def _rows_of(value: Any, keep: Tensor | None) -> Any:
    if keep is None or not isinstance(value, Tensor) or value.ndim < 2:
        return value
    return value if bool(keep.all()) else value[keep.to(value.device)]
