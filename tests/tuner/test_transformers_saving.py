"""``save_pretrained`` of transformers, for an adapter that is attached to a model of transformers itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from peft_prune import AdapterError, PruneEditConfig
from peft_prune.tuner.layer import layers_of
from tests.spectral.test_basis import cosines
from tests.tiny import agree, random_update, tiny_llama
from tests.tuner.test_edits import INPUTS, base_weight, dense_log, strong

KEY = "base_model.model.model.layers.1.mlp.down_proj.prune_edit_"


def attached(**config):
    """A model of transformers with an adapter, and the layer that is edited."""
    model = tiny_llama()
    model.add_adapter(PruneEditConfig(layers_to_transform=[1], task_type="CAUSAL_LM", **config))
    ((_, layer),) = layers_of(model, "default")
    return model.eval(), layer


def test_the_file_holds_the_update_in_its_own_basis_and_a_card(tmp_path: Path) -> None:
    model, layer = attached(restraint="none")
    for seed in range(5):
        layer.append_update("default", random_update((layer.out_features, layer.in_features), seed=seed), 1)
    rows, expected = layer.effective_update("default").A.clone(), model(INPUTS).logits
    model.save_pretrained(tmp_path)
    entries = load_file(tmp_path / "adapter_model.safetensors")
    assert float(cosines(entries[KEY + "A.weight"], rows).max()) < 0.9
    assert torch.allclose(
        entries[KEY + "B.weight"] @ entries[KEY + "A.weight"], layer.effective_update("default").dense(), atol=1e-5
    )
    card = (tmp_path / "README.md").read_text()
    assert "# 5 edits of" in card and "| `model.layers.1.mlp.down_proj` | 5 |" in card
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert agree(loaded(INPUTS).logits, expected) and agree(model(INPUTS).logits, expected)


def test_a_pending_restraint_is_applied_to_what_leaves(tmp_path: Path) -> None:
    model, layer = attached(restrain_on="merge")
    layer.append_update("default", strong(layer, 0), 1)
    expected = dense_log(layer.raw_update("default").dense(), base_weight(layer), 1.2)
    model.save_pretrained(tmp_path)
    entries = load_file(tmp_path / "adapter_model.safetensors")
    found = entries[KEY + "B.weight"].double() @ entries[KEY + "A.weight"].double()
    assert torch.allclose(found, expected, atol=1e-4)
    assert "applied to these factors" in (tmp_path / "README.md").read_text()


def test_values_that_a_trainer_hands_over_are_saved_as_they_are(tmp_path: Path) -> None:
    model, layer = attached(restraint="none")
    layer.append_update("default", random_update((layer.out_features, layer.in_features)), 1)
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    entries = load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(entries[KEY + "A.weight"], layer.effective_update("default").A)


def test_what_people_wrote_into_the_card_stays_and_one_that_cannot_be_read_is_refused_first(tmp_path: Path) -> None:
    model, layer = attached(restraint="none")
    layer.append_update("default", random_update((layer.out_features, layer.in_features)), 1)
    model.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text((tmp_path / "README.md").read_text() + "\nAsk the second floor.\n")
    model.save_pretrained(tmp_path)
    assert "Ask the second floor." in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("---\n: [\n---\nmine\n")
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="metadata"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()


def test_a_model_without_such_an_adapter_is_saved_as_ever(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
