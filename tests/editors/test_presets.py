"""Published values are found by a model's shape, and are valid hyperparameters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from peft_prune.editors import EDITORS, get_editor
from peft_prune.editors.presets import MODELS, PRESETS, known_model, preset
from tests.tiny import tiny_gpt2


def of_shape(name: str) -> SimpleNamespace:
    model_type, hidden, layers, vocabulary = MODELS[name]
    config = SimpleNamespace(model_type=model_type, hidden_size=hidden, num_hidden_layers=layers, vocab_size=vocabulary)
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config)


@pytest.mark.parametrize(("editor", "name"), [(editor, name) for editor, names in PRESETS.items() for name in names])
def test_every_preset_is_found_by_shape_names_its_source_and_is_accepted(editor: str, name: str) -> None:
    model = of_shape(name)
    found = preset(editor, model)
    assert found is PRESETS[editor][name] and "hparams/" in found.source
    values = get_editor(editor, model=model).hyperparameters
    assert all(getattr(values, key) == value for key, value in found.values.items())
    assert max(values.layers) < MODELS[name][2]
    assert get_editor(editor, model=model, v_num_grad_steps=3).hyperparameters.v_num_grad_steps == 3


def test_real_models_of_the_published_shapes_are_known() -> None:
    with torch.device("meta"):
        xl = GPT2LMHeadModel(GPT2Config(n_embd=1600, n_layer=48, n_head=25))
        llama = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_key_value_heads=8,
                vocab_size=128256,
            )
        )
    assert known_model(xl) == "gpt2-xl" and known_model(llama) == "llama-3-8b"
    assert get_editor("memit", model=xl).layers(xl) == (13, 14, 15, 16, 17)


@pytest.mark.parametrize("editor", sorted(EDITORS))
def test_other_models_get_values_of_their_own_and_every_editor_declares_its_source(editor: str) -> None:
    model = tiny_gpt2()
    assert preset(editor, model) is None and known_model(model) is None
    found = get_editor(editor, model=model)
    assert found.url.startswith("https://arxiv.org/abs/") and found.year >= 2020 and found.paper and found.pretty_name
    assert all(0 <= layer < 3 for layer in found.layers(model))
