"""Other ways to ask for an edit, and the edits' prompts about others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.consolidation import ConsolidationSettings, Material, run
from peft_prune.consolidation.neighbors import neighbor_passages
from peft_prune.consolidation.passages import CHAT_EVERY, CHAT_TOKENS, Passage, answered, chat_passages, edit_passages
from peft_prune.consolidation.phrasings import ROWS, TRIED, lent_phrasings, prompt_in, written_phrasings
from peft_prune.editors.asking import chat_question
from peft_prune.editors.names import NAMES
from peft_prune.models.chat import SYSTEM, takes_system_prompt
from peft_prune.requests import EditRequest
from tests.consolidation.scene import TEXTS, adapted_layers
from tests.session.scene import REQUESTS
from tests.talking import CHATML, spaced_tokenizer, speaking_model, speaking_tokenizer

MESSI = EditRequest("{} is a citizen of", "Lionel Messi", "Peru")


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("3. Lionel Messi holds a passport from Peru.", "{} holds a passport from"),
        ("The home of Lionel Messi is Peru", "The home of {} is"),
        ("Lionel Messi's country is Peru, not Chile.", "{}'s country is"),
        (' 10) "Lionel Messi comes from Peru."', "{} comes from"),
        ("Lionel Messi is a citizen of Peru.", None),  # the request's own
        ("Peru is the home of Lionel Messi.", None),
        ("Messi comes from Peru.", None),
        ("Lionel Messi comes from Chile.", None),
        ("Lionel Messi, Lionel Messi comes from Peru.", None),
        ("Lionel Messi (Peru) won.", None),
        ("Lionel Messi, Peru.", None),
        ("Lionel Messi Peru.", None),
        ("{} Lionel Messi comes from Peru.", None),
        ("", None),
    ],
)
def test_a_line_is_a_prompt_where_the_target_follows_the_subject(line: str, prompt: str | None) -> None:
    assert prompt_in(line, MESSI) == prompt


def test_requests_of_a_relation_lend_each_other_their_prompts() -> None:
    first, second, third = (
        replace(REQUESTS[0], prompt=prompt, relation_id="P1") for prompt in ("a {}", "b {}", "c {}")
    )
    other, without = replace(first, prompt="d {}", relation_id="P2"), replace(first, prompt="e {}", relation_id=None)
    lent = lent_phrasings([first, second, third, other, without, without])
    assert lent == [("b {}", "c {}"), ("a {}", "c {}"), ("a {}", "b {}"), (), (), ()]


def test_a_model_that_cannot_rephrase_gives_none_and_nothing_is_left_changed() -> None:
    model, _, _ = adapted_layers()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert written_phrasings(model, spaced_tokenizer(), REQUESTS) == [() for _ in REQUESTS]
    assert torch.equal(torch.get_rng_state(), state) and not model.training


def test_a_model_that_finds_nothing_for_the_first_requests_is_not_asked_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _, _ = adapted_layers()
    asked, told = [], {"Lionel Messi 5": "Lionel Messi 5 comes from Peru."}

    def drawn(model: Any, tokenizer: Any, prompts: Sequence[str], *_: Any, **__: Any) -> list[str]:
        asked.extend(prompts)
        return [text for prompt in prompts for text in [next((t for n, t in told.items() if n in prompt), "")]]

    monkeypatch.setattr("peft_prune.consolidation.phrasings.drawn_texts", drawn)
    requests = [replace(MESSI, subject=f"Lionel Messi {number}") for number in range(3 * TRIED)]
    found = written_phrasings(model, spaced_tokenizer(), requests)
    assert len(found) == 3 * TRIED and found[5] and len(asked) == ROWS * 3 * TRIED
    told.clear()
    asked.clear()
    assert written_phrasings(model, spaced_tokenizer(), requests) == [()] * (3 * TRIED)
    assert len(asked) == ROWS * TRIED


def test_the_model_is_shown_the_fact_as_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = adapted_layers()
    asked: list[str] = []

    def drawn(model: Any, tokenizer: Any, prompts: Sequence[str], *_: Any, **__: Any) -> list[str]:
        asked.extend(prompts)
        return ["" for _ in prompts]

    monkeypatch.setattr("peft_prune.consolidation.phrasings.drawn_texts", drawn)
    requests = [MESSI, replace(MESSI, separator=": "), EditRequest("{}的首都是", "秘鲁", "利马")]
    written_phrasings(model, spaced_tokenizer(), requests)
    sentences = ["Lionel Messi is a citizen of Peru.", "Lionel Messi is a citizen of: Peru.", "秘鲁的首都是利马."]
    assert [text.splitlines()[1] for text in asked[::3]] == [f"1. {sentence}" for sentence in sentences]


def test_phrasings_stand_beside_the_prompt_bare_and_behind_a_context() -> None:
    tokenizer = spaced_tokenizer()
    phrasings = [("note {} sea", "tea {}"), *(() for _ in REQUESTS[1:])]
    rows = edit_passages(tokenizer, REQUESTS, TEXTS, 1, 0, phrasings)
    assert [[len(kind) for kind in row] for row in rows] == [[1, 1, 4], *([1, 1] for _ in REQUESTS[1:])]
    texts = [tokenizer.decode([*passage.ids, passage.labels[-1]]) for kind in rows[0] for passage in kind]
    first = REQUESTS[0]
    assert texts[0] == f"{first.text} {first.target_new}"
    for place, prompt in ((2, "note {} sea"), (4, "tea {}")):
        end = f"{prompt.replace('{}', first.subject)} {first.target_new}"
        assert texts[place] == end and texts[place + 1].endswith(f" {end}")


def test_what_is_asked_in_chat_is_read_there_with_the_whole_answer() -> None:
    tokenizer = speaking_tokenizer()
    request = replace(REQUESTS[0], ask="both")
    (row,) = edit_passages(tokenizer, [request], [], 0, 0, [("note {} sea",)])
    *_, question, others = row
    assert [len(kind) for kind in row] == [1, 1, 1, 2 + takes_system_prompt(tokenizer)]

    def spoken(passage: Passage) -> tuple[str, str]:
        place = passage.read[0] + 1
        assert passage.ids[place:] == passage.labels[:-1]
        return tokenizer.decode(passage.ids[:place]), tokenizer.decode(passage.labels)

    answer = f"{request.text} {request.target_new}"
    assert spoken(question[0]) == (chat_question(tokenizer, request).text, answer)
    other = replace(request, prompt="note {} sea")
    expected = {
        chat_question(tokenizer, replace(request, question=request.prompt)).text: answer,
        chat_question(tokenizer, other).text: f"{other.text} {request.target_new}",
    }
    if takes_system_prompt(tokenizer):
        expected[chat_question(tokenizer, request, SYSTEM).text] = answer
    assert dict(map(spoken, others)) == expected
    (plain,) = edit_passages(tokenizer, [replace(request, ask="plain")], [], 0, 0)
    assert [len(kind) for kind in plain] == [1]
    (chat,) = edit_passages(tokenizer, [replace(request, ask="chat")], [], 0, 0)
    assert spoken(chat[0][0]) == spoken(question[0])


def test_neighbors_are_the_edits_prompts_about_others_with_the_base_s_own_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _, _ = adapted_layers()
    tokenizer = spaced_tokenizer()
    monkeypatch.setattr(
        "peft_prune.consolidation.neighbors.names_alike",
        lambda model, tokenizer, requests, *_, **__: [("oats net", REQUESTS[0].subject) for _ in requests],
    )
    monkeypatch.setattr("peft_prune.models.halves.computes_in_bfloat16", lambda device: False)
    requests = [replace(request, relation_id=str(number % 2)) for number, request in enumerate(REQUESTS)]
    found = neighbor_passages(model, tokenizer, requests, 4, seed=1)
    again = neighbor_passages(model, tokenizer, requests, 4, seed=1)
    assert [passage.ids for passage in found] == [passage.ids for passage in again]
    allowed = {
        request.prompt.replace("{}", name)
        for request in requests
        for name in (*NAMES, "oats net", *(o.subject for o in requests if o.relation_id != request.relation_id))
    }
    edited = {request.text for request in requests}
    texts = [tokenizer.decode(passage.ids[: passage.read[0] + 1]) for passage in found]
    assert all(request.prompt.replace("{}", "oats net") in texts for request in requests)
    for passage in found:
        start = passage.read[0] + 1
        text = tokenizer.decode(passage.ids[:start])
        assert text in {tokenizer.decode(tokenizer(one)["input_ids"]) for one in allowed - edited}
        assert passage.read == tuple(range(start - 1, len(passage.ids)))
        with torch.no_grad(), model.disable_adapter():
            logits = model(input_ids=torch.tensor([passage.ids])).logits[0]
        assert logits[list(passage.read[:-1])].argmax(-1).tolist() == list(passage.ids[start:])


def test_what_is_asked_in_chat_is_asked_there_about_others_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model = get_peft_model(speaking_model(), PruneEditConfig(layers_to_transform=[1])).eval()
    tokenizer = speaking_tokenizer()
    asked = {ask: [replace(request, ask=ask) for request in REQUESTS] for ask in ("plain", "chat", "both")}
    alike = [("oats net", "sea tea"), *([()] * (len(REQUESTS) - 1))]
    monkeypatch.setattr("peft_prune.consolidation.neighbors.names_alike", lambda *_, **__: alike)
    phrasings = [("note {} sea",), *([()] * (len(REQUESTS) - 1))]
    texts = {
        ask: [
            tokenizer.decode(one.ids[: one.read[0] + 1])
            for one in neighbor_passages(model, tokenizer, requests, 4, phrasings=phrasings)
        ]
        for ask, requests in asked.items()
    }
    mark = chat_question(tokenizer, asked["chat"][0]).text.partition(" ")[0]
    in_chat = {ask: [text for text in own if text.startswith(mark)] for ask, own in texts.items()}
    assert not in_chat["plain"] and in_chat["chat"] == texts["chat"] and len(texts["chat"]) == len(texts["plain"])
    assert [text for text in texts["both"] if text not in in_chat["both"]] == texts["plain"]
    assert in_chat["both"] == [text for number, text in enumerate(texts["chat"]) if number % 4 < 2]
    plainly = neighbor_passages(model, tokenizer, asked["both"], 4, phrasings=phrasings, in_chat=False)
    assert [tokenizer.decode(one.ids[: one.read[0] + 1]) for one in plainly] == texts["plain"]
    first = [text for text in in_chat["both"] if any(name in text for name in ("oats net", "sea tea"))]
    assert any("note " in text.partition(mark)[2] for text in first)  # in other words as well


def test_every_so_many_a_text_is_said_in_chat_and_answered_by_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = get_peft_model(speaking_model(), PruneEditConfig(layers_to_transform=[1])).eval()
    tokenizer = speaking_tokenizer()
    monkeypatch.setattr("peft_prune.models.halves.computes_in_bfloat16", lambda device: False)
    texts = [*TEXTS, *["sea"] * (-len(TEXTS) % CHAT_EVERY), " "]
    found = chat_passages(model, tokenizer, texts)
    assert texts.index(" ") % CHAT_EVERY == 0  # and left out
    said = [replace(REQUESTS[0], question=text, prompt=text, subject=None) for text in TEXTS[::CHAT_EVERY]]
    questions = [tokenizer.decode(passage.ids[: passage.read[0] + 1]) for passage in found]
    assert questions == [chat_question(tokenizer, one).text for one in said]
    for passage in found:
        assert len(passage.read) <= CHAT_TOKENS and passage.read[-1] == len(passage.ids) - 1 and not passage.labels
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([passage.ids])).logits[0]
        assert logits[list(passage.read[:-1])].argmax(-1).tolist() == list(passage.ids[passage.read[0] + 1 :])


@pytest.mark.parametrize("keep_chat", [False, True])
def test_what_is_said_in_chat_is_kept_where_that_is_asked_for(keep_chat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def given(*of: Any) -> None:
        read.append(of[4])
        raise Enough

    read: list[Material] = []
    monkeypatch.setattr(run, "train", given)
    model = get_peft_model(speaking_model(), PruneEditConfig(layers_to_transform=[1])).eval()
    tokenizer = speaking_tokenizer()
    requests = [replace(request, ask="both") for request in REQUESTS]
    settings = ConsolidationSettings(steps=1, texts=6, phrasings=0, bfloat16=False, keep_chat=keep_chat)
    with pytest.raises(Enough):
        run.consolidate(model, tokenizer, requests, settings, TEXTS)
    mark = chat_question(tokenizer, replace(requests[0], question="{} sea")).text.partition("sane")[0]
    (material,) = read
    for own in ([*material.texts, *material.probe], material.neighbors):
        said = [tokenizer.decode(passage.ids) for passage in own]
        assert any(text.startswith(mark) for text in said) == keep_chat
        assert not all(text.startswith(mark) for text in said)


def test_what_does_not_fit_the_model_is_not_answered() -> None:
    model = get_peft_model(speaking_model(), PruneEditConfig(layers_to_transform=[1])).eval()
    tokenizer = speaking_tokenizer()
    assert len(answered(model, tokenizer, ["sea", "sea " * 2000, "ten"], 3)) == 2
    assert answered(model, tokenizer, ["sea " * 2000], 3) == answered(model, tokenizer, [], 3) == []


def test_what_the_template_refuses_is_left_out() -> None:
    model = get_peft_model(speaking_model(), PruneEditConfig(layers_to_transform=[1])).eval()
    tokenizer = speaking_tokenizer(
        "{% if 'ten' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + CHATML
    )
    assert len(chat_passages(model, tokenizer, ["ten", *["sea"] * 7])) == 1
