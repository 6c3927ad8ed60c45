"""Make an adapter of the difference of two checkpoints, so that it can be restrained and merged like edits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import outputs
from ..errors import CheckpointError
from ..folders import whole_folder
from ..models.fingerprint import fingerprint_of
from ..models.naming import public_name
from ..models.weights import BaseWeight, base_weights, names_of
from ..spectral import LowRankUpdate, StripGram, energy_rank
from ..tuner import PruneEditConfig
from .checkpoint import Checkpoint
from .compare import tall_strips
from .matching import Pair, canonical_tensors, match
from .run import CheckpointAudit, Progress, total_change
from .structure import Structure

_LOST = 1e-7
"""Singular values below this times the largest are lost in a Gram matrix."""


@dataclass(frozen=True)
class Rule:
    """How many directions of a matrix are kept.

    Args:
        rank: At most so many.
        energy: As few as hold this share of ‖ΔW‖_F². With both, the smaller number counts; with neither, the directions
            that stand out from rounding (`MatrixChange.rank`).

    Raises:
        ValueError: ``rank`` is below 1, or ``energy`` is out of range.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank: {self.rank} must be at least 1")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise ValueError(f"energy: {self.energy} must be above 0 and at most 1")

    def count(self, values: Tensor, standing_out: int) -> int:
        """Directions to keep of a matrix with these singular values, (n,), descending."""
        told_from_zero = int((values > _LOST * values[0]).sum())
        limits = [told_from_zero]
        if self.rank is None and self.energy is None:
            limits.append(max(standing_out, 1))
        if self.rank is not None:
            limits.append(self.rank)
        if self.energy is not None:
            limits.append(energy_rank(values, self.energy))
        return min(limits)


@dataclass(frozen=True)
class Extraction:
    """What `extract` wrote.

    Args:
        folder: Folder of the adapter.
        ranks: By module.
        errors: ‖ΔW − BA‖_F / ‖ΔW‖_F by module, of the factors as they were written.
        error: The same over all tensors that the audit compared and that differ, those left out included; None where
            one is not finite or has another shape.
        left_out: Tensors that an adapter cannot hold, with the reason.
        factor_bytes: Size of the factors.
        knows_base: Whether the file holds the base's fingerprint.
    """

    folder: str
    ranks: Mapping[str, int]
    errors: Mapping[str, float]
    error: float | None
    left_out: Mapping[str, str]
    factor_bytes: int
    knows_base: bool

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "adapter": self.folder,
            "ranks": dict(self.ranks),
            "errors": dict(self.errors),
            "error": self.error,
            "left_out": dict(self.left_out),
            "factor_bytes": self.factor_bytes,
            "knows_base": self.knows_base,
        }


def extract(
    base: Checkpoint | str | Path,
    edited: Checkpoint | str | Path,
    found: CheckpointAudit,
    folder: str | Path,
    *,
    rule: Rule | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Extraction:
    """Write a PRUNE_EDIT adapter that turns the base into the edited checkpoint, as far as its rank goes.

    Every matrix gets the best approximation of its ΔW of that rank (Eckart and Young 1936). The adapter is marked as
    not restrained; ``peft-prune restrain`` acts on it. Its factors are in memory until all are made, as they are for
    whoever loads it.

    Args:
        base: The base that the audit was made with.
        edited: The checkpoint that the audit is of.
        found: The audit of it.
        folder: Where the adapter goes, whole or not at all.
        rule: How many directions of a matrix are kept.
        overwrite: Replace an existing folder.
        progress: Called with the name of the matrix, the number done and their total.

    Raises:
        CheckpointError: Nothing that changed is the weight of a linear layer, the configuration describes no model, or
            the factors of a matrix would be larger than the matrix.
        ValueError: ``folder`` exists, or holds or lies in a checkpoint.
    """
    rule = rule or Rule()
    before = base if isinstance(base, Checkpoint) else Checkpoint.open(base)
    after = edited if isinstance(edited, Checkpoint) else Checkpoint.open(edited)
    require_apart(Path(folder), [before, after])
    structure = Structure.of(before)
    linear, left_out = _sorted(found, structure, before)
    if not linear:
        raise CheckpointError(
            f"checkpoint: nothing that an adapter can hold differs in {found.given}: {_reasons(left_out)}"
        )
    pairs = {pair.name: pair for pair in match(before, after, structure).pairs}
    parts = _Parts()
    with whole_folder(Path(folder), overwrite=overwrite) as temporary:
        for index, (name, (module, transposed)) in enumerate(linear.items()):
            update, lost = _approximation(pairs[name], rule, found.matrices[name].rank)
            parts.add(module, update if not transposed else _transposed(update), lost)
            if progress is not None:
                progress(name, index + 1, len(linear))
        fingerprint = _fingerprint(before, structure, parts.updates)
        size = _write(temporary, parts.updates, before, fingerprint)
    norms = {module: found.matrices[name].delta_frobenius_norm for name, (module, _) in linear.items()}
    return Extraction(
        folder=str(folder),
        ranks={module: update.rank for module, update in parts.updates.items()},
        errors={module: parts.lost[module] / norms[module] for module in parts.updates},
        error=_total_error(found, left_out, parts.lost),
        left_out=left_out,
        factor_bytes=size,
        knows_base=fingerprint is not None,
    )


def require_apart(folder: Path, checkpoints: list[Checkpoint]) -> None:
    """Raise ValueError where a folder to be written is, holds or lies in a checkpoint."""
    outputs.require_apart(folder, {"checkpoint": [one.folder for one in checkpoints]}, "extract")


@dataclass
class _Parts:
    updates: dict[str, LowRankUpdate] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)

    def add(self, module: str, update: LowRankUpdate, lost: float) -> None:
        self.updates[module], self.lost[module] = update, lost


def _sorted(
    found: CheckpointAudit, structure: Structure, base: Checkpoint
) -> tuple[dict[str, tuple[str, bool]], dict[str, str]]:
    """The changed weights of linear layers with their modules, and everything else with the reason to leave it out."""
    linear: dict[str, tuple[str, bool]] = {}
    left_out = dict.fromkeys(found.others, "it is no matrix")
    ties = structure.tied_in(canonical_tensors(base, structure))
    tied = {**ties, **{target: name for name, target in ties.items()}}
    for name in found.matrices:
        module = structure.linear_module(name)
        if name in tied:
            left_out[name] = f"it is tied to {tied[name]}"
        elif name not in structure.parameters:
            left_out[name] = "transformers has no layer of that name in the model"
        elif module is None:
            left_out[name] = "it is not the weight of a linear layer"
        else:
            linear[name] = module
    left_out |= dict.fromkeys(found.reshaped, "it has another shape")
    left_out |= dict.fromkeys(found.not_finite, "it holds NaN or Inf")
    return linear, left_out


def _approximation(pair: Pair, rule: Rule, standing_out: int) -> tuple[LowRankUpdate, float]:
    """The best update of that rank in the stored orientation, and ‖ΔW − BA‖_F of the float32 factors."""
    gram = StripGram(min(pair.base.shape))
    for before, after in tall_strips(pair):
        gram.add(after.double() - before.double())
    values = gram.singular_values()
    count = rule.count(values, standing_out)
    if count * sum(pair.base.shape) >= math.prod(pair.base.shape):
        size = "as large as the matrix; give a smaller rank or energy"
        raise CheckpointError(f"checkpoint: {pair.name}: factors of rank {count} would be {size}")
    vectors = gram.leading(count)
    left = torch.cat([(after.double() - before.double()) @ vectors for before, after in tall_strips(pair)])
    # each side carries the root of the singular value, as everywhere in the package
    root = torch.linalg.vector_norm(left, dim=0).sqrt()
    tall = LowRankUpdate((left / root).float(), (vectors * root).T.float())
    squared, done = 0.0, 0
    for before, after in tall_strips(pair):
        strip = tall.B[done : done + len(before)].double() @ tall.A.double()
        squared += float((after.double() - before.double() - strip).square().sum())
        done += len(before)
    is_wide = pair.base.shape[0] < pair.base.shape[1]
    return (_transposed(tall) if is_wide else tall), math.sqrt(squared)


def _transposed(update: LowRankUpdate) -> LowRankUpdate:
    return LowRankUpdate(update.A.T.contiguous(), update.B.T.contiguous())


def _write(folder: Path, updates: Mapping[str, LowRankUpdate], base: Checkpoint, fingerprint: str | None) -> int:
    config = PruneEditConfig(
        target_modules=sorted(updates),
        restraint="none",
        restrain_on="merge",
        task_type="CAUSAL_LM",
        base_model_name_or_path=public_name(str(base.folder) if base.path.is_file() else base.given),
        inference_mode=True,
    )
    ranks = {module: update.rank for module, update in updates.items()}
    config.record(restrained=False, edits=0, ranks=ranks, base_fingerprint=fingerprint)
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for module, update in updates.items():
        tensors[f"base_model.model.{module}.prune_edit_B.weight"] = update.B.contiguous()
        tensors[f"base_model.model.{module}.prune_edit_A.weight"] = update.A.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _fingerprint(base: Checkpoint, structure: Structure, modules: Iterable[str]) -> str | None:
    """As `base_fingerprint` gives it for the loaded model, read from the files; None where names differ."""
    stored = canonical_tensors(base, structure)
    for name, target in structure.tied_in(stored).items():
        if name in stored or target in stored:
            stored.setdefault(name, stored.get(target, stored.get(name)))  # type: ignore[arg-type]
            stored.setdefault(target, stored[name])
    ties = structure.tied_in(stored)
    names: list[str] = []
    for name in structure.parameters:
        # of parameters that are one, a loaded model names the first
        others = {ties.get(name), *(one for one, target in ties.items() if target == name)}
        if not others & set(names):
            names.append(name)
    if any(name not in stored for name in names):
        return None
    outputs = {weight.name for weight in base_weights(structure.model) if weight.is_output}
    weights = [BaseWeight(name, stored[name].shape, name in outputs, None, stored[name].opened) for name in names]
    return fingerprint_of(weights, names_of(modules))


def _total_error(found: CheckpointAudit, left_out: Mapping[str, str], lost: Mapping[str, float]) -> float | None:
    total = total_change(found)
    if math.isnan(total) or found.reshaped:
        return None
    squares = [value**2 for value in lost.values()]
    squares += [found.others[name].delta_norm ** 2 for name in left_out if name in found.others]
    squares += [found.matrices[name].delta_frobenius_norm ** 2 for name in left_out if name in found.matrices]
    return math.sqrt(sum(squares)) / total if total > 0 else 0.0


def _reasons(left_out: Mapping[str, str]) -> str:
    name, reason = next(iter(left_out.items()), ("", "no tensor differs"))
    return f"{name}: {reason}" if name else reason
