"""The edited projection is found from the structure of a decoder, whatever its modules are called."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from peft_prune import PruneEditConfig, UnsupportedModelError
from peft_prune.models.mlp import mlp_output_module, mlp_output_modules
from tests.decoders import COMMON, DECODERS, LLAMA, tiny_decoder
from tests.tiny import random_update, tiny_gpt2


@pytest.mark.parametrize("name", DECODERS)
def test_the_output_projection_of_every_block_is_found_and_can_be_adapted(name: str) -> None:
    base, ending = tiny_decoder(name), DECODERS[name][1]
    names = list(mlp_output_modules(base).values())
    assert len(names) == 3 and all(module.endswith("." + ending) for module in names)
    ids = torch.arange(8)[None]
    expected = base(ids).logits
    model = get_peft_model(base, PruneEditConfig(layers_to_transform=[1], restraint="none"))
    ((module, layer),) = model.edited_layers()
    assert module == names[1] and list(mlp_output_modules(model).values()) == names
    assert torch.equal(model(ids).logits, expected)
    model.add_edits({module: random_update((layer.out_features, layer.in_features))})
    assert not torch.allclose(model(ids).logits, expected, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, expected)


def test_what_cannot_be_edited_is_refused_with_the_reason() -> None:
    experts = AutoConfig.for_model("mixtral", **COMMON, **LLAMA, num_local_experts=2)
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        mlp_output_modules(AutoModelForCausalLM.from_config(experts))
    translator = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_ff=32, num_layers=1, num_heads=2))
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        mlp_output_modules(translator)
    with pytest.raises(UnsupportedModelError, match="no transformers configuration"):
        mlp_output_modules(torch.nn.Linear(2, 2))


def test_a_layer_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(UnsupportedModelError, match="layer: 7 does not exist, the model has layers 0 to 2"):
        mlp_output_module(tiny_gpt2(), 7)


def test_an_encoder_without_a_head_has_blocks_too() -> None:
    model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32))
    assert [name.split(".")[-2:] for name in mlp_output_modules(model).values()] == [["output", "dense"]] * 2
