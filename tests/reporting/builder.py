"""Histories of any shape, written without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from peft_prune import EditRequest
from peft_prune.monitoring import Alert, LayerCondition, Limit
from peft_prune.reporting import Report, history_report
from peft_prune.session import EditRecord, Factors, History
from peft_prune.session.records import BatchRecord
from peft_prune.spectral import LowRankUpdate

MODULE = "transformer.h.2.mlp.c_proj"
CONFIG = {
    "restraint": "log", "alpha": 1.2, "restraint_pattern": None, "restrain_on": "every", "restrain_every": 10,
    "max_condition_growth": 2.0, "max_rank": None, "target_modules": ["mlp.c_proj"], "layers_to_transform": [2],
    "layers_pattern": None,
}  # fmt: skip
RECALL = Limit("recall", 0.9, 1.0, True, "warn")


def growth_limit(value: float) -> Limit:
    return Limit("condition_growth", value, 1.0, False, "warn")


def figures(growth: float = 1.5, base: float = 100.0, **values: Any) -> LayerCondition:
    known = {
        "edits": 1, "rank": 1, "sigma_max_base": 3.0, "delta_spectral_norm": 1.0, "delta_frobenius_norm": 1.0,
        "condition_number_base": base, "condition_number": base * growth, "perturbation_bound": 1.0,
        "output_perturbation": 0.1, "energy_top": 0.1, "energy_bottom": 0.1,
    }  # fmt: skip
    return LayerCondition(**known | values)


class Builder:
    """A history that grows batch by batch."""

    def __init__(self, limits: Sequence[Limit] = (), path: Path | None = None, **config: Any) -> None:
        facts: dict[str, Any] = {"model": "/models/gpt2", "base": None, "contexts": [""], "moments": {}}
        facts |= {"editor": {"name": "rome", "hyperparameters": {}}, "config": {**CONFIG, **config}}
        if limits:
            facts["limits"] = [asdict(limit) for limit in limits]
        self.history = History.create(path, facts, "Ann")
        self._generator = torch.Generator().manual_seed(0)
        self._additions = 0

    def batch(
        self,
        *edits: Mapping[str, Any],
        growth: float | Mapping[str, LayerCondition] | None = None,
        measured: Mapping[str, float] | None = None,
        alerts: Sequence[Alert] = (),
        together: bool = False,
        undone: Mapping[int, str] | None = None,
        modules: Sequence[str] = (MODULE,),
    ) -> Builder:
        """One batch; what an edit does not say it has as one that took."""
        number, first = self.history.last_batch + 1, self.history.last_edit + 1
        self._additions += 1
        records, factors = [], {}
        for place, given in enumerate(edits):
            edit = first + place
            record = self._record(edit, number, dict(given), first if together else edit)
            if record.leader == edit:
                factors[edit] = self._factors(modules)
            records.append(record)
        taken = {MODULE: figures(growth)} if isinstance(growth, (int, float)) else dict(growth or {})
        raw = {record.id: '{"invalid": 1}' for record in records if record.request is None}
        facts: dict[str, Any] = {"raw": raw, "factors": factors, "figures": taken, "alerts": alerts}
        facts |= {"measurements": measured or {}, "undone": undone or {}}
        self.history.record(BatchRecord(number, 1.0, records, **facts))
        return self

    def report(self, **options: Any) -> Report:
        return history_report(self.history, **options)

    def _record(self, edit: int, batch: int, given: dict[str, Any], leader: int) -> EditRecord:
        request = EditRequest("{} is in", f"Subject {edit}", f"Target {edit}", target_true="Old")
        request = given.pop("request", request)
        status = given.pop("status", "applied")
        values: dict[str, Any] = {}
        if status in ("applied", "failed") and request is not None:
            values = {"answer_before": " Old", "answer_after": f" {request.target_new}", "probability_after": 0.9}
        if given.pop("stands", status == "applied"):
            values |= {"appended": self._additions, "leader": leader}
        return EditRecord(edit, batch, request, status, **values | given)

    def _factors(self, modules: Sequence[str]) -> Factors:
        def update() -> LowRankUpdate:
            return LowRankUpdate(
                torch.randn(8, 1, generator=self._generator), torch.randn(1, 16, generator=self._generator)
            )

        return Factors({module: update() for module in modules})
