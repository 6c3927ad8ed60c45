"""`peft-prune edit` on a mixture: the shared expert, or the routed ones where they are asked for."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from peft_prune.cli import main
from tests.expert_models import mixture
from tests.talking import spaced_tokenizer

QUICK = ["--editor", "rome", "--layers", "1", "--set", "mom2_adjustment=false", "--set", "context_lengths=[]", "--json"]


def edited(folder: Path) -> set[str]:
    """What stands behind the layer in the names of an adapter's factors."""
    entries = load_file(folder / "adapter_model.safetensors")
    return {key.split("layers.1.mlp.")[1].split(".prune_edit")[0] for key in entries if ".weight" in key}


def test_the_setting_of_the_editor_chooses_what_the_adapter_takes_in(capsys, tmp_path: Path) -> None:
    mixture("deepseek_v3").save_pretrained(tmp_path / "model")
    spaced_tokenizer().save_pretrained(tmp_path / "model")
    request = {"prompt": "note sea {}", "subject": "sane ant", "target_new": "ten"}
    (tmp_path / "requests.json").write_text(json.dumps([request]))
    options = ["--model", str(tmp_path / "model"), "--requests", str(tmp_path / "requests.json")]
    command = ["edit", *options, *QUICK]
    assert main([*command, "--out", str(tmp_path / "shared")]) == 0, capsys.readouterr().err
    assert edited(tmp_path / "shared") == {"shared_experts.down_proj"}
    chosen = [*command, "--set", "experts=routed", "--history", str(tmp_path / "edits.db")]
    assert main([*chosen, "--out", str(tmp_path / "routed")]) == 0, capsys.readouterr().err
    found = edited(tmp_path / "routed")
    assert found and all(name.startswith("experts.down.") for name in found)
    assert json.loads((tmp_path / "routed" / "adapter_config.json").read_text())["experts"] == "routed"
    assert main([*command, "--set", "experts=none", "--out", str(tmp_path / "none")]) == 2
    assert "experts: 'none' is not one of shared, routed" in capsys.readouterr().err
