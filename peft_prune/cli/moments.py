"""Where a command's second moments come from: a file, texts, or what the model itself writes, which is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..cache import cache_folder
from ..errors import AdapterError
from ..requests import EditRequest
from .plain import say, shows_progress

if TYPE_CHECKING:
    from ..editors import SecondMoments

Stats = Annotated[
    Optional[Path], typer.Option(help="A second moment saved earlier, or its Hub name, in place of texts.")
]
StatsText = Annotated[
    Optional[Path],
    typer.Option(
        help="Texts for the second moment: a JSON list of strings or of {prompt, object}, or a .txt file. Texts that "
        "name an edited subject are left out. Without them the model writes its own."
    ),
]
StatsTokens = Annotated[
    Optional[int],
    typer.Option(help="Tokens that the model writes for the second moment, where no texts are given; 20,000 if not."),
]


class MomentsSource:
    """A file of second moments, texts to take them over, which are read at once, or the model's own texts.

    Raises:
        ValueError: Both are given, or the number of tokens is below 1.
    """

    def __init__(self, file: Path | None, texts: Path | None, tokens: int | None) -> None:
        from ..editors.own_texts import OWN_TOKENS
        from ..evaluation import load_texts

        if file is not None and texts is not None:
            raise ValueError("stats: give --stats or --stats-text, not both")
        if tokens is not None and tokens < 1:
            raise ValueError(f"stats_tokens: {tokens} must be at least 1")
        self._file, self._tokens = file, tokens or OWN_TOKENS
        self.texts = None if texts is None else load_texts(texts)

    @property
    def has_file(self) -> bool:
        """Whether the second moments are read from a file."""
        return self._file is not None

    def words(self, needed: bool) -> str:
        """Where they come from, and why."""
        if self._file is not None:
            return "from the file that was given"
        if self.texts is not None:
            return "over the texts that were given"
        if not needed:
            return "none: this editor does without"
        return (
            f"over {self._tokens:,} tokens that the model writes itself, for no texts were given, and the requests' "
            "prompts about other subjects; it says which directions these need"
        )

    def moments(
        self, model: Any, tokenizer: Any, modules: Sequence[str], requests: Sequence[EditRequest], quiet: bool
    ) -> SecondMoments:
        """Second moments of the inputs of ``modules``."""
        from ..editors import SecondMoments, collect_second_moments
        from ..editors.own_texts import with_others
        from ..evaluation import without_subjects

        if self._file is not None:
            return SecondMoments.from_pretrained(self._file, model)
        if self.texts is not None:
            texts = without_subjects(self.texts, requests)
            return collect_second_moments(model, tokenizer, texts, modules, progress=shows_progress(quiet))
        own = _own(model, tokenizer, modules, self._tokens, quiet)
        return with_others(own, model, tokenizer, modules, requests, progress=shows_progress(quiet))


def _own(model: Any, tokenizer: Any, modules: Sequence[str], tokens: int, quiet: bool) -> SecondMoments:
    from ..editors import SecondMoments, own_moments
    from ..models.fingerprint import base_fingerprint

    base = base_fingerprint(model)
    kept = None if base is None else _place(base, modules, tokens)
    if kept is not None and kept.is_file():
        try:
            return SecondMoments.load(kept, base=base)
        except AdapterError as error:
            say(f"{error}; it is made anew", err=True)
    if not quiet:
        place = "" if kept is None else f"; kept in {kept.parent}"
        say(
            f"The second moment is taken over {tokens:,} tokens that the model writes itself{place}. "
            "--stats-text takes texts of yours instead.",
            err=True,
        )
    found = own_moments(model, tokenizer, modules, tokens=tokens, progress=shows_progress(quiet))
    if kept is None:
        return found
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        found.save(kept)
    except OSError as error:
        say(f"The second moment is not kept for later: {error}", err=True)
    return found


def _place(base: str, modules: Sequence[str], tokens: int) -> Path:
    name = hashlib.sha256(json.dumps([base, list(modules), tokens]).encode()).hexdigest()[:24]
    return cache_folder() / "moments" / f"{name}.safetensors"
