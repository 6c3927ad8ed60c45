"""Runs every command in this one process, as the process's own command line, and keeps what each leaves behind.

Called with a folder: `commands.json` there holds the command lines by name, and `results.json` gets, for each, the exit
code and what stood on standard output and on standard error, of C code too.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def caught(call: Callable[[], int]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a call, by the descriptors themselves."""
    files, kept = [tempfile.TemporaryFile("w+") for _ in range(2)], [os.dup(1), os.dup(2)]
    try:
        for number, file in enumerate(files, start=1):
            os.dup2(file.fileno(), number)
        code = call()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        for number, own in enumerate(kept, start=1):
            os.dup2(own, number)
            os.close(own)
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read())
        file.close()
    return code, texts[0], texts[1]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    os.chdir(folder)
    from peft_prune.cli import main

    results = {}
    for name, arguments in json.loads(Path("commands.json").read_text()).items():
        sys.argv = ["peft-prune", *arguments]
        results[name] = caught(main)
    Path("results.json").write_text(json.dumps(results))
