"""The exceptions a caller may want to catch by type; each message names the thing, the value and what is accepted."""

from __future__ import annotations


class PeftPruneError(Exception):
    """Base of every error that peft_prune raises on purpose."""


class InvalidRequestError(PeftPruneError, ValueError):
    """An edit request, or the file that holds it, is malformed; the message names the record and the field."""


class EditFailedError(PeftPruneError, RuntimeError):
    """An edit did not take: its update is not finite, or the edited model does not give the target."""


class NonFiniteUpdateError(EditFailedError, ValueError):
    """An update holds NaN or Inf, as an overflow in half precision makes it."""


class UnsupportedModelError(PeftPruneError, TypeError):
    """The model, or one of its layers, cannot be edited; the message says why."""


class AdapterError(PeftPruneError, ValueError):
    """A saved adapter is damaged, incomplete, or made for another base."""


class MergedAdapterError(PeftPruneError, RuntimeError):
    """An adapter that is merged into the base weights is asked for what only an unmerged one can do."""


class MergeError(PeftPruneError, ValueError):
    """A merge would lose edits, or the base cannot take it; the message names the layer, and what works instead."""


class CheckpointError(PeftPruneError, ValueError):
    """A checkpoint on disk is missing, damaged, or does not match another one; the message names the tensor."""


class HistoryError(PeftPruneError, RuntimeError):
    """A history cannot be read or written, or belongs to another model."""


class HistoryLockedError(HistoryError):
    """Another session is writing the history."""


class MissingPackageError(PeftPruneError, ImportError):
    """An optional package is not installed; the message says which extra brings it."""


class SessionStateError(PeftPruneError, RuntimeError):
    """A session cannot do what it is asked for in the state in which it is."""


class ProcessError(PeftPruneError, RuntimeError):
    """The processes of one job do not do the same, or one of them has ended; the message says which and at what."""
