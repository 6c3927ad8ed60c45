"""Leave out what people and models wrote: names become codes, free text is withheld."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from ..models.answers import answers_with, normalized, whole_words
from ..monitoring import CONDITION_GROWTH, PROTECTED
from ..requests import EditRequest

SHORTEST_KEY = 8
WITHHELD = "(text withheld)"

_IDENTIFIER = re.compile(r"P\d+")
_NUMBER = r"[-+0-9.einfa]+"
_REST = "( even after the restraint)?"
_OWN_ALERTS = {
    "ConditionGuard": re.compile(
        rf"[\w.]+: (the condition number is {_NUMBER} times the base's{_REST}, {_NUMBER} is allowed|"
        "the base is singular, so that the growth of its condition number says nothing; NormGuard and OutputGuard "
        "watch it)"
    ),
    "NormGuard": re.compile(rf"[\w.]+: ‖ΔW‖₂ is {_NUMBER} times σmax\(W₀\){_REST}, {_NUMBER} is allowed"),
    "OutputGuard": re.compile(
        rf"[\w.]+: the mean squared change of ordinary outputs is {_NUMBER} of their mean square{_REST}, {_NUMBER} is "
        "allowed"
    ),
    "AbilityGuard": re.compile(
        rf"(?P<figure>.+): {_NUMBER}{_REST} against {_NUMBER} of the base, a loss of {_NUMBER} of "
        "it is allowed",
        re.DOTALL,
    ),
    "ProtectionGuard": re.compile(rf"\d+ of \d+ protected facts changed{_REST}: records [\d, .]+"),
}
"""What the guards of this package say; only the name of an AbilityGuard's figure is its user's."""
_OWN_FIGURES = ("recall", "perplexity", "fluency", PROTECTED, CONDITION_GROWTH)
_OWN_ABILITIES = ("reasoning", "summarization", "question_answering", "inference", "other")
_REASONS = (
    (re.compile(r"did not take: .*", re.DOTALL), "did not take"),
    (re.compile(r"rolled back by .*", re.DOTALL), "rolled back by a guard"),
    (re.compile(r"the session was stopped: .*", re.DOTALL), "the session was stopped"),
    (re.compile(r"it contradicts edit \d+, which stands"), None),
    (re.compile(r"replaced by edit \d+"), None),
)
"""The program's own reasons, with what is shown of them; None shows them as they are."""


class Redactor:
    """Hashes what a user named, people and places included, and withholds every sentence that may name something.

    The code of a text is the beginning of its HMAC-SHA256 under a key, after case and spaces have been evened out: the
    same subject has the same code everywhere in a report, and whoever lacks the key cannot find a name by trying a list
    of names. A new random key for each report, which nobody keeps, is the safe choice; with a key of one's own the
    codes of several reports can be compared.

    Args:
        key: The key; a random one if not given.

    Raises:
        ValueError: The key is shorter than `SHORTEST_KEY` characters.
    """

    def __init__(self, key: str | None = None) -> None:
        if key is not None and len(key) < SHORTEST_KEY:
            raise ValueError(f"redact_key: has {len(key)} characters, at least {SHORTEST_KEY} are needed")
        self._key = secrets.token_bytes(32) if key is None else key.encode()

    def code(self, text: str) -> str:
        """The code of a text; an empty one stays empty."""
        text = normalized(text)
        if not text:
            return ""
        return "#" + hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()[:10]

    def answer(self, text: str, request: EditRequest | None) -> str:
        """The code of an answer; one that gives a target of its request has that target's code."""
        targets = () if request is None else (request.target_new, request.target_true)
        given = [target for target in targets if target is not None and answers_with(text, target)]
        return self.code(given[0] if given else text)

    def relation(self, text: str) -> str:
        """A relation's identifier of Wikidata as it is, any other name and every prompt as its code."""
        return text if _IDENTIFIER.fullmatch(text) else self.code(text)

    def reason(self, text: str) -> str:
        """What kind of reason it is, where it is one of the program's own."""
        for pattern, shown in _REASONS:
            if pattern.fullmatch(text):
                return text if shown is None else shown
        return WITHHELD if text else ""

    def alert(self, source: str, message: str) -> str:
        """The message of a guard of this package, with its figure as `figure` shows it; none of any other."""
        found = _OWN_ALERTS[source].fullmatch(message) if source in _OWN_ALERTS else None
        if found is None:
            return WITHHELD
        name = found.groupdict().get("figure")
        return message if name is None else self.figure(name) + message[len(name) :]

    def figure(self, name: str) -> str:
        """What is measured: one of the program's own names as it is, one that a user gave as its code."""
        return name if name in _OWN_FIGURES else self.code(name)

    def ability(self, name: str) -> str:
        """The name of a general ability, with its metric behind a slash where it has one; as `figure`."""
        own, separator, metric = name.partition("/")
        return name if own in _OWN_ABILITIES else self.code(own) + separator + metric

    def place(self, path: str) -> str:
        """A path, or a name of a model, which is one as well, as its code."""
        return self.code(path)


class OpenRedactor(Redactor):
    """Leaves everything as it is, but for answers, which it cuts at words."""

    def code(self, text: str) -> str:
        return text

    def answer(self, text: str, request: EditRequest | None) -> str:
        return whole_words(text, None if request is None else request.target_new)

    def relation(self, text: str) -> str:
        return text

    def reason(self, text: str) -> str:
        return text

    def alert(self, source: str, message: str) -> str:
        return message

    def figure(self, name: str) -> str:
        return name

    def ability(self, name: str) -> str:
        return name

    def place(self, path: str) -> str:
        return path
