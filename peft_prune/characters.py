"""What is known of characters: their script, the forms that count as one, and those that no text may hold."""

from __future__ import annotations

import re
import unicodedata

_UNSPACED = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "YI", "NUSHU", "TANGUT"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE", "TAI", "NEW TAI", "LISU"),
)
"""How the names of the characters begin whose scripts put no spaces between words."""

_FORMS = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛ʼʹ′＇`´", "'"),
        **dict.fromkeys("“”„‟″«»＂", '"'),
        **dict.fromkeys("‐‑‒–−﹣－\u058a\u05be", "-"),  # the Armenian and the Hebrew one among them
        # marks of direction, of a possible break, and of nothing
        **dict.fromkeys("\u00ad\u200b\u200e\u200f\u2060\ufeff", ""),
    }
)

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def is_unspaced(character: str) -> bool:
    """Whether it belongs to a script without spaces between words, its punctuation and full-width forms included."""
    name = unicodedata.name(character, "")
    if name.startswith(_UNSPACED):
        return True
    wide = unicodedata.east_asian_width(character) in ("W", "F") and unicodedata.category(character)[0] in "LMNP"
    return wide and not name.startswith("HANGUL")


def same_form(text: str) -> str:
    """``text`` with one form for what Unicode, keyboards and typesetters write in several.

    Accents are composed (NFC), full and half width are ordinary, typographic quotes and hyphens are the plain ones, and
    marks that are not seen are left out. What differs in meaning stays: "²", "½" and "™" are no other characters.
    """
    return unicodedata.normalize("NFC", "".join(map(_ordinary_width, text)).translate(_FORMS))


def forbidden_character(text: str) -> tuple[int, str] | None:
    """The first character that no text may hold, with its place, or None.

    Those are lone surrogates, which no file can hold, the control characters but for tab and line breaks, and the
    overrides of direction, which show a text otherwise than it is read.
    """
    found = _FORBIDDEN.search(text)
    return None if found is None else (found.start(), _NAMES.get(found[0]) or f"U+{ord(found[0]):04X}")


_NAMES = {"\x00": "NUL (U+0000)", "\x1b": "ESC (U+001B)", "\u202d": "LRO (U+202D)", "\u202e": "RLO (U+202E)"}


def visible(text: str) -> str:
    """``text`` as a terminal may show it: what would act on the terminal, or not be seen, is written as its number."""
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _ordinary_width(character: str) -> str:
    kind = unicodedata.decomposition(character)
    return unicodedata.normalize("NFKC", character) if kind.startswith(("<wide>", "<narrow>")) else character
