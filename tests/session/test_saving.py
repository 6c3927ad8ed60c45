"""Where a session may save its adapter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.tiny import willing

from .scene import REQUESTS, adapted, resumed, session


def test_a_session_never_saves_over_its_history_or_its_base(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with session(tmp_path / "run" / "edits.db") as own:
        own.edit(REQUESTS[0])
        base = tmp_path / "base"
        base.mkdir()
        (base / "config.json").write_text("{}")
        own.model.get_base_model().name_or_path = str(base)
        for place, message in (
            (tmp_path / "run", "holds the history"),
            (tmp_path / "run" / ".." / "run", "holds the history"),
            (base, "is the base model as well"),
            (base / "adapter", "lies in the base model"),
        ):
            with pytest.raises(ValueError, match=f"path: .* {message}"):
                own.save(place, overwrite=True)
        assert (tmp_path / "run" / "edits.db").is_file() and (base / "config.json").is_file()
        own.save(tmp_path / "run" / "adapter")
        own.save(tmp_path / "run" / "adapter", overwrite=True)
        assert not own.model.restraint_is_pending() and "adapter_config.json" in os.listdir(
            tmp_path / "run" / "adapter"
        )


def test_what_people_wrote_into_the_card_survives_the_next_save(tmp_path: Path) -> None:
    with session() as own:
        own.edit(REQUESTS[0])
        own.save(tmp_path / "adapter")
        card = tmp_path / "adapter" / "README.md"
        card.write_text(card.read_text() + "\n## Who to ask\n\nThe team of the second floor.\n")
        own.edit(REQUESTS[1])
        own.save(tmp_path / "adapter", overwrite=True)
    text = card.read_text()
    assert "The team of the second floor." in text and "# 2 edits of" in text and "# 1 edit of" not in text


def test_the_card_names_the_licence_that_the_base_names(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nA base.\n")
    with session() as own:
        own.edit(REQUESTS[0])
        own.save(tmp_path / "unknown")
        own.model.get_base_model().config._name_or_path = str(base)
        own.save(tmp_path / "known")
    known, unknown = ((tmp_path / name / "README.md").read_text() for name in ("known", "unknown"))
    assert "licence of the base: apache-2.0" in known and str(tmp_path) not in known
    assert "licence of the base: not named" in unknown


def acting(run) -> torch.Tensor:
    """ΔW that acts on the edited layer, dense."""
    ((_, layer),) = run.model.edited_layers()
    return layer.effective_update("default").dense().double()


def test_a_saved_file_loaded_back_in_the_same_process_changes_nothing_and_undo_goes_on(tmp_path: Path) -> None:
    options = {"restraint": "log", "alpha": 1.2, "restrain_every": 2}
    plain, saved = (session(model=adapted(**options)) for _ in range(2))
    for run in (plain, saved):
        run.edit(REQUESTS[:3])
    saved.save(tmp_path / "adapter")
    before = acting(saved)
    saved.model.load_adapter(str(tmp_path / "adapter"), "default", is_trainable=True)
    assert torch.allclose(acting(saved), before, atol=1e-6)
    plain.restrain()
    for run in (plain, saved):
        run.undo(2)
        run.restrain()
    ((_, layer),) = saved.model.edited_layers()
    assert layer.prune_edit_update["default"].edits == 2
    assert torch.allclose(acting(saved), acting(plain), atol=1e-5)


@pytest.mark.parametrize("restraint", ["none", "log"])
def test_undo_and_resume_after_a_save_give_what_would_have_stood_without_it(restraint: str, tmp_path: Path) -> None:
    model = adapted(restraint=restraint, restrain_every=1)
    with session(tmp_path / "edits.db", model=model) as run:
        run.edit(REQUESTS[:3])
        whole = acting(run)
        run.save(tmp_path / "adapter")
        run.undo(2)
        expected = acting(run)
        run.save(tmp_path / "adapter", overwrite=True)
        assert not torch.allclose(expected, whole, atol=1e-3)
    with resumed(tmp_path / "edits.db") as again:
        assert torch.allclose(acting(again), expected, atol=1e-5)
        again.edit(REQUESTS[3])
        again.save(tmp_path / "later")
        more = acting(again)
    for folder, wanted in (("adapter", expected), ("later", more)):
        loaded = PeftModel.from_pretrained(willing("gpt2"), tmp_path / folder)
        ((_, layer),) = loaded.base_model.edited_layers()
        assert torch.allclose(layer.effective_update("default").dense().double(), wanted, atol=1e-5)
