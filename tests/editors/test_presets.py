"""Published values are found by a model's shape, and are those of the files that they cite."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from peft_prune import EditRequest
from peft_prune.editors import EDITORS, Prepared, get_editor
from peft_prune.editors.presets import MODELS, PRESETS, known_model, preset
from peft_prune.session import EditSession
from tests.talking import spaced_tokenizer
from tests.tiny import tiny_gpt2, willing


def of_shape(name: str) -> PreTrainedModel:
    """A model without weights whose configuration has that shape."""
    model_type, hidden, layers, vocabulary = MODELS[name]
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": vocabulary}
    config = AutoConfig.for_model(model_type, **sizes, num_attention_heads=1, num_key_value_heads=1)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


ROME, MEMIT = (
    "kmeng01/rome@0874014cd9837e4365f3e6f3c71400ef11509e04",
    "kmeng01/memit@80426fd9316cf9a50c5ba15e0912f2c2c5bfe84b",
)
ALPHAEDIT = "jianghoucheng/AlphaEdit@f5248d3d25f1b3863bff19c387293d635866079f"
EMMET = "scalable-model-editing/unified-model-editing@23d72b560e52992e675377cc2d1deed7a45b1cd0"
EASYEDIT = "zjunlp/EasyEdit@14cea8245f06715684592ab55184939b99d70784"
SEARCH = ("layers", "v_num_grad_steps", "v_lr", "v_weight_decay", "clamp_norm_factor", "kl_factor")
FILES = {
    # typed from the files: layers, v_num_grad_steps, v_lr, v_weight_decay, clamp_norm_factor, kl_factor, and the rest
    "rome": {
        "gpt2-xl": (f"{ROME} hparams/ROME/gpt2-xl.json", [17], 20, 0.5, 0.5, 4, 0.0625, {"mom2_adjustment": True}),
        "gpt-j-6b": (
            f"{ROME} hparams/ROME/EleutherAI_gpt-j-6B.json", [5], 20, 0.5, 0.5, 4, 0.0625, {"mom2_adjustment": True}
        ),
        "llama-2-7b": (
            f"{EASYEDIT} hparams/ROME/llama-7b.yaml", [5], 25, 0.5, 0.001, 4, 0.0625, {"mom2_adjustment": False}
        ),
        "llama-3-8b": (
            f"{ALPHAEDIT} hparams/ROME/Llama3-8B.json", [5], 25, 0.5, 0.001, 4, 0.0625, {"mom2_adjustment": False}
        ),
        "mistral-7b": (
            f"{EASYEDIT} hparams/ROME/mistral-7b.yaml", [5], 25, 0.5, 0.001, 4, 0.0625, {"mom2_adjustment": False}
        ),
        "qwen2.5-7b": (
            f"{EASYEDIT} hparams/ROME/qwen2.5-7b.yaml", [5], 25, 0.5, 0.001, 4, 0.0625, {"mom2_adjustment": False}
        ),
    },
    "memit": {
        "gpt2-xl": (
            f"{MEMIT} hparams/MEMIT/gpt2-xl.json",
            [13, 14, 15, 16, 17], 20, 0.5, 0.5, 0.75, 0.0625, {"mom2_update_weight": 20000},
        ),
        "gpt-j-6b": (
            f"{MEMIT} hparams/MEMIT/EleutherAI_gpt-j-6B.json",
            [3, 4, 5, 6, 7, 8], 25, 0.5, 0.5, 0.75, 0.0625, {"mom2_update_weight": 15000},
        ),
        "llama-2-7b": (
            f"{EASYEDIT} hparams/MEMIT/llama-7b.yaml",
            [4, 5, 6, 7, 8], 25, 0.5, 0.001, 4, 0.0625, {"mom2_update_weight": 15000},
        ),
        "llama-3-8b": (
            f"{ALPHAEDIT} hparams/MEMIT/Llama3-8B.json",
            [4, 5, 6, 7, 8], 25, 0.1, 0.5, 0.75, 0.0625, {"mom2_update_weight": 15000},
        ),
        "mistral-7b": (
            f"{EASYEDIT} hparams/MEMIT/mistral-7b.yaml",
            [4, 5, 6, 7, 8], 25, 0.5, 0.001, 4, 0.0625, {"mom2_update_weight": 15000},
        ),
        "qwen2.5-7b": (
            f"{EASYEDIT} hparams/MEMIT/qwen2.5-7b.yaml",
            [4, 5, 6, 7, 8], 25, 0.5, 0.001, 4, 0.0625, {"mom2_update_weight": 15000},
        ),
    },
    "emmet": {
        "gpt2-xl": (
            f"{EMMET} hparams/EMMET/gpt2-xl.json",
            [17], 20, 0.5, 0.5, 0.75, 0.0625, {"mom2_update_weight": 1000, "ridge": 0.1},
        ),
        "gpt-j-6b": (
            f"{EMMET} hparams/EMMET/EleutherAI_gpt-j-6B.json",
            [5], 25, 0.5, 0.5, 0.75, 0.0625, {"mom2_update_weight": 1, "ridge": 0.1},
        ),
        "llama-2-7b": (
            f"{EMMET} hparams/EMMET/llama2-7b.json",
            [5], 25, 0.5, 0.001, 4, 0.0625, {"mom2_update_weight": 1, "ridge": 0.1},
        ),
    },
    "alphaedit": {
        "gpt2-xl": (
            f"{ALPHAEDIT} hparams/AlphaEdit/gpt2-xl.json",
            [13, 14, 15, 16, 17], 20, 0.5, 0.5, 0.75, 0.0625, {"nullspace_threshold": 0.02, "L2": 10},
        ),
        "gpt-j-6b": (
            f"{ALPHAEDIT} hparams/AlphaEdit/EleutherAI_gpt-j-6B.json",
            [3, 4, 5, 6, 7, 8], 25, 0.5, 0.5, 0.75, 0.0625, {"nullspace_threshold": 0.02, "L2": 10},
        ),
        "llama-3-8b": (
            f"{ALPHAEDIT} hparams/AlphaEdit/Llama3-8B.json",
            [4, 5, 6, 7, 8], 25, 0.1, 0.5, 0.75, 0.0625, {"nullspace_threshold": 0.02, "L2": 10},
        ),
        "qwen2.5-7b": (
            f"{EASYEDIT} hparams/AlphaEdit/qwen2.5-7b.yaml",
            [4, 5, 6, 7, 8], 25, 0.5, 0.001, 4, 0.0625, {"nullspace_threshold": 0.02, "L2": 1},
        ),
    },
}  # fmt: skip
IN_THE_CODE = {
    # rome/compute_v.py, memit/compute_z.py: "if loss < 5e-2: break"; and what the contexts are made of
    "rome": {"stop": "loss", "stop_loss": 0.05, "context_lengths": ((5, 10), (10, 10)), "average_key": True},
    "memit": {"stop": "loss", "stop_loss": 0.05, "context_lengths": ((10, 5),), "history": False},
    "emmet": {"stop": "loss", "stop_loss": 0.05, "context_lengths": ((10, 5),)},
    "alphaedit": {"stop": "loss", "stop_loss": 0.05, "context_lengths": ((10, 5),), "history": True},
}


ULTRAEDIT = "XiaojieGu/UltraEdit@0beb222559b01c6dc025aede801c1fc496ec2920"
LOCFT = "ICT-STAR/LocFT@51db7854feb3596085051e45bf8b3147bfb0ccb1"
WITHOUT_SEARCH = {
    # typed from the files: source and values
    "ultraedit": {
        "gpt-j-6b": (
            f"{ULTRAEDIT} config/model/gpt-j.yaml",
            {"layers": (18, 19, 20, 21, 22, 23, 24, 25, 26), "lr": 1e-6, "ridge": 1.0, "rehearsals": 0},
        ),
        "mistral-7b": (
            f"{ULTRAEDIT} config/model/mistral-7b.yaml",
            {"layers": (29, 30), "lr": 1e-6, "ridge": 1.0, "rehearsals": 0},
        ),
    },
    "locft_bf": {
        "llama-3-8b": (
            f"{LOCFT} hparams/llama3-8b.yaml",
            {"layers": (22,), "lr": 5e-4, "mini_batch": 100, "num_steps": 25, "form": "dense", "end": True},
        ),
        "qwen2.5-7b": (
            f"{LOCFT} hparams/qwen2.5-7b.yaml",
            {"layers": (6,), "lr": 5e-4, "mini_batch": 100, "num_steps": 25, "form": "dense", "end": True},
        ),
    },
}


def test_every_preset_is_among_those_typed_from_their_files() -> None:
    typed = {**FILES, **WITHOUT_SEARCH}
    assert {editor: sorted(names) for editor, names in PRESETS.items()} == {e: sorted(f) for e, f in typed.items()}


@pytest.mark.parametrize(("editor", "name"), [(editor, name) for editor, own in WITHOUT_SEARCH.items() for name in own])
def test_what_is_published_of_editors_without_a_search_is_what_its_file_says(editor: str, name: str) -> None:
    model, (source, expected) = of_shape(name), WITHOUT_SEARCH[editor][name]
    assert preset(editor, model).source == source
    values = dataclasses.asdict(get_editor(editor, model=model, published=True).hyperparameters)
    assert {key: values[key] for key in expected} == expected and not values["second_try"]


def test_ultraedit_rehearses_where_nobody_asks_for_the_published_method() -> None:
    values = get_editor("ultraedit", model=of_shape("mistral-7b")).hyperparameters
    assert (values.layers, values.lr, values.rehearsals) == ((29, 30), 1e-6, 64)


@pytest.mark.parametrize(("editor", "name"), [(editor, name) for editor, names in FILES.items() for name in names])
def test_what_is_published_for_a_shape_is_what_its_file_says(editor: str, name: str) -> None:
    model, (source, *search, others) = of_shape(name), FILES[editor][name]
    assert preset(editor, model).source == source
    values = dataclasses.asdict(get_editor(editor, model=model, published=True).hyperparameters)
    expected = {**dict(zip(SEARCH, search, strict=True)), **others, **IN_THE_CODE[editor], "second_try": False}
    assert {key: list(values[key]) if key == "layers" else values[key] for key in expected} == expected
    # where nothing is said of the published method, the same values with this package's stopping rule
    automatic = get_editor(editor, model=model, v_num_grad_steps=3).hyperparameters
    assert (automatic.stop, automatic.second_try, automatic.v_num_grad_steps) == ("probability", True, 3)
    assert all(getattr(automatic, key) == value for key, value in others.items())


@pytest.mark.parametrize("editor", sorted(EDITORS))
def test_the_published_method_does_not_adapt_to_a_small_model(editor: str) -> None:
    values = get_editor(editor, model=tiny_gpt2(), published=True).hyperparameters
    assert not values.second_try and get_editor(editor, published=True).stronger() is None
    layers = (values.layers,) if editor == "emmet" else ()
    defaults = EDITORS[editor](**EDITORS[editor].published_rules, **({"layers": layers[0]} if layers else {}))
    assert values == defaults.hyperparameters
    assert editor != "emmet" or values.layers == (1,)


def test_the_published_baseline_is_the_dense_one_of_the_first_layer() -> None:
    """kmeng01/rome@0874014c hparams/FT/gpt2-xl_constr.json; baselines/ft/ft_main.py stops below a loss of 0.01."""
    values = get_editor("ft", published=True).hyperparameters
    assert (values.layers, values.num_steps, values.lr, values.weight_decay) == ((0,), 25, 5e-4, 0)
    assert (values.norm_constraint, values.form) == (5e-4, "dense")
    assert values.stop_probability == pytest.approx(math.exp(-0.01), abs=1e-3)


def test_what_did_not_take_is_not_tried_again_where_the_second_try_is_off() -> None:
    tried = {}
    for second_try in (True, False):
        model = willing("gpt2")
        weak = {"clamp_norm_factor": 1e-4, "v_num_grad_steps": 2, "mom2_adjustment": False}
        editor = get_editor("rome", layers=(1,), second_try=second_try, **weak)
        session = EditSession(model, spaced_tokenizer(), editor, monitor=False)
        (result,) = session.edit(EditRequest("note sea {}", "sane ant", "ten"))
        assert result.status == "failed"
        tried[second_try] = result.stronger
    assert tried[True] and tried[False] is None


def test_twenty_published_steps_are_nineteen_updates() -> None:
    """rome/compute_v.py leaves its loop at the last step's loss, before the update."""
    assert get_editor("rome", published=True).hyperparameters.value_settings("mlp").steps == 19
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    editor = get_editor("rome", published=True, layers=(1,), v_lr=1e-6, mom2_adjustment=False)
    edit = editor.compute(model, tokenizer, [EditRequest("note sea {}", "sane ant", "ten")], Prepared((1,)))
    assert edit.steps == (19,)


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
