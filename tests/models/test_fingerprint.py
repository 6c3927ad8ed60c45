"""What tells one base from another, whatever it is loaded in, and what does not."""

from __future__ import annotations

import base64
import itertools

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, get_peft_model
from torch import nn

from peft_prune import AdapterError, PruneEditConfig
from peft_prune.models.fingerprint import base_fingerprint, modules_in, same_base, short_form
from tests.tiny import random_update, tiny_gpt2, tiny_llama

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((8, 32), (16, 64), (64, 256), (60, 300), (256, 1024))
OLD = (
    "7d6995e1bc8290ea:AABAvQAAoL0AAOA9AAAAPQAAQL0AAAC+AACAPQAAgLwAAIA8AABAvQAAgDwAAEC9AAAAPQAAoD0AAKC9AAA"
    "APQAAAD4AAAA+AAAAPgAAAD4AAAC+AACAvQAAAAAAAKA9AAAAvgAAwL0AAIC9AADgPQAAAL4AAKA9AADgPQAAAL4AAKA9AACgPQA"
    "AoD0AAKA9AACgPQAAoD0AAKA9AACgPQAAAL4AAIA8AAAAPgAAAAAAAAC+AACAvAAAoL0AAAA9AABAPQAAAL4AAMA9AABAPQAAAL4"
    "AAAC+AAAAvgAAAL4AAAC+AACAPAAAAL0AAKC9AAAAvgAA4D0AAAA9AABAvQ=="
)
"""As version 0.1.0 wrote it for the model of the test below."""


def same(one: nn.Module, other: nn.Module) -> bool:
    return same_base(base_fingerprint(one), base_fingerprint(other))


def linear(weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A base of one linear map."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return nn.Sequential(layer)


def base_matrix(kind: str, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    weight = 0.02 * torch.randn(shape, generator=generator)
    if kind == "orthogonal":
        return torch.linalg.qr(torch.randn(shape[1], shape[0], generator=generator))[0].T
    if kind == "trained":  # some directions stand out, and some elements do
        rank = shape[0] // 8 + 1
        left = torch.randn(shape[0], rank, generator=generator) * torch.logspace(0, -2, rank)
        return weight / (0.3 + torch.randn(shape, generator=generator) ** 2) + 0.02 * left @ torch.randn(
            rank, shape[1], generator=generator
        )
    return weight


def direction(kind: str, size: int, generator: torch.Generator) -> torch.Tensor:
    vector = torch.zeros(size)
    places = torch.randperm(size, generator=generator)
    if kind == "axis":
        vector[places[0]] = 1
    elif kind == "pair":
        vector[places[0]], vector[places[1]] = 1, -1
    elif kind == "few":
        vector[places[: size // 4]] = torch.randn(size // 4, generator=generator)
    else:
        vector = torch.randn(size, generator=generator)
    return vector / vector.norm()


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_a_model_and_its_adapted_form_have_the_same_fingerprint(build) -> None:
    plain = base_fingerprint(build())
    model = get_peft_model(build(), PruneEditConfig())
    assert base_fingerprint(model) == plain
    name, layer = next(iter(model.edited_layers()))
    model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    assert base_fingerprint(model) == plain
    model.merge_adapter()
    assert base_fingerprint(model) == plain
    lora = get_peft_model(build(), LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"]))
    assert same_base(base_fingerprint(lora), plain)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_the_dtype_a_base_is_loaded_in_does_not_matter(build) -> None:
    found = [base_fingerprint(build(dtype=dtype)) for dtype in DTYPES]
    assert all(same_base(one, other) for one, other in itertools.product(found, found))


@pytest.mark.parametrize("kind", ["random", "orthogonal", "trained"])
def test_no_change_of_a_twentieth_is_missed_and_no_dtype_alarms(kind: str) -> None:
    shapes, sides = (
        itertools.cycle(SHAPES),
        itertools.cycle(itertools.product(("dense", "axis", "pair", "few"), repeat=2)),
    )
    for seed in range(96):
        generator = torch.Generator().manual_seed(seed)
        weight = base_matrix(kind, next(shapes), generator)
        left, right = (direction(k, n, generator) for k, n in zip(next(sides), weight.shape, strict=True))
        change = 0.05 * torch.linalg.matrix_norm(weight, 2) * torch.outer(left, right)
        before = [base_fingerprint(linear(weight, dtype)) for dtype in DTYPES]
        after = [base_fingerprint(linear(weight + change, dtype)) for dtype in DTYPES]
        for one, other in itertools.product(range(3), repeat=2):
            assert same_base(before[one], before[other]), (seed, weight.shape, DTYPES[one], DTYPES[other])
            assert not same_base(before[one], after[other]), (seed, weight.shape, DTYPES[one], DTYPES[other])


def test_a_wide_layer_shows_dense_and_full_rank_changes_in_every_dtype() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(768, 3072, generator=generator)
    size = torch.linalg.matrix_norm(weight, 2)
    full = torch.randn(768, 3072, generator=generator)
    changes = [torch.outer(direction("dense", 768, generator), direction("dense", 3072, generator))]
    changes += [full / torch.linalg.matrix_norm(full, 2)]
    before = [base_fingerprint(linear(weight, dtype)) for dtype in DTYPES]
    assert all(same_base(one, other) for one, other in itertools.product(before, before))
    for change in changes:
        for dtype in DTYPES:
            after = base_fingerprint(linear(weight + 0.05 * size * change, dtype))
            assert not any(same_base(one, after) for one in before)


def test_a_base_that_is_only_scaled_is_another() -> None:
    weight = torch.randn(16, 64)
    assert not same(linear(weight), linear(1.05 * weight))


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_one_changed_element_of_any_mlp_output_is_noticed(build) -> None:
    plain = base_fingerprint(build())
    assert len(modules_in(plain)) == 3
    for name in modules_in(plain):
        other = build()
        weight = other.get_submodule(name).weight
        with torch.no_grad():
            weight[-1, -1] += 0.05 * torch.linalg.matrix_norm(weight, 2)
        assert not same_base(plain, base_fingerprint(other))


def test_an_adapted_layer_is_read_whole_whatever_it_is() -> None:
    config = PruneEditConfig(target_modules=["q_proj"])
    plain, other = (get_peft_model(tiny_llama(), config) for _ in range(2))
    name = "model.layers.1.self_attn.q_proj"
    assert name in modules_in(base_fingerprint(plain))
    with torch.no_grad():
        weight = dict(other.edited_layers())[name].get_base_layer().weight
        weight[3, 5] += 0.05 * torch.linalg.matrix_norm(weight, 2)
    assert not same(plain, other)


@pytest.mark.parametrize("name", ["model.embed_tokens", "model.layers.2.self_attn.k_proj", "model.norm", "lm_head"])
def test_a_dense_change_of_any_other_weight_is_noticed(name: str) -> None:
    other = tiny_llama()
    with torch.no_grad():
        weight = other.get_submodule(name).weight
        change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        weight += 0.05 * weight.norm() * change / change.norm()
    assert not same(tiny_llama(), other)


def test_other_weights_of_the_same_shape_and_other_shapes_are_told_apart() -> None:
    assert not same(tiny_gpt2(seed=0), tiny_gpt2(seed=1))
    assert not same(tiny_llama(), tiny_llama(width=32))
    assert short_form(base_fingerprint(tiny_gpt2(seed=0))) != short_form(base_fingerprint(tiny_gpt2(seed=1)))


def test_the_text_holds_no_weight() -> None:
    model = tiny_llama()
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    for entry in base_fingerprint(model).split(";")[1:]:
        kept = base64.b64decode(entry.rsplit(",", 1)[1])
        numbers = torch.frombuffer(bytearray(kept[:516]), dtype=torch.float32)
        assert len(kept) == 524 and not torch.isin(numbers, weights).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_are_not_finite_or_too_large_for_half_precision_are_compared(value: float) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    weight[2, 3] = value
    found = [base_fingerprint(linear(weight, dtype)) for dtype in DTYPES]
    assert same_base(found[0], found[1]) and same_base(found[0], found[2])
    weight[5, 7] += 1
    assert not any(same_base(one, base_fingerprint(linear(weight))) for one in found)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_an_offloaded_base_has_the_fingerprint_of_the_plain_one(build, tmp_path) -> None:
    """GPT-2's embeddings are tied."""
    model = build()
    blocks = next(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    tops = [name for name, _ in model.named_modules() if name.count(".") == 1 and not name.startswith(blocks + ".")]
    device_map = {name: "cpu" for name in [*tops, "lm_head"] if name != blocks}
    device_map |= {f"{blocks}.0": "cpu", f"{blocks}.1": "disk", f"{blocks}.2": "disk"}
    offloaded = dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    plain = base_fingerprint(build())
    # again and again: what is read is replaced, and a new parameter may lie where an old one lay
    for _ in range(10):
        assert base_fingerprint(offloaded) == plain
    assert base_fingerprint(get_peft_model(offloaded, PruneEditConfig())) == base_fingerprint(build())


def test_of_a_base_without_values_names_and_shapes_are_compared() -> None:
    assert same(tiny_gpt2().to("meta"), tiny_gpt2())
    assert not same(tiny_gpt2().to("meta"), tiny_llama())


def test_a_fingerprint_of_version_0_1_0_is_compared_in_its_own_way() -> None:
    model = tiny_gpt2()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(((torch.arange(parameter.numel()) * (index + 3)) % 17 - 8).reshape(parameter.shape) / 64)
    found = base_fingerprint(model)
    assert same_base(OLD, found) and same_base(found, OLD) and same_base(OLD, OLD)
    assert same_base(OLD, base_fingerprint(model.to(torch.bfloat16)))
    assert not same_base(OLD, base_fingerprint(tiny_gpt2()))
    assert modules_in(OLD) == [] and len(short_form(OLD)) == 8


@pytest.mark.parametrize("text", ["2:0123;w,float32,AAAA", "2:0123;w", "2:0123;w,float32,%%%", "0123:%%%"])
def test_a_malformed_text_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(AdapterError, match=r"base_fingerprint: .* is malformed"):
        same_base(text, text)
