"""v*: the output that makes the edited layer's later layers give the target, found by gradient descent on one vector.

The model's weights are never touched and get no gradients. What is skipped against the published loop does not change
the result: blocks up to the edited one run once, logits are computed only where the loss reads them, and all requests
of a batch run together until each has converged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..architecture import decoder_blocks, mlp_output_module, unwrapped
from ..errors import EditFailedError
from ..inference import input_device
from ..requests import EditRequest
from ..tokenization import continuation_ids
from .keys import with_prefix
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
    """

    learning_rate: float = 0.5
    steps: int = 20
    weight_decay: float = 0.5
    clamp_factor: float = 4.0
    kl_factor: float = 0.0625
    stop: str = "probability"
    stop_probability: float = 0.8
    stop_loss: float = 0.05


@dataclass(frozen=True)
class OptimizedValue:
    """The result for one request.

    Args:
        delta: v* minus the layer's present output at the subject's last token of the bare prompt, (out,), float32.
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
    """v* for every request at the MLP output of ``layer``.

    Args:
        model: The model as it is now, with whatever adapter is active.
        contexts: Prefixes of the prompt; the first is empty, the bare prompt.

    Raises:
        EditFailedError: The optimisation of a request gives NaN or Inf; the message names its subject.
    """
    batch = _Batch.build(tokenizer, requests, contexts, input_device(model))
    with _frozen(model), _LaterLayers(model, batch, layer) as later:
        return _descend(later, batch, requests, settings)


@dataclass
class _Batch:
    """All rows of all requests, (rows, width): for each request its contexts, then its KL prompt.

    ``target_rows`` etc. index rows; ``read`` holds the positions whose logits the loss reads, padded with position 0.
    """

    ids: Tensor
    mask: Tensor
    subject: Tensor  # (rows,) position of the subject's last token
    read: Tensor  # (rows, reads) positions
    labels: Tensor  # (rows, reads) token ids, -1 where nothing is read
    request: Tensor  # (rows,) index of the request
    is_kl: Tensor  # (rows,) bool

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
        width, reads = max(len(row[0]) for row in rows), max(len(row[2]) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        read = torch.zeros(len(rows), reads, dtype=torch.long)
        labels = torch.full((len(rows), reads), -1)
        for i, row in enumerate(rows):
            ids[i, : len(row[0])] = torch.tensor(row[0])
            mask[i, : len(row[0])] = 1
            read[i, : len(row[2])] = torch.tensor(row[2])
            labels[i, : len(row[3])] = torch.tensor(row[3])
        columns = [torch.tensor([row[k] for row in rows]) for k in (1, 4, 5)]
        parts = (ids, mask, columns[0], read, labels, columns[1], columns[2])
        return _Batch(*(part.to(device) for part in parts))

    def rows(self, keep: Tensor) -> _Batch:
        return _Batch(*(part[keep] for part in vars(self).values()))


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
    """Runs the model from the edited block on, with a vector added to the MLP output at the subject's last token."""

    def __init__(self, model: Any, batch: _Batch, layer: int) -> None:
        self._model = unwrapped(model)
        self._batch = batch
        self._target = mlp_output_module(model, layer)[1]
        blocks = [block for _, block in decoder_blocks(model)]
        self._earlier, self._edited = blocks[:layer], blocks[layer]
        self._head = self._model.get_output_embeddings()
        self.outputs: Tensor

    def __enter__(self) -> _LaterLayers:
        captured: dict[str, Any] = {}

        def keep_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured["input"] = args[0] if args else kwargs["hidden_states"]

        def keep_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            captured["output"] = _at(output, self._batch.subject)

        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(_hook(self._edited.register_forward_pre_hook(keep_input, with_kwargs=True)))
            stack.enter_context(_hook(self._target.register_forward_hook(keep_output)))
            stack.enter_context(self._reading(self._batch))
            self._forward(self._batch)
        self._hidden = captured["input"].detach()
        self.outputs = captured["output"].detach()
        return self

    def __exit__(self, *error: object) -> None:
        del self._hidden

    def run(self, keep: Tensor, rows: _Batch, delta: Tensor) -> Tensor:
        """Log-probabilities where the loss reads them, (rows, reads, vocabulary), float32."""
        hidden = self._hidden[keep]
        added = delta[rows.request]

        def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        def edit(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            index = torch.arange(len(output), device=output.device)
            place = torch.zeros(output.shape[:2], dtype=output.dtype, device=output.device)
            place[index, rows.subject] = 1
            return output + place[..., None] * added.to(output.dtype)[:, None]

        with ExitStack() as stack:
            stack.enter_context(_hook(self._edited.register_forward_pre_hook(start, with_kwargs=True)))
            stack.enter_context(_hook(self._target.register_forward_hook(edit)))
            stack.enter_context(self._reading(rows))
            stack.enter_context(_skipped(self._earlier))
            logits = self._forward(rows)
        return torch.log_softmax(logits.float(), dim=-1)

    def _forward(self, rows: _Batch) -> Tensor:
        return self._model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits

    @contextmanager
    def _reading(self, rows: _Batch) -> Iterator[None]:
        def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            index = rows.read[..., None].expand(-1, -1, args[0].shape[-1])
            return (args[0].gather(1, index), *args[1:])

        with _hook(self._head.register_forward_pre_hook(gather)):
            yield


def _at(tensor: Tensor, positions: Tensor) -> Tensor:
    return tensor[torch.arange(len(tensor), device=tensor.device), positions]


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _skipped(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Blocks that hand their input on, in the form in which a block of this release hands on its output."""
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = _hand_on
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for any parameter; both as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
