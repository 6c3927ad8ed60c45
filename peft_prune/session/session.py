"""A session of edits: each verified, written to a history that can be undone, and watched by callbacks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..editors import Editor, Prepared, SecondMoments, get_editor
from ..errors import HistoryError, SessionStateError
from ..folders import whole_folder
from ..models.architecture import unwrapped
from ..models.fingerprint import base_fingerprint
from ..models.generation import normalized
from ..models.inference import undisturbed
from ..models.naming import model_name
from ..monitoring import LayerCondition, Monitor, SessionCallback
from ..requests import EditRequest
from ..spectral import restraint_text
from ..tuner import PRUNE_EDIT, PruneEditConfig
from .base import require_bare, require_base
from .batch import Batch, Given, in_batches
from .history import BatchRecord, EditRecord, Factors, History, moments_digest, relation_key, subject_key
from .replay import Addition, additions, joined_keys, replay
from .results import FAILED, REJECTED, SKIPPED, BatchFailedError, EditResult
from .verification import Verification, verify

ON_FAILURE = ("skip", "raise", "keep")
ON_CONFLICT = ("replace", "keep", "reject")
_CONFIG_FIELDS = (
    "restraint",
    "alpha",
    "restraint_pattern",
    "restrain_on",
    "restrain_every",
    "max_condition_growth",
    "max_rank",
    "target_modules",
    "layers_to_transform",
    "layers_pattern",
)


class EditSession:
    """Edits a model in sequence and keeps the log.

    An edit is verified by free greedy generation on its bare prompt; one that did not take is tried once more with a
    stronger setting, and then rolled out of the factors. Only then does the restraint act, if the schedule says so.
    Whatever goes wrong in a batch, the adapter is afterwards as it was before that batch, and the history holds all
    batches before it.

    Args:
        model: A PEFT model with a PRUNE_EDIT adapter that holds no edits, or a plain causal language model, which then
            gets one with the default restraint on the editor's layers.
        tokenizer: Its tokenizer.
        editor: An editor, or the name of one, which then takes the values that fit the model.
        statistics: Second moments of the edited modules, or a file of them, for editors that need them; the monitor
            uses them as well.
        history: SQLite file to write; it must not exist. None keeps the history in memory.
        callbacks: Called at the session's events, in this order.
        on_failure: What becomes of an edit that does not take: "skip" rolls it out and goes on, "raise" does the same
            and raises `BatchFailedError` after its batch, "keep" leaves its factors in.
        on_conflict: What becomes of an earlier edit of the same subject and relation with another target: "replace"
            undoes it when the new one takes, "keep" keeps both, "reject" rejects the new one.
        author: Who edits, for the log; the user of this process if not given.
        monitor: Take the figures of every layer after each batch.

    Raises:
        ValueError: An option is unknown, the adapter holds edits, or it does not adapt the editor's layers.
        HistoryError: The history exists or cannot be written.
        HistoryLockedError: Another session writes it.
    """

    model: Any
    history: History
    _contexts: tuple[str, ...]
    _prepared: Prepared | None
    _stopped: str | None
    _open: bool
    _monitor: Monitor | None

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        editor: Editor | str = "memit",
        *,
        statistics: SecondMoments | str | Path | None = None,
        history: str | Path | None = None,
        callbacks: Sequence[SessionCallback] = (),
        on_failure: str = "skip",
        on_conflict: str = "replace",
        author: str | None = None,
        monitor: bool = True,
    ) -> None:
        editor = get_editor(editor, model=model) if isinstance(editor, str) else editor
        config = PruneEditConfig(task_type="CAUSAL_LM", layers_to_transform=list(editor.layers(model)))
        require_figures(callbacks, monitor)
        self._set_up(model, tokenizer, editor, statistics, callbacks, on_failure, on_conflict, config)
        if any(layer.rank(self._adapter) for _, layer in self.model.edited_layers()):
            raise ValueError("model: its adapter holds edits; go on with their history by EditSession.resume")
        self._prepared = self.editor.prepare(self.model, tokenizer, self._statistics)
        self._contexts = self._prepared.contexts
        self.history = History.create(history, self._facts(), author)
        self._begin(monitor)

    @classmethod
    def resume(
        cls,
        history: str | Path,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        editor: Editor | str | None = None,
        *,
        statistics: SecondMoments | str | Path | None = None,
        callbacks: Sequence[SessionCallback] = (),
        on_failure: str = "skip",
        on_conflict: str = "replace",
        author: str | None = None,
        monitor: bool = True,
    ) -> EditSession:
        """Go on with a history: the adapter is built from it, without computing an edit again.

        Args:
            history: The file of an earlier session.
            model: The unedited base model, or a PEFT model of it; what its adapter holds is replaced.
            tokenizer: Its tokenizer.
            editor: The history's own if not given.
            statistics: As in the class; without them a session can undo, restrain, tune and save, but not edit with an
                editor that needs them.

        The other arguments are those of the class; the restraint is the history's.

        Raises:
            HistoryError: The history is missing or damaged, or belongs to another model or other second moments.
            HistoryLockedError: Another session writes it.
        """
        require_figures(callbacks, monitor)
        log = History.open(history, author)
        try:
            facts = log.meta
            require_base(facts, model, history)
            session = cls.__new__(cls)
            session.history = log
            if editor is None:
                given = {k: _tuples(v) for k, v in facts["editor"]["hyperparameters"].items()}
                editor = get_editor(facts["editor"]["name"], **given)
            elif isinstance(editor, str):
                editor = get_editor(editor, model=model)
            stored = {k: v for k, v in facts["config"].items() if v is not None}
            config = PruneEditConfig(task_type="CAUSAL_LM", **stored)
            session._set_up(model, tokenizer, editor, statistics, callbacks, on_failure, on_conflict, config)
            for name in ("restraint", "alpha", "restraint_pattern", "restrain_on", "restrain_every"):
                setattr(session.config, name, getattr(config, name))
            session.config.max_condition_growth, session.config.max_rank = config.max_condition_growth, config.max_rank
            session._require_moments(facts)
            session._contexts = tuple(facts["contexts"])
            session._rebuild()
            session._begin(monitor)
        except BaseException:
            log.close()
            raise
        return session

    @property
    def config(self) -> PruneEditConfig:
        """The adapter's configuration."""
        return self.model.peft_config[self._adapter]

    @property
    def statistics(self) -> SecondMoments | None:
        """The second moments that the session was given."""
        return self._statistics

    @property
    def contexts(self) -> tuple[str, ...]:
        """Prefixes that the editor puts before a prompt; the first is empty."""
        return self._contexts

    @property
    def prepared(self) -> Prepared:
        """What the editor has learnt of the unedited model; after resuming, at the first edit.

        Raises:
            ValueError: The editor needs second moments, and the session was resumed without them.
        """
        if self._prepared is None:
            with undisturbed(self.model), self.model.disable_adapter():
                found = self.editor.prepare(self.model, self.tokenizer, self._statistics)
            self._prepared = dataclasses.replace(found, contexts=self._contexts)
        return self._prepared

    def settings(self) -> dict[str, Any]:
        """What the session works with, as flat values, for trackers and reports."""
        values = {f"editor.{k}": v for k, v in dataclasses.asdict(self.editor.hyperparameters).items()}
        config = {f"config.{name}": getattr(self.config, name) for name in _CONFIG_FIELDS}
        return {"editor": self.editor.name, "model": model_name(unwrapped(self.model)), **values, **config}

    def edit(
        self, requests: EditRequest | Mapping[str, Any] | Iterable[EditRequest | Mapping[str, Any]], batch_size: int = 1
    ) -> list[EditResult]:
        """Apply requests in order; each batch is computed on the model as the batches before it left it.

        Args:
            requests: Requests, or mappings in the forms of `EditRequest.from_record`.
            batch_size: How many are computed together. Contradicting requests never share a batch.

        Returns:
            One result for each request.

        Raises:
            ValueError: ``batch_size`` is below 1.
            BatchFailedError: ``on_failure`` is "raise" and an edit did not take.
            HistoryError: A batch could not be written; the adapter is as before it.
            SessionStateError: The session is closed, or an adapter is merged.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} must be at least 1")
        self._require_open()
        assert self.prepared is not None  # what is missing shows before a batch begins
        given = [requests] if isinstance(requests, (EditRequest, Mapping)) else list(requests)
        results: list[EditResult] = []
        self._call("on_edit_begin", len(given))
        self._note_limits()
        try:
            for batch in in_batches([Given.of(item) for item in given], batch_size):
                results += self._batch(batch) if self._stopped is None else self._skip(batch)
                self._raise_failures(results)
        finally:
            self._stopped = None
            self._call("on_edit_end")
        return results

    def undo(self, edits: int | Iterable[int], reason: str = "asked for") -> None:
        """Take edits out of the adapter, whenever they were made; the others' factors stay as they are.

        The adapter becomes the one that would have stood had these edits never been added to the sum.

        Args:
            edits: Their numbers.
            reason: For the log.

        Raises:
            HistoryError: There is no such edit, or the history cannot be written; nothing has changed.
            SessionStateError: An edit does not stand, or shares its factors with others that are not named.
        """
        self._require_open()
        chosen = [edits] if isinstance(edits, int) else list(edits)
        standing = {record.id: record for record in self.history.edits(standing=True)}
        for edit in chosen:
            if edit not in standing:
                record = self.history.edit(edit)
                state = f"was undone at {record.undone_at}" if record.undone_at else f"is {record.status}"
                raise SessionStateError(f"edit: {edit} does not stand, it {state}")
        leaders = {standing[edit].leader for edit in chosen}
        together = [record.id for record in standing.values() if record.leader in leaders]
        if set(together) != set(chosen):
            raise SessionStateError(
                f"edit: {sorted(chosen)} share their factors with others; undo {sorted(together)} together"
            )
        with self._intact():
            self._rebuild(without=chosen)
            self.history.record_undo(chosen, reason)
        self._call("on_undo", chosen)

    def restrain(self) -> None:
        """Apply the restraint to the raw sum in every layer now, whatever the schedule."""
        self._require_open()
        with self._intact():
            self.model.restrain()
            words = self.restraints()
            self.history.record_restraint(words)
            self._note_pending()
        self._call("on_restrain", list(words))

    def restraints(self) -> dict[str, str]:
        """The restraint of every layer as a word, such as "log:1.2", by module name."""
        return {name: restraint_text(layer.restraint(self._adapter)) for name, layer in self.model.edited_layers()}

    def verify(self) -> dict[int, Verification]:
        """Look at every edit that stands as the model holds it now, by its number."""
        records = [record for record in self.history.edits(standing=True) if record.request is not None]
        found = verify(self.model, self.tokenizer, [record.request for record in records if record.request])
        return {record.id: one for record, one in zip(records, found, strict=True)}

    def figures(self) -> dict[str, LayerCondition]:
        """Figures of every layer now, by module name."""
        return (self._monitor or self._new_monitor()).figures()

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Save the adapter, whole or not at all; a pending restraint is applied first and written to the history.

        Raises:
            ValueError: ``path`` exists and is not an empty folder, and ``overwrite`` is not set.
        """
        if self.model.restraint_is_pending():
            self.restrain()
        with whole_folder(Path(path), overwrite=overwrite) as folder:
            self.model.save_pretrained(str(folder))

    def close(self) -> None:
        """End the session and give the history free; the model keeps its adapter."""
        if self._open:
            self._open = False
            self._call("on_session_end")
            self.history.close()

    def __enter__(self) -> EditSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def standing_factors(self) -> Iterator[tuple[EditRecord, Factors]]:
        """Every edit that leads a row of factors, with these; one at a time, as the history gives them."""
        for record in self.history.edits(standing=True):
            if record.leader == record.id:
                yield record, self.history.factors(record.id)

    def set_strengths(self, strengths: Mapping[int, float]) -> None:
        """Multiply the factors of edits, then apply the restraint to the new raw sum.

        Args:
            strengths: By number of the edit; edits that are not named keep theirs.

        Raises:
            SessionStateError: An edit does not stand.
        """
        self._require_open()
        standing = {record.id for record in self.history.edits(standing=True)}
        for edit in strengths:
            if edit not in standing:
                raise SessionStateError(f"edit: {edit} does not stand")
        with self._intact():
            self._rebuild(strengths=strengths)
            self.model.restrain()
            self.history.record_strengths(strengths, self.restraints())
            self._note_pending()

    def choose_restraints(self, restraints: Mapping[str, str], why: Mapping[str, Any] | None = None) -> None:
        """Write a restraint for every layer into the configuration and apply it to the raw sum.

        Args:
            restraints: Words such as "log:1.5" by module name.
            why: For the log.
        """
        self._require_open()
        before = {name: getattr(self.config, name) for name in ("restraint", "alpha", "restraint_pattern")}
        try:
            with self._intact():
                self.model.set_restraints(restraints)
                self.model.restrain()
                config = _stored_config(self.config)
                self.history.record_choice(self.restraints(), config, {"restraints": dict(restraints), **(why or {})})
                self._note_pending()
        except BaseException:
            for name, value in before.items():
                setattr(self.config, name, value)
            raise

    def _set_up(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        editor: Editor,
        statistics: SecondMoments | str | Path | None,
        callbacks: Sequence[SessionCallback],
        on_failure: str,
        on_conflict: str,
        config: PruneEditConfig,
    ) -> None:
        if on_failure not in ON_FAILURE:
            raise ValueError(f"on_failure: {on_failure!r} is not one of {', '.join(ON_FAILURE)}")
        if on_conflict not in ON_CONFLICT:
            raise ValueError(f"on_conflict: {on_conflict!r} is not one of {', '.join(ON_CONFLICT)}")
        if isinstance(statistics, (str, Path)):
            statistics = SecondMoments.load(statistics, base=base_fingerprint(model))
        require_bare(model)
        self.model = model if isinstance(model, PeftModel) else get_peft_model(model, config).eval()
        self._adapter = self.model.base_model.one_adapter(None)
        if self.model.peft_config[self._adapter].peft_type != PRUNE_EDIT:
            raise ValueError(
                f"model: its adapter {self._adapter!r} is of type {self.model.peft_config[self._adapter].peft_type}, "
                "PRUNE_EDIT is accepted"
            )
        missing = set(editor.modules(self.model)) - {name for name, _ in self.model.edited_layers()}
        if missing:
            raise ValueError(f"model: its adapter does not adapt {sorted(missing)[0]}, which the editor changes")
        self.tokenizer = tokenizer
        self.editor = editor
        self.callbacks = list(callbacks)
        self.on_failure = on_failure
        self.on_conflict = on_conflict
        self._statistics = statistics
        self._prepared = None
        self._stopped = None
        self._keys: dict[str, Tensor] = {}
        self._pending: dict[str, int] = {}
        self._open = True

    def _begin(self, monitor: bool) -> None:
        self._monitor = self._new_monitor() if monitor else None
        self._note_pending()
        self._call("on_session_begin")

    def _new_monitor(self) -> Monitor:
        return Monitor(self.model, None if self._statistics is None else self._statistics.moments)

    def _facts(self) -> dict[str, Any]:
        values = dataclasses.asdict(self.editor.hyperparameters)
        return {
            "model": model_name(unwrapped(self.model)),
            "base": base_fingerprint(self.model),
            "editor": {"name": self.editor.name, "hyperparameters": values},
            "contexts": list(self._contexts),
            "config": _stored_config(self.config),
            "moments": {} if self._statistics is None else moments_digest(self._statistics.moments),
        }

    def _require_moments(self, facts: Mapping[str, Any]) -> None:
        if self._statistics is None or not facts["moments"]:
            return
        found = moments_digest(self._statistics.moments)
        for name, sums in facts["moments"].items():
            if name in found and found[name] != sums:
                raise HistoryError(f"history: its edits were made with another second moment of {name}")

    def _require_open(self) -> None:
        if not self._open:
            raise SessionStateError("session: it is closed; use EditSession.resume")
        merged = [name for name, layer in self.model.edited_layers() if layer.merged]
        if merged:
            raise SessionStateError(f"model: the adapter is merged into {merged[0]}; call unmerge_adapter() first")
        self._note_foreign_restraint()

    def _call(self, event: str, *values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *values)

    @contextmanager
    def _intact(self) -> Iterator[None]:
        """The adapter, the keys and what is pending are as before if the block ends with an error."""
        state, keys, pending = self.model.edit_state(), dict(self._keys), dict(self._pending)
        try:
            yield
        except BaseException:
            self.model.restore_edit_state(state)
            self._keys, self._pending = keys, pending
            raise

    def _note_pending(self) -> None:
        self._pending = {
            name: layer.prune_edit_update[self._adapter].pending for name, layer in self.model.edited_layers()
        }

    def _note_limits(self) -> None:
        """Write down what the callbacks watch, so that a report can draw it."""
        limits = [dataclasses.asdict(limit) for callback in self.callbacks for limit in callback.limits()]
        named = {limit["figure"] for limit in limits}
        known = self.history.meta.get("limits", [])
        # a session that watches less does not lift what others have set
        merged = [limit for limit in known if limit["figure"] not in named] + limits
        if merged != known:
            self.history.update_meta(limits=merged)

    def _note_foreign_restraint(self) -> None:
        """Write down a restraint that somebody applied past the session, by saving the model for instance."""
        acted = {
            name: restraint_text(layer.restraint(self._adapter))
            for name, layer in self.model.edited_layers()
            if layer.prune_edit_update[self._adapter].pending < self._pending.get(name, 0)
        }
        if acted:
            self.history.record_restraint(acted)
            self._note_pending()

    def _rebuild(
        self,
        without: Iterable[int] = (),
        strengths: Mapping[int, float] | None = None,
        new: Sequence[Addition] = (),
        new_keys: Sequence[Factors] = (),
    ) -> None:
        """Make the adapter and the keys those of the history, with changes that are not yet written."""
        gone = set(without)
        strengths = strengths or {}
        records = [
            dataclasses.replace(record, strength=strengths.get(record.id, record.strength))
            for record in self.history.edits(standing=True)
            if record.id not in gone
        ]
        replay(self.model, [*additions(records, self.history.factors), *new], self.history.restraints())
        leaders = [self.history.factors(record.id) for record in records if record.leader == record.id]
        self._keys = joined_keys([*leaders, *new_keys])
        self._note_pending()

    def _batch(self, given: Sequence[Given]) -> list[EditResult]:
        start = time.perf_counter()
        self._call("on_batch_begin", [item.request for item in given])
        with self._intact():
            work = Batch(self, given, self.history.last_batch + 1, self.history.last_edit + 1)
            work.run()
            report = work.report(time.perf_counter() - start)
            work.settle(report)
            self.history.record(work.record(report, time.perf_counter() - start))
            self._note_pending()
        if work.restrained:
            self._call("on_restrain", list(work.restrained))
        stops = report.asks_for("stop")
        self._stopped = stops[0].message if stops else None
        return list(report.results)

    def _skip(self, given: Sequence[Given]) -> list[EditResult]:
        batch, first = self.history.last_batch + 1, self.history.last_edit + 1
        reason = f"the session was stopped: {self._stopped}"
        records = [EditRecord(first + i, batch, item.request, SKIPPED, reason) for i, item in enumerate(given)]
        raw = {record.id: item.raw for record, item in zip(records, given, strict=True)}
        self.history.record(BatchRecord(batch, 0.0, records, raw))
        return [EditResult(record.id, record.request, SKIPPED, reason) for record in records]

    def _raise_failures(self, results: list[EditResult]) -> None:
        failed = [result for result in results if result.status in (FAILED, REJECTED)]
        if failed and self.on_failure == "raise":
            raise BatchFailedError(f"edit {failed[0].id}: {failed[0].reason}", results)

    def conflicts(self, request: EditRequest) -> list[int]:
        """Edits that stand and say something else about the same subject and relation."""
        standing = self.history.standing_on(subject_key(request), relation_key(request))
        return [
            record.id
            for record in standing
            if record.request is not None and normalized(record.request.target_new) != normalized(request.target_new)
        ]


def _stored_config(config: PruneEditConfig) -> dict[str, Any]:
    """The fields that a history needs to build the adapter again, ready for JSON."""
    values = {name: getattr(config, name) for name in _CONFIG_FIELDS}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def _tuples(value: Any) -> Any:
    """JSON knows lists alone, hyperparameters hold tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def require_figures(callbacks: Sequence[SessionCallback], monitor: bool) -> None:
    """Raise ValueError where a callback looks at figures that the session would not take."""
    for callback in callbacks:
        if callback.needs_figures and not monitor:
            raise ValueError(
                f"monitor: {type(callback).__name__} needs the figures of the layers; leave the monitor on"
            )
