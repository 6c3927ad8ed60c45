"""Fused experts are consolidated as linear layers are: what an expert's layer gives is the change alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model

from peft_prune import EditSession, PruneEditConfig
from peft_prune.consolidation.tail import Tail
from peft_prune.editors import ROME
from tests.consolidation.scene import GENTLE, material
from tests.editors.test_experts import BARE, MORE, moments_of
from tests.expert_models import BESIDE_SHARED, mixture
from tests.talking import spaced_tokenizer
from tests.tiny import random_update


def attached(family: str, **config: Any) -> Any:
    values = {"layers_to_transform": [1], "experts": "routed", "restraint": "none", **config}
    return get_peft_model(mixture(family), PruneEditConfig(**values)).eval()


@pytest.mark.parametrize("family", ["mixtral", *BESIDE_SHARED])
def test_logits_with_other_factors_are_those_of_an_adapter_that_holds_them(family: str) -> None:
    model, other = attached(family), attached(family)
    passages = [material().texts[0], material().edits[0][0][0]]
    layers = dict(model.base_model.edited_layers())
    given = {
        name: random_update((layer.out_features, layer.in_features), rank=2, scale=0.5, seed=seed)
        for seed, (name, layer) in enumerate(layers.items())
    }
    model.add_edits({name: random_update(tuple(own.dense().shape), seed=9) for name, own in given.items()})
    other.add_edits(given)
    tail = Tail(model, layers)
    with torch.no_grad():
        for factors in (given, None):
            found = tail.logits(passages, factors).split([len(passage.read) for passage in passages])
            for passage, own in zip(passages, found, strict=True):
                ids = torch.tensor([passage.ids])
                wanted = (mixture(family) if factors is None else other)(input_ids=ids).logits[0]
                assert torch.allclose(own, wanted[list(passage.read)], atol=1e-4)


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_a_session_consolidates_what_the_restraint_took_from_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attached("mixtral", restraint="log", alpha=1.5, restrain_on="merge")
    statistics = moments_of("mixtral", mixture("mixtral"))
    with EditSession(model, spaced_tokenizer(), ROME(BARE), statistics=statistics) as run:
        assert sum(result.took for result in run.edit(MORE)) > 1
        run.restrain()
        before = sum(one.holds for one in run.verify().values())
        found = run.consolidate(settings=GENTLE)
        after = sum(one.holds for one in run.verify().values())
        assert after >= before
        assert found.held >= sum(margin > 0 for margin in found.margins_before.values())
