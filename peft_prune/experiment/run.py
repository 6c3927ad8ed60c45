"""Run an experiment: edit once, look at every variant at every mark, and go on where it was left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..editors import Editor, SecondMoments
from ..editors.asking import default_ask, settled
from ..evaluation import RequestAnswers, request_answers
from ..models.fingerprint import base_fingerprint
from ..models.inference import undisturbed
from ..moving import moving_bar
from ..requests import EditRequest
from ..session import EditSession
from ..session.facts import moments_digest
from ..spectral import parse_restraint, restraint_text
from ..tuner import PruneEditConfig
from .measuring import Material, digest, edit_outcomes, layer_figures, measure, selected, spectra
from .plan import Plan, Unit
from .store import Measured, Store
from .variants import as_variant, least_strengths


@contextmanager
def _unloaded_at_the_end(session: EditSession) -> Iterator[None]:
    """However the block ends, the base model is as it was: its own answers are asked for again when a run goes on."""
    try:
        yield
    finally:
        session.model.unload()


class Experiment:
    """One plan on one model.

    An edit that does not take stays in, as in the papers that the tables are compared with, and counts as what it is.

    Args:
        plan: What to do.
        model: The unedited causal language model.
        tokenizer: Its tokenizer.
        requests: All requests; each seed takes its own choice and order of them.
        folder: Where histories and measurements are kept; one that holds the same experiment is gone on with.
        statistics: Second moments, for editors that need them.
        material: What else is measured.
        ask: "plain", "chat" or "both" for requests that do not say it themselves; both if not given and the model has
            a chat template.

    Raises:
        UnsupportedModelError: The model is to be asked in chat and has no template, or one that fails.
        ValueError: There are too few requests, or the editor or a hyperparameter is unknown.
    """

    def __init__(
        self,
        plan: Plan,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        folder: Path,
        *,
        statistics: SecondMoments | None = None,
        material: Material | None = None,
        ask: str | None = None,
    ) -> None:
        self.plan, self.tokenizer, self.folder = plan, tokenizer, folder
        requests = settled(requests, default_ask(tokenizer, ask))
        self._model, self._requests, self._statistics = model, requests, statistics
        self._material = material or Material(fluency_tokens=plan.fluency_tokens)
        self.editor: Editor = plan.get_editor(model)
        self._orders = {seed: plan.order(len(self._requests), seed) for seed in range(plan.seeds)}

    def facts(self) -> dict[str, Any]:
        """Everything that decides the figures, ready for JSON."""
        moments = None if self._statistics is None else moments_digest(self._statistics.moments)
        return self.plan.facts() | {
            "base": base_fingerprint(self._model),
            "requests": len(self._requests),
            "requests_digest": digest([request.document() for request in self._requests]),
            "material": self._material.counts(),
            "material_digest": self._material.digest(),
            "moments": moments,
        }

    def run(self, *, progress: bool = True) -> None:
        """Measure what is missing.

        Raises:
            ValueError: The folder belongs to another experiment, or another process writes it.
        """
        (self.folder / "histories").mkdir(parents=True, exist_ok=True)
        units = list(self.plan.units())
        total = sum(self.plan.marks[-1] + len(self.plan.marks) * len(unit.variants) for unit in units)
        with (
            Store(self.folder / "measurements.sqlite", self.facts()) as store,
            moving_bar(total=total, desc="Base model", disable=not progress, smoothing=0.1) as bar,
        ):
            self._base(store)
            for unit in units:
                bar.set_description(unit.name)
                self._unit(unit, store, bar)

    def _base(self, store: Store) -> None:
        if any(isinstance(module, BaseTunerLayer) for module in self._model.modules()):
            raise ValueError("model: holds an adapter, the unedited base is needed")
        chosen = sorted({index for order in self._orders.values() for index in order})
        requests = [self._requests[index] for index in chosen]
        size = self._material.batch_size
        with undisturbed(self._model):
            answers = request_answers(self._model, self.tokenizer, requests, batch_size=size)
            self._base_answers: RequestAnswers = answers
            self._place = {index: place for place, index in enumerate(chosen)}
            if not store.base():
                outcomes = measure(self._model, self.tokenizer, requests, answers, self._material, answers)
                store.write_base(outcomes | {"requests": [[float(index)] for index in chosen]})

    def _unit(self, unit: Unit, store: Store, bar: Any) -> None:
        order = self._orders[unit.seed]
        with self._session(unit) as session, _unloaded_at_the_end(session):
            done = session.history.last_edit
            # the last batch may have been written and not yet looked at
            self._look_at_new(unit, session, store, order[:done])
            bar.update(done)
            for mark in self.plan.marks:
                while done < mark:
                    batch = order[done : min(done + self.plan.batch_size, mark)]
                    session.edit([self._requests[index] for index in batch], batch_size=len(batch))
                    self._look_at_new(unit, session, store, order[: done + len(batch)])
                    done += len(batch)
                    bar.update(len(batch))
                if done == mark:
                    self._mark(unit, mark, session, store, bar)
                else:
                    bar.update(len(unit.variants))

    def _session(self, unit: Unit) -> EditSession:
        history = self.folder / "histories" / f"{unit.name}.sqlite"
        options: dict[str, Any] = {"statistics": self._statistics, "on_failure": "keep", "on_conflict": "keep"}
        # what holds is measured at every mark
        options |= {"monitor": False, "author": "experiment", "look_again": False}
        if history.exists() and history.stat().st_size == 0:
            history.unlink()  # stopped between its creation and its first transaction
        if history.exists():
            return EditSession.resume(history, self._model, self.tokenizer, self.editor, **options)
        variant = unit.variants[0]
        restraint = parse_restraint("none" if unit.schedule.kind == "merge" else variant.restraint)
        config = PruneEditConfig(
            restraint=restraint_text(restraint),
            restrain_on=unit.schedule.kind,  # type: ignore[arg-type]
            restrain_every=unit.schedule.edits or 1,
            layers_to_transform=list(self.editor.layers(self._model)),
            experts=self.editor.experts or "shared",  # type: ignore[arg-type]
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(self._model, config).eval()
        return EditSession(model, self.tokenizer, self.editor, history=history, **options)

    def _look_at_new(self, unit: Unit, session: EditSession, store: Store, made: Sequence[int]) -> None:
        """Outcomes of the edits made last, at the moment `immediate`."""
        known = len(store.immediate(unit.name))
        new = list(made[known:])
        if not new:
            return
        requests = [self._requests[index] for index in new]
        base = selected(self._base_answers, [self._place[index] for index in new])
        found = edit_outcomes(session.model, self.tokenizer, requests, base, self._material.batch_size)
        rows = [{kind: [own[place]] for kind, own in found.items()} for place in range(len(new))]
        store.write_immediate(unit.name, known, rows)

    def _mark(self, unit: Unit, mark: int, session: EditSession, store: Store, bar: Any) -> None:
        strengths: dict[int, float] = {}

        def least() -> dict[int, float]:
            if not strengths:
                strengths.update(least_strengths(session, self.plan.strength_margin))
            return strengths

        for variant in unit.variants:
            if not store.has(unit.name, mark, variant.word):
                state = session.model.edit_state()
                if unit.schedule.kind == "merge":
                    with as_variant(session, variant, least):
                        self._measure(unit, mark, variant.word, session, store)
                else:
                    if session.model.restraint_is_pending():
                        session.model.restrain()
                    self._measure(unit, mark, variant.word, session, store)
                    session.model.restore_edit_state(state)
            bar.update()

    def _measure(self, unit: Unit, mark: int, variant: str, session: EditSession, store: Store) -> None:
        chosen = self._orders[unit.seed][:mark]
        requests = [self._requests[index] for index in chosen]
        base = selected(self._base_answers, [self._place[index] for index in chosen])
        outcomes = measure(session.model, self.tokenizer, requests, base, self._material)
        outcomes["applied"] = [[float(record.status == "applied")] for record in session.history.edits()[:mark]]
        outcomes["requests"] = [[float(index)] for index in chosen]
        layers = layer_figures(session.model, None if self._statistics is None else self._statistics.moments)
        if mark == self.plan.marks[-1]:
            store.write_spectra(unit.name, variant, spectra(session.model))
        store.write(Measured(unit.name, mark, variant, outcomes, layers))
