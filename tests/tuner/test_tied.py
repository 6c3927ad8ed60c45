"""A base weight that two modules share is edited in one of them and merged into neither."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

from peft_prune import PruneEditConfig
from tests.tiny import random_update, tiny_gpt2, tiny_llama
from tests.tuner.test_edits import INPUTS


def tied_llama():
    model = tiny_llama()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def sharing_storage():
    model = tiny_llama()
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.data)
    return model


def sharing_a_part():
    model = tiny_llama()
    whole = torch.randn(60, 16)
    model.model.embed_tokens.weight = nn.Parameter(whole[:50])
    model.lm_head.weight = nn.Parameter(whole[10:])
    return model


def tied_bert():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, is_decoder=True
    )
    return transformers.BertLMHeadModel(config).eval()


TIED = [(tiny_gpt2, "lm_head"), (tied_llama, "lm_head"), (sharing_storage, "lm_head"), (sharing_a_part, "lm_head"),
        (tied_bert, "cls.predictions.decoder")]  # fmt: skip


@pytest.mark.parametrize(("build", "head"), TIED, ids=lambda value: getattr(value, "__name__", ""))
def test_merging_into_a_shared_weight_is_refused_and_the_unmerged_adapter_works(build, head: str) -> None:
    model = get_peft_model(build(), PruneEditConfig(target_modules=[head], restraint="none")).eval()
    ((name, layer),) = model.edited_layers()
    embeddings = model.get_input_embeddings().weight.detach().clone()
    model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    edited = model(INPUTS).logits
    for act in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=rf"{head}: shares its weight with .*embed.*tie_word_embeddings=False|wte"):
            act()
        assert torch.equal(model(INPUTS).logits, edited)
        assert torch.equal(model.get_input_embeddings().weight, embeddings)


def test_an_untied_head_merges() -> None:
    model = get_peft_model(tiny_llama(), PruneEditConfig(target_modules=["lm_head"], restraint="none")).eval()
    ((name, layer),) = model.edited_layers()
    model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    edited = model(INPUTS).logits
    assert torch.allclose(model.merge_and_unload()(INPUTS).logits, edited, atol=1e-4)


def test_tied_weights_elsewhere_do_not_hinder_merging() -> None:
    model = get_peft_model(tied_llama(), PruneEditConfig(restraint="none")).eval()
    for name, layer in list(model.edited_layers()):
        model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    edited = model(INPUTS).logits
    assert torch.allclose(model.merge_and_unload()(INPUTS).logits, edited, atol=1e-4)
