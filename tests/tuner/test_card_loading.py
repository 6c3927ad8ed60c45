"""What a card says of loading the base runs, also where the base is one of this package's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import get_peft_model

from peft_prune import PruneEditConfig, load_builtin_model
from peft_prune.tuner.card import adapter_text


def test_the_builtin_model_is_loaded_as_its_card_says(tmp_path: Path) -> None:
    model, _ = load_builtin_model()
    get_peft_model(model, PruneEditConfig(layers_to_transform=[1])).save_pretrained(tmp_path)
    text = adapter_text({}, "builtin", lora=False, own_basis=True)
    code = text.split("```python\n")[1].split("```")[0].replace("THIS_FOLDER_OR_REPOSITORY", str(tmp_path))
    found: dict[str, object] = {}
    exec(code, found)
    assert hasattr(found["model"], "peft_config")


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("smollm2", 'base, tokenizer = load_real_model("smollm2")'),
        ("org/model", 'base = AutoModelForCausalLM.from_pretrained("org/model")'),
        (None, 'base = AutoModelForCausalLM.from_pretrained("BASE")'),
    ],
)
def test_every_base_is_loaded_by_its_own_name(base: str | None, line: str) -> None:
    assert line in adapter_text({}, base, lora=False, own_basis=True).splitlines()
