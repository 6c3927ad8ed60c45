"""``layers_to_transform`` holds whatever form the targets take, and names what is not there."""

from __future__ import annotations

import pytest
import transformers
from peft import PeftModel, get_peft_model

from peft_prune import PruneEditConfig
from tests.tiny import tiny_gpt2, tiny_llama

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def qwen_vl():
    text = {**SMALL, "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 3, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 16}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


MODELS = {
    "bert": lambda: transformers.BertLMHeadModel(transformers.BertConfig(**SMALL, is_decoder=True)),
    "bert model": lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
    "roberta": lambda: transformers.RobertaForCausalLM(transformers.RobertaConfig(**SMALL, is_decoder=True)),
    "deberta": lambda: transformers.DebertaModel(transformers.DebertaConfig(**SMALL)),
    "qwen2.5-vl": qwen_vl,
    "gpt2": tiny_gpt2,
    "gpt2 model": lambda: tiny_gpt2().transformer,
    "llama": tiny_llama,
}


def chosen(model, **config) -> list[str]:
    return sorted(get_peft_model(model, PruneEditConfig(**config)).base_model.targeted_module_names)


@pytest.mark.parametrize("name", MODELS)
def test_default_targets_are_those_of_the_chosen_layers(name: str) -> None:
    everything = chosen(MODELS[name]())
    assert len(everything) == 3
    for layers in ([0], 2, [0, 2]):
        wanted = {layers} if isinstance(layers, int) else set(layers)
        assert chosen(MODELS[name](), layers_to_transform=layers) == [everything[i] for i in sorted(wanted)]


def down_proj(*layers: int) -> list[str]:
    return [f"model.layers.{layer}.mlp.down_proj" for layer in layers]


@pytest.mark.parametrize(
    "targets",
    [
        ["down_proj"],
        ["mlp.down_proj"],
        ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"],
        r".*mlp\.down_proj",
        r"model\.layers\.\d+\.mlp\.down_proj",
    ],
)
@pytest.mark.parametrize("pattern", [None, "layers", ["h", "layers"]])
def test_targets_of_every_form_are_those_of_the_chosen_layers(targets, pattern) -> None:
    config = {"target_modules": targets, "layers_pattern": pattern}
    assert chosen(tiny_llama(), layers_to_transform=[0, 2], **config) == down_proj(0, 2)


def test_all_linear_modules_of_a_layer() -> None:
    found = chosen(tiny_llama(), target_modules="all-linear", layers_to_transform=[1])
    assert len(found) == 7 and all(name.startswith("model.layers.1.") for name in found)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers_to_transform": [1, 7]}, "layers_to_transform: 7 is no layer with a target module; 0 to 2"),
        ({"layers_to_transform": 3}, "layers_to_transform: 3 is no layer"),
        ({"layers_to_transform": [-1]}, r"layers_to_transform: \[-1\] must be a layer's index, at least 0"),
        ({"layers_to_transform": []}, r"layers_to_transform: \[\] must be"),
        ({"layers_to_transform": ["1"]}, r"layers_to_transform: \['1'\] must be"),
        ({"layers_to_transform": True}, "layers_to_transform: True must be"),
        ({"layers_to_transform": [5], "target_modules": r".*down_proj"}, "5 is no layer"),
        ({"layers_to_transform": [1], "target_modules": "all-linear", "exclude_modules": r".*layers\.1\..*"},
         "1 is no layer with a target module; 0, 2 are accepted"),
        ({"layers_to_transform": [0], "layers_pattern": "blocks"}, "no layer's index is found in names such as model"),
        ({"layers_to_transform": [0], "target_modules": ["lm_head"]}, "no layer's index is found in names such as lm_"),
        ({"layers_pattern": "layers"}, "layers_pattern needs layers_to_transform"),
    ],
)  # fmt: skip
def test_layers_that_are_not_there_are_named(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(tiny_llama(), **config)


def test_the_choice_holds_over_another_peft_model_and_after_loading(tmp_path) -> None:
    model = get_peft_model(MODELS["bert"](), PruneEditConfig(layers_to_transform=[1], r=2))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(MODELS["bert"](), tmp_path)
    assert [name for name, _ in loaded.edited_layers()] == ["bert.encoder.layer.1.output.dense"]


def test_a_file_of_a_version_that_ignored_the_choice_loads_with_all_its_layers(tmp_path) -> None:
    model = get_peft_model(MODELS["bert"](), PruneEditConfig(r=2))
    model.peft_config["default"].layers_to_transform = [0]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(MODELS["bert"](), tmp_path)
    assert len(list(loaded.edited_layers())) == 3
