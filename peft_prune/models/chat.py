"""What a chat template writes around a question, and what it puts before the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..errors import InvalidRequestError, UnsupportedModelError

SYSTEM = "You are a helpful assistant."
"""The system prompt of the contexts that have one of their own."""

NO_TEMPLATE = "the model's tokenizer has no chat template; plain is accepted"

_MARKS = range(0xE000, 0xF900)
"""Of these characters, which belong to no script, one stands for a text whose place in what is rendered is sought."""

_REFUSED = (TemplateError, ValueError, TypeError, LookupError, AttributeError)
"""What a template raises for a conversation that it does not take."""


@dataclass(frozen=True)
class Rendered:
    """A question as a chat template writes it.

    Args:
        before: What stands before the subject, or the whole prompt where no subject was sought.
        after: What stands behind the subject, up to the place where the answer begins.
        separator: What the template puts between the prompt and an answer.
    """

    before: str
    after: str
    separator: str

    def text(self, subject: str) -> str:
        """The prompt with the subject in its place."""
        return self.before + subject + self.after


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model is spoken to through a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Ask the template one question.

    Raises:
        UnsupportedModelError: There is no template, or it renders no question.
    """
    if not has_chat_template(tokenizer):
        raise UnsupportedModelError(f"ask: {NO_TEMPLATE}")
    try:
        chat_prompt(tokenizer, "What is it?")
    except InvalidRequestError as error:
        raise UnsupportedModelError(f"{error}; ask: plain is accepted") from None


def takes_system_prompt(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template renders a system prompt, and so that it is seen; some refuse one, or leave it out."""
    try:
        return SYSTEM in chat_prompt(tokenizer, "What is it?", SYSTEM).before
    except InvalidRequestError:
        return False


def chat_prompt(tokenizer: PreTrainedTokenizerBase, question: str, system: str | None = None) -> Rendered:
    """A question as the template writes it for an answer to follow; ``before`` holds all of it.

    Raises:
        InvalidRequestError: The template fails on it.
    """
    text = _rendered(tokenizer, _conversation(question, system))
    return Rendered(text, "", _separator(tokenizer, question, system, text))


def chat_prompt_around(
    tokenizer: PreTrainedTokenizerBase, question: str, subject: str, system: str | None = None
) -> Rendered:
    """The same of a question with ``{}`` in the subject's place, which is found again in what is rendered.

    Raises:
        InvalidRequestError: The template fails, or writes the subject otherwise than it is.
    """
    asked = question.replace("{}", subject)
    text = _rendered(tokenizer, _conversation(asked, system))
    mark = _unused(question + text)
    marked = _rendered(tokenizer, _conversation(question.replace("{}", mark), system))
    before, found, after = marked.partition(mark)
    if not found or mark in after or before + subject + after != text:
        raise InvalidRequestError(f"subject: the chat template does not write {subject!r} as it is, once")
    return Rendered(before, after, _separator(tokenizer, asked, system, text))


def _conversation(question: str, system: str | None, answer: str | None = None) -> list[dict[str, str]]:
    turns = [("system", system), ("user", question), ("assistant", answer)]
    return [{"role": role, "content": content} for role, content in turns if content is not None]


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], *, asks: bool = True) -> str:
    if not has_chat_template(tokenizer):
        raise InvalidRequestError(f"ask: {NO_TEMPLATE}")
    try:
        found: Any = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=asks)
    except _REFUSED as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise InvalidRequestError(f"chat template: fails on {turns[-1]['content']!r:.80}: {why:.200}") from None
    if turns[-1]["content"].strip() not in found:
        raise InvalidRequestError(f"chat template: leaves out {turns[-1]['content']!r:.80}")
    return str(found)


def _separator(tokenizer: PreTrainedTokenizerBase, question: str, system: str | None, prompt: str) -> str:
    """White space that the template puts between the prompt and an answer, as its own past answers show it."""
    mark = _unused(prompt + question)
    try:
        told = _rendered(tokenizer, _conversation(question, system, mark), asks=False)
    except InvalidRequestError:
        return ""
    place = told.find(mark)
    between = told[len(prompt) : place] if told.startswith(prompt) and place >= 0 else ""
    return between if between.isspace() else ""


def _unused(text: str) -> str:
    return next(chr(mark) for mark in _MARKS if chr(mark) not in text)
