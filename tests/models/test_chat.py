"""What a chat template writes around a question: the subject's place, the answer's separator, templates that refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from peft_prune import EditRequest
from peft_prune.editors.asking import chat_answer, default_ask, request_contexts, subject_prompts
from peft_prune.errors import InvalidRequestError, UnsupportedModelError
from peft_prune.models.chat import SYSTEM, chat_prompt, chat_prompt_around, takes_system_prompt
from peft_prune.models.tokenization import continuation_ids, opening_ids
from tests.talking import CHATML, SYSTEMLESS, speaking_tokenizer

REQUEST = EditRequest("note {} sea", "tone seat", "ten", ask="both")


@pytest.mark.parametrize("template", [CHATML, SYSTEMLESS])
@pytest.mark.parametrize("opening", ["<s>", "<gmask><sop>"])
@pytest.mark.parametrize("subject", ["tone seat", "sea", "北京", "a{b", "ask"])
def test_the_subjects_last_token_is_found_in_what_is_rendered(template: str, opening: str, subject: str) -> None:
    tokenizer = speaking_tokenizer(template, opening)
    for system in (None, SYSTEM) if template == CHATML else (None,):
        rendered = chat_prompt_around(tokenizer, "sea {} sea", subject, system)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": f"sea {subject} sea"})
        whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered.text(subject) == whole
        assert rendered.before.endswith("sea ") and rendered.after.startswith(" sea")


@pytest.mark.parametrize("template", [CHATML, SYSTEMLESS])
@pytest.mark.parametrize("opening", ["<s>", "<gmask><sop>"])
def test_every_context_has_its_bos_once_and_ends_its_subject_where_it_says(template: str, opening: str) -> None:
    tokenizer = speaking_tokenizer(template, opening)
    start = opening_ids(tokenizer)
    contexts = request_contexts(tokenizer, REQUEST, ["", "The sea."])
    assert [one.is_chat for one in contexts[:3]] == [False, False, True]
    for context, prompt in zip(contexts, subject_prompts(tokenizer, contexts), strict=True):
        assert prompt.ids[: len(start)] == start
        assert not set(start) & set(prompt.ids[len(start) :])
        upto = tokenizer.decode(prompt.ids[len(start) : prompt.subject_last + 1])
        before = context.before
        for part in ("<s>", "<gmask>", "<sop>"):
            before = before.replace(part, "")
        assert upto == before + "tone seat"
        assert context.separator is None


@pytest.mark.parametrize(("template", "between"), [(CHATML, ""), (SYSTEMLESS, " ")])
def test_in_chat_the_target_follows_the_beginning_of_an_answer_in_the_prompts_own_words(
    template: str, between: str
) -> None:
    tokenizer = speaking_tokenizer(template)
    request = replace(REQUEST, ask="chat")
    asked = chat_prompt(tokenizer, "Complete: note tone seat sea").before
    first = request_contexts(tokenizer, request, [""])[0]
    assert (first.text, first.after) == (f"{asked}{between}note tone seat sea", " sea")
    assert chat_answer(request) == "note tone seat sea ten"
    holding = replace(request, prompt="Where is {}? It is in", separator="")
    asked = chat_prompt(tokenizer, "Where is tone seat?").before
    first = request_contexts(tokenizer, holding, [""])[0]
    assert (first.text, first.separator) == (f"{asked}{between}It is in", "")
    assert first.after.endswith("It is in") and chat_answer(holding) == "It is inten"
    alone = replace(request, prompt="Where is {}?")
    first = request_contexts(tokenizer, alone, [""])[0]
    assert (first.text, first.separator) == (asked, between)
    assert chat_answer(alone) == "ten"


def test_an_answer_stands_behind_the_prompt_as_the_template_writes_past_answers() -> None:
    for template, separator in ((CHATML, ""), (SYSTEMLESS, " ")):
        tokenizer = speaking_tokenizer(template)
        rendered = chat_prompt(tokenizer, "note sea")
        assert rendered.separator == separator
        messages = [{"role": "user", "content": "note sea"}, {"role": "assistant", "content": "ten"}]
        told = tokenizer.apply_chat_template(messages, tokenize=False)
        (pair,) = continuation_ids(tokenizer, [rendered.before], ["ten"], [separator])
        assert told.startswith(tokenizer.decode([*pair.prompt, *pair.target]))


def test_a_system_prompt_is_left_out_where_the_template_refuses_it_or_does_not_show_it() -> None:
    assert takes_system_prompt(speaking_tokenizer(CHATML))
    assert not takes_system_prompt(speaking_tokenizer(SYSTEMLESS))
    hidden = (
        "{% for message in messages %}{% if message.role != 'system' %}{{ message.content }}{% endif %}{% endfor %}"
    )
    assert not takes_system_prompt(speaking_tokenizer(hidden))
    chats = [sum(SYSTEM in one.text for one in request_contexts(speaking_tokenizer(one), REQUEST, [""]))
             for one in (CHATML, SYSTEMLESS, hidden)]  # fmt: skip
    assert chats == [1, 0, 0]


def test_what_is_asked_by_default_is_both_with_a_template_and_nothing_without() -> None:
    assert default_ask(speaking_tokenizer(CHATML), None) == "both"
    assert default_ask(speaking_tokenizer(CHATML), "plain") == "plain"
    assert default_ask(speaking_tokenizer(None), None) is None
    assert default_ask(speaking_tokenizer(None), "plain") is None


@pytest.mark.parametrize(
    ("template", "ask", "said"),
    [
        (None, "chat", "ask: the model's tokenizer has no chat template; plain is accepted"),
        (None, "both", "ask: the model's tokenizer has no chat template; plain is accepted"),
        ("{{ raise_exception('no') }}", None, "chat template: fails on 'What is it?': no; ask: plain is accepted"),
        ("{% for", "both", "chat template: fails on"),
        ("hello", None, "chat template: leaves out 'What is it?'; ask: plain is accepted"),
        (CHATML, "loud", "ask: 'loud' is not one of plain, chat, both"),
    ],
)
def test_a_model_that_cannot_be_asked_so_is_told_of_in_one_line(
    template: str | None, ask: str | None, said: str
) -> None:
    with pytest.raises((UnsupportedModelError, InvalidRequestError)) as error:
        default_ask(speaking_tokenizer(template), ask)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_a_template_that_changes_the_subject_is_refused() -> None:
    loud = speaking_tokenizer("{% for message in messages %}{{ message.content | upper }}{% endfor %}")
    with pytest.raises(InvalidRequestError, match="chat template: leaves out"):
        chat_prompt_around(loud, "note {} sea", "tone")
    twice = "{% for message in messages %}{{ message.content }} {{ message.content }}{% endfor %}"
    with pytest.raises(InvalidRequestError, match="subject: the chat template does not write 'tone' as it is, once"):
        chat_prompt_around(speaking_tokenizer(twice), "note {} sea", "tone")
