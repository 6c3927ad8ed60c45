"""A process that has imported what the tests' code needs, and runs each piece of code in a fork of its own.

    python -m tests.hub.client

A line of JSON asks ``{"code", "arguments", "environment", "folder"}``; the child writes ``out`` and ``err`` into the
folder, and a line with its exit status answers.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

LARGE = (
    *("peft_prune.cli.app", "peft_prune.hub", "peft_prune.session", "tests.session.scene", "tests.tiny"),
    *("transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2"),
)
"""Imported once, before the forks; none of them starts a thread or talks to the Hub."""


def main() -> None:
    for name in LARGE:
        import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run(job))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(job: dict[str, Any]) -> int:
    """What ``python -c`` would exit with."""
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(job["folder"]) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(job["environment"])
    sys.argv = ["-c", *job["arguments"]]
    status: Any = 0
    try:
        exec(compile(job["code"], "<test>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else 1


if __name__ == "__main__":
    main()
