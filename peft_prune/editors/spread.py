"""What MEMIT, EMMET and AlphaEdit share: v* at the last of several layers, and the change spread over all of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import EditFailedError
from ..models.mlp import changed_modules
from ..requests import EditRequest
from ..spectral import LowRankUpdate
from .base import Earlier, Edit, Editor, Prepared
from .closed_form import KeySystem
from .contexts import generate_contexts
from .hyperparameters import ValueHyperparameters
from .keys import Climb, added, adds_to_residual
from .second_moment import SecondMoments
from .side_by_side import SideBySide, taken_apart
from .values import optimize_values


@dataclass(frozen=True)
class SpreadHyperparameters(ValueHyperparameters):
    """What differs from ROME's.

    Args:
        clamp_norm_factor: Limit of the change of the value, as a multiple of the norm of the block's output.
        context_lengths: Pairs of tokens and count of the sampled prefixes, as in the published code.
    """

    clamp_norm_factor: float = 0.75
    context_lengths: tuple[tuple[int, int], ...] = ((10, 5),)


class SpreadEditor(Editor):
    """v* is sought at the block output of the last layer; every layer takes its share of what is still missing.

    Meng et al. 2022b (MEMIT), section 4.3 and algorithm 1. Between two layers the model runs with the updates of the
    earlier ones in place. A subclass gives the rows of its closed form.

    Where an MLP's output passes a norm before it joins the residual, as in Gemma 2 or OLMo 2, layers do not add up: v*
    is then sought at the MLP output of the last layer, which takes all of the change.
    """

    hyperparameters: SpreadHyperparameters
    searches_values: ClassVar[bool] = True
    edits_experts: ClassVar[bool] = True
    share_of_depth: ClassVar[float] = 5 / 48  # published for GPT-2 XL: layers 13 to 17 of 48
    system_fields: ClassVar[tuple[str, ...]]
    """Hyperparameters that `system` reads: editors that differ in none of them share what is prepared."""

    def default_layers(self, depth: int) -> tuple[int, ...]:
        count = min(depth, max(2, round(depth * self.share_of_depth)))
        last = max(count - 1, self.hyperparameters.last_layer(depth))
        return tuple(range(last - count + 1, last + 1))

    def prepare(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, statistics: SecondMoments | None = None
    ) -> Prepared:
        self._require_moments(model, statistics)
        lengths, seed = self.hyperparameters.context_lengths, self.hyperparameters.context_seed
        layers = self.admitted(model)
        if not adds_to_residual(model, layers[-1], self.hyperparameters.experts):
            layers = layers[-1:]
        anchor = self.hyperparameters.anchored_on(model, tokenizer, layers[-1], self._site(model, layers[-1]))
        return Prepared(layers, generate_contexts(model, tokenizer, lengths, seed=seed), statistics, anchor=anchor)

    def compute(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        prepared: Prepared,
        earlier: Mapping[str, Tensor] | None = None,
    ) -> Edit:
        """The update of all requests together, rank one for each in each layer.

        Raises:
            EditFailedError: An update is not finite, or the requests' keys depend on each other.
        """
        self.require_prepared(model, prepared)
        last, contexts = prepared.layers[-1], prepared.contexts
        site = prepared.once(("site", last), lambda: self._site(model, last))
        settings = self.hyperparameters.value_settings(site, prepared.anchor)
        values = optimize_values(model, tokenizer, requests, contexts, last, settings)
        wanted = torch.stack([value.output + value.delta for value in values])
        updates: dict[str, LowRankUpdate] = {}
        owners: dict[str, tuple[int, ...]] = {}
        keys: dict[str, Tensor] = {}
        owed = earlier.owed if isinstance(earlier, Earlier) else {}
        climb = Climb(model, tokenizer, requests, contexts, last, site, self.hyperparameters.experts)
        for place, layer in enumerate(prepared.layers):
            back = {name: owed[name].append(update) if name in owed else update for name, update in updates.items()}
            with added(model, back):
                found = climb.mean_keys(layer, self._context_weights())
                present = climb.outputs()
            own = self._with_moments(
                prepared, dict(zip(climb.modules, found.chunk(len(climb.modules), 1), strict=True))
            )
            system = self._held(prepared, list(own), earlier if self.keeps_history else None)
            # it is solved where the second moment stands, which need not be where the model runs
            rows = self._rows(system, torch.cat(list(own.values()), dim=1).to(_place(prepared, own)).double().T)
            share = (wanted.to(present.device) - present) / (len(prepared.layers) - place)
            for name, key in own.items():
                if name in owed:  # what is put back moves these keys' outputs too
                    share = share - (key @ owed[name].A.T.to(key) @ owed[name].B.T.to(key)).to(share)
            found = rows.float().to(share.device).contiguous()
            parts, columns = taken_apart(list(own), share.T.contiguous(), found)
            keys, updates, owners = {**keys, **own}, {**updates, **parts}, {**owners, **columns}
            if not (torch.isfinite(found).all() and torch.isfinite(share).all()):
                subjects = ", ".join(repr(request.name) for request in requests)
                raise EditFailedError(f"subjects {subjects}: the update of {next(iter(own))} holds NaN or Inf")
        return Edit(
            tuple(requests),
            updates,
            tuple(value.probability_before for value in values),
            tuple(value.probability for value in values),
            tuple(value.steps for value in values),
            owners=owners,
            keys=keys,
        )

    def _with_moments(self, prepared: Prepared, keys: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The keys of modules whose second moment is known: an expert that no text went through is left alone.

        Raises:
            EditFailedError: There is none.
        """
        assert prepared.statistics is not None
        own = {name: own for name, own in keys.items() if name in prepared.statistics.moments}
        if not own:
            raise EditFailedError(
                f"statistics: of {', '.join(keys)}, which the subjects are routed to, no second moment is known; "
                "collect them over more text"
            )
        return own

    def _held(self, prepared: Prepared, names: Sequence[str], earlier: Mapping[str, Tensor] | None) -> KeySystem:
        """What is solved with for modules side by side, the keys of earlier edits in each."""
        systems = []
        for name in names:
            system = prepared.once((*self._system_key(), name), partial(self.system, prepared, name))
            history = None if earlier is None else earlier.get(name)
            systems.append(system.hold(None if history is None else history.to(_place(prepared, [name])).T))
        return systems[0] if len(systems) == 1 else SideBySide(systems)

    def require_prepared(self, model: Any, prepared: Prepared) -> None:
        """As for every editor; and there are moments, and as many contexts as their weights."""
        super().require_prepared(model, prepared)
        self._require_moments(model, prepared.statistics)
        if len(prepared.contexts) != len(self._context_weights()):
            raise ValueError(
                f"prepared: has {len(prepared.contexts)} contexts, the context_lengths "
                f"{self.hyperparameters.context_lengths} of this {self.name} make {len(self._context_weights())}"
            )

    def _require_moments(self, model: Any, statistics: SecondMoments | None) -> None:
        for output in self._outputs(model, self.layers(model)).values():
            names = changed_modules(model, [output])
            if statistics is None or not any(name in statistics.moments for name in names):
                raise ValueError(
                    f"statistics: {self.pretty_name} needs the second moment of {names[0]}; collect it over ordinary "
                    "text (--stats-text), or over text that the model writes itself (own_moments)"
                )

    def _system_key(self) -> tuple[Any, ...]:
        return (self.name, *(getattr(self.hyperparameters, name) for name in self.system_fields))

    @property
    def needs_moments(self) -> bool:
        return True

    @property
    def keeps_history(self) -> bool:
        """Whether the keys of earlier edits enter the solution."""
        return False

    @abstractmethod
    def system(self, prepared: Prepared, name: str) -> KeySystem:
        """What is solved with for the module ``name``, made once."""

    @abstractmethod
    def rows(self, system: KeySystem, keys: Tensor) -> Tensor:
        """Rows (n, in) of the update for keys (in, n), float64; the update is what is missing (out, n) @ rows."""

    def _rows(self, system: KeySystem, keys: Tensor) -> Tensor:
        try:
            return self.rows(system, keys)
        except (ValueError, torch.linalg.LinAlgError) as error:
            raise EditFailedError(str(error)) from None

    def _site(self, model: Any, layer: int) -> str:
        return "block" if adds_to_residual(model, layer, self.hyperparameters.experts) else "mlp"

    def _context_weights(self) -> list[float]:
        """Every kind of context weighs the same in a key, the bare prompt being one kind, as published."""
        groups = [1, *(count for _, count in self.hyperparameters.context_lengths)]
        return [1 / len(groups) / count for count in groups for _ in range(count)]


def _place(prepared: Prepared, names: Iterable[str]) -> torch.device:
    """Where the second moments of these modules stand."""
    assert prepared.statistics is not None
    return prepared.statistics.moments[next(iter(names))].device
