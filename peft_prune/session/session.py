"""A session of edits: each verified, written to a history that can be undone, and watched by callbacks."""

from __future__ import annotations

import dataclasses
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..consolidation import ConsolidationSettings, Protection, read_protected
from ..editors import Editor, Prepared, SecondMoments, Solving, get_editor
from ..errors import EditFailedError, SessionStateError
from ..folders import whole_folder
from ..models.decoder import unwrapped
from ..models.naming import model_name
from ..monitoring import BatchReport, LayerCondition, ProtectionGuard, SessionCallback
from ..monitoring.callbacks import checked_action
from ..outputs import require_outputs
from ..processes import is_main, require_same, together, warn_if_unaware
from ..publishing import publisher
from ..requests import EditRequest
from ..requests.asking import PLAIN
from ..spectral import LowRankUpdate
from ..tuner import PruneEditConfig
from .asking import Asking
from .base import require_base
from .batch import CONSOLIDATE, ON_FAILURE, RAISE, SKIP, Batch, Given, in_batches
from .card import write_session
from .consolidating import Consolidating, ConsolidationResult, settings_of
from .facts import (
    CONFIG_FIELDS,
    RESTRAINT_FIELDS,
    config_of,
    editor_of,
    on_failure_of,
    require_moments,
    session_facts,
    stored_config,
)
from .history import History
from .records import FAILED, REJECTED, SKIPPED, BatchRecord, EditRecord, Factors
from .results import BatchFailedError, EditResult
from .verification import Verification
from .workspace import Workspace, adapted

ON_CONFLICT = ("replace", "keep", "reject")


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
            and raises `BatchFailedError` after its batch, "keep" leaves its factors in, "consolidate" leaves them in
            for the next consolidation to reach it. What that does not reach is rolled out after it (after a window
            only before saving), and everything before saving where there is none.
        on_conflict: What becomes of an earlier edit of the same subject and relation with another target: "replace"
            undoes it when the new one takes, "keep" keeps both, "reject" rejects the new one.
        author: Who edits, for the log; the user of this process if not given.
        monitor: Take the figures of every layer after each batch.
        look_again: Look at the edits that stand once something may have weakened them: at the end of a call to `edit`
            (where a tenth as many edits have been added since the last time), after an undo, a restraint, new
            strengths or a choice of the restraint, and before saving. Off leaves that to `verify`.
        protect: Facts that must not be lost: a file of objects with ``prompt``, ``object`` and perhaps ``subject``, or
            such objects. Their keys enter the systems of editors that keep a history, their answers what a
            consolidation is trained on; and after each batch they are looked at. The history keeps them.
        on_protected: What happens when a batch changes the answer to one: "warn", "restrain", "rollback" or "stop".
        ask: How requests are asked that do not say it themselves, when they are edited and when they are verified:
            "plain", "chat" (through the model's chat template) or "both"; both if not given and the model has one.
        serve_dtype: "bfloat16", "float16" or "float32": the dtype in which the model will be served, and in which
            edits are verified; the one that it has if not given.
        search_ask: "plain" lets the editor search by the prompts alone what is asked both ways, which takes half the
            time: for sessions that end in a consolidation, which trains on what is said in chat.
        solving: Where the editor's systems are solved, and how what is kept of them lies.

    Raises:
        InvalidRequestError: A protected fact is malformed, or the base does not know it.
        ValueError: An option is unknown, the adapter holds edits, or it does not adapt the editor's layers.
        UnsupportedModelError: The model is to be asked in chat and has no template, or one that fails.
        HistoryError: The history exists or cannot be written.
        HistoryLockedError: Another session writes it.
    """

    workspace: Workspace
    callbacks: list[SessionCallback]
    on_failure: str
    on_conflict: str
    look_again: bool
    shows_bars: bool = False
    """Whether bars are shown while it consolidates on its schedule, or again after an undo."""
    _stopped: str | None
    _open: bool

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
        look_again: bool = True,
        protect: str | Path | Iterable[Any] | None = None,
        on_protected: str = "warn",
        ask: str | None = None,
        serve_dtype: str | None = None,
        search_ask: str | None = None,
        solving: Solving | None = None,
    ) -> None:
        require_options(callbacks, on_failure, on_conflict, monitor)
        warn_if_unaware()
        asking = Asking.of(tokenizer, ask, serve_dtype, {}, search_ask)
        editor = get_editor(editor, model=model) if isinstance(editor, str) else editor
        config = PruneEditConfig(
            task_type="CAUSAL_LM",
            layers_to_transform=list(editor.layers(model)),
            experts=editor.experts or "shared",  # type: ignore[arg-type]
        )
        found = _moments(statistics, model)
        model, adapter = adapted(model, config, editor)
        require_moments_for(callbacks, model, found)
        if any(layer.rank(adapter) for _, layer in model.edited_layers()):
            raise ValueError("model: its adapter holds edits; go on with their history by EditSession.resume")
        prepared = editor.prepare(model, tokenizer, found)
        if solving is not None:
            prepared = dataclasses.replace(prepared, solving=solving)
        facts = session_facts(model, editor, prepared.contexts, model.peft_config[adapter], found) | asking.facts()
        if on_failure == CONSOLIDATE:
            facts["on_failure"] = on_failure
        protection = None
        if protect is not None:
            checked_action(on_protected)
            known = read_protected(protect)
            protection = Protection(model, tokenizer, known, editor.modules(model))
            facts["protect"] = {"facts": [dataclasses.asdict(fact) for fact in known], "action": on_protected}
        with together("a new history"):
            log = History.create(history, facts, author)
        self.workspace = Workspace(
            *(model, adapter, tokenizer, editor, found, prepared.contexts, log),
            asking=asking,
            solving=prepared.solving,
            _prepared=prepared,
        )
        if protection is not None:
            self.workspace.protect(protection)
        self._begin(callbacks, on_failure, on_conflict, monitor, look_again)

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
        on_failure: str | None = None,
        on_conflict: str = "replace",
        author: str | None = None,
        monitor: bool = True,
        look_again: bool = True,
        ask: str | None = None,
        serve_dtype: str | None = None,
        solving: Solving | None = None,
    ) -> EditSession:
        """Go on with a history: the adapter is built from it, without computing an edit again.

        Args:
            history: The file of an earlier session.
            model: The unedited base model, or a PEFT model of it; what its adapter holds is replaced.
            tokenizer: Its tokenizer.
            editor: The history's own if not given.
            statistics: As in the class; without them a session can undo, restrain, tune and save, but not edit with an
                editor that needs them.
            on_failure: As in the class; "consolidate" if not given where the history was begun with that, else "skip".

        The other arguments are those of the class; the restraint is the history's, and so are ``ask`` and
        ``serve_dtype`` where they are not given. What stands is asked as it was.

        Raises:
            HistoryError: The history is missing or damaged, or belongs to another model or other second moments.
            HistoryLockedError: Another session writes it.
        """
        require_options(callbacks, on_failure or SKIP, on_conflict, monitor)
        with together("a history"):
            log = History.open(history, author)
        try:
            facts = log.meta
            on_failure = on_failure or on_failure_of(facts, history)
            asking = Asking.of(tokenizer, ask, serve_dtype, {"ask": PLAIN} | facts)
            require_base(facts, model, history)
            if editor is None:
                editor = editor_of(facts, history)
            elif isinstance(editor, str):
                editor = get_editor(editor, model=model)
            config = config_of(facts, history)
            found = _moments(statistics, model)
            require_moments(facts, found)
            model, adapter = adapted(model, config, editor)
            require_moments_for(callbacks, model, found)
            for name in RESTRAINT_FIELDS:
                setattr(model.peft_config[adapter], name, getattr(config, name))
            session = cls.__new__(cls)
            contexts = tuple(facts["contexts"])
            solving = solving or Solving()
            session.workspace = Workspace(
                model, adapter, tokenizer, editor, found, contexts, log, asking=asking, solving=solving
            )
            if asking.facts() != {name: facts[name] for name in asking.facts() if name in facts}:
                log.update_meta(**asking.facts())
            if "protect" in facts:
                known = read_protected(facts["protect"]["facts"])
                session.workspace.protect(Protection(model, tokenizer, known, editor.modules(model)))
            session.workspace.rebuild()
            session._begin(callbacks, on_failure, on_conflict, monitor, look_again)
        except BaseException:
            log.close()
            raise
        return session

    @property
    def model(self) -> Any:
        """The PEFT model."""
        return self.workspace.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.workspace.tokenizer

    @property
    def history(self) -> History:
        """All edits ever asked for."""
        return self.workspace.history

    @property
    def editor(self) -> Editor:
        """Computes the edits; another one may take over between two calls to `edit`."""
        return self.workspace.editor

    @editor.setter
    def editor(self, editor: Editor) -> None:
        self.workspace.editor = editor

    @property
    def config(self) -> PruneEditConfig:
        """The adapter's configuration."""
        return self.workspace.config

    @property
    def statistics(self) -> SecondMoments | None:
        """The second moments that the session was given."""
        return self.workspace.statistics

    @property
    def contexts(self) -> tuple[str, ...]:
        """Prefixes that the editor puts before a prompt; the first is empty."""
        return self.workspace.contexts

    @property
    def prepared(self) -> Prepared:
        """What the editor has learnt of the unedited model; after resuming, at the first edit.

        Raises:
            ValueError: The editor needs second moments, and the session was resumed without them.
        """
        return self.workspace.prepared

    def settings(self) -> dict[str, Any]:
        """What the session works with, as flat values, for trackers and reports."""
        values = {f"editor.{k}": v for k, v in dataclasses.asdict(self.editor.hyperparameters).items()}
        config = {f"config.{name}": getattr(self.config, name) for name in CONFIG_FIELDS}
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
        require_same("requests or settings", (given, batch_size, self.editor.hyperparameters))
        results: list[EditResult] = []
        self._call("on_edit_begin", len(given))
        self._note_limits()
        try:
            for batch in in_batches([Given.of(item, self.workspace.asking) for item in given], batch_size):
                results += self._batch(batch) if self._stopped is None else self._skip(batch)
                if self._consolidating.is_due:
                    self._consolidate(self._kept_texts, self._kept_settings, self.shows_bars)
                if self._failed(results):
                    break
            self._consolidate_again()
            if self.look_again:
                self.workspace.look_if_due()
        finally:
            self._stopped = None
            self._call("on_edit_end")
        results = self._as_seen(results)
        for failed in self._failed(results):
            raise BatchFailedError(f"edit {failed.id}: {failed.reason}", results)
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
        self._undo([edits] if isinstance(edits, int) else list(edits), reason)

    def _undo(
        self, chosen: Sequence[int], reason: str, start: Mapping[str, LowRankUpdate] | None = None
    ) -> ConsolidationResult | None:
        """What an undo is followed by.

        Args:
            chosen: Numbers of the edits.
            reason: For the history.
            start: Factors from which a consolidation of the others goes on, and is not done anew.
        """
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
        with self.workspace.intact():
            self.workspace.rebuild(without=chosen)
            self.history.record_undo(chosen, reason)
        again = self._consolidate_again(start)
        self._look("undo")
        self._call("on_undo", chosen)
        return again

    def restrain(self) -> None:
        """Apply the restraint to the raw sum in every layer now, whatever the schedule.

        The effective factors are F(raw) afterwards, also where they were consolidated before.
        """
        self._require_open()
        with self.workspace.intact():
            words = self._restrain()
            self._consolidating.drop()
        self._look("restraint")
        self._call("on_restrain", list(words))

    def _restrain(self) -> dict[str, str]:
        self.model.restrain()
        words = self.restraints()
        self.history.record_restraint(words)
        self.workspace.note_pending()
        return words

    def consolidate(
        self,
        texts: Sequence[str] | None = None,
        settings: ConsolidationSettings | None = None,
        *,
        progress: bool = False,
        **values: Any,
    ) -> ConsolidationResult:
        """Train the effective factors of all edits that stand together, within the restraint's singular values.

        With ``window`` only those since the last consolidation and some of those before are read; see
        `ConsolidationSettings`.

        The raw factors and the edits in the history stay what they were. What is consolidated stays so: an undo, a
        replacement, new strengths and a restraint on the schedule are followed by another consolidation with the same
        settings, seed and texts; `restrain` ends that.

        Args:
            texts: Retention texts, on which the model shall go on saying what the base says; None lets the base write
                them.
            settings: How; see `ConsolidationSettings`.
            progress: Show a bar with both losses.
            values: Fields that differ from ``settings``.

        Raises:
            SessionStateError: No edit stands, the session is closed, or an adapter is merged.
            InvalidRequestError: No retention text has two tokens.
            EditFailedError: The loss became NaN or Inf, or fewer edits hold than before; nothing has changed.
            ValueError: A setting is unknown or not accepted.
        """
        self._require_open()
        return self._consolidate(texts, settings_of(settings, values), progress=progress)

    def _consolidate(
        self, texts: Sequence[str] | None, settings: ConsolidationSettings, progress: bool = False
    ) -> ConsolidationResult:
        require_same("texts or settings", (None if texts is None else list(texts), settings))
        windowed = self._consolidating.reads_window(settings)
        with self.workspace.intact():
            result = self._consolidating.run(texts, settings, progress)
        self._look("consolidate")
        if windowed:  # what has not taken is read again the next time, and rolled out before saving
            return result
        shown, self.shows_bars = self.shows_bars, self.shows_bars or progress
        try:
            return self._give_up("did not take, nor when all were trained together", goes_on=True) or result
        finally:
            self.shows_bars = shown

    def _give_up(self, reason: str, *, goes_on: bool = False) -> ConsolidationResult | None:
        """Roll out what waits for a consolidation; that of the others where there was one.

        Args:
            reason: For the history.
            goes_on: Whether that of the others goes on from what was just trained for all; it is done anew otherwise.
        """
        if self.on_failure != CONSOLIDATE:
            return None
        self.workspace.look_at(self._waiting(), "consolidate")
        waiting = [record.id for record in self._waiting()]
        # their targets are no answers of the factors that were trained, which are the others' all but entirely
        start = self._consolidating.present() if goes_on else None
        return self._undo(waiting, reason, start) if waiting else None

    def _waiting(self) -> list[EditRecord]:
        """Edits that stand and have not taken."""
        return [record for record in self.history.edits(standing=True) if not record.has_taken]

    @property
    def consolidated(self) -> int:
        """How many edits have been trained together in what the adapter holds; 0 where it is not consolidated."""
        return self._consolidating.edits

    def _consolidate_to_save(self) -> bool:
        """Whether it could be done; nothing has changed where it could not."""
        try:
            self._consolidate(self._kept_texts, self._kept_settings, self.shows_bars)
        except EditFailedError as error:
            if self.workspace.config.consolidate != "auto":
                raise
            warnings.warn(f"{error}; the adapter is saved restrained and not consolidated")
        return self.consolidated > 0

    def _consolidate_again(self, start: Mapping[str, LowRankUpdate] | None = None) -> ConsolidationResult | None:
        """Do again what something has taken away since."""
        again = None
        if self._consolidating.was_taken_away:
            try:
                with self.workspace.intact():
                    again = self._consolidating.again(self.shows_bars, start)
            except EditFailedError as error:
                if start is not None:
                    return self._consolidate_again()
                # what led here, an undo for instance, is written and stays
                warnings.warn(f"{error}; the adapter is restrained and no longer consolidated")
                return None
            if again is not None:
                self.workspace.note_change()
        return again

    @property
    def _consolidating(self) -> Consolidating:
        return Consolidating(self.workspace)

    @property
    def _kept_settings(self) -> ConsolidationSettings:
        kept, window = self.history.consolidation(), self.workspace.config.consolidate_window
        settings = ConsolidationSettings() if kept is None else kept.settings
        return dataclasses.replace(settings, window=window)

    @property
    def _kept_texts(self) -> Sequence[str] | None:
        kept = self.history.consolidation()
        return None if kept is None else kept.texts

    def restraints(self) -> dict[str, str]:
        """The restraint of every layer as a word, such as "log:1.2", by module name."""
        return self.workspace.restraints()

    def verify(self) -> dict[int, Verification]:
        """Look at every edit that stands as the model holds it now, by its number; the history keeps what was seen."""
        self._require_not_closed()
        self.workspace.note_foreign_restraint()
        return self.workspace.look("verify")

    @property
    def results(self) -> list[EditResult]:
        """What has become of all edits ever asked for, as each was seen last."""
        return [EditResult.of(record) for record in self.history.edits()]

    def figures(self) -> dict[str, LayerCondition]:
        """Figures of every layer now, by module name."""
        return self.workspace.figures()

    def save(self, path: str | Path, *, overwrite: bool = False, also_lora: bool = False) -> None:
        """Save the adapter, whole or not at all; a pending restraint is applied first and written to the history.

        Where the schedule asks for a consolidation, that comes first. One that would lose edits is left out with a
        warning under ``consolidate="auto"``, and is an error where it was asked for.

        Args:
            path: Its folder; text that people wrote into the card of the folder that is replaced stays.
            overwrite: Replace a folder that exists.
            also_lora: Put the same update as a plain LoRA into the subfolder ``lora``, for those without this package.

        Raises:
            EditFailedError: A consolidation that the schedule asks for loses edits; nothing is saved.
            ValueError: ``path`` exists and is not an empty folder, and ``overwrite`` is not set; or it is, holds or
                lies in the base model, or holds the history.
        """
        inputs = {"history": self.history.path, "base model": getattr(unwrapped(self.model), "name_or_path", None)}
        with together("saving"):
            require_outputs(folders={"path": Path(path)}, inputs=inputs, overwrite=overwrite)
        consolidated = self._open and self._consolidating.is_due_before_saving and self._consolidate_to_save()
        if self._open:
            trained = consolidated or self.consolidated > 0
            what = "nor when trained with others" if trained else "and there was no consolidation before saving"
            self._give_up(f"did not take, {what}")
        if not consolidated and self.model.restraint_is_pending():
            self._restrain_pending()
        if self._open:
            self.workspace.note_foreign_restraint()
            if self.look_again:
                self.workspace.look_if_changed("save")
        if self.workspace.monitor is not None:
            self.figures()  # what is known when the adapter is saved stands in its card
        with together("saving"):
            if is_main():
                self._write(Path(path), overwrite, also_lora)

    def _write(self, path: Path, overwrite: bool, also_lora: bool) -> None:
        card = path / "README.md"
        with whole_folder(path, overwrite=overwrite) as folder:
            if card.is_file():
                shutil.copyfile(card, folder / "README.md")  # what people wrote into it stays
            self.model.save_pretrained(str(folder), also_lora=also_lora)
            self.write_card(folder / "README.md")

    def _restrain_pending(self) -> None:
        self._require_open()
        with self.workspace.intact():
            words = self._restrain()
        self._consolidate_again()
        self._look("restraint")
        self._call("on_restrain", list(words))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the adapter with its card, but not the history; the URL of the commit or the pull request.

        Args:
            repo_id: ``user/name``.
            options: Those of `peft_prune.hub.push_session`: private, revision, create_pr, commit_message, overwrite,
                also_lora, redact, evaluation, token.

        Raises:
            ValueError: An option is not accepted.
            HubError: The Hub refuses it; nothing was published.
        """
        url: str = publisher("push_session")(self, repo_id, **options)
        return url

    def write_card(self, path: Path) -> None:
        """Write what the session knows into the card beside a saved adapter: no fact, no name, no text of a user's."""
        counts = Counter(record.state for record in self.history.edits())
        write_session(path, self.editor, counts)

    def close(self) -> None:
        """End the session and give the history free; the model keeps its adapter."""
        if self._open:
            self._open = False
            try:
                self.workspace.note_foreign_restraint()
                self._call("on_session_end")
            finally:
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
        with self.workspace.intact():
            self.workspace.rebuild(strengths=strengths)
            self.model.restrain()
            self.history.record_strengths(strengths, self.restraints())
            self.workspace.note_pending()
        self._consolidate_again()
        self._look("strengths")

    def choose_restraints(self, restraints: Mapping[str, str], why: Mapping[str, Any] | None = None) -> None:
        """Write a restraint for every layer into the configuration and apply it to the raw sum.

        Args:
            restraints: Words such as "log:1.5" by module name.
            why: For the log.
        """
        self._require_open()
        before = {name: getattr(self.config, name) for name in ("restraint", "alpha", "restraint_pattern")}
        try:
            with self.workspace.intact():
                self.model.set_restraints(restraints)
                self.model.restrain()
                config = stored_config(self.config)
                self.history.record_choice(self.restraints(), config, {"restraints": dict(restraints), **(why or {})})
                self.workspace.note_pending()
        except BaseException:
            for name, value in before.items():
                setattr(self.config, name, value)
            raise
        self._consolidate_again()
        self._look("tune")

    def conflicts(self, request: EditRequest) -> list[int]:
        """Edits that stand and say something else about the same subject and relation."""
        return self.workspace.conflicts(request)

    def _begin(
        self, callbacks: Sequence[SessionCallback], on_failure: str, on_conflict: str, monitor: bool, look_again: bool
    ) -> None:
        self.callbacks, self.look_again = [*self._guards(), *callbacks], look_again
        self.on_failure, self.on_conflict = on_failure, on_conflict
        self._stopped, self._open = None, True
        self.workspace.monitor = self.workspace.new_monitor() if monitor else None
        moments = self.workspace.statistics
        self.model.set_second_moments({} if moments is None else moments.moments)
        self.workspace.note_pending()
        self._call("on_session_begin")

    def _guards(self) -> list[SessionCallback]:
        """The guard of the protected facts, where there are some."""
        protection = self.workspace.protection
        if protection is None:
            return []
        return [ProtectionGuard(protection.kept, self.history.meta["protect"]["action"])]

    def _require_not_closed(self) -> None:
        if not self._open:
            raise SessionStateError("session: it is closed; use EditSession.resume")

    def _require_open(self) -> None:
        self._require_not_closed()
        self.workspace.require_unmerged()
        self.workspace.note_foreign_restraint()

    def _call(self, event: str, *values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *values)

    def _note_limits(self) -> None:
        """Write down what the callbacks watch, so that a report can draw it."""
        limits = [dataclasses.asdict(limit) for callback in self.callbacks for limit in callback.limits()]
        named = {limit["figure"] for limit in limits}
        known = self.history.meta.get("limits", [])
        # a session that watches less does not lift what others have set
        merged = [limit for limit in known if limit["figure"] not in named] + limits
        if merged != known:
            self.history.update_meta(limits=merged)

    def _batch(self, given: Sequence[Given]) -> list[EditResult]:
        start = time.perf_counter()
        self._call("on_batch_begin", [item.request for item in given])
        with self.workspace.intact():
            work = Batch(self.workspace, given, self.on_failure, self.on_conflict)
            work.run()
            report = work.report(time.perf_counter() - start)
            self._settle(work, report)
            self.history.record(work.record(report, time.perf_counter() - start))
            self.workspace.note_pending()
            self.workspace.note_batch(work.added_edits, bool(work.additions or work.restrained))
        if work.restrained:
            self._call("on_restrain", list(work.restrained))
        stops = report.asks_for("stop")
        self._stopped = stops[0].message if stops else None
        return list(report.results)

    def _look(self, cause: str) -> None:
        self.workspace.note_change()
        if self.look_again:
            self.workspace.look(cause)

    def _settle(self, work: Batch, report: BatchReport) -> None:
        """Call the callbacks and do what they ask for."""
        asked = []
        for callback in self.callbacks:
            count = len(report.alerts)
            callback.on_batch_end(self, report)
            if any(alert.action == "restrain" for alert in report.alerts[count:]):
                asked.append(callback)
        if asked:
            work.restrain_now(report)
            for callback in asked:
                callback.after_restraint(self, report)
        if report.asks_for("rollback"):
            work.roll_back(report)
        for alert in report.alerts:
            warnings.warn(f"batch {report.batch}: {alert.source}: {alert.message} ({alert.action})")

    def _skip(self, given: Sequence[Given]) -> list[EditResult]:
        batch, first = self.history.last_batch + 1, self.history.last_edit + 1
        reason = f"the session was stopped: {self._stopped}"
        records = [EditRecord(first + i, batch, item.request, SKIPPED, reason) for i, item in enumerate(given)]
        raw = {record.id: item.raw for record, item in zip(records, given, strict=True)}
        self.history.record(BatchRecord(batch, 0.0, records, raw))
        return [EditResult(record.id, record.request, SKIPPED, reason) for record in records]

    def _failed(self, results: Sequence[EditResult]) -> list[EditResult]:
        """Results that the call shall end with, where ``on_failure`` is "raise"."""
        if self.on_failure != RAISE:
            return []
        return [result for result in results if result.status in (FAILED, REJECTED)]

    def _as_seen(self, results: Sequence[EditResult]) -> list[EditResult]:
        """The results with what has become of their edits since their batch."""
        if not results:
            return []
        known = {record.id: record for record in self.history.edits(first=results[0].id)}
        return [result.as_seen(known[result.id]) for result in results]


def require_options(callbacks: Sequence[SessionCallback], on_failure: str, on_conflict: str, monitor: bool) -> None:
    """Raise ValueError for an unknown option, and where a callback needs figures that the session would not take."""
    if on_failure not in ON_FAILURE:
        raise ValueError(f"on_failure: {on_failure!r} is not one of {', '.join(ON_FAILURE)}")
    if on_conflict not in ON_CONFLICT:
        raise ValueError(f"on_conflict: {on_conflict!r} is not one of {', '.join(ON_CONFLICT)}")
    for callback in callbacks:
        if callback.needs_figures and not monitor:
            raise ValueError(
                f"monitor: {type(callback).__name__} needs the figures of the layers; leave the monitor on"
            )


def require_moments_for(callbacks: Sequence[SessionCallback], model: Any, statistics: SecondMoments | None) -> None:
    """Raise ValueError where a callback needs the second moment of an adapted module, and it is not known."""
    known = () if statistics is None else statistics.moments
    unknown = [name for name, _ in model.edited_layers() if name not in known]
    for callback in callbacks:
        if callback.needs_moments and unknown:
            raise ValueError(f"statistics: {type(callback).__name__} needs the second moment of {unknown[0]}")


def _moments(statistics: SecondMoments | str | Path | None, model: Any) -> SecondMoments | None:
    if isinstance(statistics, (str, Path)):
        statistics = SecondMoments.from_pretrained(statistics, model)
    if statistics is not None:
        statistics.require_fit(model)
    return statistics
