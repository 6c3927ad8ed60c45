"""What a pass over the last layers alone is compared on."""

from __future__ import annotations

import pytest

from peft_prune.editors import shortcuts
from peft_prune.editors.shortcuts import STARTS, require_partial_passes
from peft_prune.errors import UnsupportedModelError
from peft_prune.models.probe import plain_ids
from tests.tiny import willing


def test_tokens_whose_states_drown_in_rounding_are_left_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = willing("gpt2")
    apart: list[float] = []
    seen: list[list[list[int]]] = []

    def measured(model, texts, layer, site, module, experts) -> float:
        seen.append([list(text) for text in texts])
        return apart.pop(0)

    monkeypatch.setattr(shortcuts, "_apart", measured)
    apart[:] = [3.0, 0.5, 0.5]  # for the MLP the second tokens agree, for the block the first
    require_partial_passes(model, 1)
    assert not apart and seen[1] != seen[0] == seen[2]
    assert [len(text) for text in seen[0]] == [4, 3]
    apart[:] = [3.0, float("nan"), 1.0]
    with pytest.raises(UnsupportedModelError, match="gives other logits without the layers before it"):
        require_partial_passes(model, 1)
    assert not apart and len(seen) == 3 + len(STARTS)


def test_a_share_of_the_vocabulary_is_passed_over() -> None:
    model = willing("gpt2")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    assert plain_ids(model, 3, 0.5)[0] >= vocabulary // 2 > plain_ids(model, 3)[0]
    with pytest.raises(UnsupportedModelError, match="holds no 3 tokens for text"):
        plain_ids(model, 3, 1.0)
