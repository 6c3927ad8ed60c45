"""The training itself: its losses, its order, its bound, and when it ends."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from peft_prune.consolidation import ConsolidationSettings, train
from peft_prune.consolidation.passages import Passage, edit_passages, text_passages
from peft_prune.consolidation.training import _in_rotation, _Training, share_of_rate
from peft_prune.errors import EditFailedError, InvalidRequestError
from tests.consolidation.scene import GENTLE, TEXTS, adapted_layers, material
from tests.consolidation.test_tail import whole
from tests.session.scene import REQUESTS
from tests.talking import spaced_tokenizer


def test_both_losses_are_those_of_a_dense_computation() -> None:
    model, layers, updates = adapted_layers()
    given, seen = material(contexts=0), []
    given = replace(given, neighbors=[replace(given.texts[0], read=(1, 2)), replace(given.texts[1], read=(3,))])
    own = replace(GENTLE, steps=1, edits_per_step=len(REQUESTS), texts_per_step=len(given.texts))
    train(model, layers, updates, updates, given, own, seen.append)
    nll = 0.0
    for ((passage,),) in given.edits:
        log_probs = torch.log_softmax(whole(model, layers, updates, passage).double(), -1)
        nll -= float(log_probs[range(len(passage.labels)), list(passage.labels)].mean()) / len(given.edits)
    assert seen[0].edit_loss == pytest.approx(nll, rel=1e-4)
    for found, texts in ((seen[0].divergence, given.texts), (seen[0].neighbors, given.neighbors)):
        divergences = []
        for text in texts:
            base, now = (torch.log_softmax(whole(model, layers, dense, text).double(), -1) for dense in ({}, updates))
            own_places = (base.exp() * (base - now)).sum(-1).tolist()
            # of neighbors each counts as much as another, however much of it is read
            divergences += [sum(own_places) / len(own_places)] if texts is given.neighbors else own_places
        assert found == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)


def test_every_edit_comes_once_before_any_comes_again() -> None:
    model, layers, updates = adapted_layers()
    given = material()
    work = _Training(model, layers, updates, updates, given, replace(GENTLE, edits_per_step=2))
    batches = work._batches()
    owner = {passage: index for index, edit in enumerate(given.edits) for kind in edit for passage in kind}
    rows = [passage for _ in range(15) for passage in next(batches).edits]
    for start in range(0, 30, 5):
        assert sorted(owner[passage] for passage in rows[start : start + 5]) == [0, 1, 2, 3, 4]
    assert set(rows[:20]) == set(owner)  # the bare prompt twice, and each of two contexts


def test_an_edit_that_lacks_its_margin_is_read_oftener() -> None:
    model, layers, updates = adapted_layers()
    given = material()
    work = _Training(model, layers, updates, updates, given, replace(GENTLE, edits_per_step=5))
    owner = {passage: index for index, edit in enumerate(given.edits) for kind in edit for passage in kind}
    work._behind = [3]
    batches = work._batches()
    rows = [owner[passage] for _ in range(14) for passage in next(batches).edits]
    assert [rows.count(index) for index in range(5)] == [10, 10, 10, 30, 10]


def test_training_is_bit_identical_by_seed_and_leaves_the_adapter_alone() -> None:
    model, layers, updates = adapted_layers()
    before = torch.cat([p.flatten() for p in model.parameters()]).clone()
    short = replace(GENTLE, steps=4, look_every=2)
    one, other = (train(model, layers, updates, updates, material(), short) for _ in range(2))
    another = train(model, layers, updates, updates, material(), replace(short, seed=1))
    for name in updates:
        assert torch.equal(one.factors[name].B, other.factors[name].B)
        assert not torch.equal(one.factors[name].B, another.factors[name].B)
    assert torch.equal(torch.cat([p.flatten() for p in model.parameters()]), before)
    assert all(parameter.requires_grad == ("prune_edit" in name) for name, parameter in model.named_parameters())


def test_neither_norm_nor_condition_number_exceed_what_the_restraint_left() -> None:
    model, layers, updates = adapted_layers()
    hot = replace(GENTLE, learning_rate=0.1, steps=20)
    held = train(model, layers, updates, updates, material(), hot).factors
    free = train(model, layers, updates, updates, material(), replace(hot, bound=False)).factors
    for name, layer in layers.items():
        with layer.base_weight() as weight:
            base = weight.double().clone()
        limit, found, unbound = (one[name].B.double() @ one[name].A.double() for one in (updates, held, free))
        assert torch.linalg.matrix_norm(found, 2) <= torch.linalg.matrix_norm(limit, 2)
        assert bool((torch.linalg.svdvals(found) <= torch.linalg.svdvals(limit) + 1e-6).all())
        assert torch.linalg.cond(base + found) <= 1.001 * torch.linalg.cond(base + limit)
        assert torch.linalg.matrix_norm(unbound, 2) > torch.linalg.matrix_norm(limit, 2)


def test_what_training_goes_on_from_is_first_looked_at_within_the_bound() -> None:
    model, layers, updates = adapted_layers()
    above = {name: replace(update, B=update.B * 3) for name, update in updates.items()}
    own = replace(GENTLE, steps=1, look_every=1, learning_rate=1e-12)
    first = train(model, layers, above, updates, material(), own).seen[0]
    same = train(model, layers, updates, updates, material(), own).seen[0]
    free = train(model, layers, above, updates, material(), replace(own, bound=False)).seen[0]
    assert first.margins == pytest.approx(same.margins, abs=1e-3) and first.held == same.held
    assert free.margins != pytest.approx(same.margins, abs=1e-1)


def test_training_ends_early_where_all_holds_and_retention_stands_still() -> None:
    model, layers, updates = adapted_layers()
    own = replace(GENTLE, bound=False, margin=0.0, still=0.0, steps=200, look_every=10, learning_rate=0.05)
    found = train(model, layers, updates, updates, material(), own)
    looks = [seen.divergence for seen in found.seen]
    still = next(n for n in range(4, len(looks)) if found.seen[n].held == 5 and looks[n] > min(looks[n - 3 : n]))
    assert found.seen[-1].step == math.ceil(found.seen[still].step / 0.6) < 200
    assert found.seen[-1].held == len(REQUESTS)
    assert all(seen.held < len(REQUESTS) or seen.step == 0 for seen in found.seen[:2])


def test_a_loss_that_is_no_number_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layers, updates = adapted_layers()
    with pytest.raises(EditFailedError, match=r"the loss of step \d+ is NaN or Inf, so nothing has changed"):
        train(model, layers, updates, updates, material(), replace(GENTLE, bound=False, learning_rate=1e30))


def test_texts_are_cut_and_texts_without_tokens_are_refused() -> None:
    tokenizer = spaced_tokenizer()
    pieces = text_passages(tokenizer, TEXTS, 4)
    assert max(len(piece.ids) for piece in pieces) == 4
    assert [piece.ids for piece in pieces][:2] == [
        tuple(tokenizer(TEXTS[0])["input_ids"][:4]), tuple(tokenizer(TEXTS[0])["input_ids"][4:8])
    ]  # fmt: skip
    with pytest.raises(InvalidRequestError, match="none of the 2 retention texts has two tokens"):
        text_passages(tokenizer, ["", " "], 4)


def test_contexts_stand_before_the_prompt_and_the_bare_prompt_is_the_first() -> None:
    tokenizer = spaced_tokenizer()
    for request, kinds in zip(REQUESTS, edit_passages(tokenizer, REQUESTS, TEXTS, 3, 0), strict=True):
        bare = tuple(tokenizer(request.text)["input_ids"])
        assert [len(kind) for kind in kinds] == [1, 3]
        passages = [passage for kind in kinds for passage in kind]
        assert passages[0].ids[: len(bare)] == bare and passages[0].read[0] == len(bare) - 1
        for passage in passages:
            text = tokenizer.decode([*passage.ids, passage.labels[-1]])
            assert text.endswith(f"{request.text} {request.target_new}")
        assert any(text.startswith(tokenizer.decode(passages[1].ids)[:3]) for text in TEXTS)


def test_every_kind_of_asking_is_read_as_often_as_the_others() -> None:
    kinds = [[Passage((number, place), (1,), (7,)) for place in range(count)] for number, count in enumerate((1, 3, 8))]
    turns = [next(row) for row in [_in_rotation(kinds, random.Random(0))] for _ in range(24)]
    for start in range(0, 24, 3):
        assert {passage.ids[0] for passage in turns[start : start + 3]} == {0, 1, 2}
    assert all(turns.count(passage) == 1 for passage in kinds[2])


def test_what_is_not_given_follows_from_the_adapter() -> None:
    _, _, updates = adapted_layers()
    own = ConsolidationSettings()
    many, few = own.adapted(updates, 200), own.adapted(updates, 10)
    assert (many.steps, many.texts) == (400, 1067) and (few.steps, few.texts) == (100, 267)
    assert many.beta == few.beta == 0.75 and many.neighbor_beta == few.neighbor_beta == 3.0
    squares = torch.cat([factor.flatten() for update in updates.values() for factor in (update.B, update.A)])
    rms = float(squares.square().mean().sqrt())
    assert many.learning_rate == few.learning_rate == pytest.approx(0.03 * rms, rel=1e-5)
    given = ConsolidationSettings(learning_rate=0.1, beta=7.0, neighbor_beta=2.0, steps=3, texts=5)
    assert given.adapted(updates, 200) == given


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "must be an integer of at least 1"),
        ("text_length", 1, "must be an integer of at least 2"),
        ("beta", -1.0, "must be a finite number above 0"),
        ("neighbor_beta", 0, "must be a finite number above 0"),
        ("learning_rate", float("nan"), "must be a finite number above 0"),
        ("margin", "much", "must be a finite number of at least 0"),
        ("seed", 1.5, "must be an integer of at least 0"),
        ("bound", 1, "must be true or false"),
    ],
)
def test_a_setting_that_is_not_accepted_is_named(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: .* {message}"):
        ConsolidationSettings(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lr: is no setting of consolidation; known are learning_rate, beta"):
        ConsolidationSettings.of({"lr": 1.0})


def test_the_rate_rises_and_falls() -> None:
    rates = [share_of_rate(number, 100) for number in range(1, 101)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0]) and rates[59] == 1.0
    assert rates[79] == pytest.approx(0.55) and rates[99] == pytest.approx(0.1)
