"""`peft-prune locate` on a model's own answers."""

from __future__ import annotations

import json

from peft_prune.cli import main
from tests.editors.test_locate import known_facts
from tests.talking import spaced_tokenizer
from tests.tiny import willing


def test_it_prints_a_table_or_json_and_draws(capsys, tmp_path) -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    facts = [
        {"prompt": f.prompt, "subject": f.subject, "target_new": "ten", "target_true": f.target_true}
        for f in known_facts(model, tokenizer)
    ]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    arguments = ["locate", "--model", str(tmp_path / "model"), "--requests", str(tmp_path / "facts.json")]
    assert main([*arguments, "--plot", str(tmp_path / "layers.png"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["block"]) == len(found["mlp"]) == 3 and found["layer"] in found["layers"]
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert main(arguments) == 0
    assert f"Suggested: --layers {found['layer']} for ROME" in capsys.readouterr().out
    (tmp_path / "facts.json").write_text(json.dumps([{**facts[0], "target_true": "net son"}]))
    assert main(arguments) == 2
    assert "knows none" in capsys.readouterr().err
