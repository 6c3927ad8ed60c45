"""What comes from elsewhere: numbers, patterns, types and shapes in a saved adapter."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from peft_prune import PruneEditConfig
from peft_prune.cli import main
from peft_prune.errors import AdapterError
from tests.talking import spaced_tokenizer
from tests.tiny import agree, tiny_gpt2, tiny_llama
from tests.tuner.test_edits import INPUTS, strong


def saved(folder: Path, **changes) -> Path:
    """A saved adapter with changes to the fields of its configuration."""
    model = get_peft_model(tiny_llama(), PruneEditConfig(target_modules=["down_proj"], restrain_every=2)).eval()
    for name, layer in list(model.edited_layers()):
        model.add_edits({name: strong(layer, 1)})
        model.add_edits({name: strong(layer, 2)})
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("changes", [{"r": 10**7}, {"r": 10**7, "ranks": None}, {"ranks": {"x": 10**7}}])
def test_ranks_are_those_of_the_file_and_nothing_is_allocated_for_others(tmp_path, changes) -> None:
    folder = saved(tmp_path, **changes)
    tracemalloc.start()
    loaded = PeftModel.from_pretrained(tiny_llama(), folder)
    tracemalloc.stop()
    assert [layer.rank("default") for _, layer in loaded.edited_layers()] == [2, 2, 2]


def test_a_rank_without_a_file_is_bounded_by_the_layer() -> None:
    with pytest.raises(ValueError, match=r"r: 10000000 is above 32, the larger side of a layer of shape \(16, 32\)"):
        get_peft_model(tiny_llama(), PruneEditConfig(target_modules=["down_proj"], r=10**7))


CATASTROPHES = ["(a+)+$", "(a|aa)+$", "(.*)*x", ".*.*.*.*.*x", r"([a-z_.]+)*$", "(?:a?){30}a{30}", r"(\w+\s?)+$"]
FIELDS = ["target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "restraint_pattern"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("pattern", [*CATASTROPHES, "(", "[a"])
def test_patterns_that_cannot_be_matched_in_bounded_time_are_refused(tmp_path, field: str, pattern: str) -> None:
    value = {"modules_to_save": [pattern], "restraint_pattern": {pattern: "clip"}}.get(field, pattern)
    changes = {field: value, "layers_to_transform": [0]} if field == "layers_pattern" else {field: value}
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"^{field}: .*(bounded time|no regular expression)"):
        PruneEditConfig(**changes)
    assert time.perf_counter() - start < 1


ORDINARY = [
    r".*mlp\.down_proj$", r".*\.(h|layers)\.\d+\.mlp\.(c_proj|down_proj)$", r"(.*\.)?(q|k|v)_proj",
    r"model\.layers\.(1[0-9]|2[0-4])\.mlp\.down_proj", r"^(?!.*vision).*layers\.\d+\..*(down|up)_proj$",
    r"(?:.*\.)?layers\.\d{1,3}\.mlp\.down_proj", "|".join(rf"model\.layers\.{i}\.mlp\.down_proj" for i in range(200)),
]  # fmt: skip


@pytest.mark.parametrize("pattern", ORDINARY)
def test_ordinary_patterns_are_accepted(pattern: str) -> None:
    assert PruneEditConfig(target_modules=pattern).target_modules == pattern


WRONG = [5, -1, 1.5, True, "cube", [], [1], ["x", 2], {}, {"a": 1}, {"a": []}, [[]], 10**400, None]


@pytest.mark.parametrize("field", sorted(set(PruneEditConfig.__dataclass_fields__) - {"peft_type", "auto_mapping"}))
def test_every_field_of_a_wrong_type_is_named_with_its_value(tmp_path, field: str) -> None:
    refused = 0
    for value in WRONG:
        try:
            PruneEditConfig(**{"target_modules": ["x"], field: value})
        except ValueError as error:
            refused += 1
            message = str(error)
            assert "\n" not in message and len(message) < 400
            assert message.startswith((f"{field}: ", "r: ", "layers_pattern"))
    assert refused >= 5


@pytest.mark.parametrize("content", ["[]", "3", "{", "null", "[" * 5000])
def test_a_configuration_that_is_no_object_is_refused(tmp_path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterError, match=r"adapter: .*(no JSON document|must hold a JSON object)"):
        PruneEditConfig.from_pretrained(tmp_path)


def test_a_damaged_file_of_factors_is_refused_with_its_name(tmp_path) -> None:
    folder = saved(tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors cannot be read"):
        PeftModel.from_pretrained(tiny_llama(), folder)


def test_a_factor_that_stands_twice_is_refused(tmp_path) -> None:
    path = saved(tmp_path) / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "prune_edit_A" in key)
    tensors["base_model.model." + key] = tensors[key].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="stands twice"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


def with_two_added_tokens(folder: Path) -> tuple[Path, Path]:
    """Folders of a base and of an adapter made after two tokens were added to it."""
    base = tiny_llama()
    base.save_pretrained(folder / "base")
    spaced_tokenizer().save_pretrained(folder / "base")
    base.resize_token_embeddings(52)
    base.name_or_path = str(folder / "base")
    model = get_peft_model(base, PruneEditConfig(target_modules=["down_proj"], base_model_name_or_path=str(folder)))
    for name, layer in list(model.edited_layers()):
        model.add_edits({name: strong(layer, 1)})
    model.save_pretrained(folder / "adapter", save_embedding_layers=True)
    return folder / "base", folder / "adapter"


def test_an_adapter_of_a_base_with_added_tokens_is_refused_on_the_plain_one(tmp_path, capsys) -> None:
    base, adapter = with_two_added_tokens(tmp_path)
    line = (
        r"(embed_tokens|lm_head)\.weight: is \(52, 16\) in the adapter's file and \(50, 16\) in this base; .*52 tokens"
    )
    with pytest.raises(AdapterError, match=line) as caught:
        PeftModel.from_pretrained(tiny_llama(), adapter)
    assert "\n" not in str(caught.value)
    resized = tiny_llama()
    resized.resize_token_embeddings(52)
    assert PeftModel.from_pretrained(resized, adapter)(INPUTS).logits.shape[-1] == 52
    assert main(["merge", str(adapter), "--model", str(base), "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    # the command line is strict: it sees that the base is another one before it looks at what would not fit
    assert "The adapter was made for base" in lines[-1] and not (tmp_path / "out").exists()


def test_an_entry_that_the_base_does_not_have_is_refused(tmp_path) -> None:
    path = saved(tmp_path) / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.surprise": torch.ones(3)}, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="surprise: the adapter's file holds it, this base does not"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


@pytest.mark.parametrize("restrain_every", [3, 100])
def test_a_configuration_of_ones_own_keeps_whether_the_factors_are_restrained(tmp_path, restrain_every: int) -> None:
    model = get_peft_model(tiny_gpt2(), PruneEditConfig(restrain_every=restrain_every, restraint="clip")).eval()
    for name, layer in list(model.edited_layers()):
        for seed in range(3):
            model.add_edits({name: strong(layer, seed)})
    model.save_pretrained(tmp_path / "saved")
    own = PruneEditConfig(restraint="clip", alpha=1.5)
    loaded = PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "saved", config=own)
    assert agree(loaded(INPUTS).logits, model(INPUTS).logits)
    assert all(layer.is_restrained("default") for _, layer in loaded.edited_layers())
    with pytest.raises(AdapterError, match="already restrained"):
        loaded.restrain()
    loaded.save_pretrained(tmp_path / "again")
    assert PeftConfig.from_pretrained(tmp_path / "again").restrained
    assert torch.allclose(loaded.merge_and_unload()(INPUTS).logits, model(INPUTS).logits, atol=1e-5)
