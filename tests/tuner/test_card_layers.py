"""What a saved adapter's card says of the size of its updates."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import get_peft_model

from peft_prune import PruneEditConfig, layer_conditions
from tests.tiny import tiny_llama
from tests.tuner.test_edits import base_weight, strong


def cells(card: Path, layer: str) -> list[str]:
    """The row of a layer in the card's table of sizes."""
    (row,) = [line for line in card.read_text().splitlines() if line.startswith(f"| `{layer}` |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_the_card_says_how_large_the_update_of_each_layer_is_and_computes_no_condition_number(tmp_path) -> None:
    model = get_peft_model(tiny_llama(), PruneEditConfig(restraint="log", restrain_every=2)).eval()
    (name, layer), *_ = model.edited_layers()
    for seed in range(2):
        model.add_edits({name: strong(layer, seed)})
    model.save_pretrained(tmp_path / "bare")
    delta = layer.effective_update("default").dense().double()
    base = base_weight(layer).double()
    spectral, largest = torch.linalg.matrix_norm(delta, 2), torch.linalg.matrix_norm(base, 2)
    norms = [f"{float(value):.4g}" for value in (delta.norm(), spectral, spectral / largest)]
    assert cells(tmp_path / "bare" / "README.md", name) == ["2", *norms, "–", "–"]
    assert "layer_conditions(model)" in (tmp_path / "bare" / "README.md").read_text()
    layer_conditions(model)
    model.save_pretrained(tmp_path / "bare")
    kappa = [f"{float(torch.linalg.cond(matrix)):.3g}" for matrix in (base, base + delta)]
    found = cells(tmp_path / "bare" / "README.md", name)
    assert [f"{float(cell):.3g}" for cell in found[-2:]] == kappa
    assert "layer_conditions(model)" not in (tmp_path / "bare" / "README.md").read_text()
