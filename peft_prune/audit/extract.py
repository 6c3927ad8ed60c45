"""Make an adapter of the difference of two checkpoints, so that it can be restrained and merged like edits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..fingerprint import fingerprint_of
from ..folders import whole_folder
from ..spectral import LowRankUpdate, StripGram, energy_rank
from ..tuner import PruneEditConfig
from .checkpoint import Checkpoint
from .compare import tall_strips
from .matching import Pair, match
from .run import CheckpointAudit, Progress, total_change
from .structure import Structure


@dataclass(frozen=True)
class Extraction:
    """What `extract` wrote.

    Args:
        folder: Folder of the adapter.
        ranks: By module.
        errors: ‖ΔW − BA‖_F / ‖ΔW‖_F by module.
        error: The same over all tensors that differ, those left out included.
        left_out: Tensors that an adapter cannot hold, with the reason.
        factor_bytes: Size of the factors.
    """

    folder: str
    ranks: Mapping[str, int]
    errors: Mapping[str, float]
    error: float
    left_out: Mapping[str, str]
    factor_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "adapter": self.folder,
            "ranks": dict(self.ranks),
            "errors": dict(self.errors),
            "error": self.error,
            "left_out": dict(self.left_out),
            "factor_bytes": self.factor_bytes,
        }


def extract(
    base: str | Path,
    found: CheckpointAudit,
    folder: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Extraction:
    """Write a PRUNE_EDIT adapter that turns the base into the edited checkpoint, as far as its rank goes.

    Every matrix gets the best approximation of its ΔW of that rank (Eckart and Young 1936). The adapter is marked as
    not restrained; ``peft-prune restrain`` acts on it.

    Args:
        base: The base that the audit was made with.
        found: The audited checkpoint.
        folder: Where the adapter goes, whole or not at all.
        rank: Most directions of a matrix.
        energy: As few directions as hold this share of ‖ΔW‖_F². With both, the smaller number counts; with neither, the
            directions that stand out from rounding (`MatrixChange.rank`).
        overwrite: Replace an existing folder.
        progress: Called with the name of the matrix, the number done and their total.

    Raises:
        CheckpointError: Nothing that changed is the weight of a linear layer, the configuration describes no model, or
            no low rank stands out where neither ``rank`` nor ``energy`` is given.
        ValueError: ``rank`` is below 1, ``energy`` is out of range, or ``folder`` exists.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank: {rank} must be at least 1")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise ValueError(f"energy: {energy} must be above 0 and at most 1")
    before = Checkpoint.open(base)
    structure = Structure.of(before)
    linear, left_out = _sorted(found, structure)
    if not linear:
        raise CheckpointError(
            f"checkpoint: nothing that an adapter can hold differs in {found.path}: {_reasons(left_out)}"
        )
    if rank is None and energy is None:
        _require_low_rank(found, linear)
    pairs = {pair.name: pair for pair in match(before, Checkpoint.open(found.path), structure).pairs}
    updates: dict[str, LowRankUpdate] = {}
    lost: dict[str, float] = {}
    with whole_folder(Path(folder), overwrite=overwrite) as temporary:
        for index, (name, (module, transposed)) in enumerate(linear.items()):
            count = _count(found, name, rank, energy)
            updates[module], lost[module] = _approximation(pairs[name], count, transposed)
            if progress is not None:
                progress(name, index + 1, len(linear))
        size = _write(temporary, updates, before, structure)
    norms = {module: found.matrices[name].delta_frobenius_norm for name, (module, _) in linear.items()}
    return Extraction(
        folder=str(folder),
        ranks={module: update.rank for module, update in updates.items()},
        errors={module: lost[module] / norms[module] for module in updates},
        error=_total_error(found, left_out, lost),
        left_out=left_out,
        factor_bytes=size,
    )


def _sorted(found: CheckpointAudit, structure: Structure) -> tuple[dict[str, tuple[str, bool]], dict[str, str]]:
    """The changed weights of linear layers with their modules, and everything else with the reason to leave it out."""
    linear: dict[str, tuple[str, bool]] = {}
    left_out = dict.fromkeys(found.others, "it is no matrix")
    tied = {**structure.tied, **{target: name for name, target in structure.tied.items()}}
    for name in found.matrices:
        module = structure.linear_module(name)
        if name in tied:
            left_out[name] = f"it is tied to {tied[name]}"
        elif module is None:
            left_out[name] = "it is not the weight of a linear layer"
        else:
            linear[name] = module
    left_out |= dict.fromkeys(found.reshaped, "it has another shape")
    return linear, left_out


def _require_low_rank(found: CheckpointAudit, linear: Mapping[str, Any]) -> None:
    for name in linear:
        one = found.matrices[name]
        if one.rank * sum(one.shape) >= one.shape[0] * one.shape[1]:
            raise CheckpointError(
                f"checkpoint: {name} differs in {one.rank} directions, so factors would be as large as the matrix; "
                "give a rank or an energy"
            )


def _count(found: CheckpointAudit, name: str, rank: int | None, energy: float | None) -> int:
    one = found.matrices[name]
    limits = [min(one.shape)]
    if rank is None and energy is None:
        limits.append(max(one.rank, 1))
    if rank is not None:
        limits.append(rank)
    if energy is not None:
        kept = torch.tensor(one.singular_values, dtype=torch.float64)
        total = one.delta_frobenius_norm**2
        # the audit keeps the largest values only; what is beyond them is one more "direction" here
        rest = math.sqrt(max(total - float(kept.square().sum()), 0.0))
        need = energy_rank(torch.cat([kept, kept.new_tensor([rest])]), energy)
        limits.append(need if need <= len(kept) else min(one.shape))
    return min(limits)


def _approximation(pair: Pair, count: int, transposed: bool) -> tuple[LowRankUpdate, float]:
    """The best update of this rank as (out, in) factors, and ‖ΔW − BA‖_F."""
    gram = StripGram(min(pair.base.shape))
    for before, after in tall_strips(pair):
        gram.add(after.double() - before.double())
    vectors = gram.leading(count)
    values = gram.singular_values()
    projected = torch.cat([(after.double() - before.double()) @ vectors for before, after in tall_strips(pair)])
    lost = math.sqrt(max(float(values.square().sum() - projected.square().sum()), 0.0))
    # each side carries the root of the singular value, as everywhere in the package
    root = values[:count].sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    tall = LowRankUpdate((projected / root).float(), (vectors * root).T.float())
    is_wide = pair.base.shape[0] < pair.base.shape[1]
    stored = LowRankUpdate(tall.A.T.contiguous(), tall.B.T.contiguous()) if is_wide else tall
    if transposed:
        stored = LowRankUpdate(stored.A.T.contiguous(), stored.B.T.contiguous())
    return stored, lost


def _write(folder: Path, updates: Mapping[str, LowRankUpdate], base: Checkpoint, structure: Structure) -> int:
    config = PruneEditConfig(
        target_modules=sorted(updates),
        restraint="none",
        restrain_on="merge",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base.path),
        inference_mode=True,
    )
    config.record(
        restrained=False,
        edits=0,
        ranks={module: update.rank for module, update in updates.items()},
        base_fingerprint=_fingerprint(base, structure),
    )
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for module, update in updates.items():
        tensors[f"base_model.model.{module}.prune_edit_B.weight"] = update.B.contiguous()
        tensors[f"base_model.model.{module}.prune_edit_A.weight"] = update.A.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _fingerprint(base: Checkpoint, structure: Structure) -> str | None:
    """As `base_fingerprint` gives it for the loaded model, from a few rows of the files."""
    stored = {structure.canonical(name): tensor for name, tensor in base.tensors.items()}
    for name, target in structure.tied.items():
        if name in stored:
            stored.setdefault(target, stored[name])
    names = [name for name, _ in structure.model.named_parameters() if name not in structure.tied]
    if any(name not in stored for name in names):
        return None

    def read(name: str, place: int) -> float:
        columns = stored[name].shape[1]
        return float(stored[name].rows(place // columns, place // columns + 1)[0, place % columns])

    return fingerprint_of({name: stored[name].shape for name in names}, read)


def _total_error(found: CheckpointAudit, left_out: Mapping[str, str], lost: Mapping[str, float]) -> float:
    squares = [value**2 for value in lost.values()]
    squares += [found.others[name].delta_norm ** 2 for name in left_out if name in found.others]
    squares += [found.matrices[name].delta_frobenius_norm ** 2 for name in left_out if name in found.matrices]
    total = total_change(found)
    return math.sqrt(sum(squares)) / total if total > 0 else 0.0


def _reasons(left_out: Mapping[str, str]) -> str:
    name, reason = next(iter(left_out.items()), ("", "no tensor differs"))
    return f"{name}: {reason}" if name else reason
