"""Facts that must not be lost: their keys, their answers, and what a batch that changes one comes to."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_prune import InvalidRequestError, ProtectionGuard
from peft_prune.consolidation import Protection, read_protected
from peft_prune.models.tokenization import continuation_ids
from peft_prune.monitoring import BatchReport
from peft_prune.reporting.redaction import Redactor
from tests.consolidation.scene import TEXTS, fresh
from tests.session.scene import MODULE, adapted, resumed, session
from tests.talking import WORDS, spaced_tokenizer
from tests.tiny import willing


@cache
def _known() -> list[tuple[str, str, str]]:
    """Templates, subjects and what the tiny model says to them, where that is a word."""
    model, tokenizer, found = willing("gpt2"), spaced_tokenizer(), []
    for template in ("tea net {}", "oats {}", "soot {}", "{}"):
        for subject in WORDS:
            (ids,) = tokenizer([template.replace("{}", subject)])["input_ids"]
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            answer = tokenizer.decode([token]).strip()
            text = template.replace("{}", subject)
            if answer and continuation_ids(tokenizer, [text], [answer])[0].target == (token,):
                found.append((template, subject, answer))
    return found


def known() -> list[dict[str, str]]:
    """Two facts that the tiny model knows, one with a subject and one without."""
    (template, subject, answer), *_, (other, name, last) = _known()
    return [
        {"prompt": template, "subject": subject, "object": answer},
        {"prompt": other.replace("{}", name), "object": last},
    ]


def test_keys_are_the_inputs_at_the_subject_or_at_every_token() -> None:
    model, tokenizer = adapted(), spaced_tokenizer()
    found = Protection(model, tokenizer, read_protected(known()), [MODULE]).keys[MODULE]
    inputs: list[torch.Tensor] = []
    base = willing("gpt2")
    base.get_submodule(MODULE).register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    for fact in read_protected(known()):
        base(torch.tensor([tokenizer(fact.text)["input_ids"]]))
    assert torch.allclose(found, torch.cat([inputs[0][-1:], inputs[1]]).float(), atol=1e-5)


def test_protected_keys_stand_before_those_of_the_edits_and_come_back(tmp_path: Path) -> None:
    facts = known()
    with session(tmp_path / "edits.db", model=adapted(), protect=facts) as own:
        keys = own.workspace.keys[MODULE].clone()
        assert own.history.meta["protect"]["facts"][0]["subject"] == facts[0]["subject"]
        assert isinstance(own.callbacks[0], ProtectionGuard)
    with resumed(tmp_path / "edits.db") as again:
        assert torch.equal(again.workspace.keys[MODULE], keys)
        assert len(again.workspace.protected_passages()) == 2


def test_a_fact_that_the_base_does_not_know_is_one_line(tmp_path: Path) -> None:
    facts = known()
    text, wrong = facts[1]["prompt"], "nose" if facts[1]["object"] != "nose" else "ant"
    line = f"protect: record 2: the base does not answer '{wrong}' to '{text}'"
    with pytest.raises(InvalidRequestError, match=line):
        session(tmp_path / "edits.db", model=adapted(), protect=[*facts, {"prompt": text, "object": wrong}])
    assert not (tmp_path / "edits.db").exists()
    (tmp_path / "facts.json").write_text(json.dumps([{"prompt": "a"}]))
    with pytest.raises(InvalidRequestError, match="record 0 must have prompt and object"):
        read_protected(tmp_path / "facts.json")
    with pytest.raises(InvalidRequestError, match=r"record 0: prompt: 'tea' must hold '\{\}' once"):
        read_protected([{"prompt": "tea", "object": "ant", "subject": "net"}])
    with pytest.raises(InvalidRequestError, match="there is no fact to protect"):
        read_protected([])
    with pytest.raises(ValueError, match="action: 'weep' is not one of"):
        fresh_with(on_protected="weep")


def fresh_with(**options: Any) -> Any:
    return session(model=adapted(), protect=known(), **options)


def test_the_guard_speaks_of_facts_that_have_changed_since_and_names_none() -> None:
    answers = iter([[True, False, True], [True, False, True], [False, False, True], [False, False, False]])
    guard = ProtectionGuard(lambda model: next(answers), "rollback")

    class Own:
        model = None

    guard.on_edit_begin(Own, 1)
    reports = []
    for number in range(3):
        report = BatchReport(number, [], 0, {}, 0.0)
        guard.on_batch_end(Own, report)
        reports.append(report)
    assert not reports[0].alerts and reports[0].measurements == {"protected": pytest.approx(2 / 3)}
    assert reports[1].alerts[0].message == "1 of 3 protected facts changed: records 0"
    # what was rolled back is compared with what stood before
    assert reports[2].alerts[0].message == "2 of 3 protected facts changed: records 0, 2"
    assert Redactor("a key of mine").alert("ProtectionGuard", reports[2].alerts[0].message).startswith("2 of 3")


def test_a_batch_that_changes_a_protected_fact_is_rolled_back(tmp_path: Path) -> None:
    with fresh_with(on_protected="rollback") as own:
        own.workspace.protection.kept = lambda model: [False, True]
        own.callbacks[0]._kept = lambda model: [
            not own.model.base_model.edit_state().layers[MODULE].effective.rank,
            True,
        ]
        with pytest.warns(UserWarning, match="1 of 2 protected facts changed: records 0"):
            (result,) = own.edit({"prompt": "note sea {}", "subject": "sane ant", "target_new": "ten"})
        assert result.status == "failed" and "rolled back by ProtectionGuard" in result.reason
        assert own.history.standing == 0


@pytest.mark.filterwarnings("ignore:consolidation. not reached")
def test_protected_answers_enter_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("peft_prune.consolidation.run.require_no_loss", lambda trained: None)
    monkeypatch.setattr("peft_prune.consolidation.run.train", lambda *given: seen.append(given[4]) or _Stop())
    with fresh_with() as own:
        own.edit({"prompt": "note sea {}", "subject": "sane ant", "target_new": "ten"})
        with pytest.raises(AttributeError):
            own.consolidate(TEXTS)
        assert seen[0].protected == own.workspace.protected_passages()


class _Stop:
    pass


def test_without_protected_facts_nothing_is_kept() -> None:
    with fresh() as own:
        assert "protect" not in own.history.meta and not own.callbacks and not own.workspace.protected_passages()
