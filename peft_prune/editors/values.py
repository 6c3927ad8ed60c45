"""v*: the output that makes the edited layer's later layers give the target, found by gradient descent on one vector.

The model's weights are never touched and get no gradients. What is skipped against the published loop does not change
the result: blocks up to the edited one and positions before the subject's last token run once, logits are computed only
where the loss reads them, and all requests of a batch run together until each has converged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..architecture import decoder_blocks, mlp_output_module, unwrapped
from ..errors import EditFailedError
from ..inference import PADDING_ID, by_rows, input_device
from ..requests import EditRequest
from ..tokenization import continuation_ids
from .keys import with_prefix
from .likelihood import frozen
from .tokens import tokenize_prompts


@dataclass(frozen=True)
class ValueSettings:
    """How v* is searched (Meng et al. 2022, section 3.1, equation 4; the published code's names in brackets).

    Args:
        learning_rate: Of Adam [v_lr].
        steps: Most gradient steps [v_num_grad_steps].
        weight_decay: Weight of ‖δ‖ / ‖v‖² in the loss [v_weight_decay].
        clamp_factor: Limit of ‖δ‖ / ‖v‖ [clamp_norm_factor].
        kl_factor: Weight of the KL divergence at "{subject} is a" [kl_factor].
        stop: "probability" ends a request once every context gives the target ``stop_probability``; "loss" is the
            published rule, total loss below ``stop_loss``.
        stop_probability: See ``stop``.
        stop_loss: See ``stop``.
        site: Where the vector is added: "mlp", the MLP's output as in ROME, or "block", the block's as in MEMIT.
        autocast: Dtype of the forward passes, or None for the model's own; the vector stays float32.
    """

    learning_rate: float = 0.5
    steps: int = 20
    weight_decay: float = 0.5
    clamp_factor: float = 4.0
    kl_factor: float = 0.0625
    stop: str = "probability"
    stop_probability: float = 0.8
    stop_loss: float = 0.05
    site: str = "mlp"
    autocast: torch.dtype | None = None


@dataclass(frozen=True)
class OptimizedValue:
    """The result for one request.

    Args:
        delta: v* minus the present output at the subject's last token of the bare prompt, (out,), float32.
        output: That present output, (out,), float32.
        probability_before: Least probability of the target over the contexts before the first step.
        probability: The same at the end.
        loss: Total loss at the end.
        steps: Gradient steps taken.
    """

    delta: Tensor
    output: Tensor
    probability_before: float
    probability: float
    loss: float
    steps: int


def optimize_values(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layer: int,
    settings: ValueSettings,
) -> list[OptimizedValue]:
    """v* for every request at the output of ``layer``, its MLP's or its own as ``settings.site`` says.

    Args:
        model: The model as it is now, with whatever adapter is active.
        contexts: Prefixes of the prompt; the first is empty, the bare prompt.

    Raises:
        EditFailedError: The optimisation of a request gives NaN or Inf; the message names its subject.
    """
    batch = _Batch.build(tokenizer, requests, contexts, input_device(model))
    with frozen(model), _LaterLayers(model, batch, layer, settings.site, settings.autocast) as later:
        return _descend(later, batch, requests, settings)


@dataclass
class _Batch:
    """All rows of all requests: for each request its contexts, then its KL prompt.

    Rows are padded on both sides so that every subject's last token stands in the column ``subject``. ``read`` holds
    the columns whose logits the loss reads, padded with that column.
    """

    ids: Tensor  # (rows, width)
    mask: Tensor  # (rows, width)
    read: Tensor  # (rows, reads)
    labels: Tensor  # (rows, reads) token ids, -1 where nothing is read
    request: Tensor  # (rows,) index of the request
    is_kl: Tensor  # (rows,) bool
    subject: int

    @staticmethod
    def build(
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        device: torch.device,
    ) -> _Batch:
        rows: list[tuple[tuple[int, ...], int, list[int], list[int], int, bool]] = []
        for index, request in enumerate(requests):
            templates = [with_prefix(context, request.prompt) for context in contexts]
            texts = [template.replace("{}", request.subject) for template in templates]
            pairs = continuation_ids(tokenizer, texts, [request.target_new] * len(texts))
            prompts = tokenize_prompts(tokenizer, templates, request.subject)
            for prompt, pair in zip(prompts, pairs, strict=True):
                ids = pair.prompt + pair.target[:-1]
                read = list(range(len(pair.prompt) - 1, len(ids)))
                rows.append((ids, prompt.subject_last, read, list(pair.target), index, False))
            (kl,) = tokenize_prompts(tokenizer, ["{} is a"], request.subject)
            rows.append((kl.ids, kl.subject_last, [len(kl.ids) - 1], [-1], index, True))
        subject = max(row[1] for row in rows)
        width, reads = subject + max(len(row[0]) - row[1] for row in rows), max(len(row[2]) for row in rows)
        ids = torch.full((len(rows), width), PADDING_ID)
        mask = torch.zeros_like(ids)
        read = torch.full((len(rows), reads), subject)
        labels = torch.full((len(rows), reads), -1)
        for i, row in enumerate(rows):
            start = subject - row[1]
            ids[i, start : start + len(row[0])] = torch.tensor(row[0])
            mask[i, start : start + len(row[0])] = 1
            read[i, : len(row[2])] = start + torch.tensor(row[2])
            labels[i, : len(row[3])] = torch.tensor(row[3])
        request, is_kl = (torch.tensor([row[k] for row in rows]) for k in (4, 5))
        ids, mask, read, labels = (part.to(device) for part in (ids, mask, read, labels))
        return _Batch(ids, mask, read, labels, request.to(device), is_kl.to(device), subject)

    def rows(self, keep: Tensor) -> _Batch:
        return _Batch(
            self.ids[keep],
            self.mask[keep],
            self.read[keep],
            self.labels[keep],
            self.request[keep],
            self.is_kl[keep],
            self.subject,
        )


def _descend(
    later: _LaterLayers, batch: _Batch, requests: Sequence[EditRequest], settings: ValueSettings
) -> list[OptimizedValue]:
    count = len(requests)
    bare = torch.tensor([int((batch.request == i).nonzero()[0]) for i in range(count)], device=batch.request.device)
    output = later.outputs[bare].float()  # (count, out)
    norms = output.norm(dim=1)
    delta = torch.zeros_like(output, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
    base_kl = None
    before = torch.zeros(count)
    last: dict[int, tuple[float, float, int]] = {}
    active = torch.ones(count, dtype=torch.bool, device=output.device)
    for step in range(settings.steps + 1):
        keep = active[batch.request]
        rows = batch.rows(keep)
        log_probs = later.run(keep, rows, delta)
        if base_kl is None:
            base_kl = log_probs[rows.is_kl, 0].detach()
        losses, least = _losses(log_probs, rows, base_kl, delta, norms, settings, active)
        for position, index in enumerate(active.nonzero().flatten().tolist()):
            if step == 0:
                before[index] = float(least[position])
            last[index] = (float(losses[position].detach()), float(least[position]), step)
        if not torch.isfinite(losses).all():
            bad = active.nonzero().flatten()[~torch.isfinite(losses)][0]
            raise EditFailedError(
                f"subject {requests[int(bad)].subject!r}: the optimisation of its value gives NaN or Inf"
            )
        done = least >= settings.stop_probability if settings.stop == "probability" else losses < settings.stop_loss
        active = active.clone()
        active[active.nonzero().flatten()[done]] = False
        if step == settings.steps or not bool(active.any()):
            break
        optimizer.zero_grad()
        losses[~done].sum().backward()
        before_step = delta.detach().clone()
        optimizer.step()
        with torch.no_grad():
            # Adam's momentum would move requests that have converged
            delta[~active] = before_step[~active]
            limit = settings.clamp_factor * norms
            size = delta.norm(dim=1)
            delta.mul_((limit / size.clamp(min=1e-12)).clamp(max=1.0)[:, None])
    return [
        OptimizedValue(delta[i].detach(), output[i], float(before[i]), last[i][1], last[i][0], last[i][2])
        for i in range(count)
    ]


def _losses(
    log_probs: Tensor,
    rows: _Batch,
    base_kl: Tensor,
    delta: Tensor,
    norms: Tensor,
    settings: ValueSettings,
    active: Tensor,
) -> tuple[Tensor, Tensor]:
    """Total loss and least target probability of every active request, (active,) each."""
    indices = active.nonzero().flatten()
    place = torch.full_like(active, -1, dtype=torch.long)
    place[indices] = torch.arange(len(indices), device=indices.device)
    targets = ~rows.is_kl
    labels = rows.labels[targets]
    read = labels >= 0
    scores = log_probs[targets].gather(2, labels.clamp(min=0)[..., None])[..., 0] * read
    group = place[rows.request[targets]]
    mean = scores.sum(1) / read.sum(1)
    number = torch.zeros(len(indices), device=mean.device).index_add(0, group, torch.ones_like(mean))
    nll = torch.zeros(len(indices), device=mean.device).index_add(0, group, -mean) / number
    least = torch.ones(len(indices), device=mean.device).scatter_reduce(
        0, group, mean.detach().exp(), "amin", include_self=True
    )
    kl_rows = log_probs[rows.is_kl, 0]
    start = base_kl[indices] if len(base_kl) != len(indices) else base_kl
    kl = torch.nn.functional.kl_div(start, kl_rows, log_target=True, reduction="none").sum(1)
    decay = delta[indices].norm(dim=1) / norms[indices].square()
    return nll + settings.kl_factor * kl + settings.weight_decay * decay, least


class _LaterLayers:
    """Runs the model on what a vector added at the subject's last token can change, and on nothing else.

    That is the positions from that token on, whose earlier ones are kept as keys and values, and the layers from the
    edited one on.
    """

    def __init__(self, model: Any, batch: _Batch, layer: int, site: str, autocast: torch.dtype | None) -> None:
        self._model = unwrapped(model)
        self._batch = batch
        self._site = site
        self._target = mlp_output_module(model, layer)[1]
        blocks = [block for _, block in decoder_blocks(model)]
        self._earlier, self._edited = blocks[:layer], blocks[layer]
        self._head = self._model.get_output_embeddings()
        self._autocast = autocast
        self._accepted = inspect.signature(self._model.forward).parameters
        self._past: list[dict[str, Any]] = []
        self._cache: Any = None
        self._hands_on_tuples = False
        self.outputs: Tensor

    def __enter__(self) -> _LaterLayers:
        captured: dict[str, Any] = {}

        def keep_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured["input"] = args[0] if args else kwargs["hidden_states"]

        def keep_form(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._hands_on_tuples = isinstance(output, tuple)

        def keep_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            captured["output"] = by_rows(_states(output), len(self._batch.ids))

        place = self._target if self._site == "mlp" else self._edited
        with ExitStack() as stack, torch.no_grad():
            self._run_prefix()
            stack.enter_context(_hook(self._edited.register_forward_pre_hook(keep_input, with_kwargs=True)))
            stack.enter_context(_hook(self._edited.register_forward_hook(keep_form)))
            stack.enter_context(_hook(place.register_forward_hook(keep_output)))
            self._forward(self._batch, None)
        self._hidden = captured["input" if self._site == "mlp" else "output"].detach()
        self.outputs = captured["output"][:, self._column].detach()
        return self

    def __exit__(self, *error: object) -> None:
        del self._hidden
        self._past, self._cache = [], None

    def run(self, keep: Tensor, rows: _Batch, delta: Tensor) -> Tensor:
        """Log-probabilities where the loss reads them, (rows, reads, vocabulary), float32."""
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
            return (states + place[:, None] * added.to(output.dtype)[:, None]).view_as(output)

        def as_block(states: Tensor) -> Callable[..., Any]:
            return lambda *args, **kwargs: (states, None) if self._hands_on_tuples else states

        with ExitStack() as stack:
            if self._site == "mlp":
                stack.enter_context(_hook(self._edited.register_forward_pre_hook(start, with_kwargs=True)))
                stack.enter_context(
                    _hook(self._target.register_forward_hook(lambda module, args, output: edit(output)))
                )
            else:
                stack.enter_context(_replaced([self._edited], as_block(edit(hidden))))
            stack.enter_context(_replaced(self._earlier, as_block(hidden)))
            logits = self._forward(rows, keep)
        return torch.log_softmax(logits.float(), dim=-1)

    @property
    def _start(self) -> int:
        """First column that is run at every step."""
        return self._batch.subject if self._past else 0

    @property
    def _column(self) -> int:
        """Column of the subject's last token among those."""
        return self._batch.subject - self._start

    def _run_prefix(self) -> None:
        """Keys and values of everything before the subject's last token, which no edit can change."""
        width = self._batch.subject
        if not width or "past_key_values" not in self._accepted:
            return
        mask = self._batch.mask[:, :width].clone()
        # a row that is padding alone would give NaN; it is masked where it is read
        mask[mask.sum(1) == 0] = 1
        options = {"use_cache": True, **self._options(mask, 0, width)}
        if "logits_to_keep" in self._accepted:
            options["logits_to_keep"] = 1
        with self._precision():
            cache = self._model(input_ids=self._batch.ids[:, :width], attention_mask=mask, **options).past_key_values
        layers = getattr(cache, "layers", [])
        if layers and all(getattr(layer, "keys", None) is not None for layer in layers):
            self._cache, self._past = cache, [dict(vars(layer)) for layer in layers]

    def _forward(self, rows: _Batch, keep: Tensor | None) -> Tensor:
        options: dict[str, Any] = {"use_cache": False}
        if self._past:
            for layer, values in zip(self._cache.layers, self._past, strict=True):
                vars(layer).update({name: _rows_of(value, keep) for name, value in values.items()})
            options = {"use_cache": True, "past_key_values": self._cache}
        options |= self._options(rows.mask, self._start, rows.mask.shape[1])
        with self._reading(rows), self._precision():
            return self._model(input_ids=rows.ids[:, self._start :], attention_mask=rows.mask, **options).logits

    def _options(self, mask: Tensor, start: int, end: int) -> dict[str, Any]:
        if "position_ids" not in self._accepted:
            return {}
        return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, start:end]}

    def _precision(self) -> Any:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._batch.ids.device.type, dtype=self._autocast)

    @contextmanager
    def _reading(self, rows: _Batch) -> Iterator[None]:
        def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            index = (rows.read - self._start)[..., None].expand(-1, -1, args[0].shape[-1])
            return (args[0].gather(1, index), *args[1:])

        with _hook(self._head.register_forward_pre_hook(gather)):
            yield


def _states(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _rows_of(value: Any, keep: Tensor | None) -> Any:
    if keep is None or not isinstance(value, Tensor) or value.ndim < 2:
        return value
    return value if bool(keep.all()) else value[keep.to(value.device)]


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced(blocks: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
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
