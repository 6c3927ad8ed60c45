"""Two processes that do not do the same; each prints what the package says to it.

``python -m tests.processes.ranks unlike`` or ``late``, with the variables of a launcher in the environment.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from peft_prune.errors import EditFailedError, ProcessError
from peft_prune.processes import WAIT, process_rank, require_same, same, spread, start_processes


def said(work: Callable[[], Any]) -> None:
    """Print the kind and the words of what a call raises, or what it gives."""
    try:
        found = work()
    except (ProcessError, EditFailedError) as error:
        found = f"{type(error).__name__}: {error}"
    print(found, flush=True)


def failing(items: Sequence[int]) -> list[int]:
    if 3 in items:
        raise EditFailedError("item 3 fails")
    return list(items)


def main() -> None:
    start_processes()
    rank = process_rank()
    if sys.argv[1] == "late":
        torch.distributed.barrier()
        os.environ[WAIT] = "2"
        require_same("begin", 0)
        time.sleep(6 * rank)
        said(lambda: require_same("later", 0))
        os._exit(0)
    said(lambda: spread("doubling", range(5), lambda items: [2 * item for item in items]))
    said(lambda: spread("nothing", [], list))
    said(lambda: same("the rank", lambda: rank))
    said(lambda: require_same("requests", ["one", "other"][rank]))
    said(lambda: spread("failing", range(5), failing))
    said(lambda: spread("this", range(5), list) if rank == 0 else same("that", lambda: 1))
    if rank == 1:
        os._exit(3)
    said(lambda: require_same("the end", 0))
    os._exit(0)


if __name__ == "__main__":
    main()
