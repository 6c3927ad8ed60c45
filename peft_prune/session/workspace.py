"""What a session works on: the adapter, the keys and the history, which always say the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import PreTrainedTokenizerBase

from ..consolidation import Passage, Protection
from ..editors import Editor, Prepared, SecondMoments, Solving
from ..errors import SessionStateError, UnsupportedModelError
from ..models.answers import normalized
from ..models.decoder import unwrapped
from ..models.experts import place_of
from ..models.inference import undisturbed
from ..models.sharding import fully_sharded
from ..models.sharing import require_readable
from ..monitoring import LayerCondition, Monitor
from ..processes import same, together
from ..requests import EditRequest
from ..spectral import restraint_text
from ..tuner import PRUNE_EDIT, PruneEditConfig
from .asking import Asking
from .base import require_bare
from .history import History
from .records import EditRecord, Factors, relation_key, subject_key
from .replay import Addition, JoinedKeys, additions, fitting, replay
from .verification import Verification, verify

LOOKS_PER_EDIT = 10
"""How many looks at edits that stand are spent for each edit that is added."""


@dataclass
class Workspace:
    """The model with its adapter, and all that a session keeps in step with it.

    Args:
        model: The PEFT model.
        adapter: Name of its PRUNE_EDIT adapter.
        tokenizer: Its tokenizer.
        editor: Computes the edits.
        statistics: Second moments, or None.
        contexts: Prefixes that the editor puts before a prompt.
        history: All edits.
        monitor: Takes the figures of the layers, where they are asked for.
        keys: Of the protected facts and then of the edits that stand, one under the other, by module, for editors that
            keep a history.
        protection: The facts that must not be lost, where there are some.
        asking: How requests are asked that do not say it themselves, and in which dtype.
        solving: Where the editor's systems are solved, and how what is kept of them lies.
    """

    model: Any
    adapter: str
    tokenizer: PreTrainedTokenizerBase
    editor: Editor
    statistics: SecondMoments | None
    contexts: tuple[str, ...]
    history: History
    monitor: Monitor | None = None
    keys: JoinedKeys = field(default_factory=JoinedKeys)
    protection: Protection | None = None
    asking: Asking = field(default_factory=lambda: Asking())
    solving: Solving = field(default_factory=Solving)
    _prepared: Prepared | None = None
    _pending: dict[str, int] = field(default_factory=dict)
    _unseen: int = 0
    _changed: bool = True

    @property
    def config(self) -> PruneEditConfig:
        """The adapter's configuration."""
        return self.model.peft_config[self.adapter]

    @property
    def prepared(self) -> Prepared:
        """What the editor has learnt of the unedited model; after resuming, at the first edit.

        Raises:
            ValueError: The editor needs second moments, and there are none.
        """
        if self._prepared is None:
            with undisturbed(self.model), self.model.disable_adapter():
                found = self.editor.prepare(self.model, self.tokenizer, self.statistics)
            self._prepared = dataclasses.replace(found, contexts=self.contexts, solving=self.solving)
        return self._prepared

    def verify(self, requests: Sequence[EditRequest]) -> list[Verification]:
        """What the model says to requests now, in the dtype in which it will be served."""
        return same("verification", lambda: verify(self.model, self.tokenizer, requests, dtype=self.asking.dtype))

    def restraints(self) -> dict[str, str]:
        """The restraint of every layer as a word, such as "log:1.2", by module name."""
        return {name: restraint_text(layer.restraint(self.adapter)) for name, layer in self.model.edited_layers()}

    def figures(self) -> dict[str, LayerCondition]:
        """Figures of every layer now, by module name."""
        return same("figures", lambda: (self.monitor or self.new_monitor()).figures())

    def new_monitor(self) -> Monitor:
        """A monitor of this adapter that knows the second moments."""
        return Monitor(self.model, None if self.statistics is None else self.statistics.moments)

    def conflicts(self, request: EditRequest) -> list[int]:
        """Edits that stand and say something else about the same subject and relation."""
        standing = self.history.standing_on(subject_key(request), relation_key(request))
        return [
            record.id
            for record in standing
            if record.request is not None and normalized(record.request.target_new) != normalized(request.target_new)
        ]

    @contextmanager
    def intact(self) -> Iterator[None]:
        """The adapter, the keys and what is pending are as before if the block ends with an error, in any process."""
        state, keys, pending = self.model.edit_state(), self.keys, dict(self._pending)
        try:
            with together("a change of the adapter"):
                yield
        except BaseException:
            self.model.restore_edit_state(state)
            self.keys, self._pending = keys, pending
            raise

    def rebuild(
        self,
        without: Iterable[int] = (),
        strengths: Mapping[int, float] | None = None,
        new: Sequence[Addition] = (),
        new_keys: Sequence[Factors] = (),
    ) -> None:
        """Make the adapter and the keys those of the history, with changes that are not yet written.

        Args:
            without: Edits to leave out.
            strengths: Of edits, in place of those that the history knows.
            new: Additions of the batch in flight.
            new_keys: Their keys.
        """
        gone = set(without)
        strengths = strengths or {}
        records = [
            dataclasses.replace(record, strength=strengths.get(record.id, record.strength))
            for record in self.history.edits(standing=True)
            if record.id not in gone
        ]
        # read once, for the factors and for the keys
        read = cache(fitting(self.model, self.history.factors))
        kept = self.history.standing_consolidation(records)
        replay(self.model, [*additions(records, read), *new], self.history.restraints(), kept)
        # in the order in which they were added, so that sums of them round as they did then
        added = sorted(records, key=lambda record: (record.appended or 0, record.id))
        self.keys = JoinedKeys(
            [*self._protected_keys(), *(read(record.id) for record in added if record.leader == record.id), *new_keys]
        )
        self.note_pending()

    def protect(self, protection: Protection) -> None:
        """Keep these facts beside the edits, from here on."""
        self.protection = protection
        kept = [Factors({}, dict(self.keys))] if len(self.keys) else []
        self.keys = JoinedKeys([*self._protected_keys(), *kept], self.keys.features)

    def protected_passages(self) -> Sequence[Passage]:
        """The protected facts with their answers."""
        return () if self.protection is None else self.protection.passages

    def _protected_keys(self) -> list[Factors]:
        return [] if self.protection is None else [Factors({}, self.protection.keys)]

    def note_batch(self, added: int, changed: bool) -> None:
        """Remember that a batch has added edits, which it has looked at itself, or has changed the adapter at all."""
        self._unseen += added
        self._changed |= changed

    def note_change(self) -> None:
        """Remember that edits which stand may hold no longer."""
        self._changed = True

    def look_if_due(self) -> None:
        """Look at the edits that stand where a tenth as many have been added since the last time.

        Looking after every edit would cost the square of their number; this way ten looks are spent for each edit.
        """
        if self._changed and LOOKS_PER_EDIT * self._unseen >= self.history.standing:
            # the last batch has been looked at when it ended
            self._look([r for r in self._standing() if r.batch != self.history.last_batch], "edit")

    def look_if_changed(self, cause: str) -> None:
        """Look at the edits that stand where anything has changed since the last time."""
        if self._changed:
            self.look(cause)

    def look(self, cause: str) -> dict[int, Verification]:
        """Ask the model for every edit that stands, and write what it says into the history.

        Args:
            cause: As in `Look`.
        """
        return self._look(self._standing(), cause)

    def _standing(self) -> list[EditRecord]:
        return [record for record in self.history.edits(standing=True) if record.request is not None]

    def look_at(self, records: Sequence[EditRecord], cause: str) -> dict[int, Verification]:
        """The same for these edits alone, all of which stand and have a request."""
        if not records:
            return {}
        answers = self.verify([record.request for record in records if record.request])
        found = {record.id: one for record, one in zip(records, answers, strict=True)}
        self.history.record_looks(found, cause)
        return found

    def _look(self, records: Sequence[EditRecord], cause: str) -> dict[int, Verification]:
        found = self.look_at(records, cause)
        self._unseen, self._changed = 0, False
        return found

    def note_pending(self) -> None:
        """Remember what the restraint has not seen, by which a restraint past the session is noticed."""
        self._pending = {
            name: layer.prune_edit_update[self.adapter].pending for name, layer in self.model.edited_layers()
        }

    def note_foreign_restraint(self) -> None:
        """Write down a restraint that somebody applied past the session, by saving the model for instance."""
        if self.adapter not in self.model.peft_config:
            return  # deleted, which nothing but closing survives
        acted = {
            name: restraint_text(layer.restraint(self.adapter))
            for name, layer in self.model.edited_layers(self.adapter)
            if layer.prune_edit_update[self.adapter].pending < self._pending.get(name, 0)
        }
        if acted:
            self.history.record_restraint(acted)
            self.note_pending()
            self.note_change()

    def require_unmerged(self) -> None:
        """Raise SessionStateError where an adapter is merged into the model."""
        merged = [name for name, layer in self.model.edited_layers() if layer.merged]
        if merged:
            raise SessionStateError(f"model: the adapter is merged into {merged[0]}; call unmerge_adapter() first")


def adapted(model: Any, config: PruneEditConfig, editor: Editor) -> tuple[Any, str]:
    """``model`` with a PRUNE_EDIT adapter on the editor's layers, and its name; a plain model gets one from ``config``.

    Raises:
        AdapterError: The model carries an adapter that no session has put there.
        UnsupportedModelError: Processes hold parts of the model's weights, and not by FSDP2 of the model itself.
        ValueError: The active adapter is another method's, or does not adapt the editor's layers.
    """
    require_bare(model)
    require_readable(model)
    _require_root(model)
    model = model if isinstance(model, PeftModel) else get_peft_model(model, config).eval()
    adapter = model.base_model.one_adapter(None)
    kind = model.peft_config[adapter].peft_type
    if kind != PRUNE_EDIT:
        raise ValueError(f"model: its adapter {adapter!r} is of type {kind}, PRUNE_EDIT is accepted")
    missing = set(editor.modules(model)) - {name for name, _ in model.base_model.edited_layers()}
    if missing:
        experts = f"; PruneEditConfig(experts={editor.experts!r}) takes those in" if any(map(place_of, missing)) else ""
        raise ValueError(f"model: its adapter does not adapt {sorted(missing)[0]}, which the editor changes{experts}")
    model.base_model.hold_factors_whole()
    return model, adapter


def _require_root(model: Any) -> None:
    """Raise UnsupportedModelError where FSDP2's outermost module is a wrapper, past which an editor runs the model."""
    inner = unwrapped(model)
    for _, module in fully_sharded(model):
        if module is not inner and inner in module.modules():
            raise UnsupportedModelError(
                f"model: fully_shard was called on {type(module).__name__}, the wrapper of an adapter; call it on "
                "model.get_base_model() instead, as on its blocks"
            )
