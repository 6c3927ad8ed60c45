"""`peft-prune consolidate`, and the options of `edit` that belong to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peft_prune.consolidation.training import _Training
from peft_prune.session import History
from tests.cli.test_commands import edit, folder, run  # noqa: F401
from tests.consolidation.scene import TEXTS


@pytest.mark.filterwarnings("ignore")
def test_a_history_is_consolidated_and_its_adapter_written(capsys, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    log = tmp_path / "edits.db"
    edit(capsys, folder, tmp_path / "adapter", "--restraint", "clip", "--history", log)
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    given = ["consolidate", log, "--model", folder / "model", "--out", tmp_path / "whole"]
    options = ["--texts", tmp_path / "texts.json", "--steps", 20, "--learning-rate", 0.01, "--beta", 0.1]
    code, output, errors = run(capsys, *given, *options, "--json")
    assert code == 0, errors
    told = json.loads(output)
    assert told["edits"] == 4 and told["steps"] == 20 and told["beta"] == 0.1 and told["standing"] == 4
    assert told["held"]["after"] >= told["held"]["before"]
    assert json.loads((tmp_path / "whole" / "adapter_config.json").read_text())["consolidated"] == 4
    assert History.read(log).consolidation() is not None
    keep = ["consolidate", log, "--model", folder / "model", "--out", tmp_path / "chat", *options, "--keep-chat"]
    code, output, errors = run(capsys, *keep, "--json")
    assert code == 0 and json.loads(output)["keep_chat"] is True, errors
    for wrong, message in (
        (["--steps", 0], "steps: 0 must be an integer of at least 1"),
        (["--texts", tmp_path / "none.json"], "none.json"),
        (["--out", tmp_path / "whole"], "whole exists"),
    ):
        code, _, errors = run(capsys, *given[:-1], tmp_path / "other", *wrong)
        assert code == 2 and message in errors and errors.count("\n") == 1


def test_options_of_edit_are_checked_before_a_model_is_loaded(capsys, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps([{"prompt": "{} is", "subject": "a", "target_new": "b"}]))
    given = ["edit", "--model", tmp_path / "no", "--requests", tmp_path / "r.json", "--out", tmp_path / "out"]
    code, _, errors = run(capsys, *given, "--consolidate", "often")
    assert code == 2 and "consolidate: 'often' is not one of demand, auto, save, every" in errors
    code, _, errors = run(capsys, *given, "--consolidate-every", 0)
    assert code == 2 and "consolidate_every: 0 must be an integer of at least 1" in errors
    every = ("--consolidate", "every", "--consolidate-window")
    for wrong, message in (
        ((*every, -1, "--restrain-on", "merge"), "consolidate_window: -1 must be an integer of at least 0"),
        ((*every, 5), "consolidate_window: acts with consolidate='every' and restrain_on='merge' alone"),
        (("--consolidate-window", 5, "--restrain-on", "merge"), "they are 'auto' and 'merge'"),
    ):
        code, _, errors = run(capsys, *given, *wrong)
        assert code == 2 and message in errors and errors.count("\n") == 1


def test_an_interrupted_consolidation_can_be_left_out(
    capsys,
    folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    log, out = tmp_path / "edits.db", tmp_path / "adapter"
    monkeypatch.setattr(_Training, "run", interrupted)
    model = ("--model", folder / "model")
    given = ["edit", *model, "--requests", folder / "requests.json", "--layers", 1, "--editor", "rome"]
    given += ["--stats-text", folder / "texts.json", "--batch-size", 1, "--history", log, "--out", out]
    quick = ["--set", "v_num_grad_steps=40", "--set", "clamp_norm_factor=20", "--set", "context_lengths=[[4, 3]]"]
    code, _, errors = run(capsys, *given, *quick, "--consolidate", "save")
    assert code == 130 and f"peft-prune resume {log} --consolidate demand" in errors and not out.exists()
    code, _, errors = run(capsys, "resume", log, *model, "--out", out)
    assert code == 130 and f"peft-prune resume {log} --consolidate demand" in errors and not out.exists()
    code, _, errors = run(capsys, "resume", log, *model, "--out", out, "--consolidate", "never")
    assert code == 2 and "consolidate: 'never' is not one of demand, auto, save, every" in errors
    code, output, errors = run(capsys, "resume", log, *model, "--out", out, "--consolidate", "demand")
    assert code == 0 and "edits stand" in output, errors
    saved = json.loads((out / "adapter_config.json").read_text())
    assert saved["consolidated"] == 0 and saved["edits"] == History.read(log).standing > 0
