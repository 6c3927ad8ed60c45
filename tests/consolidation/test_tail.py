"""The model from its first edited block on gives what the whole model gives."""

from __future__ import annotations

import pytest
import torch

from peft_prune.consolidation.passages import asked
from peft_prune.consolidation.tail import Tail
from peft_prune.editors.target_likelihood import frozen
from peft_prune.spectral import LowRankUpdate
from tests.consolidation.scene import adapted_layers, material


def whole(model, layers, updates, passage) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Logits of one passage alone, with dense updates added to the base's weights."""
    before = {}
    for name, update in updates.items():
        layer = layers[name]
        weight = layer.get_base_layer().weight
        before[name] = weight.data.clone()
        dense = (update.B.double() @ update.A.double()).to(weight.dtype)
        weight.data += dense.T if layer.fan_in_fan_out else dense
    with torch.no_grad():
        found = model.get_base_model()(input_ids=torch.tensor([passage.ids])).logits[0]
    for name, weight in before.items():
        layers[name].get_base_layer().weight.data = weight
    return found[list(passage.read)]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("first", [(0, 2), (1, 2)], ids=["from the first block", "from the second"])
def test_logits_are_those_of_the_whole_model(kind: str, first: tuple[int, ...]) -> None:
    model, layers, updates = adapted_layers(kind, first)
    tail, given = Tail(model, layers), material()
    passages = [given.texts[0], given.edits[0][0][0], given.edits[1][1][1], asked((3, 4, 5), (6, 7))]
    with torch.no_grad():
        for factors, dense in ((updates, updates), (None, {})):
            wanted = torch.cat([whole(model, layers, dense, passage) for passage in passages])
            for _ in range(2):  # the second time from what is kept
                assert torch.allclose(tail.logits(passages, factors), wanted, atol=1e-4)
            states = tail.states(passages, factors)
            assert torch.allclose(tail.logits_of(states), wanted, atol=1e-4)


def test_what_is_kept_is_used_and_forgotten_when_it_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layers, updates = adapted_layers()
    runs = []
    model.get_base_model().transformer.h[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    tail, passages = Tail(model, layers), material().texts
    kept, others = passages[:1], passages[1:]
    with torch.no_grad():
        first = tail.logits(kept, updates)
        again = tail.logits(kept, updates)
        assert len(runs) == 1 and torch.equal(first, again)
        monkeypatch.setattr("peft_prune.consolidation.tail.FRONT_BYTES", 0)
        tail.logits(others, updates)  # takes the place of those before
        tail.logits(kept, updates)
        tail.logits(passages, updates)  # of which one is there
        assert len(runs) == 4
        together = tail.logits(passages, updates)
        torch.testing.assert_close(together[: len(first)], first)
    assert len(runs) == 4


def test_gradients_are_those_of_the_whole_model_and_of_the_factors_alone() -> None:
    model, layers, updates = adapted_layers()
    passage = material().edits[0][0][0]
    tail = Tail(model, layers)
    leaves = {
        name: LowRankUpdate(u.B.clone().requires_grad_(), u.A.clone().requires_grad_()) for name, u in updates.items()
    }
    with frozen(model):
        tail.logits([passage], leaves)[0].logsumexp(-1).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    name = next(iter(updates))
    step = 1e-3
    for place in ((0, 0), (5, 1)):
        values = []
        for sign in (1, -1):
            moved = updates[name].B.clone()
            moved[place] += sign * step
            changed = {**updates, name: LowRankUpdate(moved, updates[name].A)}
            values.append(float(whole(model, layers, changed, passage)[0].double().logsumexp(-1)))
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float(leaves[name].B.grad[place]), rel=0.05, abs=2e-3)


def test_short_and_long_rows_are_passed_apart_where_that_spares_padding() -> None:
    model, layers, updates = adapted_layers()
    tail, short, long = Tail(model, layers), asked((3, 4), (6,)), asked((3, 4, 5, 6, 7, 8, 9, 10), (6,))
    rows = []
    model.get_base_model().transformer.h[2].mlp.register_forward_hook(
        lambda _, args, __: rows.append(args[0].shape[:2])
    )
    passages = [long, short, asked((5, 4), (6,)), asked((7, 4, 3), (6,)), asked((9, 2), (6,))]
    with torch.no_grad():
        wanted = torch.cat([whole(model, layers, updates, passage) for passage in passages])
        rows.clear()
        assert torch.allclose(tail.logits(passages, updates), wanted, atol=1e-4)
        assert [tuple(shape) for shape in rows] == [(4, 3), (1, 8)]
        rows.clear()
        tail.logits([long, long], updates)
        assert [tuple(shape) for shape in rows] == [(2, 8)]
