"""Every model type of the installed transformers that generates text: each block is edited in its MLP, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_prune import EditRequest, UnsupportedModelError
from peft_prune.editors import get_editor
from peft_prune.editors.blocks import hooked
from peft_prune.editors.keys import added, compute_keys
from peft_prune.editors.tokens import tokenize_prompts
from peft_prune.models.decoder import decoder_blocks, decoder_of
from peft_prune.models.experts import computes, is_experts
from peft_prune.models.mlp import mlp_output_module, mlp_output_modules, refused_layers
from tests.families import DEPTH, FAMILIES, UNBUILT, tiny_family
from tests.talking import spaced_tokenizer

BUILT = sorted(set(FAMILIES) - set(UNBUILT))
EXPERTS = "mixture of experts"

WHOLE = {
    "encoder-decoder": "florence2 pix2struct pp_formulanet t5gemma2 udop vision-encoder-decoder",
    "no one list of blocks": "blt hrm_text idefics pi0 qwen2_5_omni qwen3_omni_moe xlm",
    "no MLP": "falcon_mamba mamba mamba2 rwkv",
    "as well": "zamba zamba2",
}
"""Why no layer of a model can be edited; the others of which that is said are mixtures of experts."""

NOT_SEARCHED = {
    "cannot be run on text alone": "blip-2 instructblip instructblipvideo kosmos-2 voxtral_realtime",
    "embeddings of one vocabulary": "blip kyutai_speech_to_text musicgen musicgen_melody nemotron_h_omni",
    "looks ahead": "cpmant paligemma xlnet",
    "does not hand on one state": "deepseek_v4 gemma3n_text glm5_next hy_v4 openai-gpt prophetnet qwen4_exp "
    "qwen4_exp_text",
    "state through its output embeddings once": "diffusion_gemma",
    "gives other logits": "bart bigbird_pegasus blenderbot-small camembert data2vec-text git marian mbart mvp pegasus "
    "plbart roberta roberta-prelayernorm trocr whisper xlm-roberta xlm-roberta-xl xlstm xmod",
    "without the layers before it": "blenderbot kosmos-2.5 reformer",
}
"""Why no value can be searched in a model whose MLPs can be adapted."""

ROUTED = (
    "cohere2_moe flex_olmo gpt_oss granitemoe granitemoe_swa granitemoeshared inkling2 inkling2_text inkling_mm_model "
    "inkling_text jamba lfm2_moe mellum mimo_v2_flash minimax minimax_m2 mixtral olmoe phimoe qwen3_moe "
    "qwen3_omni_moe_thinker qwen3_vl_moe zaya"
).split()
"""Mixtures in which some layer has no expert that all tokens share."""

BESIDE_SHARED = (
    "afmoe aria aria_text axk1 axk2 bailing_hybrid deepseek_ocr2 deepseek_v2 deepseek_v3 deepseek_v4 diffusion_gemma "
    "dots1 dots3_note dots3_note_text ernie4_5_moe exaone_moe flint glm4_moe glm4_moe_lite glm4v_moe granitemoehybrid "
    "hunyuan_v1_moe hy_v3 hy_v4 kimi_linear kolibri1 laguna minimax_m3_vl minimax_m3_vl_text mistral4 mistral_large4 "
    "nemo_speechlm nemotron_h nemotron_h_omni qwen2_moe qwen3_5_moe qwen3_5_moe_text qwen3_next qwen4_exp "
    "qwen4_exp_text solar_open unlimited_ocr"
).split()
"""Mixtures in which fused experts stand beside one that all tokens share."""

NOT_FUSED = {"llama4": "no sets", "llama4_text": "no sets", "longcat_flash": "no sets", "ernie4_5_vl_moe": "2 sets"}
"""Mixtures in which other experts stand there, and what is said where they are asked for."""

REFUSED_EXPERTS = {
    **dict.fromkeys(("inkling2", "inkling2_text", "zaya"), "gives other logits without the layers before it"),
    "qwen3_omni_moe_thinker": "cannot be run on text alone",
    "diffusion_gemma": "state through its output embeddings once",
    "nemotron_h_omni": "embeddings of one vocabulary",
    **dict.fromkeys(("deepseek_v4", "hy_v4", "qwen4_exp", "qwen4_exp_text"), "does not hand on one state"),
}

PLAIN = {"context_lengths": (), "v_num_grad_steps": 2, "mom2_adjustment": False, "average_key": False}

IDS = torch.arange(5, 11)[None]
STATES = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))

OTHERS = re.compile(
    r"Attention|Attn|Mamba|Conv|DeltaNet|Recurrent|LSTM|Norm|Hyper|Laurel|AltUp|Router|Expert|Moe|MoE|Tower"
)
"""Words in the classes of what is no MLP."""

MLPS = re.compile("(MLP|Mlp|FeedForward|Output)$")


def reason_of(table: dict[str, str], name: str) -> str | None:
    return next((reason for reason, names in table.items() if name in names.split()), None)


@pytest.mark.parametrize("name", BUILT)
def test_every_block_is_edited_in_its_mlp_or_refused_with_its_reason(name: str) -> None:
    bare = tiny_family(name, "meta")
    routed = fused_layers(bare, "shared")
    assert bool(routed) is (name in ROUTED)
    assert bool(fused_layers(bare, "routed") - routed) is (name in BESIDE_SHARED)
    try:
        outputs, refused = mlp_output_modules(bare), refused_layers(bare)
    except UnsupportedModelError as error:
        assert (reason_of(WHOLE, name) or EXPERTS) in str(error)
        if reason_of(WHOLE, name) is None:
            assert all(chooses(block) for _, block in decoder_blocks(bare))
        return
    assert reason_of(WHOLE, name) is None
    blocks = decoder_blocks(bare)
    assert sorted([*outputs, *refused]) == list(range(len(blocks)))
    for layer, reason in refused.items():
        assert chooses(blocks[layer][1]) if EXPERTS in reason else "no MLP" in reason
    model = tiny_family(name)
    for layer, module in outputs.items():
        assert stands_in_an_mlp(model, layer, module)
        assert changes_what_is_said(model, module) is not (name == "mllama" and layer == 1)
    require_edits_or_a_reason(model, name, list(outputs))


def chooses(block: nn.Module) -> bool:
    """Whether a block holds experts, by what its classes are called."""
    return any(re.search(r"Expert|Moe|MoE", type(module).__name__) for module in list(block.modules())[1:])


def stands_in_an_mlp(model: PreTrainedModel, layer: int, module: str) -> bool:
    """By what the classes and parts are called: in a block of the text decoder, in an MLP, in nothing else."""
    place, block = decoder_blocks(model)[layer]
    inside = module.removeprefix(place + ".").split(".")
    parents = [block.get_submodule(".".join(inside[:count])) for count in range(1, len(inside))]
    assert module.startswith(place + ".") and place.startswith(decoder_of(model)[0])
    assert not re.search("vision|visual|image|audio|tower", module)
    named = [type(parent).__name__ for parent in parents]
    if "shared" in module:  # what all tokens go through stands in a mixture's own class
        named = [word for word in named if not re.search("Moe|MoE", word)]
    inside_mlp = any(re.search("mlp|ffn|feed_?forward|^ff$|output|^fc2$", word.lower()) for word in [*inside, *named])
    return inside_mlp and not any(OTHERS.search(word) for word in named if not MLPS.search(word))


def changes_what_is_said(model: PreTrainedModel, module: str) -> bool:
    """Whether a shift of the module's output changes the logits of a text, or the decoder's states if it needs more."""
    decoder = decoder_of(model)[1]
    for run in (
        partial(model, input_ids=IDS),
        partial(decoder, inputs_embeds=STATES),
        partial(decoder, input_ids=IDS),
        partial(decoder, inputs_embeds=STATES, t_cond=STATES[:, :1]),  # a decoder that is told the time
    ):
        try:
            before = first_of(run)
        except (TypeError, ValueError, AttributeError, RuntimeError):
            continue  # it asks for more than a text
        with hooked(model.get_submodule(module).register_forward_hook(shifted)):
            after = first_of(run)
        return not torch.allclose(before, after, atol=1e-6)
    raise AssertionError(f"{type(model).__name__} cannot be run")


def shifted(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + torch.linspace(-1, 1, output.shape[-1])


def first_of(run: Callable[..., Any]) -> Tensor:
    with torch.no_grad():
        return run(use_cache=False)[0]


def require_edits_or_a_reason(model: PreTrainedModel, name: str, layers: list[int]) -> None:
    expected = reason_of(NOT_SEARCHED, name)
    admitted = []
    for layer in layers:
        try:
            admitted += get_editor("rome", layers=(layer,)).admitted(model)
        except UnsupportedModelError as error:
            reason = "takes no part" if name == "mllama" else expected
            assert reason is not None and reason in str(error), str(error)
    assert bool(admitted) is (expected is None)
    if admitted:
        require_exact_edit(model, admitted[-1])


def require_exact_edit(model: PreTrainedModel, layer: int) -> None:
    """ROME's update moves the output of its own key, which is that of the whole model, by what it says."""
    request, tokenizer = EditRequest("note sea {}", "sane ant", "ten"), spaced_tokenizer()
    options = {"context_lengths": (), "v_num_grad_steps": 2, "mom2_adjustment": False, "average_key": False}
    editor = get_editor("rome", layers=(layer,), **options)
    edit = editor.compute(model, tokenizer, [request], editor.prepare(model, tokenizer))
    ((module, update),) = edit.updates.items()
    (prompt,) = tokenize_prompts(tokenizer, [request.prompt], request.subject)
    seen: list[tuple[Tensor, Tensor]] = []

    def note(m: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(tuple(states.reshape(-1, states.shape[-1])[prompt.subject_last] for states in (args[0], out)))

    ids = torch.tensor([prompt.ids])
    for updates in ({}, edit.updates):
        with torch.no_grad(), added(model, updates), hooked(model.get_submodule(module).register_forward_hook(note)):
            model(input_ids=ids, use_cache=False)
    (key, before), (_, after) = seen
    (own,) = compute_keys(model, tokenizer, [request], ("",), layer)
    assert torch.allclose(own.bare, key, rtol=1e-4, atol=1e-6)
    moved = update.B @ (update.A @ key)
    assert float(moved.norm()) > 0 and torch.isfinite(moved).all()
    assert torch.allclose(after - before, moved, rtol=1e-3, atol=1e-3 * float(moved.norm()))


@pytest.mark.parametrize(
    ("name", "choice"), [(name, "shared") for name in ROUTED] + [(name, "routed") for name in BESIDE_SHARED]
)
def test_fused_experts_are_edited_each_by_its_share(name: str, choice: str) -> None:
    """Where no token shares one, and where one is shared and the routed ones are asked for."""
    layers = fused_layers(tiny_family(name, "meta"), choice)
    if name in REFUSED_EXPERTS:
        with pytest.raises(UnsupportedModelError, match=REFUSED_EXPERTS[name]):
            get_editor("rome", layers=(min(layers),), experts=choice).admitted(tiny_family(name))
        return
    model, layer = tiny_family(name), max(layers)
    place, experts = mlp_output_module(model, layer, choice)
    assert computes(experts)
    editor = get_editor("rome", layers=(layer,), experts=choice, **PLAIN)
    request = EditRequest("note sea {}", "sane ant", "ten")
    assert editor.admitted(model) == (layer,)
    edit = editor.compute(model, spaced_tokenizer(), [request], editor.prepare(model, spaced_tokenizer()))
    (prompt,) = tokenize_prompts(spaced_tokenizer(), [request.prompt], request.subject)
    outputs: list[Tensor] = []

    def note(m: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        outputs.append(out.reshape(-1, out.shape[-1])[prompt.subject_last])

    for updates in ({}, edit.updates):
        with torch.no_grad(), added(model, updates), hooked(experts.register_forward_hook(note)):
            model(input_ids=torch.tensor([prompt.ids]), use_cache=False)
    (key,) = compute_keys(model, spaced_tokenizer(), [request], ("",), layer, experts=choice)
    parts = zip(key.modules, key.bare.chunk(len(key.modules)), strict=True)
    moved = sum(edit.updates[module].B @ (edit.updates[module].A @ part) for module, part in parts)
    assert set(edit.updates) == set(key.modules) and all(module.startswith(place + ".") for module in key.modules)
    assert float(moved.norm()) > 0
    assert torch.allclose(outputs[1] - outputs[0], moved, rtol=1e-3, atol=1e-3 * float(moved.norm()))


@pytest.mark.parametrize("name", NOT_FUSED)
def test_routed_experts_that_are_not_fused_are_refused_and_the_shared_one_is_named(name: str) -> None:
    model = tiny_family(name)
    layer = max(mlp_output_modules(model))
    with pytest.raises(UnsupportedModelError, match=f"{NOT_FUSED[name]} of fused experts; .*experts='shared'"):
        get_editor("rome", layers=(layer,), experts="routed").admitted(model)


def fused_layers(bare: PreTrainedModel, choice: str) -> set[int]:
    """The layers in which fused experts are edited."""
    try:
        outputs = mlp_output_modules(bare, experts=choice)
    except UnsupportedModelError:
        return set()
    return {layer for layer, name in outputs.items() if is_experts(bare.get_submodule(name))}


@pytest.mark.parametrize("name", ["gemma3", "llava", "internvl", "qwen2_5_vl", "qwen3_vl"])
def test_a_vision_tower_as_deep_as_the_text_decoder_is_not_taken_for_it(name: str) -> None:
    model = tiny_family(name)
    towers = [m for _, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == DEPTH]
    assert len(towers) > 1
    assert all(".language_model.layers." in module for module in mlp_output_modules(model).values())


def test_a_model_that_could_not_be_built_is_one_that_transformers_knows() -> None:
    assert set(UNBUILT) <= set(FAMILIES) and len(BUILT) > 250
