"""Rebuilding an adapter from its history: the same as adding edit after edit, and linear in their number."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from peft import get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.errors import HistoryError
from peft_prune.session.records import Factors, RestraintRecord
from peft_prune.session.replay import Addition, JoinedKeys, replay
from peft_prune.spectral import LowRankUpdate
from tests.session.scripted import MODULE, drawn, request, resumed, session
from tests.tiny import tiny_gpt2

OTHER = "transformer.h.2.mlp.c_proj"


def adapter(**config: object):
    values = {"layers_to_transform": [1, 2], "restraint": "linear", "restrain_on": "merge", **config}
    return get_peft_model(tiny_gpt2(), PruneEditConfig(**values)).eval()


def steps() -> list[Addition]:
    """Eight batches; the second layer is not changed by each of them."""

    def updates(number: int) -> Mapping[str, LowRankUpdate]:
        own = {MODULE: drawn(f"edit {number}").scaled(200.0)}
        return own | ({OTHER: drawn(f"other {number}").scaled(200.0)} if number % 3 else {})

    return [Addition(number, updates(number), 1) for number in range(1, 9)]


RESTRAINTS = [
    *(RestraintRecord(batch, name, "linear") for batch in (2, 5) for name in (MODULE, OTHER)),
    RestraintRecord(7, MODULE, "linear"),
]


@pytest.mark.parametrize("schedule", ["merge", "compounding", "compensated"])
def test_a_replay_is_what_edit_after_edit_gave_bit_for_bit(schedule: str) -> None:
    one, other = adapter(restrain_on=schedule), adapter(restrain_on=schedule)
    layers = dict(one.edited_layers())
    for step in steps():
        one.add_edits(step.updates, edits=1, on_schedule=False)
        for record in RESTRAINTS:
            if record.batch == step.batch:
                layers[record.module].apply_restraint("default")
    replay(other, steps(), RESTRAINTS)
    for name, layer in other.edited_layers():
        for kind in ("effective_update", "raw_update"):
            found, expected = getattr(layer, kind)("default"), getattr(layers[name], kind)("default")
            assert torch.equal(found.B, expected.B) and torch.equal(found.A, expected.A), (name, kind)
        state, known = layer.prune_edit_update["default"], layers[name].prune_edit_update["default"]
        assert (state.edits, state.pending) == (known.edits, known.pending)


def test_a_restraint_of_a_module_that_is_not_adapted_is_named() -> None:
    with pytest.raises(HistoryError, match="its restraint of 'lm_head' is of no adapted module"):
        replay(adapter(), steps(), [RestraintRecord(1, "lm_head", "clip")])


def test_factors_are_read_once_and_added_in_one_piece_where_no_restraint_lies_between(tmp_path, monkeypatch) -> None:
    from peft_prune.session import History
    from peft_prune.tuner import PruneEditLayer

    with session(tmp_path / "edits.db", restraint="none") as run:
        run.edit([request(number) for number in range(30)], batch_size=3)
    counts = {"read": 0, "added": 0}
    read, added = History.factors, PruneEditLayer.append_update

    def counting_read(self, leader):
        counts["read"] += 1
        return read(self, leader)

    def counting_add(self, *arguments, **options):
        counts["added"] += 1
        return added(self, *arguments, **options)

    monkeypatch.setattr(History, "factors", counting_read)
    monkeypatch.setattr(PruneEditLayer, "append_update", counting_add)
    with resumed(tmp_path / "edits.db") as run:
        assert counts == {"read": 30, "added": 1}
        run.undo(7)
        assert counts == {"read": 59, "added": 2}
        run.conflicts(request(5))
        assert counts["read"] == 59


def test_keys_beyond_the_layers_width_are_condensed_once_and_only_where_asked_for(monkeypatch) -> None:
    parts = [Factors({}, {MODULE: drawn(f"key {number}").A}) for number in range(1000)]
    calls = []
    decompose = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: calls.append(matrix) or decompose(matrix))
    few, many = JoinedKeys(parts[:80]), JoinedKeys(parts)
    assert len(few[MODULE]) == 80 and list(many) == [MODULE] and calls == []
    assert len(many[MODULE]) == 64 and many[MODULE] is many[MODULE] and len(calls) == 1
    keys = torch.cat([part.keys[MODULE] for part in parts]).double()
    total, scale = keys.T @ keys, float((keys.T @ keys).norm())
    assert torch.allclose(many[MODULE].double().T @ many[MODULE].double(), total, atol=1e-6 * scale)
    grown = few
    for part in parts[80:]:
        grown = grown.plus([part])
        assert sum(len(held) for held in grown._parts[MODULE]) <= 128
    assert torch.allclose(grown[MODULE].double().T @ grown[MODULE].double(), total, atol=1e-5 * scale)
    assert torch.equal(few[MODULE], torch.cat([part.keys[MODULE] for part in parts[:80]]))
