"""v*: the output that makes the edited layer's later layers give the target, found by gradient descent on one vector.

The model's weights are never touched and get no gradients. What is skipped against the published loop does not change
the result: blocks up to the edited one and positions before the subject's last token run once, logits are computed only
where the loss reads them, and all requests of a batch run together until each has converged.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..errors import EditFailedError, UnsupportedModelError
from ..models.decoder import decoder_blocks, unwrapped
from ..models.inference import PADDING_ID, by_rows, input_device
from ..models.mlp import mlp_output_module
from ..models.tokenization import continuation_ids
from ..requests import EditRequest
from .blocks import Enough, hooked, replaced, states_of
from .keys import with_prefix
from .target_likelihood import frozen
from .tokens import tokenize_prompts

PASS_COST = 24
"""What one pass over the later layers costs beyond its tokens, in tokens: reading the weights."""


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
            "residual" is "mlp" for a block that hands its MLP's output on unchanged: the edited block then runs once.
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
    rows = _rows(tokenizer, requests, contexts)
    with frozen(model), ExitStack() as stack:
        later = [
            stack.enter_context(
                _LaterLayers(model, _Batch.build(group, input_device(model)), layer, settings.site, settings.autocast)
            )
            for group in _grouped(rows)
        ]
        return _descend(later, requests, settings)


@dataclass(frozen=True)
class _Row:
    """One context of one request, or its KL prompt: token ids, where the subject ends, what is read and asked for."""

    ids: tuple[int, ...]
    subject_last: int
    read: tuple[int, ...]
    labels: tuple[int, ...]
    request: int
    is_kl: bool

    @property
    def suffix(self) -> int:
        """Tokens from the subject's last one on, which are run at every step."""
        return len(self.ids) - self.subject_last


def _rows(tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], contexts: Sequence[str]) -> list[_Row]:
    """For each request its contexts, the bare prompt first, then its KL prompt."""
    rows = []
    for index, request in enumerate(requests):
        templates = [with_prefix(context, request.prompt) for context in contexts]
        texts = [template.replace("{}", request.subject) for template in templates]
        pairs = continuation_ids(tokenizer, texts, [request.target_new] * len(texts))
        prompts = tokenize_prompts(tokenizer, templates, request.subject)
        for prompt, pair in zip(prompts, pairs, strict=True):
            ids = pair.prompt + pair.target[:-1]
            read = tuple(range(len(pair.prompt) - 1, len(ids)))
            rows.append(_Row(tuple(ids), prompt.subject_last, read, tuple(pair.target), index, False))
        (kl,) = tokenize_prompts(tokenizer, ["{} is a"], request.subject)
        rows.append(_Row(tuple(kl.ids), kl.subject_last, (len(kl.ids) - 1,), (0,), index, True))
    return rows


def _grouped(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Rows of similar suffixes together, so that padding and the number of passes cost the least in all."""
    lengths = sorted({row.suffix for row in rows})
    counts = [sum(row.suffix == length for row in rows) for length in lengths]
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]  # least cost of the first so many lengths, and its bounds
    for end in range(1, len(lengths) + 1):
        best.append(
            min(
                (best[start][0] + sum(counts[start:end]) * lengths[end - 1] + PASS_COST, (*best[start][1], end))
                for start in range(end)
            )
        )
    bounds = (0, *best[-1][1])
    return [
        [row for row in rows if lengths[start] <= row.suffix <= lengths[end - 1]]
        for start, end in itertools.pairwise(bounds)
    ]


@dataclass
class _Batch:
    """Rows that are run together, padded on both sides so that every subject's last token stands in one column."""

    ids: Tensor  # (rows, width)
    mask: Tensor  # (rows, width)
    request: Tensor  # (rows,) index of the request
    is_kl: Tensor  # (rows,) bool
    is_bare: Tensor  # (rows,) bool, the bare prompt of its request
    read_row: Tensor  # (reads,) row and column of every position whose logits the loss reads
    read_column: Tensor  # (reads,)
    labels: Tensor  # (reads,) token ids
    subject: int  # the column

    @staticmethod
    def build(rows: Sequence[_Row], device: torch.device) -> _Batch:
        subject = max(row.subject_last for row in rows)
        width = subject + max(row.suffix for row in rows)
        ids = torch.full((len(rows), width), PADDING_ID)
        mask = torch.zeros_like(ids)
        reads, bare, seen = [], [], set()
        for i, row in enumerate(rows):
            start = subject - row.subject_last
            ids[i, start : start + len(row.ids)] = torch.tensor(row.ids)
            mask[i, start : start + len(row.ids)] = 1
            reads += [(i, start + column, label) for column, label in zip(row.read, row.labels, strict=True)]
            bare.append(not row.is_kl and row.request not in seen)
            seen |= set() if row.is_kl else {row.request}
        read_row, read_column, labels = torch.tensor(reads).T
        columns = (
            ids,
            mask,
            torch.tensor([row.request for row in rows]),
            torch.tensor([row.is_kl for row in rows]),
            torch.tensor(bare),
            read_row,
            read_column,
            labels,
        )
        return _Batch(*(column.to(device) for column in columns), subject)  # type: ignore[call-arg]

    def rows(self, keep: Tensor) -> _Batch:
        """The rows with ``keep``, (rows,) bool."""
        if bool(keep.all()):
            return self
        place = keep.cumsum(0) - 1
        reads = keep[self.read_row]
        return _Batch(
            self.ids[keep],
            self.mask[keep],
            self.request[keep],
            self.is_kl[keep],
            self.is_bare[keep],
            place[self.read_row[reads]],
            self.read_column[reads],
            self.labels[reads],
            self.subject,
        )


def _descend(
    later: Sequence[_LaterLayers], requests: Sequence[EditRequest], settings: ValueSettings
) -> list[OptimizedValue]:
    count = len(requests)
    first = later[0].outputs
    output = first.new_zeros(count, first.shape[-1], dtype=torch.float32)
    for part in later:
        output[part.batch.request[part.batch.is_bare]] = part.outputs[part.batch.is_bare].float()
    norms = output.norm(dim=1)
    delta = torch.zeros_like(output, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
    objective = _Objective(count, settings, norms)
    before = torch.zeros(count)
    last: dict[int, tuple[float, float, int]] = {}
    active = torch.ones(count, dtype=torch.bool, device=output.device)
    for step in range(settings.steps + 1):
        losses, least = objective(later, delta, active)
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


def _logits(later: Sequence[_LaterLayers], delta: Tensor, active: Tensor) -> list[tuple[_Batch, Tensor]]:
    """The active rows of each part, and the logits where the loss reads them, (reads, vocabulary).

    The parts' last states go through the output embeddings together: reading those costs more than the products.
    """
    parts = [(part, active[part.batch.request]) for part in later]
    parts = [(part, keep) for part, keep in parts if bool(keep.any())]
    rows = [part.batch.rows(keep) for part, keep in parts]
    ahead = [part.states(keep, kept, delta) for (part, keep), kept in zip(parts[:-1], rows[:-1], strict=True)]
    part, keep = parts[-1]
    logits = part.logits(keep, rows[-1], delta, ahead).to(delta.device)
    return list(zip(rows, logits.split([len(kept.labels) for kept in rows]), strict=True))


class _Objective:
    """Total loss and least target probability of every active request."""

    def __init__(self, count: int, settings: ValueSettings, norms: Tensor) -> None:
        self._count = count
        self._settings = settings
        self._norms = norms
        self._base: dict[int, Tensor] = {}  # log-probabilities at the KL prompt before the first step

    def __call__(self, later: Sequence[_LaterLayers], delta: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """(active,) each."""
        number, nll, kl = (delta.new_zeros(self._count) for _ in range(3))
        least = delta.new_ones(self._count)
        for rows, logits in _logits(later, delta, active):
            of_kl = rows.is_kl[rows.read_row]
            if bool(of_kl.any()):
                kl = kl.index_add(0, *self._divergence(rows.request[rows.read_row[of_kl]], logits[of_kl]))
            if bool(of_kl.all()):
                continue
            asked, row = logits[~of_kl], rows.read_row[~of_kl]
            scores = asked.gather(1, rows.labels[~of_kl][:, None])[:, 0] - torch.logsumexp(asked, dim=1)
            sums, tokens = (delta.new_zeros(len(rows.ids)) for _ in range(2))
            tokens = tokens.index_add(0, row, torch.ones_like(scores))
            mean = (sums.index_add(0, row, scores) / tokens)[~rows.is_kl]
            request = rows.request[~rows.is_kl]
            number = number.index_add(0, request, torch.ones_like(mean))
            nll = nll.index_add(0, request, -mean)
            least = least.scatter_reduce(0, request, mean.detach().exp(), "amin")
        decay = delta.norm(dim=1) / self._norms.square()
        losses = nll / number + self._settings.kl_factor * kl + self._settings.weight_decay * decay
        return losses[active], least[active]

    def _divergence(self, requests: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(logits, dim=-1)
        for place, request in enumerate(requests.tolist()):
            self._base.setdefault(request, log_probs[place].detach())
        base = torch.stack([self._base[request] for request in requests.tolist()])
        return requests, torch.nn.functional.kl_div(base, log_probs, log_target=True, reduction="none").sum(1)


class _LaterLayers:
    """Runs the model on what a vector added at the subject's last token can change, and on nothing else.

    That is the positions from that token on, whose earlier ones are kept as keys and values, and the layers from the
    edited one on.
    """

    def __init__(self, model: Any, batch: _Batch, layer: int, site: str, autocast: torch.dtype | None) -> None:
        self._model = unwrapped(model)
        self.batch = batch
        self._site = site
        self._target = mlp_output_module(model, layer)[1]
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
        self.outputs: Tensor

    def __enter__(self) -> _LaterLayers:
        captured: dict[str, Any] = {}

        def keep_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured["input"] = args[0] if args else kwargs["hidden_states"]

        def keep_form(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._hands_on_tuples = isinstance(output, tuple)

        def keep_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            captured["output"] = by_rows(states_of(output), len(self.batch.ids))

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            captured["behind"] = states_of(output)
            raise Enough

        place = self._edited if self._site == "block" else self._target
        with ExitStack() as stack, torch.no_grad():
            self._run_prefix()
            stack.enter_context(hooked(self._edited.register_forward_pre_hook(keep_input, with_kwargs=True)))
            stack.enter_context(hooked(place.register_forward_hook(keep_output)))
            stack.enter_context(hooked(self._edited.register_forward_hook(keep_form)))
            stack.enter_context(hooked(self._edited.register_forward_hook(leave)))
            try:
                self._forward(self.batch, None)
            except Enough:
                pass
        self._hidden = captured["input" if self._site == "mlp" else "behind"].detach()
        self.outputs = captured["output"][:, self._column].detach()
        return self

    def __exit__(self, *error: object) -> None:
        del self._hidden
        self._past, self._cache = [], None

    def states(self, keep: Tensor, rows: _Batch, delta: Tensor) -> Tensor:
        """What goes into the output embeddings where the loss reads logits, (reads, hidden)."""
        found: list[Tensor] = []

        def take(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.append(args[0][0])
            raise Enough

        with self._reading(rows), hooked(self._head.register_forward_pre_hook(take)):
            try:
                self._run(keep, rows, delta)
            except Enough:
                pass
        return found[0]

    def logits(self, keep: Tensor, rows: _Batch, delta: Tensor, ahead: Sequence[Tensor] = ()) -> Tensor:
        """Logits for the states ``ahead``, then those of these rows where the loss reads them, float32."""

        def join(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (torch.cat([*(states.to(args[0]) for states in ahead), args[0][0]])[None], *args[1:])

        with self._reading(rows), hooked(self._head.register_forward_pre_hook(join)):
            return self._run(keep, rows, delta)[0].float()

    def _run(self, keep: Tensor, rows: _Batch, delta: Tensor) -> Tensor:
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
    def _narrowed(self, rows: _Batch) -> Iterator[None]:
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

    def _forward(self, rows: _Batch, keep: Tensor | None) -> Tensor:
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
    def _reading(self, rows: _Batch) -> Iterator[None]:
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
