"""The edited projection is found from the structure of a decoder, whatever its modules are called."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from peft_prune import PruneEditConfig, UnsupportedModelError
from peft_prune.editors import get_editor
from peft_prune.models.mlp import mlp_output_module, mlp_output_modules, refused_layers
from tests.decoders import DECODERS, tiny_decoder
from tests.families import tiny_family
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
    with pytest.raises(UnsupportedModelError, match="layers 0, 1, 2: a mixture of experts"):
        mlp_output_modules(tiny_family("mixtral"))
    with pytest.raises(
        UnsupportedModelError, match=r"layers 0, 2: no MLP .* beside mamba; layer 1: its MLP is layer 3's"
    ):
        mlp_output_modules(tiny_family("zamba2"))
    translator = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_ff=32, num_layers=1, num_heads=2))
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        mlp_output_modules(translator)
    with pytest.raises(UnsupportedModelError, match="no transformers configuration"):
        mlp_output_modules(torch.nn.Linear(2, 2))


def test_only_the_layers_that_are_asked_for_are_checked() -> None:
    model = tiny_family("jamba")  # its middle layer is a mixture without a shared expert
    assert list(refused_layers(model)) == [1] and refused_layers(model, experts=True) == {}
    with pytest.raises(
        UnsupportedModelError, match=r"layer: 1 \(model.layers.1\) cannot be edited: a mixture of experts"
    ):
        mlp_output_modules(model, [1])
    adapted = get_peft_model(model, PruneEditConfig(layers_to_transform=[0]))
    assert [name for name, _ in adapted.edited_layers()] == ["model.layers.0.feed_forward.down_proj"]
    with pytest.raises(ValueError, match=r"layer: 1 .* a mixture of experts with no sets of fused experts"):
        get_peft_model(tiny_family("dbrx"), PruneEditConfig(layers_to_transform=[1]))


def test_a_mixture_is_edited_in_the_expert_that_all_tokens_share() -> None:
    model = tiny_family("deepseek_v3")  # its first layer is dense
    names = [f"model.layers.{layer}.mlp.shared_experts.down_proj" for layer in (1, 2)]
    assert list(mlp_output_modules(model).values()) == ["model.layers.0.mlp.down_proj", *names]
    assert not refused_layers(model)


def test_without_layers_all_that_can_be_edited_are_adapted() -> None:
    model = get_peft_model(tiny_family("jamba"), PruneEditConfig())
    names = [name for name, _ in model.edited_layers()]
    experts = [f"model.layers.1.feed_forward.experts.down.{index}" for index in range(4)]
    assert names == ["model.layers.0.feed_forward.down_proj", *experts, "model.layers.2.feed_forward.down_proj"]
    with pytest.warns(UserWarning, match="beside mixer"):
        get_peft_model(tiny_family("nemotron_h"), PruneEditConfig())


def test_an_mlp_beside_a_mixer_is_chosen_also_where_no_expert_is_asked() -> None:
    outputs = mlp_output_modules(tiny_family("falcon_h1"))
    assert list(outputs.values()) == [f"model.layers.{layer}.feed_forward.down_proj" for layer in range(3)]
    dense = mlp_output_modules(tiny_family("granitemoehybrid", num_local_experts=0))
    assert list(dense.values()) == [f"model.layers.{layer}.shared_mlp.output_linear" for layer in range(3)]


def test_an_editor_takes_the_editable_layers_nearest_to_its_default_ones() -> None:
    model = tiny_family("jamba")
    assert get_editor("ft", layers=None).layers(model) == (0,)  # its default is 1, a mixture
    assert get_editor("rome").layers(model) == (1,)
    with pytest.warns(UserWarning, match="layers: 0 are edited; layer 1: a mixture of experts"):
        assert get_editor("ft").admitted(model) == (0,)
    with pytest.raises(UnsupportedModelError, match=r"layer: 1 .* a mixture of experts.*rome"):
        get_editor("ft", layers=(1,)).layers(model)
    assert get_editor("memit").layers(tiny_gpt2()) == get_editor("memit").default_layers(3)


def test_what_only_shows_when_a_model_runs_is_refused_by_the_editor() -> None:
    ahead = tiny_family("bert", is_decoder=False)
    with pytest.raises(UnsupportedModelError, match="BertLMHeadModel looks ahead"):
        get_editor("ft", layers=(1,)).admitted(ahead)
    with pytest.raises(UnsupportedModelError, match=r"cannot be run on text alone: .*pixel_values"):
        get_editor("ft", layers=(1,)).admitted(tiny_family("blip-2"))
    crossing = tiny_family("mllama")
    with pytest.raises(UnsupportedModelError, match=r"layer: 1 \(model.layers.1\) takes no part"):
        get_editor("ft", layers=(1,)).admitted(crossing)
    assert get_editor("rome", layers=(2,)).admitted(crossing) == (2,)
    shifted = tiny_family("roberta")  # counts positions from another number
    assert get_editor("ft", layers=(1,)).admitted(shifted) == (1,)
    with pytest.raises(UnsupportedModelError, match="gives other logits without the layers before it"):
        get_editor("rome", layers=(1,)).admitted(shifted)


def test_a_layer_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(UnsupportedModelError, match="layer: 7 does not exist, the model has layers 0 to 2"):
        mlp_output_module(tiny_gpt2(), 7)


def test_an_encoder_without_a_head_has_blocks_too() -> None:
    model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32))
    assert [name.split(".")[-2:] for name in mlp_output_modules(model).values()] == [["output", "dense"]] * 2
