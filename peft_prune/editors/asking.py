"""The texts behind which an edit must hold: the prompt behind its prefixes, and the question in the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ..errors import InvalidRequestError
from ..models.chat import (
    SYSTEM,
    Rendered,
    chat_prompt,
    chat_prompt_around,
    has_chat_template,
    require_chat_template,
    takes_system_prompt,
)
from ..models.joining import joined
from ..requests import EditRequest
from ..requests.asking import BOTH, CHAT, PLAIN, answer_form, question_form, require_ask
from .contexts import with_prefix
from .tokens import TokenizedPrompt, tokenize_around

CHAT_SHARE = 0.5
"""What the contexts in chat weigh together in the key of a request that is asked both ways."""


@dataclass(frozen=True)
class Context:
    """One text that asks for an edit's target.

    Args:
        before: What stands before the subject.
        subject: The subject; None where the request has none, and ``before`` holds all of the text.
        after: What stands behind it.
        separator: What stands between the text and the target; None leaves it to the language.
        is_chat: Whether it is a rendered conversation.
    """

    before: str
    subject: str | None
    after: str
    separator: str | None
    is_chat: bool = False

    @property
    def text(self) -> str:
        """The whole text."""
        return self.before + (self.subject or "") + self.after


def default_ask(tokenizer: PreTrainedTokenizerBase, ask: str | None) -> str | None:
    """How a run asks what does not say it itself: as it is told, or both ways where the model has a chat template.

    Args:
        tokenizer: The model's.
        ask: "plain", "chat" or "both"; None for what fits the model.

    Returns:
        The way; None for a model without a template, whose requests say nothing of it.

    Raises:
        UnsupportedModelError: The model is to be asked in chat, and has no template or one that fails.
        InvalidRequestError: ``ask`` is unknown.
    """
    if ask is not None:
        require_ask(ask)
    if not has_chat_template(tokenizer) and ask in (None, PLAIN):
        return None
    ask = ask or BOTH
    if ask != PLAIN:
        require_chat_template(tokenizer)
    return ask


def settled(requests: Sequence[EditRequest], ask: str | None) -> list[EditRequest]:
    """The requests, each with the way in which it is asked: its own, or the run's, as `default_ask` gives it."""
    return [request if request.ask is not None or ask is None else replace(request, ask=ask) for request in requests]


def asks_in_chat(request: EditRequest) -> bool:
    """Whether a request is asked through the chat template."""
    return request.ask in (CHAT, BOTH)


def asks_plainly(request: EditRequest) -> bool:
    """Whether a request is asked by its prompt as it stands."""
    return request.ask != CHAT


def question_of(request: EditRequest) -> str:
    """The question of a request, with ``{}`` in the subject's place."""
    return request.question or question_form(request.prompt)


def chat_question(tokenizer: PreTrainedTokenizerBase, request: EditRequest, system: str | None = None) -> Context:
    """A request's question in the chat template, ready to be answered.

    Raises:
        InvalidRequestError: The template fails on it.
    """
    return _spoken(tokenizer, request, question_of(request), system)


def request_contexts(
    tokenizer: PreTrainedTokenizerBase, request: EditRequest, prefixes: Sequence[str]
) -> list[Context]:
    """All texts behind which a request is to hold, the one that it is verified by first.

    Plainly these are the prompt behind every prefix. In chat the question without a system prompt, the same with one
    (where the template takes one), and the prompt itself as what the user says, each with the beginning of an answer
    in the prompt's own words, behind which the target follows. A target that has to be the first word of an answer
    costs far more: nobody begins one so, and the model would say nothing else any more.

    Raises:
        InvalidRequestError: The template fails on a question.
    """
    found = _plain(tokenizer, request, prefixes) if asks_plainly(request) else []
    return found + (_chat(tokenizer, request) if asks_in_chat(request) else [])


def subject_prompts(tokenizer: PreTrainedTokenizerBase, contexts: Sequence[Context]) -> list[TokenizedPrompt]:
    """Token ids of each context, with its separator, and where its subject ends.

    Raises:
        InvalidRequestError: It has no subject, or no token covers the subject's end.
    """
    found = []
    for one in contexts:
        if one.subject is None:
            raise InvalidRequestError(f"subject: is missing in {one.text!r:.80}")
        found += tokenize_around(tokenizer, [(one.before, one.after + (one.separator or ""))], one.subject)
    return found


def _plain(tokenizer: PreTrainedTokenizerBase, request: EditRequest, prefixes: Sequence[str]) -> list[Context]:
    found = []
    for prefix in prefixes:
        text = with_prefix(tokenizer, prefix, request.prompt)
        before, _, after = (text, "", "") if request.subject is None else text.partition("{}")
        found.append(Context(before, request.subject, after, request.separator))
    return found


def _chat(tokenizer: PreTrainedTokenizerBase, request: EditRequest) -> list[Context]:
    found = [_begun(tokenizer, request, question_of(request), None)]
    if takes_system_prompt(tokenizer):
        found.append(_begun(tokenizer, request, question_of(request), SYSTEM))
    found.append(_begun(tokenizer, request, request.prompt, None))
    return list(dict.fromkeys(found))


def _begun(tokenizer: PreTrainedTokenizerBase, request: EditRequest, question: str, system: str | None) -> Context:
    """A question in the template with the beginning of its answer; the subject is the last that is named."""
    asked, answer = _spoken(tokenizer, request, question, system), answer_form(request.prompt)
    if not answer:
        return asked
    before, named, after = answer.partition("{}")
    if not named:
        return replace(asked, after=asked.after + (asked.separator or "") + answer, separator=request.separator)
    said = asked.text + (asked.separator or "") + before
    return Context(said, asked.subject, after, request.separator, is_chat=True)


def chat_answer(request: EditRequest) -> str:
    """What a model says in chat that holds an edit: its prompt's own words with the target."""
    begun = answer_form(request.prompt)
    if request.subject is not None:
        begun = begun.replace("{}", request.subject.strip())
    return joined(begun, request.target_new, request.separator) if begun else request.target_new


def _spoken(tokenizer: PreTrainedTokenizerBase, request: EditRequest, question: str, system: str | None) -> Context:
    if request.subject is None:
        whole = chat_prompt(tokenizer, question, system)
        return Context(whole.text(""), None, "", whole.separator, is_chat=True)
    subject = request.subject.strip()
    found: Rendered = chat_prompt_around(tokenizer, question, subject, system)
    return Context(found.before, subject, found.after, found.separator, is_chat=True)


def shares(requests_contexts: Sequence[Sequence[Context]], plain: Sequence[float]) -> list[list[float]]:
    """What each context of each request weighs in its key; the shares of one request add up to 1.

    Args:
        requests_contexts: The contexts of every request.
        plain: Shares of the plain contexts among themselves.
    """
    found = []
    for contexts in requests_contexts:
        chat = sum(context.is_chat for context in contexts)
        if chat == 0:
            found.append(list(plain))
            continue
        of_chat = CHAT_SHARE if chat < len(contexts) else 1.0
        found.append([(1 - of_chat) * share for share in plain[: len(contexts) - chat]] + [of_chat / chat] * chat)
    return found
