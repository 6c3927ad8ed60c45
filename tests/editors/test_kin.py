"""Names like those of the edited subjects, as a model writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from peft_prune.editors.kin import names_alike, names_in
from peft_prune.requests import EditRequest
from tests.talking import spaced_tokenizer
from tests.tiny import willing


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (" Lancia Fusti\n3. Lancia Bonem.\n4. Lancia Ferra", ("Lancia Fusti", "Lancia Bonem")),
        (" Bell Labs\n\nNote that the prefix\n3. Hubelabs\n", ("Bell Labs",)),
        (" Joe, who has taken a drink\n3. The whole of Joe's life is one list\n4. Ann\n", ("Ann",)),
        (' "Ulf"\n3) Olaf\n4. the Lancia Ypsilon\n5. Olaf\n', ("Olaf",)),
        (" one name alone", ("one name alone",)),
        (" Lancia\n3. ypsilon\n4. Lancia Ypsilon II\n5. Fiat\n", ("Fiat",)),
        ("", ()),
    ],
)
def test_a_list_gives_its_names_and_nothing_else(text: str, names: tuple[str, ...]) -> None:
    assert names_in(text, "Lancia Ypsilon") == names


def test_each_subject_opens_a_list_and_a_request_without_one_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def drawn(model: Any, tokenizer: Any, prompts: Sequence[str], *_: Any, **__: Any) -> list[str]:
        asked.extend(prompts)
        return [f" {number}th\n3. " for number, _ in enumerate(prompts)]

    monkeypatch.setattr("peft_prune.editors.kin.drawn_texts", drawn)
    requests = [EditRequest("{} is", " Oslo", "x"), EditRequest("Who?", None, "x"), EditRequest("{} is", "Rome", "x")]
    assert names_alike(willing("gpt2"), spaced_tokenizer(), requests) == [("0th",), (), ("1th",)]
    assert [text.splitlines()[1:] for text in asked] == [["1. Oslo", "2."], ["1. Rome", "2."]]


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model, state = willing("gpt2"), torch.get_rng_state()
    found = names_alike(model, spaced_tokenizer(), [EditRequest("{} is", "tone seat", "ten")])
    assert found == names_alike(model, spaced_tokenizer(), [EditRequest("{} is", "tone seat", "ten")])
    assert torch.equal(torch.get_rng_state(), state) and not model.training
