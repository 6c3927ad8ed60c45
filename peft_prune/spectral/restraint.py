"""Restraints F on the singular values of an accumulated update: one small class each, found by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from .accumulation import GrownGram, dense_form, is_dense_form, leading_directions, of_sides, shrunk, sides
from .checks import require_finite, require_positive, result_dtype
from .gram import GramSpectrum, gram_spectrum, multiply_right, spectral_norm_estimate
from .lowrank import LowRankUpdate, Spectrum, decompose

_GRAM_LIMIT = 1e-7
_ROUNDING_LIMIT = 4e-6
_PRUNE = "Ma et al., Perturbation-Restrained Sequential Model Editing, ICLR 2025, arXiv 2405.16821"


@dataclass(frozen=True)
class Restraint(ABC):
    """A function F on singular values that never raises one: min(F(s), s) above m = σmax(W₀), s at or below m.

    A new restraint is a frozen dataclass with ``name``, ``formula``, ``source`` and `above`, under
    `register_restraint`. Applying a restraint twice is not applying it once, F(F(s)) ≠ F(s): restrain the raw
    accumulated update only.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    uniform: ClassVar[bool] = False
    """True where one factor scales all of ΔW, so that values at or below m change too."""
    needs_weight: ClassVar[bool] = False
    """True where it depends on the directions of W₀, not on the values of ΔW; see `DirectionalRestraint`."""
    parameters: ClassVar[tuple[str, ...]] = ()
    """Fields that a word may give behind a colon each, in this order, as in ``"log:1.5"``."""

    @abstractmethod
    def above(self, s: Tensor, m: float) -> Tensor:
        """F at singular values ``s`` > ``m``, unguarded, (k,); called with values at or below m too, then unused."""

    def __call__(self, s: Tensor, m: float) -> Tensor:
        """The restrained singular values, (k,), in the dtype of ``s``.

        Args:
            s: Singular values of the accumulated update, (k,).
            m: Largest singular value of the base weight, σmax(W₀).

        Raises:
            ValueError: ``m`` is not a finite number above 0, or ``s`` holds NaN, Inf or a negative value.
        """
        m = _checked(s, m)
        # The log form raises values just above m when m < 1/ln α: it is a restraint only with this minimum.
        return torch.where(s > m, torch.minimum(self.above(s, m), s), s)


_REGISTRY: dict[str, type[Restraint]] = {}
_RestraintType = TypeVar("_RestraintType", bound=type[Restraint])


def register_restraint(restraint: _RestraintType) -> _RestraintType:
    """Class decorator: make a `Restraint` available to `get_restraint` under its ``name``.

    Raises:
        ValueError: Another class has taken the name.
    """
    taken = _REGISTRY.get(restraint.name)
    if taken is not None and taken.__qualname__ != restraint.__qualname__:
        raise ValueError(f"name: {restraint.name!r} is already the restraint {taken.__qualname__}")
    _REGISTRY[restraint.name] = restraint
    return restraint


@register_restraint
@dataclass(frozen=True)
class LogRestraint(Restraint):
    """The restraint of PRUNE; published bases are e, 2, 1.5 and 1.2.

    Args:
        alpha: Base α of the logarithm, above 1; larger restrains harder.

    Raises:
        ValueError: ``alpha`` is NaN, Inf or at most 1.
    """

    alpha: float = 1.2

    name: ClassVar[str] = "log"
    formula: ClassVar[str] = "log_α(s) − log_α(m) + m"
    source: ClassVar[str] = _PRUNE
    parameters: ClassVar[tuple[str, ...]] = ("alpha",)

    def __post_init__(self) -> None:
        _require_alpha(self.alpha)

    def above(self, s: Tensor, m: float) -> Tensor:
        return torch.log(s / m) / math.log(self.alpha) + m


@register_restraint
@dataclass(frozen=True)
class LinearRestraint(Restraint):
    """Halves what lies above m."""

    name: ClassVar[str] = "linear"
    formula: ClassVar[str] = "s/2 + m/2"
    source: ClassVar[str] = _PRUNE

    def above(self, s: Tensor, m: float) -> Tensor:
        return s / 2 + m / 2


@register_restraint
@dataclass(frozen=True)
class ClipRestraint(Restraint):
    """Cuts off everything above m."""

    name: ClassVar[str] = "clip"
    formula: ClassVar[str] = "m"
    source: ClassVar[str] = "hard limit on the singular values, for comparison"

    def above(self, s: Tensor, m: float) -> Tensor:
        return torch.full_like(s, m)


@register_restraint
@dataclass(frozen=True)
class ScaleRestraint(Restraint):
    """Scales all of ΔW so that its largest singular value becomes m: the control that leaves the shape alone."""

    name: ClassVar[str] = "scale"
    formula: ClassVar[str] = "s · m / max(s)"
    source: ClassVar[str] = "uniform scaling of the update, for comparison"
    uniform: ClassVar[bool] = True

    def above(self, s: Tensor, m: float) -> Tensor:
        return s * (m / s.max()) if s.numel() else s

    def __call__(self, s: Tensor, m: float) -> Tensor:
        m = _checked(s, m)
        return self.above(s, m) if s.numel() and float(s.max()) > m else s


@register_restraint
@dataclass(frozen=True)
class NoRestraint(Restraint):
    """Leaves the update as it is."""

    name: ClassVar[str] = "none"
    formula: ClassVar[str] = "s"
    source: ClassVar[str] = "no restraint, for comparison"

    def above(self, s: Tensor, m: float) -> Tensor:
        return s


def restraint_names() -> list[str]:
    """The names that `get_restraint` knows, in the order of registration."""
    return list(_REGISTRY)


def get_restraint(name: str, alpha: float | None = None) -> Restraint:
    """The restraint of that name.

    Args:
        name: One of `restraint_names`.
        alpha: Base of the logarithm for restraints that have one (default 1.2); the others check it and ignore it.

    Raises:
        ValueError: The name is unknown, or ``alpha`` is NaN, Inf or at most 1.
    """
    if name not in _REGISTRY:
        raise ValueError(f"restraint: {name!r} is unknown, known are {', '.join(restraint_names())}")
    if alpha is None:
        return _REGISTRY[name]()
    _require_alpha(alpha)
    takes_alpha = any(field.name == "alpha" for field in fields(_REGISTRY[name]))
    build: Callable[..., Restraint] = _REGISTRY[name]
    return build(alpha=alpha) if takes_alpha else build()


def parse_restraint(text: str) -> Restraint:
    """The restraint that a word such as ``"clip"``, ``"log"``, ``"log:1.5"``, ``"log:e"`` or ``"sphere:0.8"`` names.

    Raises:
        ValueError: The name is unknown, or what stands behind a colon is no value that this restraint takes.
    """
    name, *given = text.strip().split(":")
    restraint = get_restraint(name)
    if not given:
        return restraint
    if len(given) > len(restraint.parameters):
        wanted = "a base" if len(given) == 1 else f"{len(given)} values"
        raise ValueError(f"restraint: {text!r} gives {name!r} {wanted}, which it does not have")
    try:
        values = [math.e if value == "e" else float(value) for value in given]
    except ValueError:
        raise ValueError(f"restraint: {text!r} must have a number or e behind the colon") from None
    build: Callable[..., Restraint] = type(restraint)
    try:
        return build(**dict(zip(restraint.parameters, values, strict=False)))
    except ValueError as error:
        raise ValueError(f"restraint: {text!r}: {error}") from None


def restraint_text(restraint: Restraint) -> str:
    """The word that `parse_restraint` reads as this restraint."""
    values = [getattr(restraint, name) for name in restraint.parameters]
    while len(values) > 1 and values[-1] == getattr(type(restraint), restraint.parameters[len(values) - 1]):
        values.pop()  # what is the default and need not be said
    return ":".join([restraint.name, *("e" if value == math.e else format(value, "g") for value in values)])


@torch.no_grad()
def restrain(update: LowRankUpdate, restraint: Restraint, sigma_max_base: float) -> LowRankUpdate:
    """F(ΔW): the update with the restraint applied to its singular values (Ma et al. 2025, section 4).

    Only directions with s > m change, ΔW_eff = ΔW − U_k diag(s_k − F(s_k)) V_kᵀ, so one factor is multiplied by a
    small matrix, B on the shorter side or A, and the other is shared with ``update``. The spectrum comes from the Gram
    matrices, accumulated in float64, unless one of these calls for a QR of the factors (about three times as slow,
    balanced factors as in `reorthogonalize`):

    * eps64 · (‖B‖ ‖A‖ / m)³ > 1e-7, with columns of equal norm: Gram matrices lose the directions near m;
    * eps of the result's dtype · ‖B_eff‖ ‖A‖ / ‖ΔW_eff‖ > 4e-6: the columns cancel, rounding them is not harmless.

    Args:
        update: The raw accumulated update, never an already restrained one.
        restraint: The restraint F.
        sigma_max_base: m = σmax(W₀).

    Returns:
        The effective update, of rank at most min(r, out, in), in float32 (float64 for float64 factors; float16 and
        bfloat16 factors give float32), without a gradient. The same object where nothing exceeds m, and for
        `NoRestraint`. For float32 factors ‖result − F(ΔW)‖₂ ≤ 1e-5 · ‖F(ΔW)‖₂.

    Raises:
        ValueError: A factor holds NaN or Inf, or ``sigma_max_base`` is not a finite number above 0.
    """
    return restrain_with_change(update, restraint, sigma_max_base)[0]


@torch.no_grad()
def restrain_with_change(
    update: LowRankUpdate, restraint: Restraint, sigma_max_base: float
) -> tuple[LowRankUpdate, LowRankUpdate | None]:
    """As `restrain`, with F(ΔW) − ΔW as factors of the rank of what changed; None where that is not known."""
    m = require_positive("sigma_max_base", sigma_max_base)
    nothing = LowRankUpdate.zeros(*update.shape, dtype=result_dtype(update.dtype), device=update.device)
    if isinstance(restraint, NoRestraint) or 0 in (update.rank, *update.shape):
        return update, nothing
    if restraint.needs_weight:
        raise ValueError(f"restraint: {restraint.name} takes directions of W₀ out of ΔW; apply its filter of W₀")
    if update.rank > min(update.shape) or is_dense_form(update):
        effective, change = restrain_by_gram(dense_form(update.to(result_dtype(update.dtype))), restraint, m)
        return (update if change is not None and change.rank == 0 else effective), change
    spectrum = gram_spectrum(update)
    if torch.finfo(torch.float64).eps * (spectrum.norm_left * spectrum.norm_right / m) ** 3 > _GRAM_LIMIT:
        return _restrain_by_qr(update, restraint, m), None
    count = int((spectrum.s > m).sum())
    if count == 0:
        return update, nothing
    s_new = restraint(spectrum.s, m)
    mixing = spectrum.uniform(s_new) if restraint.uniform else spectrum.mixing(s_new, count)
    if _rounding(update, spectrum, mixing) > _ROUNDING_LIMIT * float(s_new.max()):
        return _restrain_by_qr(update, restraint, m), None
    change = None if restraint.uniform else _change(update, spectrum, s_new, count)
    return _mixed(update, spectrum.unscaled(mixing)), change


def _change(update: LowRankUpdate, spectrum: GramSpectrum, s_new: Tensor, count: int) -> LowRankUpdate:
    """B' (M' - I) A' as factors of rank ``count``; see `GramSpectrum.mixing`."""
    left, right = spectrum.mixing_factors(s_new, count)
    dtype = result_dtype(update.dtype)
    return LowRankUpdate(
        multiply_right(update.B, -spectrum.scale[:, None] * left, dtype),
        multiply_right(update.A.T, right / spectrum.scale[:, None], dtype).T,
    )


@torch.no_grad()
def restrain_by_gram(
    update: LowRankUpdate, restraint: Restraint, sigma_max_base: float, grown: GrownGram | None = None
) -> tuple[LowRankUpdate, LowRankUpdate | None]:
    """`restrain` on the shorter side n, for a rank that is not small against it: only directions above m are computed.

    Where the Gram matrix is known, the cost is that of one Cholesky factor of it and of products with the few vectors
    found, whatever the rank; see `eigenpairs_above` for the certainty that none was missed.

    Args:
        update: Of rank at most min(out, in), in dense form or as factors.
        restraint: The restraint F.
        sigma_max_base: m = σmax(W₀).
        grown: Its Gram matrix, where it is known.

    Returns:
        F(ΔW), and F(ΔW) − ΔW as factors (None where the restraint scales all of ΔW, or the road was the SVD). Where
        nothing exceeds m, ``update`` itself and factors of rank 0.

    Raises:
        ValueError: As `restrain`.
    """
    m = require_positive("sigma_max_base", sigma_max_base)
    matrix = (GrownGram.of(update) if grown is None else grown.at(update)).matrix
    # what is not finite in ΔW is not finite there
    require_finite("update", matrix.diagonal())
    dense = is_dense_form(update)
    scale, size = (None, 0.0) if dense else _sizes(update)
    s, vectors = leading_directions(matrix, m)
    largest = max(float(s[0]) if s.numel() else 0.0, size)
    if torch.finfo(torch.float64).eps * (largest / m) ** 3 > _GRAM_LIMIT:
        found = _restrain_by_qr(update, restraint, m)
        return dense_form(found) if dense else found, None
    if s.numel() == 0:
        return update, LowRankUpdate.zeros(*update.shape, dtype=update.dtype, device=update.device)
    s_new = restraint(s, m)
    if restraint.uniform:
        near, far = sides(update)
        factor = float(s_new[0] / s[0])
        return of_sides(*((near, far * factor) if dense else (near * factor, far)), update.shape), None
    effective, change = shrunk(update, vectors, (s - s_new) / s)
    if scale is not None:
        rounding = torch.finfo(update.dtype).eps * _sizes(effective, scale)[1]
        if rounding > _ROUNDING_LIMIT * float(s_new.max()):
            return _restrain_by_qr(update, restraint, m), None
    return effective, change


def _sizes(update: LowRankUpdate, scale: Tensor | None = None) -> tuple[Tensor, float]:
    """Powers of two d that give N diag(d) and F diag(1/d) about one norm, and the product of the two spectral norms."""
    near, far = sides(update)
    if scale is None:
        left, right = (torch.linalg.vector_norm(side, dim=0, dtype=torch.float64) for side in (near, far))
        contributes = (left > 0) & (right > 0)
        ratio = torch.where(contributes, right, 1.0) / torch.where(contributes, left, 1.0)
        # a column whose partner is zero adds nothing to the product, and must not set the size of either side
        scale = torch.exp2(torch.round(torch.log2(ratio) / 2)) * contributes

    def norm(columns: Tensor, factors: Tensor) -> float:
        def apply(x: Tensor) -> Tensor:
            return factors * (columns.T @ (columns @ (factors * x).to(columns.dtype))).double()

        # a step costs a product with the whole factor, and what is told by it is a matter of orders of magnitude
        return math.sqrt(spectral_norm_estimate(apply, factors, steps=5))

    return scale, norm(near, scale) * norm(far, torch.where(scale > 0, 1 / scale, 0.0))


def _restrain_by_qr(update: LowRankUpdate, restraint: Restraint, m: float) -> LowRankUpdate:
    spectrum = decompose(update)
    if not bool((spectrum.s > m).any()):
        return update
    return Spectrum(spectrum.U, restraint(spectrum.s, m), spectrum.Vh).update().to(result_dtype(update.dtype))


def _rounding(update: LowRankUpdate, spectrum: GramSpectrum, mixing: Tensor) -> float:
    """About the largest spectral norm by which storing the new factors in the result's dtype changes their product."""
    if _left_is_shorter(update):
        product = spectrum.norm_left_after(mixing) * spectrum.norm_right
    else:
        product = spectrum.norm_left * spectrum.norm_right_after(mixing)
    return torch.finfo(result_dtype(update.dtype)).eps * product


def _mixed(update: LowRankUpdate, matrix: Tensor) -> LowRankUpdate:
    """B M A with M, (r, r), taken into the factor on the shorter side."""
    dtype = result_dtype(update.dtype)
    if _left_is_shorter(update):
        return LowRankUpdate(multiply_right(update.B, matrix, dtype), update.A.to(dtype))
    return LowRankUpdate(update.B.to(dtype), multiply_right(update.A.T, matrix.T, dtype).T)


def _left_is_shorter(update: LowRankUpdate) -> bool:
    return update.shape[0] <= update.shape[1]


def _require_alpha(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha > 1):
        raise ValueError(f"alpha: {alpha} must be a finite number above 1")


def _checked(s: Tensor, m: float) -> float:
    if not bool(((s >= 0) & torch.isfinite(s)).all()):
        raise ValueError("s: holds NaN, Inf or a negative value, singular values are finite and at least 0")
    return require_positive("m", m)
