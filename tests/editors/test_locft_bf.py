"""LocFT-BF: mini-batches against a plain loop on the weight itself, the end of a text, and edits that take."""

from __future__ import annotations

import pytest
import torch

from peft_prune import EditRequest
from peft_prune.editors import get_editor
from peft_prune.editors.target_likelihood import TargetBatch, target_log_probs
from peft_prune.errors import SessionStateError, UnsupportedModelError
from peft_prune.models.mlp import mlp_output_module
from tests.editors.test_mend import REQUESTS
from tests.session.scene import resumed, session
from tests.talking import spaced_tokenizer
from tests.tiny import willing


def test_the_difference_is_that_of_training_the_weight_itself() -> None:
    model, tokenizer = willing("llama"), spaced_tokenizer()
    name, module = mlp_output_module(model, 1)
    values = {"layers": (1,), "end": False, "lr": 2e-3, "num_steps": 3, "mini_batch": 2, "energy": 1.0, "seed": 4}
    editor = get_editor("locft_bf", **values)
    found = editor.compute(model, tokenizer, REQUESTS[:5], editor.prepare(model, tokenizer)).updates[name]

    plain = willing("llama")
    weight = plain.get_submodule(name).weight
    before = weight.detach().clone()
    for parameter in plain.parameters():
        parameter.requires_grad_(parameter is weight)
    optimizer, draw = torch.optim.Adam([weight], lr=2e-3), torch.Generator().manual_seed(4)
    for _ in range(3):
        for chosen in torch.randperm(5, generator=draw).split(2):
            rows = [REQUESTS[int(place)] for place in chosen]
            batch = TargetBatch.build(plain, tokenizer, [r.text for r in rows], [r.target_new for r in rows])
            optimizer.zero_grad()
            (-target_log_probs(plain, batch).mean()).backward()
            optimizer.step()
    expected = (weight.detach() - before).double()
    # Adam's first steps are signs: entries with a gradient near 0 may go either way
    error = (found.dense().double() - expected).norm() / expected.norm()
    assert float(error) < 0.02
    assert module.weight.shape == expected.shape


def test_an_ended_batch_asks_for_the_end_behind_every_target() -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    batch = TargetBatch.build(model, tokenizer, ["note sea oats", "tea"], ["ten nose", "ten"])
    ended = batch.ended(7)
    for row in range(2):
        asked = batch.labels[row][batch.labels[row] >= 0].tolist()
        more = ended.labels[row][ended.labels[row] >= 0].tolist()
        assert more == [*asked, 7]
        count = int(ended.mask[row].sum())
        assert count == int(batch.mask[row].sum()) + 1 and int(ended.ids[row, count - 1]) == asked[-1]
    assert torch.equal(batch.rows(torch.tensor([1])).ids[0], batch.ids[1, : int(batch.mask[1].sum())])


def test_edits_of_a_batch_take_together_and_a_session_can_be_gone_on_with(tmp_path) -> None:
    editor = get_editor("locft_bf", layers=(1,), form="low_rank", rank=8, end=False, lr=5e-2, num_steps=60)
    asked = [EditRequest("note sea {}", s, "ten") for s in ("sane ant", "oats")] + [
        EditRequest("tone seat", None, "ten")
    ]
    with session(tmp_path / "edits.db", editor) as run:
        results = run.edit(asked, batch_size=3)
        assert [result.status for result in results] == ["applied"] * 3
        with pytest.raises(SessionStateError, match="share their factors with others"):
            run.undo(1)  # one training made all of them, so they stand and fall together
    with resumed(tmp_path / "edits.db") as run:
        assert run.editor.name == "locft_bf" and run.history.standing == 3


def test_a_text_without_an_end_is_refused_in_one_line() -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    tokenizer.eos_token = None
    editor = get_editor("locft_bf", layers=(1,))
    with pytest.raises(UnsupportedModelError, match="tokenizer: has no token that ends a text; end=False does without"):
        editor.compute(model, tokenizer, REQUESTS[:1], editor.prepare(model, tokenizer))
    with pytest.raises(ValueError, match="mini_batch: 0 must be above 0"):
        get_editor("locft_bf", mini_batch=0)
