"""General abilities as tasks: read from files, answered by free greedy generation, scored item by item."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InvalidRequestError
from ..models.chat import chat_prompt, require_chat_template
from ..models.generation import greedy_answers
from ..models.inference import Progress, max_positions
from ..models.joining import asked as separated
from ..models.joining import joined
from ..models.tokenization import continuation_ids, prompt_ids
from ..requests import read_records, read_text
from ..requests.asking import CHAT, PLAIN
from .abilities import final_number, whole_answer
from .answers import ROUGE, exactly_matches, has_label, rouge_scores
from .bootstrap import SHARE
from .estimates import Mean, Proportion

ABILITY_ASKS = (PLAIN, CHAT)
"""How the items of an ability can be asked."""


def require_ability_ask(ask: str, name: str = "ask") -> None:
    """Raise ValueError where items cannot be asked so."""
    if ask not in ABILITY_ASKS:
        raise ValueError(f"{name}: {ask!r} is not one of {', '.join(ABILITY_ASKS)}")


@dataclass(frozen=True)
class AbilityItem:
    """A prompt that ends where the answer begins, and every answer that counts as right; none is empty."""

    prompt: str
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise InvalidRequestError(f"prompt: {self.prompt!r} must be a non-empty string")
        if not self.answers or not all(isinstance(one, str) and one.strip() for one in self.answers):
            raise InvalidRequestError(f"answer: {self.answers!r} must be a non-empty string, or a list of them")


@dataclass(frozen=True)
class Ability:
    """One general ability.

    Args:
        name: "reasoning", "summarization", "question_answering", "inference", or any other.
        items: What is asked.
        metrics: One of ("solve_rate",), ("rouge1", "rouge2", "rougeL"), ("exact_match",), ("accuracy",), ("match",).
        stop: Text that ends the generated answer.
        max_new_tokens: Most tokens generated for an item; by default as many as the longest right answer has, and 8
            more.
        ask: "plain", or "chat" for items that are asked through the model's chat template, by which a model that is
            tuned for it answers tasks that it cannot go on with plainly.
    """

    name: str
    items: tuple[AbilityItem, ...]
    metrics: tuple[str, ...]
    stop: str | None = "\n"
    max_new_tokens: int | None = None
    ask: str = PLAIN

    def __post_init__(self) -> None:
        require_ability_ask(self.ask)
        if self.metrics != ROUGE and (len(self.metrics) != 1 or self.metrics[0] not in SCORERS):
            raise ValueError(f"metrics: {self.metrics} is not one of {', '.join(SCORERS)}, or {ROUGE}")
        if not self.items:
            raise ValueError(f"items: the ability {self.name!r} has none")


def load_ability(path: str | Path, *, limit: int | None = None, shots: int = 0, ask: str = PLAIN) -> Ability:
    """Read an ability from a file; its fields, not its name, tell which one.

    * ``question``, ``answer`` with a number behind ``####``: reasoning as in GSM8K (Cobbe et al. 2021), solve rate;
    * ``dialogue``, ``summary``: summarization as in SAMSum (Gliwa et al. 2019), ROUGE;
    * ``question``, ``answer`` as a list: open-domain question answering as in Natural Questions (Kwiatkowski et al.
      2019), exact match against any of the answers;
    * a TSV with ``sentence1``, ``sentence2``, ``label``: natural-language inference as in RTE (Wang et al. 2019),
      accuracy of the label;
    * ``prompt``, ``answer``: any other ability, the whole answer after normalisation.

    Args:
        path: A JSON list, JSONL or TSV file.
        limit: Use this many items, taken evenly over the file.
        shots: Put so many solved items before each prompt; they are the file's last ones and are not asked themselves.
        ask: "plain", or "chat" for the model's chat template.

    Raises:
        InvalidRequestError: The file is missing, unreadable or empty, or a record is malformed (which, and which
            field).
        ValueError: ``limit`` is below 1, ``shots`` leaves no item, or ``ask`` is neither of the two.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} must be at least 1")
    records = _tsv(Path(path)) if Path(path).suffix.lower() == ".tsv" else read_records(path)
    form = _form(path, records[0])
    items = []
    for index, record in enumerate(records):
        try:
            items.append(form.read(record))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path}: record {index}: {error}") from None
    if not 0 <= shots < len(items):
        raise ValueError(f"shots: {shots} must be at least 0 and leave one of the {len(items)} items")
    asked, solved = items[: len(items) - shots], items[len(items) - shots :]
    if limit is not None and limit < len(asked):
        asked = [asked[index * len(asked) // limit] for index in range(limit)]
    opening = "".join(f"{joined(one.prompt, one.answers[0])}\n\n" for one in solved)
    asked = [replace(item, prompt=opening + item.prompt) for item in asked]
    return Ability(form.name, tuple(asked), form.metrics, form.stop, form.max_new_tokens, ask)


def ability_outcomes(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    ability: Ability,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """What each item scores, in [0, 1], by the metric's name.

    An item whose prompt and right answer do not fit the model's positions is left out with a warning that counts them;
    which ones depends on the tokenizer and the positions alone, so a base and its edited model are asked the same.

    Raises:
        InvalidRequestError: No item fits the model, or its chat template fails on one.
        UnsupportedModelError: Items are to be asked in chat, and the tokenizer has no chat template.
    """
    items, limits = _fitting(model, tokenizer, _asked(tokenizer, ability))
    answers = greedy_answers(
        model,
        tokenizer,
        [item.prompt for item in items],
        max_new_tokens=limits,
        stop=ability.stop,
        batch_size=batch_size,
        progress=progress,
    )
    references = [item.answers for item in items]
    if ability.metrics == ROUGE:
        return rouge_scores(answers, references)
    (metric,) = ability.metrics
    score = SCORERS[metric]
    return {metric: [float(score(text, right)) for text, right in zip(answers, references, strict=True)]}


def measure_ability(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    ability: Ability,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> dict[str, Proportion | Mean]:
    """The figures of an ability by the metric's name, with n and 95 % interval; see :func:`ability_outcomes`."""
    found = ability_outcomes(model, tokenizer, ability, batch_size=batch_size, progress=progress)
    return {
        metric: Mean.of(values, SHARE) if metric in ROUGE else Proportion.of(value == 1.0 for value in values)
        for metric, values in found.items()
    }


def _solves(text: str, references: Sequence[str]) -> bool:
    number = final_number(text)
    return number is not None and number in {final_number(reference) for reference in references}


def _matches(text: str, references: Sequence[str]) -> bool:
    return whole_answer(text) in {whole_answer(reference) for reference in references}


def _names_label(text: str, references: Sequence[str]) -> bool:
    return any(has_label(text, label) for label in references)


SCORERS: Mapping[str, Callable[[str, Sequence[str]], bool]] = {
    "solve_rate": _solves,
    "exact_match": exactly_matches,
    "accuracy": _names_label,
    "match": _matches,
}
"""Whether a generated text counts, by the metric's name."""


def require_askable(tokenizer: PreTrainedTokenizerBase, abilities: Iterable[Ability]) -> None:
    """Raise UnsupportedModelError where one is asked in chat and the tokenizer has no template that renders it."""
    if any(ability.ask == CHAT for ability in abilities):
        require_chat_template(tokenizer)


def _asked(tokenizer: PreTrainedTokenizerBase, ability: Ability) -> Ability:
    """The ability with its prompts as they are put to the model."""
    if ability.ask == PLAIN:
        return ability
    require_askable(tokenizer, [ability])
    rendered = [chat_prompt(tokenizer, item.prompt) for item in ability.items]
    # a model writes what its template puts before an answer, and a line break there would end it
    prompts = [separated(one.before, one.separator) for one in rendered]
    items = [replace(item, prompt=prompt) for item, prompt in zip(ability.items, prompts, strict=True)]
    return replace(ability, items=tuple(items))


def _fitting(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, ability: Ability
) -> tuple[list[AbilityItem], list[int]]:
    """The items that fit the model, and for each the most tokens that are generated."""
    needed = _answer_lengths(tokenizer, ability.items)
    room = ability.max_new_tokens or max(needed) + 8
    positions = max_positions(model)
    if positions is None:
        return list(ability.items), [room] * len(needed)
    free = [positions - len(ids) for ids in prompt_ids(tokenizer, [item.prompt for item in ability.items])]
    kept = [index for index, own in enumerate(free) if own >= min(needed[index], room) and own > 0]
    if not kept:
        raise InvalidRequestError(
            f"{ability.name}: none of {len(needed)} items fits the model's {positions} positions with its answer"
        )
    if len(kept) < len(needed):
        warnings.warn(
            f"{ability.name}: {len(needed) - len(kept)} of {len(needed)} items do not fit the model's {positions} "
            "positions and are left out"
        )
    return [ability.items[index] for index in kept], [min(room, free[index]) for index in kept]


def _answer_lengths(tokenizer: PreTrainedTokenizerBase, items: Sequence[AbilityItem]) -> list[int]:
    """Tokens of the longest right answer of each item."""
    pairs = [(item.prompt, one) for item in items for one in item.answers]
    found = continuation_ids(tokenizer, [prompt for prompt, _ in pairs], [one for _, one in pairs])
    lengths = iter(len(pair.target) for pair in found)
    return [max(next(lengths) for _ in item.answers) for item in items]


@dataclass(frozen=True)
class _Form:
    """One form of file: the fields that tell it, and how a record becomes an item."""

    name: str
    fields: tuple[str, ...]
    metrics: tuple[str, ...]
    read: Callable[[Any], AbilityItem]
    stop: str | None = "\n"
    max_new_tokens: int | None = None


def _text(record: Any, field: str) -> str:
    if not isinstance(record, Mapping):
        raise InvalidRequestError(f"must be an object, is {type(record).__name__}")
    if field not in record:
        raise InvalidRequestError(f"{field}: is missing")
    value = record[field]
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequestError(f"{field}: {value!r} must be a non-empty string")
    return value.strip()


def _reasoning(record: Any) -> AbilityItem:
    answer = _text(record, "answer")
    if "####" not in answer or final_number(answer) is None:
        raise InvalidRequestError(f"answer: {answer!r} must hold a number behind ####")
    return AbilityItem(f"Question: {_text(record, 'question')}\nAnswer:", (answer,))


def _summarization(record: Any) -> AbilityItem:
    dialogue = _text(record, "dialogue").replace("\r\n", "\n")
    return AbilityItem(f"Dialogue:\n{dialogue}\nSummary:", (_text(record, "summary"),))


def _question(record: Any) -> AbilityItem:
    question, answers = _text(record, "question"), record.get("answer")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise InvalidRequestError(f"answer: {answers!r} must be a non-empty list of strings")
    return AbilityItem(f"Question: {question}\nAnswer:", tuple(answers))


LABELS = ("entailment", "not_entailment")


def _inference(record: Any) -> AbilityItem:
    premise, hypothesis, label = (_text(record, field) for field in ("sentence1", "sentence2", "label"))
    if label not in LABELS:
        raise InvalidRequestError(f"label: {label!r} is not one of {', '.join(LABELS)}")
    task = "Say whether the hypothesis follows from the premise: entailment or not_entailment."
    return AbilityItem(f"{task}\nPremise: {premise}\nHypothesis: {hypothesis}\nLabel:", (label,))


def _plain(record: Any) -> AbilityItem:
    return AbilityItem(_text(record, "prompt"), (_text(record, "answer"),))


_FORMS = (
    _Form("inference", ("sentence1", "sentence2", "label"), ("accuracy",), _inference, max_new_tokens=8),
    _Form("summarization", ("dialogue", "summary"), ROUGE, _summarization, max_new_tokens=96),
    _Form("question_answering", ("question", "answer"), ("exact_match",), _question, max_new_tokens=24),
    _Form("other", ("prompt", "answer"), ("match",), _plain),
)
_REASONING = _Form("reasoning", ("question", "answer"), ("solve_rate",), _reasoning, "\n\n", 320)


def _form(path: str | Path, record: Any) -> _Form:
    fields = set(record) if isinstance(record, Mapping) else set()
    for form in _FORMS:
        if fields >= set(form.fields):
            text = form.name == "question_answering" and isinstance(record["answer"], str)
            return _REASONING if text else form
    raise InvalidRequestError(
        f"{path}: record 0: has none of the forms (question, answer), (dialogue, summary), "
        "(sentence1, sentence2, label), (prompt, answer)"
    )


def _tsv(path: Path) -> list[dict[str, str]]:
    text = read_text(path)
    # sentences hold quotation marks of their own
    lines = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows:
        raise InvalidRequestError(f"{path}: holds no records")
    return rows
