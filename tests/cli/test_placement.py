"""How the options of a command become what transformers loads a model with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from peft_prune import MergeError, PruneEditConfig, UnsupportedModelError
from peft_prune.builtin import load_builtin_model
from peft_prune.cli import main
from peft_prune.cli.placement import Placement
from peft_prune.spectral import LowRankUpdate


def test_options_become_arguments_of_from_pretrained() -> None:
    assert Placement().arguments() == {}
    assert Placement(device="cpu").arguments() == {"device_map": {"": torch.device("cpu")}}
    spread = Placement(device_map="auto", max_memory="0=20GiB, cpu=60GiB").arguments()
    assert spread == {"device_map": "auto", "max_memory": {0: "20GiB", "cpu": "60GiB"}}
    assert Placement(device_map='{"": "cpu"}').arguments() == {"device_map": {"": "cpu"}}
    pytest.importorskip("bitsandbytes")
    found = Placement(quantization="4bit-double").arguments()["quantization_config"]
    assert isinstance(found, BitsAndBytesConfig)
    assert found.bnb_4bit_quant_type == "nf4" and found.bnb_4bit_use_double_quant


@pytest.mark.parametrize(
    "given",
    [
        {"quantization": "3bit"},
        {"device": "nowhere"},
        {"device_map": "[1]"},
        {"device": "cpu", "device_map": "auto"},
        {"max_memory": "0=1GiB"},
        {"device_map": "auto", "max_memory": "20GiB"},
    ],
)
def test_a_value_that_is_not_accepted_is_named(given: dict[str, str]) -> None:
    with pytest.raises(UnsupportedModelError, match=sorted(given)[-1] if len(given) > 1 else next(iter(given))):
        Placement(**given).arguments()


def adapter(folder: Path, size: float) -> Path:
    model, _ = load_builtin_model()
    edited = get_peft_model(model, PruneEditConfig(layers_to_transform=[2], restraint="none")).eval()
    ((name, layer),) = edited.edited_layers()
    generator = torch.Generator().manual_seed(0)
    edited.add_edits(
        {
            name: LowRankUpdate(
                B=size * torch.randn(layer.out_features, 1, generator=generator) / layer.out_features**0.5,
                A=torch.randn(1, layer.in_features, generator=generator) / layer.in_features**0.5,
            )
        }
    )
    edited.save_pretrained(folder)
    return folder


def test_merge_dequantizes_a_quantized_base_and_says_what_arrived(tmp_path: Path, capsys) -> None:
    pytest.importorskip("bitsandbytes")
    edits = adapter(tmp_path / "edits", 1.0)
    merge = ["merge", str(edits), "--model", "builtin", "--quantization", "4bit", "--json"]
    assert main([*merge, "--out", str(tmp_path / "merged")]) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out)["merge"]
    assert said["base"] == "nf4" and said["into"] == "dequantized"
    assert all(figure["share"] > 0.99 for figure in said["layers"].values())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(plain.config, "quantization_config")


def test_merge_refuses_to_requantize_what_would_be_lost(tmp_path: Path, capsys) -> None:
    pytest.importorskip("bitsandbytes")
    edits = adapter(tmp_path / "edits", 1e-4)
    merge = ["merge", str(edits), "--model", "builtin", "--quantization", "4bit", "--requantize"]
    assert main([*merge, "--out", str(tmp_path / "merged")]) == 2
    assert "share of" in capsys.readouterr().err and not (tmp_path / "merged").exists()
    assert issubclass(MergeError, ValueError)
