"""General abilities: tasks with one right answer, solved by free greedy generation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InvalidRequestError
from ..models.answers import normalized
from ..models.generation import greedy_answers
from ..models.inference import Progress
from ..models.tokenization import text_ids
from .estimates import Proportion

AnswerExtractor = Callable[[str], "str | None"]

# a hyphen between two numbers is no sign
_NUMBER = re.compile(r"(?:(?<!\w)[-−])?\d[\d,]*(?:\.\d+)?")


def whole_answer(text: str) -> str | None:
    """All of ``text``, with outer space off, inner space single and case folded; None for an empty one."""
    return normalized(text) or None


def final_number(text: str) -> str | None:
    """The number behind the first ``####`` as in GSM8K (Cobbe et al. 2021), else the last number; None where there is
    none.

    A model that goes on to ask and answer a question of its own is judged by its first answer.
    """
    marked = [found[0] for part in text.split("####")[1:] if (found := _NUMBER.findall(part))]
    numbers = marked[:1] or _NUMBER.findall(text)[-1:]
    if not numbers:
        return None
    value = Decimal(numbers[0].replace(",", "").replace("−", "-")).normalize()
    return format(value if value else Decimal(0), "f")


EXTRACTORS: Mapping[str, AnswerExtractor] = MappingProxyType(
    {
        "reasoning": final_number,
        "summarization": whole_answer,
        "question_answering": whole_answer,
        "inference": whole_answer,
    }
)
"""What of a generated text is the answer, by the ability's name."""

STOPS: Mapping[str, str] = MappingProxyType({"reasoning": "\n\n"})
"""Text that ends a generated answer, by the ability's name, where that is not a line break: solutions have lines."""


def score_ability(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Mapping[str, str]],
    *,
    extract: AnswerExtractor = whole_answer,
    stop: str | None = "\n",
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Proportion:
    """The share of items whose extracted answer equals the extracted reference exactly.

    Args:
        model: A causal language model of transformers, or a PEFT model of one.
        tokenizer: Its tokenizer.
        items: Objects with ``prompt`` and ``answer``.
        extract: Takes the answer out of a text, in the form that is compared; see :data:`EXTRACTORS`.
        stop: Text that ends the generated answer.
        max_new_tokens: Most tokens generated for one item; by default as many as the longest reference has, and 8 more.
        batch_size: Most prompts in one batch.
        progress: Called with the number of prompts done and their total.

    Raises:
        InvalidRequestError: An item lacks a field, a field is empty, or no answer can be extracted from a reference.
    """
    references = [_reference(index, item, extract) for index, item in enumerate(items)]
    generated = greedy_answers(
        model,
        tokenizer,
        [item["prompt"] for item in items],
        max_new_tokens=max_new_tokens or _longest_reference(tokenizer, items) + 8,
        stop=stop,
        batch_size=batch_size,
        progress=progress,
    )
    return Proportion.of(extract(text) == right for text, right in zip(generated, references, strict=True))


def _longest_reference(tokenizer: PreTrainedTokenizerBase, items: Sequence[Mapping[str, str]]) -> int:
    return max((len(ids) for ids in text_ids(tokenizer, [item["answer"] for item in items])), default=0)


def _reference(index: int, item: Mapping[str, str], extract: AnswerExtractor) -> str:
    for field in ("prompt", "answer"):
        value = item.get(field)
        if not isinstance(value, str) or not value.strip():
            raise InvalidRequestError(f"item {index}: {field}: {value!r} must be a non-empty string")
    reference = extract(item["answer"])
    if reference is None:
        raise InvalidRequestError(f"item {index}: answer: {item['answer']!r} holds no answer of the expected form")
    return reference
