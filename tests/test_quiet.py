"""A script that edits, saves and loads leaves standard error to what is news; real warnings are shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
from peft_prune import EditSession, PruneEditConfig, get_editor, load_builtin_model
from peft_prune.builtin import edit_requests
from peft import PeftModel, get_peft_model

model, tokenizer = load_builtin_model()
editor = get_editor("ft", model=model, layers=(1,), num_steps=2)
config = PruneEditConfig(layers_to_transform=[1], restraint="log", alpha=1.2)
with EditSession(get_peft_model(model, config), tokenizer, editor, history="edits.db", on_failure="keep") as session:
    session.edit(edit_requests(1))
    session.save("adapter")
PeftModel.from_pretrained(load_builtin_model()[0], "adapter")
"""
OTHERS = """
import logging, warnings
import peft_prune
from transformers.utils import logging as transformers_logging

logging.getLogger("huggingface_hub.repocard").warning("this card is another matter")
warnings.warn("something else is retired", FutureWarning)
peft_prune.load_builtin_model()
assert transformers_logging.is_progress_bar_enabled()
"""


def said(code: str, folder: Path) -> str:
    """What stands on standard error of a process that does this as a script."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    own["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [own.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=own)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_editing_saving_and_loading_say_nothing_on_standard_error(tmp_path: Path) -> None:
    assert said(SCRIPT, tmp_path) == ""


def test_other_warnings_of_the_same_places_are_shown(tmp_path: Path) -> None:
    found = said(OTHERS, tmp_path)
    assert "this card is another matter" in found and "something else is retired" in found
    assert "Loading weights" not in found
