"""What a merge loses is said before anybody relies on it."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from peft_prune import EditRequest, PruneEditConfig, merge_report
from peft_prune.session.verification import verify
from peft_prune.spectral import LowRankUpdate
from tests.talking import spaced_tokenizer
from tests.tuner.quantized_cases import CASES, tiny

PROMPT = "note sea {}"


def edited(case: str, size: float):
    """A quantized model with an update that moves every word towards one, and the request that it answers."""
    model = get_peft_model(
        CASES[case](tiny()),
        PruneEditConfig(layers_to_transform=[2], restraint="none", target_modules=["down_proj"]),
    ).eval()
    ((name, _),) = model.edited_layers()
    generator = torch.Generator().manual_seed(3)
    factors = torch.randn(64, 1, generator=generator), torch.randn(1, 128, generator=generator)
    model.add_edits({name: LowRankUpdate(B=size * factors[0] / 8, A=factors[1] / 11)})
    return model


def test_a_requantization_that_loses_the_update_is_reported_and_taken_back() -> None:
    model = edited("bitsandbytes-nf4", 1e-3)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = model(ids).logits
    found = merge_report(model, requantize=True)
    (figure,) = found.layers.values()
    assert found.base == "nf4" and found.into == "requantized"
    assert figure.share < 0.5 and figure.error > 0.5 and len(found.refused) == 1
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


def test_a_request_that_holds_before_and_not_after_is_listed() -> None:
    model, tokenizer = edited("bitsandbytes-nf4", 1e-2), spaced_tokenizer()
    subjects = [EditRequest(PROMPT, subject, "ten") for subject in ("oats", "tea")]
    (held,) = {one.holds for one in verify(model, tokenizer, subjects[:1])}
    found = merge_report(model, tokenizer, subjects, requantize=True)
    assert found.held_before[0] == held and len(found.held_after) == 2
    assert found.logit_drift is not None and found.logit_drift >= 0
    own = found.as_dict()
    assert own["edits"]["n"] == 2 and own["edits"]["hold_before"] == sum(found.held_before)


def test_a_quantized_base_is_dequantized_for_the_report_and_quantized_after_it() -> None:
    model = edited("bitsandbytes-nf4", 1.0)
    kinds = [type(module) for module in model.modules()]
    found = merge_report(model)
    (figure,) = found.layers.values()
    assert found.into == "dequantized" and figure.error < 1e-5
    assert [type(module) for module in model.modules()] == kinds


def test_a_merged_adapter_is_refused() -> None:
    model = edited("bitsandbytes-nf4", 8.0)
    model.merge_adapter(requantize=True)
    with pytest.raises(ValueError, match="unmerge_adapter"):
        merge_report(model)
