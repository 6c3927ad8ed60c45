"""What a merge does to the weights and to the edits, measured before anybody relies on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..models.inference import input_device, undisturbed
from ..models.quantization import form_of
from ..requests import EditRequest
from ..session.verification import verify
from ..tuner import PruneEditLayer, PruneEditModel
from ..tuner.dequantization import Dequantized, is_quantized
from ..tuner.realised import MIN_SHARE, Realised


@dataclass(frozen=True)
class MergeReport:
    """A merge of the active adapter, tried and taken back.

    Args:
        base: Format of the base weights: "plain", or that of the first quantized layer.
        into: What was merged into: "plain", "dequantized" or "requantized".
        layers: Share and error of what arrived of each layer's update.
        held_before: Whether each request holds before the merge, in their order.
        held_after: The same after it.
        logit_drift: ‖l' − l‖ / ‖l‖ of the logits at the end of the prompts, after and before the merge; None without
            requests.
    """

    base: str
    into: str
    layers: dict[str, Realised]
    held_before: tuple[bool, ...] = ()
    held_after: tuple[bool, ...] = ()
    logit_drift: float | None = None

    @property
    def lost(self) -> tuple[int, ...]:
        """Indices of the requests that hold before the merge and not after it."""
        pairs = zip(self.held_before, self.held_after, strict=True)
        return tuple(index for index, (before, after) in enumerate(pairs) if before and not after)

    @property
    def refused(self) -> tuple[str, ...]:
        """Layers of which too little of the update arrives, for which a merge is an error."""
        return tuple(name for name, figure in self.layers.items() if not figure.holds)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        found: dict[str, Any] = {"base": self.base, "into": self.into, "least_share": MIN_SHARE}
        found["layers"] = {name: asdict(figure) for name, figure in self.layers.items()}
        if self.held_before:
            found["edits"] = {
                "n": len(self.held_before),
                "hold_before": sum(self.held_before),
                "hold_after": sum(self.held_after),
                "lost": list(self.lost),
            }
            found["logit_drift"] = self.logit_drift
        return found


def merge_report(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    requests: Sequence[EditRequest] = (),
    *,
    requantize: bool = False,
) -> MergeReport:
    """Merge the active adapter, measure, and take it back; nothing is refused here for what it would lose.

    Args:
        model: A model with an unmerged PRUNE_EDIT adapter.
        tokenizer: Its tokenizer, where there are requests.
        requests: Edits to be asked for before and after the merge, by free greedy generation.
        requantize: Quantize merged weights anew; otherwise a quantized base is dequantized for as long as this lasts.

    Raises:
        MergeError: The base can neither be merged into nor dequantized.
        ValueError: An adapter is merged, or there are requests and no tokenizer.
    """
    tuner = _unmerged(model)
    if requests and tokenizer is None:
        raise ValueError("tokenizer: None was given with requests, which are asked for with one")
    own = tuner.one_adapter(None)
    layers = dict(tuner.edited_layers(own))
    base, into = _forms(tuner, layers, requantize)
    before = _asked(model, tokenizer, requests)
    with _merged(tuner, layers, dequantize=into == "dequantized", requantize=requantize):
        figures = _figures(layers, own)
        after = _asked(model, tokenizer, requests)
    drift = None
    if before[1] is not None and after[1] is not None:
        drift = float((after[1] - before[1]).norm() / before[1].norm())
    return MergeReport(base, into, figures, before[0], after[0], drift)


def merge_measured(model: PeftModel, *, requantize: bool = False) -> tuple[Any, MergeReport]:
    """Merge the active adapter and unload it: the plain model, and what arrived of each layer's update.

    It costs one merge less than `merge_report` followed by ``merge_and_unload``.

    Args:
        model: A model with an unmerged PRUNE_EDIT adapter.
        requantize: Quantize merged weights anew; otherwise a quantized base is dequantized.

    Raises:
        MergeError: Too little of an update arrives, or the base can neither be merged into nor dequantized; the model
            is as it was.
        ValueError: An adapter is merged, or a merged weight would not be finite.
    """
    tuner = _unmerged(model)
    own = tuner.one_adapter(None)
    layers = dict(tuner.edited_layers(own))
    base, into = _forms(tuner, layers, requantize)
    merged = model.merge_and_unload(safe_merge=True, progressbar=False, requantize=requantize)
    return merged, MergeReport(base, into, _figures(layers, own))


def _figures(layers: dict[str, PruneEditLayer], adapter_name: str) -> dict[str, Realised]:
    return {name: layer.realised[adapter_name] for name, layer in layers.items() if layer.rank(adapter_name)}


def _forms(tuner: PruneEditModel, layers: dict[str, PruneEditLayer], requantize: bool) -> tuple[str, str]:
    """Format of the base's edited weights, and what is merged into."""
    forms = [form for layer in layers.values() if (form := form_of(layer.get_base_layer())) is not None]
    quantized = is_quantized(tuner.model)
    into = "plain" if not quantized else "requantized" if requantize else "dequantized"
    return (forms[0] if forms else "plain"), into


def _unmerged(model: PeftModel) -> PruneEditModel:
    tuner = model.base_model
    if not isinstance(tuner, PruneEditModel):
        raise ValueError(f"model: {type(tuner).__name__} is no model with a PRUNE_EDIT adapter")
    merged = [name for name, layer in tuner.edited_layers() if layer.merged]
    if merged:
        raise ValueError(f"model: the adapter is merged into {merged[0]}; call unmerge_adapter() first")
    return tuner


@contextmanager
def _merged(
    tuner: PruneEditModel, layers: dict[str, PruneEditLayer], *, dequantize: bool, requantize: bool
) -> Iterator[None]:
    """The adapter merged for as long as the block lasts, however little of it arrives."""
    dequantized = Dequantized(tuner.model) if dequantize else None
    least = {name: layer.min_share for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.min_share = -float("inf")
        tuner.merge_adapter(requantize=requantize)
        try:
            yield
        finally:
            tuner.unmerge_adapter()
    finally:
        for name, layer in layers.items():
            layer.min_share = least[name]
        if dequantized is not None:
            dequantized.undo()


@torch.no_grad()
def _asked(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase | None, requests: Sequence[EditRequest]
) -> tuple[tuple[bool, ...], Tensor | None]:
    """Whether each request holds, and the logits after its prompt, (requests, vocabulary)."""
    if not requests or tokenizer is None:
        return (), None
    held = tuple(one.holds for one in verify(model, tokenizer, requests))
    rows = []
    with undisturbed(model):
        for request in requests:
            ids = tokenizer(request.text, return_tensors="pt").input_ids.to(input_device(model))
            rows.append(model(input_ids=ids).logits[0, -1].double().cpu())
    return held, torch.stack(rows)
