"""The command where its script is not on the path: `python -m peft_prune.cli`."""

from __future__ import annotations

from . import main

if __name__ == "__main__":
    raise SystemExit(main())
