"""Texts that the model itself writes: ordinary text where nobody has brought any, seeded and so the same every time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from ..errors import InvalidRequestError
from ..models.generation import before_end, decoded, drawing, end_ids_of
from ..models.inference import input_device, max_positions, padded
from ..models.tokenization import text_ids
from ..moving import moving_bar
from ..processes import same
from ..requests import EditRequest
from .kin import names_alike
from .others import different_prompts, requests_about_others
from .second_moment import SecondMoments, collect_second_moments

OWN_TOKENS = 20_000
"""Tokens of own text that second moments are taken over where no other number is given."""

OWN_LENGTH = 128
"""Tokens of one text, where the model does not end it before."""

OWN_BATCH = 64
"""Most texts written together; another number gives other texts."""

LARGEST_MASS = 0.95
"""Tokens are drawn among the most probable ones that together have this probability (Holtzman et al. 2020, top-p)."""

OTHERS = 8
"""Subjects that each request's prompt is read about beside the own texts."""

OTHERS_SHARE = 1 / 3
"""Weight of the requests' prompts about others against the own texts, however few they are."""

SUBJECTS_SHARE = 0.3
"""Weight of the keys at the last tokens of those others, where an edit of such a prompt would be heard first."""

MOST_PROMPTS = 250
"""Different prompts of the requests that are read about others."""

OPENINGS = (
    *("The", "A", "In", "It", "He", "She", "They", "We", "I", "You", "This", "When", "If", "What", "How", "Why"),
    *("There", "For", "At", "On", "After", "Before", "Because", "Although", "One", "Two", "Many", "Some", "Most"),
    *("According to", "The first", "The most", "In the", "As a", "To", "From", "My", "His", "Her", "Our", "Is", "Can"),
    *("People", "Scientists", "Today", "Once upon a time", "The city", "The country", "The company", "The book"),
    *("The president", "The team", "The film", "A new", "During", "Since", "While", "By", "With", "However", "Please"),
    *("Question:", "Step 1:", "Dear", "Here is", "Let"),
)
"""How texts begin: no names, so that the model fills in those that it knows."""


def own_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int = OWN_TOKENS,
    *,
    seed: int = 0,
    length: int = OWN_LENGTH,
    progress: bool = True,
) -> list[str]:
    """Texts of together at least so many tokens, drawn from the model by its own probabilities.

    Each begins with one of `OPENINGS` in turn, and ends where the model ends it or after ``length`` tokens. The model,
    the tokenizer and torch's random state are left as they were.

    Args:
        model: The unedited model.
        tokenizer: Its tokenizer.
        tokens: Least number of tokens in all.
        seed: Of the drawing.
        length: Most tokens of a text.
        progress: Show a bar.

    Raises:
        ValueError: ``tokens`` or ``length`` is below 1.
        InvalidRequestError: No opening gives a token, or the model has no room for a text or writes none.
    """
    for name, value in (("tokens", tokens), ("length", length)):
        if value < 1:
            raise ValueError(f"{name}: {value} must be at least 1")
    found: list[str] = []
    count = 0
    device = input_device(model)
    most = min(length, max_positions(model) or length)
    rows = _openings(tokenizer, max(1, most // 2))
    ends = end_ids_of(model, tokenizer)
    with (
        drawing(model, ends, seed, LARGEST_MASS) as drawn,
        moving_bar(total=tokens, desc="Own texts", unit=" tokens", disable=not progress, leave=False) as bar,
    ):
        while count < tokens:
            missing = math.ceil((tokens - count) / most)
            begun = [next(rows) for _ in range(min(OWN_BATCH, missing))]
            before = count
            written = [decoded(tokenizer, ids).strip() for ids in _continued(model, begun, most, device, ends, drawn)]
            written = [text for text in written if text]
            # counted as they are read, which need not be in the tokens that they were written in
            for text, ids in zip(written, text_ids(tokenizer, written), strict=True):
                if count < tokens:
                    found.append(text)
                    count += len(ids)
                    bar.update(len(ids))
            if count == before:
                raise InvalidRequestError("texts: the model writes none of its own, it ends every one at once")
    return found


def own_moments(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    modules: Sequence[str],
    *,
    tokens: int = OWN_TOKENS,
    seed: int = 0,
    progress: bool = True,
    requests: Sequence[EditRequest] = (),
) -> SecondMoments:
    """Second moments of the inputs of ``modules`` over `own_texts`, for those who have no texts at hand.

    Args:
        model: The unedited model.
        tokenizer: Its tokenizer.
        modules: Names in the base model.
        tokens: Least number of tokens of own text.
        seed: Of the drawing.
        progress: Show a bar.
        requests: What will be edited; see `with_others`.

    Raises:
        ValueError: ``tokens`` is below 1.
        InvalidRequestError: The model can write no text.
    """
    # another process's device may draw another token
    texts = same("own texts", lambda: own_texts(model, tokenizer, tokens, seed=seed, progress=progress))
    found = collect_second_moments(model, tokenizer, texts, modules, progress=progress)
    return with_others(found, model, tokenizer, modules, requests, progress=progress)


def with_others(
    own: SecondMoments,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    modules: Sequence[str],
    requests: Sequence[EditRequest],
    *,
    progress: bool = True,
) -> SecondMoments:
    """Second moments over own texts, mixed with those over the requests' prompts about others.

    What a model writes by itself hardly holds the prompts that edits are asked by, and an edit is then free to answer
    them for every subject; these make them part of what must stay. Each prompt is read about at most `OTHERS` names
    like its subject that the model writes, and about `OTHERS` well-known ones. What an edit changes in the answer about
    another subject it does nearly all at that subject's last token, since it is written there for its own; so the keys
    at these tokens have a weight of their own, `SUBJECTS_SHARE`.

    Args:
        own: Over own texts.
        model: The unedited model.
        tokenizer: Its tokenizer.
        modules: Names in the base model.
        requests: What will be edited. Without subjects in them the moments are the own ones.
        progress: Show bars.
    """
    asked = different_prompts(requests, MOST_PROMPTS)
    if not asked:
        return own
    alike = same("names", lambda: names_alike(model, tokenizer, asked, progress=progress))
    others = requests_about_others(asked, OTHERS, alike=alike, edited=requests)
    texts = [one.text for one in others]
    found = own.mixed(collect_second_moments(model, tokenizer, texts, modules, progress=progress), OTHERS_SHARE)
    # what stands behind a subject changes nothing before it
    subjects = list(dict.fromkeys(f"{one.prompt.partition('{}')[0]}{one.subject}" for one in others))
    at_subjects = collect_second_moments(model, tokenizer, subjects, modules, last=True, progress=progress)
    return found.mixed(at_subjects, SUBJECTS_SHARE)


def _openings(tokenizer: PreTrainedTokenizerBase, most: int) -> Iterator[tuple[int, ...]]:
    """The openings in turn, of each at most so many tokens."""
    rows = [ids[:most] for ids in text_ids(tokenizer, OPENINGS) if ids]
    if not rows:
        raise InvalidRequestError("texts: no beginning of a text gives a token, so the model can write none")
    return cycle(rows)


def _continued(
    model: Any,
    rows: Sequence[tuple[int, ...]],
    most: int,
    device: torch.device,
    ends: Sequence[int],
    drawn: LogitsProcessorList,
) -> list[list[int]]:
    """The rows with what the model writes behind them, up to where it ends or to ``most`` tokens."""
    ids, mask = padded(rows, left=True, device=device)
    room = most - ids.shape[1]
    if room < 1:
        raise InvalidRequestError(f"texts: the model has no room for a text of {ids.shape[1] + 1} tokens")
    written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=room, logits_processor=drawn)
    own = written[:, ids.shape[1] :].tolist()
    return [[*row, *before_end(new, ends)] for row, new in zip(rows, own, strict=True)]
