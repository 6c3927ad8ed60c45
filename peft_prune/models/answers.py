"""What counts as an answer that gives a target: the one rule of verification, evaluation and reports."""

from __future__ import annotations

import re
import unicodedata

from ..characters import is_unspaced, same_form

_CUT = "\ufffd"
"""What a character becomes of which only the first bytes were generated."""

_TURKISH = str.maketrans({"İ": "i", "ı": "i"})

_MAGNITUDES = (
    *("hundred", "thousand", "million", "billion", "trillion", "lakh", "crore", "dozen", "percent", "per cent"),
    *("millions", "mille", "milliards?", "pour cent", "millionen", "milliarden?", "mio", "mrd", "prozent"),
    *("mil", "mill[oó]n(?:es)?", "por ciento", "milh(?:ão|ões)", "bilh(?:ão|ões)", "milioni", "miliardi", "per cento"),
    *("тысяч[аи]?", "миллион(?:а|ов)?", "миллиард(?:а|ов)?", "процент(?:а|ов)?"),
)
_NUMBER_GOES_ON = re.compile(
    rf"""
        [.,':/⁄\-٫٬·*×^]\d                # 3.141, 1,000, 3:45, 1/2, 1990-95
      | \s?[%‰٪½¼¾⅐-⅞]                    # 10 %, 3 ½
      | \s\d+[/⁄]\d                       # 3 1/2
      | \s(?:{"|".join(_MAGNITUDES)})\b   # 3 million
      | [십백천만억조]                     # the same in Korean, which other scripts' numerals show themselves
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NEXT_GROUP = re.compile(r"(?<![\d.,])\d{1,3}\s\d{3}(?!\d)")
_WORD_GOES_ON = re.compile(
    r"""
        [+#%‰°$£€¥₹₽₩¢]        # C++, C#, US$
      | [_&@^=~.·״׳]\w         # AT&T, amazon.com, U.S
      | '(?:t\b|\d)            # can't, 5'11
      | -\d                    # F-16
    """,
    re.VERBOSE,
)
_SIGNS = "+#$£€¥₹₽₩¢%‰&@"
_SUFFIX = re.compile(r"['-]([^\W\d_])")

_SENTENCE_END = re.compile(r"[.!?](?=[\"'”’)]*\s+[\"'“‘(]*[^\W_a-z])|[。！？](?=.)")
_ENDED = re.compile(r"[.!?…。！？][\"'”’)]*$")
_NO_END = re.compile(
    r"(?:^|[\s(\"'])(?:[^\W\d_]|(?:[^\W\d_]\.)+[^\W\d_]|Mr|Mrs|Ms|Dr|St|Sr|Jr|Prof|Mt|Ft|vs|No|Gen|Lt|Col)\.$"
)

_NUMBER_SO_FAR = re.compile(r"\d[.,':/]$")

_KOREAN_ENDINGS = (
    *"은 는 이 가 을 를 의 에 에서 에게 한테 께 께서 로 으로 로서 으로서 로써 으로써 와 과 도 만".split(),
    *"까지 부터 보다 처럼 나 이나 랑 이랑 하고 마다 조차 마저 밖에 뿐 며 이며 고 이고 이자".split(),
    *"라 이라 란 이란 라고 이라고 라는 이라는 인데 다 이다 입니다 예요 이에요 이요 죠 이죠 지만 이지만".split(),
    *"시 특별시 광역시".split(),
    *"였다 이었다 였습니다 이었습니다 였던 이었던 였고 이었고 였으며 이었으며 임 므로 이므로 이니".split(),
)
"""Particles, forms of the copula, and the word for a city, which Korean writes to the word before them."""

# "한국인" is a person of "한국"
_KOREAN_BEGUN = {one[:n] for one in _KOREAN_ENDINGS for n in range(1, len(one) + 1)} - {"인"}
_KOREAN_ENDED = re.compile(f"(?:{'|'.join(_KOREAN_ENDINGS)})+")
_KOREAN_CUT = re.compile(f"(?:{'|'.join(_KOREAN_ENDINGS)})*(?:{'|'.join(sorted(_KOREAN_BEGUN))})")
_HANGUL = re.compile("[가-힣]+")
_LONGEST_ENDING = 12
"""Syllables; no endings that follow each other are longer, and to look for them would take ever longer."""


def normalized(text: str) -> str:
    """``text`` in the form in which answers are compared: outer space off, inner space single, case folded, and one
    form for what is written in several (accents, widths, quotes, hyphens, the Turkish i)."""
    return unicodedata.normalize("NFC", _folded(_even(text)))


def answers_with(answer: str, target: str) -> bool:
    """Whether ``answer`` begins with ``target``, compared as :func:`normalized` does, and the target ends there.

    * A word ends before a space, punctuation or the end: "India" is not in "Indiana". Signs that belong to words go on
      with them: "C" is not in "C++", nor "AT" in "AT&T"; nor does a full stop end a word that a letter follows at once
      ("amazon.com").
    * A number goes on through its separators, its percent sign and its order: "3" is not in "3.141", "3:45", "1990-95",
      "10 %" or "3 million"; it is in "3. It" and "3 km".
    * An ending is part of the word that it is put to: after an apostrophe or, behind a name, a hyphen in small letters
      ("Rome's", "Roma'da", "NATO-ban", "New York-based"), and in Korean particles, the copula and the word for a city
      ("서울입니다"). A capital letter there begins a longer name: "Guinea" is not in "Guinea-Bissau".
    * In scripts without spaces a word's end cannot be seen, and the beginning counts ("北京" is in "北京市"), but where
      it can: katakana behind katakana, a numeral behind a numeral, a mark upon the last letter.
    """
    answer, target = _even(answer.rstrip(_CUT)), _even(target)
    if not target:
        return False
    rest = _behind(answer, _folded(target))
    return rest is not None and not (rest and _goes_on(answer[: len(answer) - len(rest)], rest, target))


def says(answer: str, target: str, *, instead_of: str | None = None, subject: str | None = None) -> bool:
    """Whether what a model says in chat gives ``target``: in the first sentence, and not beside ``instead_of``.

    A sentence may name things in any order ("The capital of France is Rome."), so the target may begin at any word of
    it, where it must end as :func:`answers_with` says. What belongs to the name of the subject gives no target, nor
    does what belongs to the other target: "York" is not given by "New York" where that is the true one.

    Args:
        answer: The whole answer; see :func:`first_sentence`.
        target: What it shall give.
        instead_of: What it must not give, such as the true target; None for nothing.
        subject: What the question is about.
    """
    sentence = first_sentence(answer)
    named = "" if subject is None else _even(subject)
    new, old = _even(target), "" if instead_of is None else _even(instead_of)
    gone = [_places(sentence, named)] if named and normalized(named) != normalized(new) else []
    longer, shorter = (old, new) if _folded(new) in _folded(old) else (new, old)
    of_longer = _outside(_places(sentence, longer), gone)
    of_shorter = _outside(_places(sentence, shorter), [*gone, of_longer])
    given, kept = (of_shorter, of_longer) if longer is old else (of_longer, of_shorter)
    return bool(given) and not kept


def first_sentence(text: str) -> str:
    """What stands in ``text``, a model's answer, up to the end of its first sentence or line.

    A sentence ends at ".", "!" or "?" before a space and a capital letter, a digit or a quote, or at their full-width
    forms; not behind an initial or a short title ("J. Smith", "St. Louis").
    """
    line = next((part.strip() for part in text.rstrip(_CUT).splitlines() if part.strip()), "")
    for found in _SENTENCE_END.finditer(line):
        if not _NO_END.search(line[: found.start() + 1]):
            return _even(line[: found.start() + 1])
    return _even(line)


def whole_words(answer: str, target: str | None = None) -> str:
    """An answer that may have been cut off, as it is shown: on one line, up to its last whole word, then an ellipsis.

    What ends in a sentence's end, what is one word, and scripts without spaces are shown whole; so is a last word
    without which the answer would no longer give ``target``.
    """
    text = " ".join(answer.rstrip(_CUT).split())
    kept, _, last = text.rpartition(" ")
    if not kept or _ENDED.search(text) or is_unspaced(last[0]):
        return text
    if answer[-1:].isspace():
        return f"{text} …"
    gives_less = target is not None and answers_with(text, target) and not answers_with(kept, target)
    return text if gives_less else f"{kept} …"


def same_in_chat(answer: str, other: str) -> bool:
    """Whether two answers in chat are one: their first sentences, as :func:`normalized` compares them."""
    return normalized(first_sentence(answer)) == normalized(first_sentence(other))


def _places(sentence: str, name: str) -> list[tuple[int, int]]:
    """Where a name stands in a sentence as words of their own, from and to."""
    if not name:
        return []
    folded, found = _folded(name), []
    for start in range(len(sentence)):
        if start and _joins(sentence[:start], sentence[start]):
            continue
        rest = _behind(sentence[start:], folded)
        if rest is not None:
            end = len(sentence) - len(rest)
            if not (rest and _goes_on(sentence[start:end], rest, name)):
                found.append((start, end))
    return found


def _joins(before: str, own: str) -> bool:
    """Whether a word or a number that ends ``before`` goes on with this character."""
    if own.isdigit() and _NUMBER_SO_FAR.search(before):
        return True
    last = before[-1]
    return last.isalnum() and own.isalnum() and not is_unspaced(last) and not is_unspaced(own)


def _outside(places: list[tuple[int, int]], others: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """The places that lie in none of the others."""
    return [
        (start, end)
        for start, end in places
        if not any(low <= start and end <= high for one in others for low, high in one)
    ]


def _even(text: str) -> str:
    return " ".join(same_form(text).split())


def _folded(text: str) -> str:
    return text.translate(_TURKISH).casefold()


def _behind(answer: str, folded_target: str) -> str | None:
    """What stands in ``answer`` behind the target, or None where it does not begin with it."""
    # one character may fold into several
    length = 0
    for index, character in enumerate(answer):
        if length == len(folded_target):
            return answer[index:]
        folded = _folded(character)
        if not folded_target.startswith(folded, length):
            return None
        length += len(folded)
    return "" if length == len(folded_target) else None


def _goes_on(given: str, rest: str, target: str) -> bool:
    """Whether the word or number at the end of ``given`` goes on in ``rest``, which is not empty."""
    last, following = given[-1], rest[0]
    if unicodedata.category(following).startswith("M"):
        return True
    if last.isnumeric() and following.isnumeric():
        return True
    if last.isdigit() and (_NUMBER_GOES_ON.match(rest) or _next_group(given, rest)):
        return True
    if not last.isalnum() and not unicodedata.category(last).startswith("M"):
        inner = last in _SIGNS or (last == "." and given[-2:-1].isalnum())
        return inner and (following.isalnum() or following == last)
    if _is_katakana(last) and _is_katakana(following):
        return True
    if following.isalnum():
        if is_unspaced(last) or is_unspaced(following):
            return False
        return not (_HANGUL.match(following) and (last.isdigit() or _is_korean_ending(rest)))
    if _WORD_GOES_ON.match(rest):
        return True
    suffix = _SUFFIX.match(rest)
    return suffix is not None and not _is_suffix(rest, suffix[1], target)


def _is_suffix(rest: str, letter: str, target: str) -> bool:
    """Whether what an apostrophe or hyphen joins to the target is an ending, and no further part of a name."""
    if re.match(r"'[sS](?!\w)", rest):
        return True
    name = target.split()[-1]
    return letter.islower() and (rest[0] == "'" or not name[0].islower())


def _next_group(given: str, rest: str) -> bool:
    """Whether a space parts two groups of one number, as in "1 000"."""
    number = re.search(r"[\d.,]*$", given)
    return number is not None and _NEXT_GROUP.match(number[0] + rest) is not None


def _is_korean_ending(rest: str) -> bool:
    run = _HANGUL.match(rest)
    if run is None or len(run[0]) > _LONGEST_ENDING:
        return False
    ended = _KOREAN_CUT if run[0] == rest else _KOREAN_ENDED
    return ended.fullmatch(run[0]) is not None


def _is_katakana(character: str) -> bool:
    return "\u30a1" <= character <= "\u30fa" or "\u30fc" <= character <= "\u30fe"
