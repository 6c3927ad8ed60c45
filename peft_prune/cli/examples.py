"""What each command looks like when it is used; shown in its help and on the page of all commands."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "demo": ("peft-prune demo --out demo-output",),
    "doctor": ("peft-prune doctor MODEL",),
    "editors": ("peft-prune editors", "peft-prune editors rome"),
    "locate": ("peft-prune locate --model MODEL --requests EDITS.jsonl --plot layers.png",),
    "edit": ("peft-prune edit --model MODEL --requests EDITS.jsonl --history EDITS.db --out ADAPTER",),
    "resume": ("peft-prune resume EDITS.db --model MODEL --requests TUESDAY.jsonl --out ADAPTER2",),
    "undo": (
        "peft-prune undo EDITS.db 2 3 --model MODEL --out ADAPTER2",
        "peft-prune undo EDITS.db --since 2026-03-01 --model MODEL --out ADAPTER2",
    ),
    "tune": ("peft-prune tune EDITS.db --model MODEL --facts FACTS.json --out ADAPTER2",),
    "consolidate": ("peft-prune consolidate EDITS.db --model MODEL --out ADAPTER2",),
    "restrain": ("peft-prune restrain RAW --model MODEL --restraint log --alpha 1.2 --out ADAPTER",),
    "ask": (
        'peft-prune ask ADAPTER "The capital of France is"',
        'peft-prune ask --model CHAT_MODEL --chat "Who are you?"',
    ),
    "evaluate": ("peft-prune evaluate --model MODEL --adapter ADAPTER --requests EDITS.jsonl --text TEXTS.txt",),
    "harness": ("peft-prune harness --model MODEL --adapter ADAPTER --tasks hellaswag,piqa --limit 200",),
    "experiment": ("peft-prune experiment --model builtin --layers 0 --seeds 3 --out RESULTS",),
    "history": ("peft-prune history EDITS.db --status lost",),
    "inspect": ("peft-prune inspect ADAPTER",),
    "report": ("peft-prune report EDITS.db --model MODEL --out report.html",),
    "audit": ("peft-prune audit --base BASE --edited CHECKPOINT --out audit.html",),
    "compose": ("peft-prune compose TEAM_A.db TEAM_B.db --model MODEL --out BOTH",),
    "diff": ("peft-prune diff TEAM_A.db TEAM_B.db",),
    "merge": ("peft-prune merge ADAPTER --model MODEL --out CHECKPOINT",),
    "export": ("peft-prune export ADAPTER --format lora --out LORA",),
    "push": ("peft-prune push ADAPTER user/name",),
}
"""By the name of the command."""
