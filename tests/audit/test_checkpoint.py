"""Checkpoints in all their forms: shards, dtypes, tied weights, other names; and what is said of broken ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import save_file

from peft_prune import PruneEditConfig
from peft_prune.audit import Checkpoint, audit
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


@pytest.mark.parametrize("wrapper", ["module.", "base_model.model."])
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
    with pytest.warns(UserWarning, match="tensors are matched by their names alone"):
        assert audit(tmp_path / "base", [tmp_path / "edited"]).changed == [LLAMA]


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
