"""A checkpoint that is a part of the other: the text model of a multimodal one; and one that is not alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from peft_prune.audit import audit
from peft_prune.errors import CheckpointError
from tests.audit.scene import LLAMA, base, edited, low_rank, rewrite, save, weights

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "head_dim": 16,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture
def gemma(tmp_path: Path) -> tuple[Path, Path]:
    """A multimodal checkpoint, and its text model as a checkpoint of its own."""
    torch.manual_seed(0)
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, image_token_index=59)
    whole = Gemma3ForConditionalGeneration(config)
    part = Gemma3ForCausalLM(whole.config.text_config)
    part.model.load_state_dict(whole.model.language_model.state_dict())
    return save(whole, tmp_path / "whole"), save(part, tmp_path / "part")


@pytest.mark.parametrize("turned", [False, True])
def test_a_text_model_is_compared_with_its_multimodal_one_under_their_common_names(gemma, turned: bool) -> None:
    before, after = reversed(gemma) if turned else gemma
    changed = gemma[1] if not turned else gemma[0]
    tensors = weights(changed)
    name = next(key for key in tensors if key.endswith("layers.1.mlp.down_proj.weight") and "vision" not in key)
    rewrite(changed, tensors | {name: tensors[name] + low_rank((32, 64), 2, 0.1)})
    found = audit(before, [after])
    (one,) = found.series
    (matrix,) = one.matrices.values()
    assert matrix.name.endswith("layers.1.mlp.down_proj.weight") and matrix.rank == 2
    assert matrix.name in weights(before) and not one.others and one.unchanged == len(weights(gemma[1])) - 1
    besides = len(weights(gemma[0])) - len(weights(gemma[1]))
    assert f"is a part of {gemma[0]}, and was compared under their common names; {besides} tensors" in found.notes[-1]


def test_what_is_no_part_is_still_an_error(gemma, tmp_path: Path) -> None:
    whole, part = gemma
    tensors = weights(part)
    rewrite(part, tensors | {"model.odd.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"lacks \d+ of the \d+ tensors of"):
        audit(whole, [part])


def test_a_checkpoint_with_an_adapter_beside_it_is_refused_by_name(tmp_path: Path) -> None:
    before = base("llama", tmp_path / "base")
    after = edited(before, tmp_path / "edited", {LLAMA: low_rank((16, 32), 1)})
    (after / "adapter_config.json").write_text("{}")
    for pair in ((before, after), (after, before), (before, after / "model.safetensors")):
        with pytest.raises(CheckpointError, match="edited holds an adapter beside its weights"):
            audit(pair[0], [pair[1]])
