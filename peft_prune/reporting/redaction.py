"""Replace what names a person, a product or a place by a code."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

from ..generation import normalized

_QUOTED = re.compile(r"(?<!\w)'([^']*)'(?!\w)|\"([^\"]*)\"")


class Redactor:
    """Hashes subjects, targets and answers, and takes them out of free text.

    The code of a text is the beginning of its HMAC-SHA256 under a key, after case and spaces have been evened out: the
    same subject has the same code everywhere in a report, and whoever lacks the key cannot find a name by trying a list
    of names. A new random key for each report, which nobody keeps, is the safe choice; with a key of one's own the
    codes of several reports can be compared.

    Args:
        key: The key; a random one if not given.
        known: Texts that are replaced wherever they stand in free text, as whole words in any case.
    """

    def __init__(self, key: str | None = None, known: Iterable[str] = ()) -> None:
        self._key = secrets.token_bytes(32) if key is None else key.encode()
        names = sorted({normalized(text) for text in known if normalized(text)}, key=len, reverse=True)
        words = (r"\s+".join(re.escape(word) for word in name.split()) for name in names)
        self._known = re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", re.IGNORECASE) if names else None

    def code(self, text: str) -> str:
        """The code of a text; an empty one stays empty."""
        text = normalized(text)
        if not text:
            return ""
        return "#" + hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()[:10]

    def free(self, text: str) -> str:
        """A sentence with everything that stands in quotation marks, and every known text, replaced by its code."""
        text = _QUOTED.sub(lambda found: f"'{self.code(found[1] or found[2] or '')}'", text)
        return text if self._known is None else self._known.sub(lambda found: self.code(found[0]), text)


class OpenRedactor(Redactor):
    """Leaves everything as it is."""

    def code(self, text: str) -> str:
        return text

    def free(self, text: str) -> str:
        return text
