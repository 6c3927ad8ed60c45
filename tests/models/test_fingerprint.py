from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.models.fingerprint import base_fingerprint, same_base
from tests.tiny import random_update, tiny_gpt2, tiny_llama


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = base_fingerprint(one), base_fingerprint(other)
    assert first is not None and second is not None
    return same_base(first, second)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_a_model_and_its_adapted_form_have_the_same_fingerprint(build) -> None:
    plain = base_fingerprint(build())
    model = get_peft_model(build(), PruneEditConfig())
    assert base_fingerprint(model) == plain
    name, layer = next(iter(model.edited_layers()))
    model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    assert base_fingerprint(model) == plain
    lora = LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"])
    assert base_fingerprint(get_peft_model(build(), lora)) == plain


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_a_base_is_loaded_in_does_not_matter(dtype: torch.dtype) -> None:
    assert same(tiny_gpt2(), tiny_gpt2(dtype=dtype))


def test_other_weights_of_the_same_shape_and_other_shapes_are_told_apart() -> None:
    assert not same(tiny_gpt2(seed=0), tiny_gpt2(seed=1))
    assert not same(tiny_llama(), tiny_llama(width=32))


def test_a_base_whose_weights_are_not_at_hand_has_none() -> None:
    assert base_fingerprint(tiny_gpt2().to("meta")) is None
