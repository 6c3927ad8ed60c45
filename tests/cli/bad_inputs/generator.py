"""Every case: each valid input spoilt in each way, and the valid inputs themselves."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .adapters import adapter_configs, adapter_weights
from .histories import histories
from .lines import collisions, values
from .models import checkpoints, experiments, models, statistics
from .records import abilities, documents, records
from .scene import (
    Case,
    Scene,
    options,
    placed,
    settings,
)


def _valid(scene: Scene, draw: random.Random) -> Iterator[Case]:
    """What nothing was done to is accepted: the cases below are refused for what was done to them."""
    lines = {
        "evaluate": scene.evaluate(facts=scene.facts, text=scene.texts, abilities=scene.items),
        "evaluate, other forms": scene.evaluate(requests=scene.table, text=scene.lines),
        "history": ["history", str(scene.history)],
        "report of a history": ["report", str(scene.history), "--out", "report.html"],
        "report of an adapter": ["report", str(scene.adapter), "--out", "report.html"],
        "restrain": ["restrain", str(scene.adapter), *options({"model": scene.model, "out": "out"})],
        "merge": ["merge", str(scene.adapter), *options({"model": scene.model, "out": "out"})],
        "audit": ["audit", *options({"base": scene.model, "edited": scene.model, "out": "audit.html"})],
        "edit": [*scene.edit(stats=scene.moments, requests=scene.flat), *settings()],
    }
    for name, line in lines.items():
        yield Case("valid", name, (), lambda folder, line=line: placed(line, folder), accepted=True)


def all_cases(scene: Scene, seed: int = 0) -> list[Case]:
    """Every case, in a fixed order."""
    makers = (_valid, records, documents, abilities, adapter_configs, adapter_weights, histories, statistics)
    makers += (models, values, collisions, checkpoints, experiments)
    # each from a draw of its own, so that a case more of one kind does not change those of the others
    return [case for maker in makers for case in maker(scene, random.Random(f"{seed} {maker.__name__}"))]
