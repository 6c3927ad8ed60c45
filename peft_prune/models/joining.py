"""What stands between a prompt and what continues it: the one rule, used wherever the two are read together."""

from __future__ import annotations

import re
import unicodedata

from ..characters import is_unspaced

_QUOTES = {**dict.fromkeys("\"'`*“‘«‹", ""), "”": "“„", "’": "‘‚", "»": "«", "›": "‹"}
"""Marks that open in one language and close in another, or do both, and what shows before them that they close."""

_OPENER = re.compile(
    r"""(?:
        [¿¡@_/\\-]                       # never followed by a space
      | (?<![\w+*/^=<>-])[#~≈±+−]        # before a number or a name, not behind one: "#", but "C#"
      | (?<=\S)[=&–—‑]                   # written tight: "R&", "1990–"
    )$""",
    re.VERBOSE,
)
_ELIDED = re.compile(
    r"(?<!\w)(?:[cdjlmnst]|(?:jus|lors|puis|quoi)?qu|[ds]?all|dell|nell|sull|quell|bell|sant|un|o)['’]$", re.IGNORECASE
)
"""French, Italian and Catalan words before an apostrophe, and the Irish "O'"."""

_OPERATOR = re.compile(r"\d\s+[+−±~]$")
_CONTINUES = re.compile(
    r"""(?:
        [,;:!?%‰…°™®²³_]
      | \.(?![A-Z])(?!\d)                # "." and ".com", but ".NET" and ".5"
      | [-–—‑](?=[^\W\d])                # "-based", "—the city", but "-5" and "- 5"
      | ['’](?=[^\W\d])(?!.*['’](?!\w))  # "'s", but "'Rome'"
      | ["'’](?!\w)
      | /(?=\w)(?!.*/)                   # "/h", but "/usr/bin"
      | [+#*](?!\w)                      # "++", "#"
    )""",
    re.VERBOSE | re.DOTALL,
)
_BEHIND_DIGIT = re.compile(r"[.,:/–‑'’-]\d")
_PRICE = re.compile(r"\d\s*$")
_WORD = re.compile(r"[^\W\d_]+")


def joined(prompt: str, continuation: str, separator: str | None = None) -> str:
    """``prompt`` and ``continuation`` as one text.

    Args:
        prompt: Text to continue. A space at its end, or several, counts as one.
        continuation: What continues it; white space at its beginning is kept, white space at its end is not.
        separator: What stands between them, as it is; None leaves it to :func:`separator_between`.
    """
    end = continuation.rstrip()
    if separator is not None:
        return prompt + separator + end
    bare = prompt.rstrip(" ")
    if bare != prompt and not end[:1].isspace():
        return f"{bare} {end}"
    return bare + separator_between(bare, end) + end


def asked(prompt: str, separator: str | None = None) -> str:
    """What a model is given to continue: the prompt with its separator, without the spaces at its end.

    A word's leading space belongs to that word's own token, so a prompt that keeps it can hardly be continued.
    """
    return (prompt + (separator or "")).rstrip(" ")


def separator_between(prompt: str, continuation: str) -> str:
    """What the language puts between two texts that have no space at their seam: "" or one space.

    Nothing stands there

    * where either has white space at the seam, or there is no prompt;
    * in scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan, ...), full-width
      punctuation included: where the prompt ends in one, or where it is written in one and the continuation begins so;
    * after an opener: an opening bracket or quote, "¿", "¡", "#", "@", "-", "/", "_", "=", a currency sign that has no
      number before it, a sign before a number, an elided article ("l'"), and quotes and
      markup behind a space, where they open;
    * where the continuation brings its own beginning: closing punctuation, "'s", "-based", "%", a combining mark.

    Everywhere else stands one space: in Korean, Arabic, Hebrew and Hindi as in English. Where both would do ("12:" and
    "30"), that is a space too; a request says otherwise by its ``separator``.
    """
    if not prompt or not continuation or prompt[-1].isspace() or continuation[0].isspace():
        return ""
    if _is_unspaced_seam(prompt, continuation[0]):
        return ""
    return "" if _opens(prompt) or _continues(prompt[-1], continuation) else " "


def _is_unspaced_seam(prompt: str, first: str) -> bool:
    if is_unspaced(prompt[-1]):
        return True
    if not is_unspaced(first):
        return False
    # behind a Latin name or a number it is the prompt's own script that counts
    own = sum(map(is_unspaced, prompt))
    return own > sum(not is_unspaced(word[0]) for word in _WORD.findall(prompt))


def _opens(prompt: str) -> bool:
    last, before = prompt[-1], prompt[:-1]
    kind = unicodedata.category(last)
    if kind == "Ps" or _ELIDED.search(prompt):
        return True
    if kind == "Sc":
        return not _PRICE.search(before)
    if last in _QUOTES:
        bare = before.rstrip(last)
        starts = not bare or bare[-1].isspace() or is_unspaced(bare[-1]) or _opens(bare)
        return starts and not any(mark in bare for mark in _QUOTES[last])
    return bool(_OPENER.search(prompt)) and not _OPERATOR.search(prompt)


def _continues(last: str, continuation: str) -> bool:
    first = continuation[0]
    if unicodedata.category(first) in ("Pe", "Pf", "Mn", "Mc", "Me", "No") and first != "’":
        return True
    if last.isdigit() and _BEHIND_DIGIT.match(continuation):
        return True
    if first in "。、，．：；！？・":
        return True
    return bool(_CONTINUES.match(continuation))
