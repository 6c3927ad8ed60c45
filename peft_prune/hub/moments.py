"""Second moments on the Hub: one file with a card, checked against the base when it comes back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..cards import write_section
from ..editors import SecondMoments
from ..models.fingerprint import base_fingerprint, short_form
from ..models.naming import public_name
from .errors import HubError
from .names import HubName, fetched
from .push import Destination, upload

FILE = "second_moments.safetensors"


def push_moments(moments: SecondMoments, repo_id: str, *, base_name: str | None = None, **options: Any) -> str:
    """Publish second moments; the URL of the commit.

    Args:
        moments: The second moments.
        repo_id: ``user/name``.
        base_name: What the base is called, for the card.
        options: As for `Destination`: private, revision, create_pr, message, overwrite, token.

    Raises:
        ValueError: An option is not accepted.
        HubError: The Hub refuses it; nothing was published.
    """
    destination = Destination(repo_id, **options)
    with tempfile.TemporaryDirectory() as made:
        moments.save(Path(made) / FILE)
        write_section(
            Path(made) / "README.md",
            "moments",
            _text(moments, public_name(base_name)),
            base_model=public_name(base_name),
            tags=["prune-edit", "model-editing", "second-moments"],
        )
        return upload(Path(made), destination, what="second moments")


def load_moments(given: str | Path, model: Any = None) -> SecondMoments:
    """Second moments from a file, or from ``user/name[@revision]`` on the Hub.

    Args:
        given: A file, a folder that holds ``second_moments.safetensors``, or a repository.
        model: The base that they must have been taken with, if given.

    Raises:
        AdapterError: They are damaged, or of another base.
        HubError: The repository cannot be fetched, or holds none.
    """
    path, name = Path(given), HubName.of(given)
    if not path.exists() and name is not None:
        path = fetched(name, [FILE]) / FILE
        if not path.is_file():
            raise HubError(f"hub: {name}: holds no {FILE}")
    path = path / FILE if path.is_dir() else path
    found = SecondMoments.load(path, base=None if model is None else base_fingerprint(model))
    if model is not None:
        found.require_fit(model)
    return found


def _text(moments: SecondMoments, base: str | None) -> str:
    made_for = f" (weights `{short_form(moments.base)}`)" if moments.base else ""
    modules = "\n".join(f"- `{name}`: {len(moment)} wide" for name, moment in moments.moments.items())
    return f"""\
# Second moments of {base or "a language model"}

E[k kᵀ] of the inputs of {len(moments.moments)} modules{made_for} over {moments.tokens} tokens, which editors of
`peft_prune` need:

{modules}

```python
from peft_prune.hub import load_moments

moments = load_moments("THIS_REPOSITORY", model)  # refuses another base
```"""
