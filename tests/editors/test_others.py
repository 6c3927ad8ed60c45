"""The prompts of requests about others, and the second moments over them."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch

from peft_prune.builtin import load_builtin_model
from peft_prune.editors import SecondMoments, collect_second_moments, own_moments
from peft_prune.editors.names import NAMES
from peft_prune.editors.others import different_prompts, requests_about_others
from peft_prune.errors import AdapterError
from peft_prune.models.mlp import mlp_output_modules
from peft_prune.requests import EditRequest

REQUESTS = [
    EditRequest("{} plays the", "Napoleon", "drums", relation_id="plays"),
    EditRequest("{} is the capital of", "Paris", "Peru", relation_id="capital"),
    EditRequest("The capital {} lies in", "Oslo", "Peru", relation_id="capital"),
]


@pytest.fixture(scope="module")
def builtin():
    return load_builtin_model()


def prompts_about_others(*given: Any, **chosen: Any) -> list[str]:
    return [one.text for one in requests_about_others(*given, **chosen)]


def test_no_subject_of_an_edit_is_asked_about() -> None:
    found = prompts_about_others(REQUESTS, 40)
    assert len(set(found)) == len(found) > 60
    names = set(NAMES) - {"Napoleon", "Paris"}
    allowed = {one.prompt.replace("{}", name) for one in REQUESTS for name in names}
    assert set(found) <= allowed
    assert found == prompts_about_others(REQUESTS, 40) != prompts_about_others(REQUESTS, 40, seed=1)


def test_subjects_of_requests_with_another_relation_may_be_asked_about() -> None:
    found = prompts_about_others(REQUESTS, 40, of_requests=True)
    assert {"Paris plays the", "Oslo plays the", "Napoleon is the capital of"} <= set(found)
    assert "Oslo is the capital of" not in found and "Paris is the capital of" not in found
    alone = prompts_about_others(REQUESTS[:1], 4, of_requests=True)
    assert len(alone) == 4 and "Napoleon plays the" not in alone


def test_of_many_different_prompts_some_are_drawn() -> None:
    many = [replace(REQUESTS[0], prompt=f"{{}} plays the {number}", subject=str(number)) for number in range(20)]
    found = different_prompts([*many, *many, replace(many[0], prompt="Who?", subject=None)], 5)
    assert len({request.prompt for request in found}) == len(found) == 5
    assert different_prompts(many, 30) == many


def test_names_like_the_subject_are_asked_about_unless_they_are_edited() -> None:
    found = prompts_about_others(REQUESTS[:1], 2, alike=[("Oslo", "Bergen", "Wien", "Rom")], edited=REQUESTS)
    assert found[0] == "Bergen plays the" and len(found) == 3 and "Wien plays the" not in found


def test_every_second_subject_is_asked_about_in_other_words() -> None:
    worded = [("{} is known for the", "what {} plays is the"), *([()] * (len(REQUESTS) - 1))]
    found = prompts_about_others(
        REQUESTS, 4, alike=[("Bergen", "Wien"), *([()] * (len(REQUESTS) - 1))], phrasings=worded
    )
    assert found[:2] == ["Bergen plays the", "Wien is known for the"]
    own = [text for text in found if not text.endswith("is the capital of")][:6]
    assert sum(text.endswith(" plays the") for text in own) >= 3
    assert sum(text.endswith(" is known for the") or text.startswith("what ") for text in own) == 3


def test_a_moment_over_last_tokens_is_that_of_their_keys(builtin) -> None:
    model, tokenizer = builtin
    name = mlp_output_modules(model, [1])[1]
    texts = ["the harbour of Oslo", "Peru", "a long walk along the sea"]
    found = collect_second_moments(model, tokenizer, texts, [name], last=True, batch_size=2, progress=False)
    keys = []
    with torch.no_grad():
        for text in texts:
            states: list[torch.Tensor] = []
            handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args, to=states: to.append(args[0]))
            model(input_ids=torch.tensor([tokenizer(text).input_ids]))
            handle.remove()
            keys.append(states[0][0, -1].double())
    K = torch.stack(keys)
    torch.testing.assert_close(found.moments[name].double(), K.T @ K / 3, rtol=1e-4, atol=1e-6)
    assert found.tokens == 3


def test_own_moments_hold_the_requests_prompts_about_others(builtin, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = builtin
    name = mlp_output_modules(model, [1])[1]
    alike = [("Rome",), (), ("Bergen", "Oslo")]
    # the package shows the function of that name, not its module
    monkeypatch.setattr(import_module("peft_prune.editors.own_texts"), "names_alike", lambda *_, **__: alike)
    quick = {"tokens": 300, "progress": False}
    own, found = (own_moments(model, tokenizer, [name], requests=given, **quick) for given in ((), REQUESTS))
    asked = requests_about_others(REQUESTS, 8, alike=alike)
    texts = [one.text for one in asked]
    assert "Bergen" in texts[-9] and not any("Oslo" in text for text in texts)
    others = collect_second_moments(model, tokenizer, texts, [name], progress=False)
    subjects = sorted({one.prompt.partition("{}")[0] + str(one.subject) for one in asked})
    ends = collect_second_moments(model, tokenizer, subjects, [name], last=True, progress=False)
    assert found.tokens == own.tokens + others.tokens + len(subjects) and found.base == own.base
    expected = 0.7 * (2 / 3 * own.moments[name].double() + 1 / 3 * others.moments[name].double())
    expected += 0.3 * ends.moments[name].double()
    torch.testing.assert_close(found.moments[name].double(), expected, rtol=1e-4, atol=1e-6)
    without = own_moments(model, tokenizer, [name], requests=[EditRequest("Who?", None, "Peru")], **quick)
    assert torch.equal(without.moments[name], own.moments[name])


def test_moments_of_different_bases_are_not_put_together(builtin) -> None:
    model, tokenizer = builtin
    name = mlp_output_modules(model, [1])[1]
    own = collect_second_moments(model, tokenizer, ["plain text"], [name], progress=False)
    assert own.base is not None
    other = SecondMoments(own.moments, own.tokens, own.base[::-1])
    with pytest.raises(AdapterError, match="different base weights"):
        own.mixed(other, 0.5)
