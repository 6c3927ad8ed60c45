"""A base that Accelerate dispatched over cpu and disk."""

from __future__ import annotations

import torch
from accelerate import dispatch_model
from accelerate.utils import align_module_device
from peft import get_peft_model

from peft_prune import PruneEditConfig
from tests.tiny import tiny_llama
from tests.tuner.test_edits import INPUTS, strong
from tests.tuner.test_merge import add_strong_edits


def test_a_base_dispatched_over_cpu_and_disk_gives_the_same_factors_and_merged_weights(tmp_path) -> None:
    plain = get_peft_model(tiny_llama(), PruneEditConfig(restrain_every=3)).eval()
    add_strong_edits(plain)
    base = tiny_llama()
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.rotary_emb": "cpu"}
    device_map |= {"model.layers.1": "disk", "model.layers.2": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    dispatched = dispatch_model(base, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    offloaded = get_peft_model(dispatched, PruneEditConfig(restrain_every=3)).eval()
    assert dict(offloaded.edited_layers())["model.layers.1.mlp.down_proj"].get_base_layer().weight.is_meta
    for (name, layer), (_, reference) in zip(offloaded.edited_layers(), plain.edited_layers(), strict=True):
        for seed in range(3):
            offloaded.add_edits({name: strong(reference, seed)})
        assert torch.equal(layer.effective_update("default").dense(), reference.effective_update("default").dense())
    assert torch.equal(offloaded(INPUTS).logits, plain(INPUTS).logits)
    plain.merge_adapter()
    offloaded.merge_adapter()
    for (_, layer), (_, reference) in zip(offloaded.edited_layers(), plain.edited_layers(), strict=True):
        with align_module_device(layer.get_base_layer()):
            assert torch.equal(layer.get_base_layer().weight, reference.get_base_layer().weight)
    assert torch.allclose(offloaded(INPUTS).logits, plain(INPUTS).logits)
    offloaded.unmerge_adapter()
    plain.unmerge_adapter()
    assert torch.equal(offloaded(INPUTS).logits, plain(INPUTS).logits)
