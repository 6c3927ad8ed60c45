"""What a merge does to the weights and to the edits, measured before anybody relies on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import MergeError
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
    _require_tokenizer(tokenizer, requests)
    own = tuner.one_adapter(None)
    layers = dict(tuner.edited_layers(own))
    base, into = _forms(tuner, layers, requantize)
    before = _asked(model, tokenizer, requests)
    with _merged(tuner, layers, dequantize=into == "dequantized", requantize=requantize):
        figures = _figures(layers, own)
        after = _asked(model, tokenizer, requests)
    return MergeReport(base, into, figures, before[0], after[0], _drift(before[1], after[1]))


def merge_measured(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    requests: Sequence[EditRequest] = (),
    *,
    requantize: bool = False,
) -> tuple[Any, MergeReport]:
    """Merge the active adapter and unload it: the plain model, and all that `merge_report` says, by one merge.

    With requests, what the edited weights were before is held until they have been asked for again.

    Args:
        model: A model with an unmerged PRUNE_EDIT adapter.
        tokenizer: Its tokenizer, where there are requests.
        requests: Edits to be asked for before and after the merge; none of those that hold may be lost.
        requantize: Quantize merged weights anew; otherwise a quantized base is dequantized.

    Raises:
        MergeError: Too little of an update arrives, an edit that holds would be lost, or the base can neither be merged
            into nor dequantized; the model is as it was.
        ValueError: An adapter is merged, a merged weight would not be finite, or there are requests and no tokenizer.
    """
    tuner = _unmerged(model)
    _require_tokenizer(tokenizer, requests)
    own = tuner.one_adapter(None)
    layers = dict(tuner.edited_layers(own))
    base, into = _forms(tuner, layers, requantize)
    if not requests:
        merged = model.merge_and_unload(safe_merge=True, progressbar=False, requantize=requantize)
        return merged, MergeReport(base, into, _figures(layers, own))
    before = _asked(model, tokenizer, requests)
    dequantized = Dequantized(tuner.model) if into == "dequantized" else None
    try:
        with _however_little(layers):
            tuner.merge_adapter(safe_merge=True, requantize=requantize)
        try:
            after = _asked(model, tokenizer, requests)
            found = MergeReport(base, into, _figures(layers, own), before[0], after[0], _drift(before[1], after[1]))
            _require_kept(found, requests)
        except BaseException:
            tuner.unmerge_adapter()
            raise
    except BaseException:
        if dequantized is not None:
            dequantized.undo()
        raise
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        return model.merge_and_unload(progressbar=False, requantize=True), found


def _require_kept(found: MergeReport, requests: Sequence[EditRequest]) -> None:
    if found.lost:
        lost = ", ".join(repr(requests[index].name) for index in found.lost[:3])
        raise MergeError(
            f"merge: {len(found.lost)} of {sum(found.held_before)} edits that hold would be lost ({lost}), merged into "
            f"{found.into} weights; merge into the full-precision base, or leave the adapter unmerged"
        )
    for name in found.refused:
        raise MergeError(
            f"{name}: of its update a share of {found.layers[name].share:.2f} would arrive in {found.into} weights, at "
            f"least {MIN_SHARE} is accepted; merge into a base of higher precision, or leave the adapter unmerged"
        )


def _require_tokenizer(tokenizer: PreTrainedTokenizerBase | None, requests: Sequence[EditRequest]) -> None:
    if requests and tokenizer is None:
        raise ValueError("tokenizer: None was given with requests, which are asked for with one")


def _drift(before: Tensor | None, after: Tensor | None) -> float | None:
    """How far logits have moved, as a share of their norm."""
    if before is None or after is None:
        return None
    return float((after - before).norm() / before.norm())


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
    try:
        with _however_little(layers):
            tuner.merge_adapter(requantize=requantize)
        try:
            yield
        finally:
            tuner.unmerge_adapter()
    finally:
        if dequantized is not None:
            dequantized.undo()


@contextmanager
def _however_little(layers: dict[str, PruneEditLayer]) -> Iterator[None]:
    """No merge is refused in the block for what does not arrive."""
    least = {name: layer.min_share for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.min_share = -float("inf")
        yield
    finally:
        for name, layer in layers.items():
            layer.min_share = least[name]


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
