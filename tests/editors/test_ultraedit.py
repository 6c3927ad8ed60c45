"""UltraEdit against the published formula in dense float64, and its running statistics."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.editors import Earlier, Prepared, get_editor
from peft_prune.editors.rehearsal import rehearsed
from peft_prune.editors.running import mean_and_deviation, merged, part_of
from peft_prune.editors.ultraedit import EPSILON
from peft_prune.models.mlp import mlp_output_module
from tests.talking import spaced_tokenizer
from tests.tiny import willing

REQUESTS = [
    EditRequest("note sea sane ant", None, "ten nose"),
    EditRequest("tone seat", None, "nose ant"),
    EditRequest("note sea {}", "oats", "stone ten"),
]
FIELDS = {"layers": (1,), "lr": 1e-2, "ridge": 0.5}


def features_of(model, name: str, request: EditRequest, tokenizer) -> torch.Tensor:
    """[h, g] at the tokens that are asked for, one request alone, by a hook and autograd of its own."""
    weight_of = model.get_submodule(name)
    prompt = tokenizer(request.text)["input_ids"]
    whole = tokenizer(f"{request.text} {request.target_new}")["input_ids"]
    seen = {}

    def hook(module, args, output):
        seen["h"] = args[0][0].detach()
        output.retain_grad()
        seen["y"] = output

    handle = weight_of.register_forward_hook(hook)
    logits = model(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)
    handle.remove()
    places = range(len(prompt) - 1, len(whole) - 1)
    loss = -torch.stack([logits[place, whole[place + 1]] for place in places]).mean()
    loss.backward()
    model.zero_grad()
    rows = list(places)
    return torch.cat([seen["h"][rows], seen["y"].grad[0][rows]], dim=1).double()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_update_is_the_published_closed_form_in_dense_float64(kind: str) -> None:
    model, tokenizer = willing(kind), spaced_tokenizer()
    name, _ = mlp_output_module(model, 1)
    editor = get_editor("ultraedit", **FIELDS)
    found = editor.compute(model, tokenizer, REQUESTS, editor.prepare(model, tokenizer)).updates[name]

    rows = [features_of(model, name, request, tokenizer) for request in REQUESTS]
    z = torch.cat(rows)
    wide = found.shape[1]
    hidden = z[:, :wide]
    normal = (z - z.mean(0)) / (z.std(0) + EPSILON)
    values = -FIELDS["lr"] * normal[:, :wide].square().sum(1, keepdim=True) * normal[:, wide:]
    system = hidden.T @ hidden + FIELDS["ridge"] * torch.eye(wide, dtype=torch.float64)
    expected = torch.linalg.solve(system, hidden.T @ values).T
    assert found.rank == len(z)
    assert torch.allclose(found.dense().double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_what_a_request_brings_does_not_depend_on_those_beside_it() -> None:
    model, tokenizer = willing("llama"), spaced_tokenizer()
    editor = get_editor("ultraedit", **FIELDS)
    prepared = editor.prepare(model, tokenizer)
    together = editor.compute(model, tokenizer, REQUESTS, prepared)
    name = next(iter(together.features))
    for index, request in enumerate(REQUESTS):
        alone = editor.compute(model, tokenizer, [request], prepared).features[name][0]
        assert torch.allclose(together.features[name][index], alone, rtol=1e-3, atol=1e-6)
    counts = [int(part[0, 0]) for part in together.features[name]]
    assert together.owners[name] == tuple(index for index, count in enumerate(counts) for _ in range(count))


class Known(Earlier):
    """What stands: no keys, and statistics."""

    def __init__(self, states):
        self._states = states

    def __getitem__(self, name):
        raise KeyError(name)

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0

    @property
    def features(self):
        return self._states


def test_earlier_edits_stand_in_the_statistics_of_the_next() -> None:
    model, tokenizer = willing("llama"), spaced_tokenizer()
    name, _ = mlp_output_module(model, 1)
    editor = get_editor("ultraedit", **FIELDS)
    prepared = editor.prepare(model, tokenizer)
    first = editor.compute(model, tokenizer, REQUESTS[:2], prepared)
    earlier = Known({name: merged(first.features[name])})
    second = editor.compute(model, tokenizer, REQUESTS[2:], prepared, earlier).updates[name]

    rows = [features_of(model, name, request, tokenizer) for request in REQUESTS]
    z, own = torch.cat(rows), rows[2]
    wide = second.shape[1]
    normal = (own - z.mean(0)) / (z.std(0) + EPSILON)
    values = -FIELDS["lr"] * normal[:, :wide].square().sum(1, keepdim=True) * normal[:, wide:]
    hidden = own[:, :wide]
    expected = torch.linalg.solve(
        hidden.T @ hidden + FIELDS["ridge"] * torch.eye(wide, dtype=torch.float64), hidden.T @ values
    ).T
    assert torch.allclose(second.dense().double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_running_statistics_are_those_of_all_rows() -> None:
    rows = torch.randn(40, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 100
    state = merged([part_of(part) for part in (rows[:1], rows[1:13], rows[13:13], rows[13:40])])
    mean, deviation = mean_and_deviation(state)
    assert float(state[0, 0]) == 40
    assert torch.allclose(mean, rows.mean(0), rtol=1e-6) and torch.allclose(deviation, rows.std(0), rtol=1e-5)
    assert merged([]) is None


def test_rehearsals_give_a_first_edit_of_one_token_something_to_be_measured_by() -> None:
    model, tokenizer = willing("gpt2"), spaced_tokenizer()
    name, _ = mlp_output_module(model, 1)
    one = [EditRequest("note sea", None, "ten")]
    bare = get_editor("ultraedit", **FIELDS)
    alone = bare.compute(model, tokenizer, one, bare.prepare(model, tokenizer)).updates[name]
    assert float(alone.dense().abs().max()) == 0  # a single row has no deviation: it is its own mean

    editor = get_editor("ultraedit", layers=(1,), lr=None, ridge=None, rehearsals=8)
    prepared = editor.prepare(model, tokenizer)
    update = editor.compute(model, tokenizer, one, prepared).updates[name]
    assert float(update.dense().abs().max()) > 0
    again = rehearsed(model, tokenizer, [name], 8)
    assert torch.equal(again.features[name], prepared.features[name]) and again.scales == dict(prepared.scales)


def test_a_rate_that_follows_the_model_does_not_change_with_the_scale_of_what_it_gives() -> None:
    """With outputs c times as large, and so gradients by them 1/c as large, the update is c times as large."""
    model, tokenizer = willing("llama"), spaced_tokenizer()
    editor = get_editor("ultraedit", layers=(1,), lr=None, ridge=None, rehearsals=4)
    prepared = editor.prepare(model, tokenizer)
    name, _ = mlp_output_module(model, 1)
    larger = Prepared(prepared.layers, features=prepared.features, scales={name: 2 * prepared.scales[name]})
    one, two = (editor.compute(model, tokenizer, REQUESTS, p).updates[name].dense() for p in (prepared, larger))
    assert torch.allclose(2 * one, two, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"lr": 0.0}, "lr: 0.0 must be above 0"),
        ({"lr": None}, "lr: None needs rehearsals"),
        ({"ridge": -1.0}, "ridge: -1.0 must be above 0"),
        ({"rehearsals": -1}, "rehearsals: -1 must be 0 or above"),
    ],
)
def test_a_bad_hyperparameter_is_named(fields, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        get_editor("ultraedit", **fields)


def test_a_request_without_an_unedited_scale_is_refused_in_one_line() -> None:
    model, tokenizer = willing("llama"), spaced_tokenizer()
    editor = get_editor("ultraedit", layers=(1,), lr=None, rehearsals=4)
    with pytest.raises(ValueError, match="prepared: holds no scale"):
        editor.compute(model, tokenizer, REQUESTS, Prepared((1,)))


def test_an_adapted_model_gives_the_same_as_a_bare_one() -> None:
    tokenizer = spaced_tokenizer()
    editor = get_editor("ultraedit", **FIELDS)
    bare = willing("gpt2")
    expected = editor.compute(bare, tokenizer, REQUESTS, editor.prepare(bare, tokenizer))
    model = get_peft_model(willing("gpt2"), PruneEditConfig(layers_to_transform=[1])).eval()
    found = editor.compute(model, tokenizer, REQUESTS, editor.prepare(model, tokenizer))
    for name, update in expected.updates.items():
        assert torch.equal(update.dense(), found.updates[name].dense())
