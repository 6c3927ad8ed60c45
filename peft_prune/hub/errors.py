"""What goes wrong between here and the Hub, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import PeftPruneError

_SAID = (OSError, ValueError, RuntimeError, httpx2.HTTPError)
"""What the client raises: its own errors are OSErrors, a failed upload is a RuntimeError with the cause behind it."""


class HubError(PeftPruneError, OSError):
    """The Hub, or the way to it, refused something; the message names the repository and what to do."""


@contextmanager
def on_the_hub(name: str, doing: str) -> Iterator[None]:
    """For a block that only talks to the Hub: what the client raises becomes one line.

    Args:
        name: The repository, as the user gave it.
        doing: What is done, such as "push" or "fetch".

    Raises:
        HubError: The block raised what the client raises.
    """
    try:
        yield
    except PeftPruneError:
        raise
    except _SAID as error:
        raise HubError(f"hub: {name}: {_line(error, doing)}") from error


def _line(error: BaseException, doing: str) -> str:
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, OfflineModeIsEnabled):
            return "the Hub is switched off by HF_HUB_OFFLINE; unset it"
        if isinstance(one, HfHubHTTPError):
            return _of_answer(one, doing)
    for one in chain:
        if isinstance(one, httpx2.HTTPError):
            return f"the connection failed ({_first(one)}); nothing was committed, run it again"
        if isinstance(one, HFValidationError):
            return f"is no name of a repository: {_first(one)}"
        if isinstance(one, LocalEntryNotFoundError):
            return f"cannot be reached, and is not in the cache: {_first(one)}"
    return f"cannot {doing}: {_first(chain[-1])}"


def _of_answer(error: HfHubHTTPError, doing: str) -> str:
    status = error.response.status_code
    said = " ".join((error.server_message or "").split())
    why = f": {said}" if said else ""
    if isinstance(error, RevisionNotFoundError):
        return f"has no such revision ({status})"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"does not hold the file ({status}){why}"
    if isinstance(error, GatedRepoError):
        return f"is gated; ask for access on its page, and log in with `hf auth login` ({status})"
    if status == 401 and not (isinstance(error, RepositoryNotFoundError) and doing == "fetch"):
        return f"the token is missing or not accepted ({status}){why}; log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"is not there, or is private and the token does not open it ({status})"
    if status == 403:
        return f"may not be written with this token ({status}){why}; --create-pr proposes the change instead"
    if status in (409, 412):
        return f"was changed meanwhile ({status}){why}; nothing was committed, run it again"
    if status >= 500 or status == 429:
        return f"the Hub cannot {doing} now ({status}){why}; nothing was committed, run it again"
    return f"the Hub refused to {doing} ({status}){why or ': ' + _first(error)}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
