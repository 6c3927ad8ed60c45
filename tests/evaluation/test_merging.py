"""What a merge loses is said before anybody relies on it."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from peft_prune import EditRequest, EditSession, PruneEditConfig, merge_report
from peft_prune.editors import ROME, collect_second_moments
from peft_prune.errors import MergeError
from peft_prune.evaluation import merging
from peft_prune.evaluation.merging import merge_measured
from peft_prune.session.verification import verify
from peft_prune.spectral import LowRankUpdate
from peft_prune.tuner.layer import PruneEditLinear
from tests.editors.test_rome import TEXTS
from tests.talking import spaced_tokenizer
from tests.tuner.quantized_cases import CASES, tiny

PROMPT = "note sea {}"


def edited(case: str, size: float):
    """A quantized model with an update that moves every word towards one, and the request that it answers."""
    model = get_peft_model(
        tiny() if case == "plain" else CASES[case](tiny()),
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


def test_an_edit_that_a_requantization_loses_is_reported_and_the_merge_refused() -> None:
    """A session's edit by ROME, just enough for the answer to change: its entries are below half a step of the grid."""
    base, tokenizer, request = (
        CASES["bitsandbytes-nf4"](tiny()),
        spaced_tokenizer(),
        EditRequest(PROMPT, "net son", "note"),
    )
    settings = {"layers": (1,), "v_lr": 0.02, "v_num_grad_steps": 40, "stop_probability": 0.078}
    editor = ROME(context_lengths=(), average_key=False, **settings)
    statistics = collect_second_moments(base, tokenizer, TEXTS, editor.modules(base), progress=False)
    model = get_peft_model(base, PruneEditConfig(layers_to_transform=[1], restraint="none")).eval()
    (result,) = EditSession(model, tokenizer, editor, statistics=statistics, monitor=False).edit([request])
    assert result.took
    found = merge_report(model, tokenizer, [request], requantize=True)
    assert found.held_before == (True,) and found.lost == (0,) and len(found.refused) == 1
    with pytest.raises(MergeError, match="share of 0"):
        model.merge_adapter(requantize=True)
    with pytest.raises(MergeError, match=r"1 of 1 edits that hold would be lost \(.net son.\), merged into"):
        merge_measured(model, tokenizer, [request], requantize=True)
    assert not any(layer.merged for _, layer in model.edited_layers())
    dequantized = merge_report(model, tokenizer, [request])
    assert dequantized.held_after == (True,) and not dequantized.lost and not dequantized.refused
    assert verify(model, tokenizer, [request])[0].holds


def test_a_merge_for_good_is_measured_as_the_report_has_it() -> None:
    model = edited("bitsandbytes-nf4", 1.0)
    (wanted,) = merge_report(model).layers.values()
    merged, found = merge_measured(model)
    (figure,) = found.layers.values()
    assert (found.base, found.into) == ("nf4", "dequantized") and figure == wanted
    assert type(merged.model.layers[2].mlp.down_proj) is torch.nn.Linear


@pytest.mark.parametrize("case", ["plain", "bitsandbytes-nf4"])
def test_a_merge_for_good_with_requests_merges_once(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = edited(case, 1.0), spaced_tokenizer()
    requests, times = [EditRequest(PROMPT, "oats", "ten"), EditRequest(PROMPT, "tea", "ten")], []
    wanted, ids = merge_report(model, tokenizer, requests), torch.arange(8)[None]
    one = PruneEditLinear._merge_one
    monkeypatch.setattr(PruneEditLinear, "_merge_one", lambda self, *given: (times.append(1), one(self, *given))[1])
    merged, found = merge_measured(model, tokenizer, requests)
    assert len(times) == 1 and found == wanted
    assert type(merged.model.layers[2].mlp.down_proj) is torch.nn.Linear
    again = edited(case, 1.0)
    verify(again, tokenizer, requests)  # bitsandbytes rounds the scales of 4-bit weights when they are first used here
    other = merge_measured(again)[0]
    with torch.no_grad():
        assert torch.equal(merged(ids).logits, other(ids).logits)


def test_a_merge_that_requests_refuse_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = edited("bitsandbytes-nf4", 1.0), spaced_tokenizer()
    request, ids = EditRequest(PROMPT, "oats", "ten"), torch.arange(8)[None]
    kinds = [type(module) for module in model.modules()]
    with torch.no_grad():
        before = model(ids).logits
    said = iter([(True,), (False,)])
    monkeypatch.setattr(merging, "_asked", lambda *given: (next(said), torch.ones(1)))
    with pytest.raises(MergeError, match="would be lost"):
        merge_measured(model, tokenizer, [request])
    assert [type(module) for module in model.modules()] == kinds
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


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
