"""Bases that are split otherwise than by FSDP2 are refused when the adapter is attached, not after a wrong edit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from peft_prune import EditSession, PruneEditConfig
from peft_prune.errors import UnsupportedModelError
from tests.expert_models import mixture
from tests.session.scene import MODULE, adapted, moments
from tests.talking import spaced_tokenizer
from tests.tiny import random_update, tiny_llama


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def by_tensor_parallelism(model: nn.Module, mesh: Any) -> None:
    for layer in model.model.layers:
        parallelize_module(layer.mlp, mesh, {"up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()})


def by_both(model: nn.Module, mesh: Any) -> None:
    two = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "tensor"))
    by_tensor_parallelism(model, two["tensor"])
    for layer in model.model.layers:
        fully_shard(layer, mesh=two["data"])


def by_zero(model: nn.Module, mesh: Any) -> None:
    """As DeepSpeed leaves a parameter whose values lie elsewhere."""
    for parameter in model.parameters():
        parameter.ds_id = 0
        parameter.data = torch.empty(0)


@pytest.mark.parametrize(
    ("split", "by"), [(by_tensor_parallelism, "DTensor"), (by_both, "DTensor"), (by_zero, "DeepSpeed ZeRO-3")]
)
def test_a_split_base_is_refused_at_attach_in_one_line(mesh: Any, split: Any, by: str) -> None:
    model = tiny_llama()
    split(model, mesh)
    with pytest.raises(
        UnsupportedModelError, match=rf"^model: its weights are split over processes by .*{by}.*fully_shard"
    ) as found:
        get_peft_model(model, PruneEditConfig(layers_to_transform=[1]))
    assert "\n" not in str(found.value)


def test_a_base_that_is_split_after_attaching_takes_no_edit(mesh: Any) -> None:
    model = adapted()
    by_zero(model.get_submodule(f"base_model.model.{MODULE}"), mesh)
    with pytest.raises(UnsupportedModelError, match="split over processes"):
        model.add_edits({MODULE: random_update((16, 64))})
    with pytest.raises(UnsupportedModelError, match="split over processes"):
        EditSession(model, spaced_tokenizer(), "rome", statistics=moments())


def test_one_process_edits_and_merges_what_fsdp2_holds(mesh: Any) -> None:
    model, whole = adapted(), adapted()
    fully_shard(model.get_base_model(), mesh=mesh)
    update = random_update((16, 64))
    for one in (model, whole):
        one.add_edits({MODULE: update})
        one.merge_adapter()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-5)


def test_fsdp2_around_the_adapter_s_wrapper_is_told_where_it_belongs(mesh: Any) -> None:
    model = adapted()
    fully_shard(model, mesh=mesh)
    with pytest.raises(UnsupportedModelError, match=r"fully_shard was called on FSDP.*call it on model.get_base_model"):
        EditSession(model, spaced_tokenizer(), "rome", statistics=moments())


def test_experts_that_fsdp2_shards_are_refused_in_either_order(mesh: Any) -> None:
    base = mixture("mixtral")
    model = get_peft_model(base, PruneEditConfig(layers_to_transform=[1]))
    fully_shard(base, mesh=mesh)
    name, layer = next(iter(model.edited_layers()))
    with pytest.raises(UnsupportedModelError, match="fused parameter is split over processes by fully_shard"):
        model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    other = mixture("mixtral")
    fully_shard(other, mesh=mesh)
    with pytest.raises(ValueError, match=r"held as DTensor.*unsharded"):
        get_peft_model(other, PruneEditConfig(layers_to_transform=[1]))


def test_fsdp_of_the_first_kind_is_told_by_its_wrapper(mesh: Any) -> None:
    class FullyShardedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._fsdp_wrapped_module = module

    model = tiny_llama()
    model.model.layers[0] = FullyShardedDataParallel(model.model.layers[0])
    with pytest.raises(UnsupportedModelError, match="split over processes by FullyShardedDataParallel"):
        get_peft_model(model, PruneEditConfig(target_modules=["down_proj"]))
