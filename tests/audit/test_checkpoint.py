"""Checkpoints in all their forms: shards, dtypes, tied weights, other names; and what is said of broken ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM

from peft_prune import PruneEditConfig
from peft_prune.audit import Checkpoint, audit, extract
from peft_prune.errors import CheckpointError
from tests.tiny import tiny_llama

from .scene import GPT2, LLAMA, base, edited, low_rank, rewrite, weights


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    before = base("llama", folder / "base")
    edited(before, folder / "edited", {LLAMA: low_rank((16, 32), 2)})
    edited(before, folder / "sharded", {LLAMA: low_rank((16, 32), 2)}, max_shard_size="8KB")
    return folder


def test_shards_are_read_as_one_checkpoint(scene: Path) -> None:
    assert len(list((scene / "sharded").glob("*.safetensors"))) > 3
    whole, shards = (audit(scene / "base", [scene / name]).series[0] for name in ("edited", "sharded"))
    assert whole.matrices == shards.matrices and whole.unchanged == shards.unchanged
    back = audit(scene / "sharded", [scene / "base"]).series[0]
    assert back.matrices[LLAMA].condition_number == pytest.approx(whole.matrices[LLAMA].condition_number_base)


def test_a_single_file_is_a_checkpoint_as_well(scene: Path) -> None:
    found = audit(scene / "base" / "model.safetensors", [scene / "edited" / "model.safetensors"])
    assert found.changed == [LLAMA]


def test_tied_embeddings_that_one_checkpoint_stores_twice_are_the_same(tmp_path: Path) -> None:
    before, after = base("gpt2", tmp_path / "base"), base("gpt2", tmp_path / "edited")
    assert "lm_head.weight" not in weights(before)
    tensors = weights(after)
    rewrite(after, {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()})
    for one, other in ((before, after), (after, before)):
        found = audit(one, [other])
        assert not found.changed and not found.series[0].others
    changed = tensors["transformer.wte.weight"] + low_rank((50, 16), 1)
    rewrite(after, {**tensors, "lm_head.weight": changed})
    assert audit(before, [after]).changed == ["lm_head.weight"]


def test_a_checkpoint_of_the_bare_decoder_is_matched(tmp_path: Path) -> None:
    before = base("gpt2", tmp_path / "base")
    after = edited(before, tmp_path / "edited", {GPT2: low_rank((64, 16), 1)})
    rewrite(after, {name.removeprefix("transformer."): tensor for name, tensor in weights(after).items()})
    assert audit(before, [after]).changed == [GPT2]


@pytest.mark.parametrize("wrapper", ["module.", "base_model.model.", "_orig_mod.module."])
def test_names_with_wrappers_are_matched(scene: Path, tmp_path: Path, wrapper: str) -> None:
    after = tmp_path / "wrapped"
    shutil.copytree(scene / "edited", after)
    rewrite(after, {wrapper + name: tensor for name, tensor in weights(scene / "edited").items()})
    assert audit(scene / "base", [after]).changed == [LLAMA]


def test_without_a_configuration_a_common_prefix_is_matched(scene: Path, tmp_path: Path) -> None:
    for name in ("base", "edited"):
        (tmp_path / name).mkdir()
        tensors = weights(scene / name)
        prefix = "trunk." if name == "edited" else ""
        rewrite(tmp_path / name, {prefix + key: tensor for key, tensor in tensors.items()})
    found = audit(tmp_path / "base", [tmp_path / "edited"])
    assert found.changed == [LLAMA]
    assert found.notes == (f"{tmp_path / 'base'} has no config.json; tensors were matched by their names alone.",)


def test_names_that_do_not_match_are_an_error_that_names_the_closest(scene: Path, tmp_path: Path) -> None:
    after = tmp_path / "renamed"
    shutil.copytree(scene / "edited", after)
    tensors = weights(after)
    tensors["model.layers.1.mlp.output.weight"] = tensors.pop(LLAMA)
    rewrite(after, tensors)
    message = rf"renamed lacks 1 of the \d+ tensors of .*base, such as {LLAMA}; of 1 that it has instead the closest"
    with pytest.raises(CheckpointError, match=message + " name is model.layers.1.mlp.output.weight"):
        audit(scene / "base", [after])


def test_tensors_of_another_shape_are_left_out_and_named(scene: Path, tmp_path: Path) -> None:
    after = tmp_path / "resized"
    shutil.copytree(scene / "edited", after)
    tensors = weights(after)
    name = "model.embed_tokens.weight"
    rewrite(after, {**tensors, name: torch.cat([tensors[name], torch.zeros(3, 16)])})
    found = audit(scene / "base", [after]).series[0]
    assert found.reshaped == {name: ((50, 16), (53, 16))} and list(found.matrices) == [LLAMA]


def test_masks_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    before, after = base("gpt2", tmp_path / "base"), base("gpt2", tmp_path / "edited")
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}
    rewrite(after, {**weights(after), **mask})
    found = audit(before, [after]).series[0]
    assert found.ignored == ("transformer.h.0.attn.bias",) and not found.matrices and not found.others


def test_what_is_no_checkpoint_is_named(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing does not exist"):
        Checkpoint.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty holds no safetensors file"):
        Checkpoint.open(tmp_path / "empty")
    (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is pickled and is not read, convert it"):
        Checkpoint.open(tmp_path / "empty")
    damaged = tmp_path / "damaged"
    shutil.copytree(scene / "base", damaged)
    data = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(data[:-40])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or no safetensors file"):
        Checkpoint.open(damaged)


def test_a_missing_shard_is_named(scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(scene / "sharded", folder)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of \d+ shards, such as {shard.name}"):
        Checkpoint.open(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json is no index"):
        Checkpoint.open(folder)


def test_an_index_that_promises_too_much_is_named(scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(scene / "sharded", folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.ghost.weight"] = next(iter(index["weight_map"].values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks model.ghost.weight, which the index says it holds"):
        Checkpoint.open(folder)


def test_adapters_and_quantized_weights_are_refused(scene: Path, tmp_path: Path) -> None:
    model = get_peft_model(tiny_llama(), PruneEditConfig(r=2))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="adapter holds an adapter; peft-prune report shows it"):
        Checkpoint.open(tmp_path / "adapter")
    (tmp_path / "unmerged").mkdir()
    tensors = {"model.x.lora_A.weight": torch.zeros(2, 2), "model.x.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "unmerged" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"weights of an adapter \(model.x.lora_A.weight\); merge it"):
        Checkpoint.open(tmp_path / "unmerged")
    quantized = tmp_path / "quantized"
    shutil.copytree(scene / "base", quantized)
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "x"}}))
    with pytest.raises(CheckpointError, match="quantized is quantized; floating-point weights are accepted"):
        Checkpoint.open(quantized)


def moe() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=1, max_position_embeddings=32,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def test_weights_that_transformers_names_otherwise_are_compared_all_the_same(tmp_path: Path) -> None:
    moe().save_pretrained(tmp_path / "base")
    moe().save_pretrained(tmp_path / "edited")
    tensors = weights(tmp_path / "base")
    experts = [name for name in tensors if "experts" in name and tensors[name].ndim == 2]
    assert len(experts) > 6
    changed = {name: tensors[name] + low_rank(tuple(tensors[name].shape), 1, 0.1) for name in experts}
    rewrite(tmp_path / "edited", {**tensors, **changed})
    found = audit(tmp_path / "base", [tmp_path / "edited"]).series[0]
    assert set(found.matrices) == set(experts) and not found.ignored
    with pytest.raises(CheckpointError, match=r"nothing that an adapter can hold .*: transformers has no layer"):
        extract(tmp_path / "base", tmp_path / "edited", found, tmp_path / "adapter")


def test_parameters_that_only_the_edited_checkpoint_has_are_an_error(scene: Path, tmp_path: Path) -> None:
    after = tmp_path / "grown"
    shutil.copytree(scene / "edited", after)
    more = {"model.layers.3.mlp.down_proj.weight": torch.zeros(16, 32), "score.weight": torch.zeros(2, 16)}
    rewrite(after, {**weights(after), **more})
    with pytest.raises(CheckpointError, match=r"grown has 2 tensors that .*base lacks, such as"):
        audit(scene / "base", [after])


def test_the_single_file_counts_before_an_index_as_for_transformers(scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    shutil.copytree(scene / "sharded", folder)
    shutil.copy(scene / "base" / "model.safetensors", folder)
    assert not audit(scene / "base", [folder]).changed
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a", "b"):
        save_file({"w": torch.zeros(2, 2)}, twice / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint: w is in .*a.safetensors and in .*b.safetensors"):
        Checkpoint.open(twice)


def test_the_same_numbers_stored_twice_are_compared_once(tmp_path: Path) -> None:
    before = base("gpt2", tmp_path / "base")
    after = edited(before, tmp_path / "edited", {"transformer.wte.weight": low_rank((50, 16), 1)})
    tensors = weights(after)
    rewrite(after, {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()})
    assert audit(before, [after]).changed == ["transformer.wte.weight"]


@pytest.mark.parametrize("content", ["[1]", "null", "\x80", '{"model_type": "llama", "hidden_size": "x"}'])
def test_a_configuration_that_is_none_never_ends_in_a_traceback(scene: Path, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(scene / "base", folder)
    (folder / "config.json").write_bytes(content.encode("latin1"))
    if content.startswith("{"):
        found = audit(folder, [scene / "edited"])
        assert found.changed == [LLAMA] and "describes no causal language model" in found.notes[0]
    else:
        with pytest.raises(CheckpointError, match=r"odd/config.json"):
            Checkpoint.open(folder)


@pytest.mark.parametrize("index", ['{"weight_map": []}', "null", '{"weight_map": {"w": null}}', "{"])
def test_an_index_that_is_none_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json"):
        Checkpoint.open(tmp_path)


def test_code_beside_a_checkpoint_is_never_run(scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "custom"
    shutil.copytree(scene / "base", folder)
    config = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "ran"
    (folder / "configuration_own.py").write_text(f"open({str(marker)!r}, 'w')")
    found = audit(folder, [scene / "edited"])
    assert found.changed == [LLAMA] and "custom" in found.notes[0] and not marker.exists()


def test_dtypes_that_cannot_be_compared_are_named(scene: Path, tmp_path: Path) -> None:
    after = tmp_path / "odd"
    shutil.copytree(scene / "edited", after)
    rewrite(after, {**weights(after), LLAMA: weights(after)[LLAMA].to(torch.float8_e4m3fn)})
    with pytest.raises(CheckpointError, match=rf"{LLAMA} is stored as F32 in .* and as F8_E4M3 in .*; F64, F32"):
        audit(scene / "base", [after])
