"""A virtual environment without this package loads what was exported, and answers with the edits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import peft
import pytest

from peft_prune.export import export_lora
from tests.session.scene import REQUESTS, session
from tests.talking import spaced_tokenizer
from tests.tiny import willing

ANSWERS = """
import importlib.util, json, sys
from pathlib import Path
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(base)
def answers(model):
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        said = model.eval().generate(**ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        found.append(tokenizer.decode(said[0, ids["input_ids"].shape[1]:]))
    return found
plain = answers(AutoModelForCausalLM.from_pretrained(base))
edited = answers(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))
one = answers(AutoPeftModelForCausalLM.from_pretrained(adapter))
here = {"prefix": sys.prefix, "package": importlib.util.find_spec("peft_prune") is not None}
print("FOUND" + json.dumps({**here, "plain": plain, "edited": edited, "one": one}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that has what is installed here, but for this package."""
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place / "environment", with_pip=False, symlinks=True)
    packages = place / "packages"
    packages.mkdir()
    for entry in Path(peft.__file__).parents[1].iterdir():
        if "peft_prune" not in entry.name and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    (own,) = (place / "environment").glob("lib/python*/site-packages")
    (own / "packages.pth").write_text(str(packages))
    return place / "environment" / "bin" / "python"


@pytest.mark.skipif(os.name != "posix", reason="links to the installed packages")
def test_an_exported_adapter_answers_with_the_edits_where_this_package_is_not_installed(python, tmp_path) -> None:
    willing("gpt2").save_pretrained(tmp_path / "base")
    spaced_tokenizer().save_pretrained(tmp_path / "base")
    with session() as run:
        run.edit(REQUESTS)
        held = [one.request for one in run.results if one.request is not None and one.status == "applied"]
        run.model.peft_config["default"].base_model_name_or_path = "base"
        export_lora(run.model, tmp_path / "lora")
    assert len(held) >= 3
    prompts = json.dumps([one.text for one in held])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", ANSWERS, "base", "lora", prompts], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.split("FOUND")[1])
    assert found["prefix"] == str(python.parents[1]) != sys.prefix and not found["package"]
    for request, plain, *edited in zip(held, found["plain"], found["edited"], found["one"], strict=True):
        assert all(answer.strip().startswith(request.target_new) for answer in edited)
        assert not plain.strip().startswith(request.target_new)
