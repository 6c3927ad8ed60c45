"""The processes that a launcher has started on one job: which of them this one is, and what they tell each other.

`accelerate launch` and `torchrun` start the same program several times. Where torch.distributed is initialized, as
``accelerate.Accelerator()`` does it, work is shared out, every process ends up with the same result, and rank 0 alone
writes. With one process nothing here costs anything; torch is looked at only where it has been imported.

All processes must make the same calls. What they tell each other goes through a group of its own on the CPU (gloo),
whose messages bear the name of what is done: an error in one process is raised in all, and processes that do different
things, or one that has ended, give one line in place of waiting for ever.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ProcessError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

SECONDS = 1800
"""How long a process waits for the others, where `WAIT` does not say it."""

WAIT = "PEFT_PRUNE_PROCESS_TIMEOUT"
"""Environment variable with another number of seconds."""

_TOLD, _ALONE = "_peft_prune_told", "_peft_prune_alone"
_alone: ContextVar[bool] = ContextVar("alone", default=False)
_groups: dict[Any, Any] = {}


def process_count() -> int:
    """How many processes work on this job; 1 where torch.distributed is not initialized, and within `alone`."""
    distributed = _distributed()
    return 1 if distributed is None else int(distributed.get_world_size())


def process_rank() -> int:
    """Which of them this one is, from 0."""
    distributed = _distributed()
    return 0 if distributed is None else int(distributed.get_rank())


def is_main() -> bool:
    """Whether this process is the one that writes files and standard output."""
    return process_rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """In the block this process works by itself, as if there were no others, and writes like rank 0."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def launched() -> int:
    """How many processes the launcher says it has started, whether or not they know of each other."""
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdigit() and "RANK" in os.environ and "MASTER_ADDR" in os.environ else 1


def launched_rank() -> int:
    """Which of them this one is, as the launcher says."""
    return int(os.environ["RANK"]) if launched() > 1 and os.environ["RANK"].isdigit() else 0


def start_processes() -> None:
    """Initialize torch.distributed by Accelerate where a launcher has started several processes.

    Raises:
        ProcessError: The others do not come.
    """
    if launched() == 1 or process_count() > 1:
        return
    import torch
    from accelerate import PartialState

    try:
        PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(seconds=waiting_seconds()))
    except Exception as error:  # whatever the backend raises
        raise ProcessError(
            f"processes: {launched()} were launched and did not find each other: {_line(error)}"
        ) from None


def stop_processes() -> None:
    """End what `start_processes` has begun, without waiting for anybody."""
    if process_count() > 1:
        _groups.clear()
        _distributed().destroy_process_group()
        from accelerate import PartialState

        PartialState._reset_state()


def warn_if_unaware() -> None:
    """Warn where several processes were launched that do not know of each other, and so would all do and write all."""
    if launched() > 1 and process_count() == 1 and not _alone.get():
        warnings.warn(
            f"this is one of {launched()} launched processes, and torch.distributed is not initialized, so that each "
            "does all of the work; make an accelerate.Accelerator() first"
        )


def waiting_seconds() -> float:
    """How long a process waits for the others.

    Raises:
        ProcessError: The environment variable holds no number above 0.
    """
    text = os.environ.get(WAIT, str(SECONDS))
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or float(text) == 0:
        raise ProcessError(f"{WAIT}: {text!r} must be a number of seconds above 0")
    return float(text)


def own_share(items: Sequence[T]) -> Sequence[T]:
    """Every so-manieth item, as many apart as there are processes, so that neighbours in a sorted list are shared."""
    return items[process_rank() :: process_count()]


def spread(what: str, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
    """``work`` on each process's share of the items; every process gets all results, in the order of the items.

    Args:
        what: What is done, for messages.
        items: The same in all processes.
        work: Gives one result for each item that it is given, of which there may be none.

    Raises:
        ProcessError: See `together`; what ``work`` raises in one process is raised in all.
    """
    if process_count() == 1:
        return list(work(items))
    found: list[Any] = [None] * len(items)
    for index, part in enumerate(_gathered(what, lambda: list(work(own_share(items))))):
        found[index :: process_count()] = part
    return found


def same(what: str, work: Callable[[], R]) -> R:
    """What ``work`` gives in rank 0, in all processes; all of them run it, for it may share out work of its own.

    Raises:
        ProcessError: See `together`; what ``work`` raises in one process is raised in all.
    """
    if process_count() == 1:
        return work()
    own: list[R] = []

    def value() -> R | None:
        own.append(work())
        return own[0] if is_main() else None

    first: R = _gathered(what, value)[0]
    return own[0] if is_main() else first


@contextmanager
def together(what: str) -> Iterator[None]:
    """All processes leave the block together, and an error that one meets there is raised in all.

    Args:
        what: What is done, for messages.

    Raises:
        ProcessError: Another process has ended, does something else, or did not come in time.
    """
    if process_count() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        tell(error, what)
        raise
    _gathered(what, lambda: None)


def require_same(what: str, value: Any) -> None:
    """Raise ProcessError in all processes where one was given another value, which must have a faithful ``repr``.

    Args:
        what: What the value is, for the message.
        value: Compared by a digest.
    """
    if process_count() == 1:
        return
    digests = _gathered(what, lambda: hashlib.sha256(repr(value).encode()).hexdigest())
    for index, digest in enumerate(digests):
        if digest != digests[0]:
            raise _told(ProcessError(f"{what}: rank {index} was given others than rank 0; give all ranks the same"))


def summed(what: str, tensors: Mapping[str, Tensor], number: int) -> int:
    """Add up tensors in place over all processes, and a number exactly; the sum of the numbers.

    Args:
        what: What is done, for messages.
        tensors: Of the same names and shapes in every process; one that has none of a name must not call this.
        number: An integer of any size.
    """
    if process_count() == 1:
        return number
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    numbers = _gathered(what, lambda: number)
    require_same(f"{what}: modules", shapes)
    import torch.distributed as distributed

    for tensor in tensors.values():
        with _answered(what):
            own = tensor.cpu()
            distributed.all_reduce(own, group=_group())
            tensor.copy_(own)
    return sum(numbers)


def tell(error: BaseException, what: str = "the work") -> bool:
    """Raise an error in the other processes as well; whether they know of it now."""
    if process_count() == 1 or getattr(error, _TOLD, False):
        return process_count() > 1
    try:
        _exchanged(_Message(what, None, _described(error)))
    except ProcessError:
        setattr(error, _ALONE, True)
        return False
    _told(error)
    return True


def is_alone_with(error: BaseException) -> bool:
    """Whether an error was met in this process, and could not be told to the others."""
    return bool(getattr(error, _ALONE, False))


@dataclass(frozen=True)
class _Message:
    """What a process tells the others: what it does, what came of it, or the kind and the words of its error."""

    what: str
    value: Any = None
    error: tuple[type, str] | None = None


def _gathered(what: str, work: Callable[[], Any]) -> list[Any]:
    """What ``work`` gives in every process, by rank."""
    try:
        value = work()
    except Exception as error:
        tell(error, what)
        raise
    messages = _exchanged(_Message(what, value))
    for index, message in enumerate(messages):
        if message.error is not None:
            raise _told(_rebuilt(index, *message.error))
    for index, message in enumerate(messages):
        if message.what != what:
            raise _told(
                ProcessError(
                    f"processes: rank {index} is at {message.what!r} while rank {process_rank()} is at {what!r}; all "
                    "ranks must make the same calls with the same requests"
                )
            )
    return [message.value for message in messages]


def _exchanged(message: _Message) -> list[_Message]:
    import torch.distributed as distributed

    found: list[Any] = [None] * process_count()
    with _answered(message.what):
        distributed.all_gather_object(found, replace(message, value=_here(message.value)), group=_group())
    return [message if index == process_rank() else other for index, other in enumerate(found)]


@contextmanager
def _answered(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _told(
            ProcessError(
                f"processes: another rank has ended, or did not answer rank {process_rank()} within "
                f"{waiting_seconds():g} seconds, at {what!r} ({_line(error)})"
            )
        ) from None


def _here(value: Any) -> Any:
    """The value with every tensor on the host: another process has other devices. A view takes its own part along."""
    if hasattr(value, "detach"):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _here(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_here(one) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        found = copy.copy(value)
        for field in fields(value):
            object.__setattr__(found, field.name, _here(getattr(value, field.name)))
        return found
    return value


def _described(error: BaseException) -> tuple[type, str]:
    return type(error), str(error)


def _rebuilt(index: int, kind: type, text: str) -> Exception:
    """An error of another process as one of the same kind, where that takes a text alone."""
    if issubclass(kind, Exception) and kind.__module__.startswith("peft_prune"):
        with suppress(TypeError):  # one that takes more than a text
            return kind(text)
    return ProcessError(f"rank {index}: {kind.__name__}: {text}")


def _told(error: Any) -> Any:
    setattr(error, _TOLD, True)
    return error


def _line(error: BaseException) -> str:
    """The first sentence, without the place in the library's source that it begins with."""
    return re.sub(r"^\[[^]]*\] *", "", str(error).strip()).partition("\n")[0].partition(". ")[0][:200]


def _distributed() -> Any:
    """torch.distributed where it is initialized for more than one process, and this one does not work alone."""
    found = sys.modules.get("torch.distributed")
    if found is None or _alone.get() or not found.is_available() or not found.is_initialized():
        return None
    return found if found.get_world_size() > 1 else None


def _group() -> Any:
    import torch.distributed as distributed

    whole = distributed.group.WORLD
    if whole not in _groups:
        _groups.clear()
        _groups[whole] = distributed.new_group(backend="gloo", timeout=timedelta(seconds=waiting_seconds()))
    return _groups[whole]
