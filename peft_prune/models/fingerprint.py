"""A short text that tells base weights apart, whatever dtype they are loaded in and whatever adapter wraps them.

Every linear map down to the hidden size (the output projection of an MLP is one) and every module that a tuner has
wrapped is read whole, and of each is kept S = Uᵀ W V, 8 x 8 numbers. U and V are 8 columns of independent uniform
numbers of mean 0 and variance 1, drawn from a hash of the weight's name; S holds no weight, and no weight can be had
from it. Of every matrix, these included, 8 rows are read besides, and all of them together have one S; so have all
vectors.

*The dtype.* S is taken twice, of W rounded to bfloat16 and of W rounded to float16. A base stored in float32 that is
loaded here in float32 and there in bfloat16 has the same numbers after rounding, so one of both S agrees up to the
order of summation, 3e-7 ‖W‖_F; `_SUMMATION` is 25 times that. There is no tolerance for rounding in it.

*What is noticed.* A change of rank one, σ a bᵀ, changes the root mean square of S by σ ‖Uᵀa‖ ‖Vᵀb‖ / 8, in
expectation σ. With σ = 0.05 σmax(W) and ‖W‖_F = R σmax(W), R ≤ √min(m, n), it goes unseen where (‖Uᵀa‖²/8)(‖Vᵀb‖²/8)
< (R 2⁻¹⁷ / 0.05)², which is 4e-4 for R = 128 and 4e-5 for the R = 42 of a random 4096 x 14336. Both factors are means
of 8 squares whose density at 0 falls with the third power, so that P(product < t) ≤ 11 t⁴ (1 + 43 ln(1/t)): 1e-10,
and 1e-14. It holds for any a and b, those along an axis included, where the squares are those of uniform numbers;
rounding adds noise to a change and hides none. A change of higher rank has a larger S still.

*bfloat16 here, float16 there, float32 on disk*: the one pair that shares no rounding. One in 16 elements then differs
by one bfloat16 step, 0.0014 ‖W‖_F in all, which varies with their number in a small matrix; the tolerance is 0.0025 +
0.04 / √(m n), and is written beside S. A change of 0.05 σmax stands out of it where R < 16. Above, what tells is that
rounding never changes a sign: Uᵀ sign(W) V are integers, the same for both dtypes, and their hash is kept. A dense
change of 0.05 σmax turns signs by the thousand; one of fewer than a dozen single elements, in a matrix with R > 16,
can be missed between these two dtypes, and there alone.

*Elsewhere*: a change of a weight that is not read whole is noticed where it touches the 8 rows, as one does whose
left factor has no zeros.

*Quantized weights* are compared as the layer dequantizes them, up to the ‖W_q − W‖_F / ‖W‖_F that their format
explains, which is written beside them.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterError
from .decoder import unwrapped
from .quantization import error_of
from .sampled import same_samples, sampled_fingerprint
from .weights import BaseWeight, Rows, base_weights, names_of, wrapped_modules

VERSION = "2"
SAMPLED = "*"
"""What the names of the sketches of sampled rows begin with."""

_WIDTH = 8
_SUMMATION = 2.0**-17
_SAME_FORMAT = 0.25
_STRIP_ELEMENTS = 2**17
_VARIANCE = (256**2 - 1) / 3
_ROUNDED = ("bfloat16", "float16")
_ORDINARY = (*_ROUNDED, "float32", "float64")
_LARGEST = torch.finfo(torch.float16).max
_NUMBERS = struct.Struct(f"<{1 + 2 * _WIDTH**2}f8s")


class Fingerprint(str):
    """The text, and, while the model is at hand, what a file of version 0.1.0 would say of it."""

    sampled: str | None = None


def base_fingerprint(model: Any, modules: Iterable[str] = ()) -> Fingerprint:
    """Fingerprint of a model's base weights; the same for a plain model and for that model wrapped by PEFT.

    Args:
        model: The model; an adapter in it is left out, and where a PRUNE_EDIT adapter is merged the weights are those
            from before. Weights of any floating dtype, quantized, offloaded or sharded over devices.
        modules: Names of further linear modules that are read whole.
    """
    model = unwrapped(model)
    whole = names_of([*modules, *wrapped_modules(model)])
    text = Fingerprint(fingerprint_of(base_weights(model), whole))
    text.sampled = sampled_fingerprint(model)
    return text


@torch.no_grad()
def fingerprint_of(weights: Iterable[BaseWeight], whole: Iterable[str] = ()) -> str:
    """The fingerprint of weights that need not be in memory.

    Args:
        weights: Every parameter in the model's order, tied ones once.
        whole: Names of weights that are read whole, beside the output projections.
    """
    structure, entries, whole = hashlib.sha256(), list[str](), set(whole)
    samples = (_Samples(f"{SAMPLED}vectors"), _Samples(f"{SAMPLED}matrices"))
    for weight in weights:
        structure.update(f"{weight.name} {weight.shape};".encode())
        if weight.form == "absent":
            continue
        if not math.prod(weight.shape):
            continue
        with weight.opened() as rows:
            if weight.is_output or weight.name in whole:
                entries.append(_entry(weight, rows))
            if weight.form is None and rows is not None:
                samples[len(weight.shape) > 1].add(weight, rows)
    sampled = [entry for kind in samples for entry in kind.entries()]
    return ";".join([f"{VERSION}:{structure.hexdigest()[:16]}", *entries, *sampled])


def same_base(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same weights; what only one of them has read is not compared.

    A fingerprint of version 0.1.0 is compared in its own way with a model that is at hand.

    Raises:
        AdapterError: One of them is malformed.
    """
    if not (_is_current(one) and _is_current(other)):
        found = [text if not _is_current(text) else getattr(text, "sampled", None) for text in (one, other)]
        # of quantized and offloaded weights version 0.1.0 could not tell
        return found[0] is None or found[1] is None or same_samples(found[0], found[1])
    first, second = _parsed(one), _parsed(other)
    if first.structure != second.structure:
        return False
    return all(
        _same(sketch, second.sketches[name]) for name, sketch in first.sketches.items() if name in second.sketches
    )


def modules_in(fingerprint: str | None) -> list[str]:
    """Names of the modules that a fingerprint has read whole; none for one of version 0.1.0."""
    if not fingerprint or not _is_current(fingerprint):
        return []
    return [name.removesuffix(".weight") for name in _parsed(fingerprint).sketches if not name.startswith(SAMPLED)]


def short_form(fingerprint: str) -> str:
    """Eight characters of a fingerprint, for messages."""
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class _Sketch:
    """What is kept of a weight.

    Args:
        form: The dtype that it was loaded in, or a quantized format.
        error: What that explains as a share of ‖W‖_F: of a quantized format the distance to W, of bfloat16 and float16
            their distance from each other.
        norm: ‖W‖_F.
        rounded: S of W rounded to bfloat16 and to float16, each (8, 8).
        signs: Hash of Uᵀ sign(W) V, of weights that were loaded in half precision.
    """

    form: str
    error: float
    norm: float
    rounded: tuple[Tensor, Tensor]
    signs: bytes


@dataclass(frozen=True)
class _Parsed:
    structure: str
    sketches: Mapping[str, _Sketch]


def _same(one: _Sketch, other: _Sketch) -> bool:
    norm = max(one.norm, other.norm)
    gaps = [
        float((first - second).square().mean().sqrt()) for first, second in zip(one.rounded, other.rounded, strict=True)
    ]
    if min(gaps) <= _SUMMATION * norm:
        return True
    if {one.form, other.form} == set(_ROUNDED):
        return one.signs == other.signs and gaps[0] <= max(one.error, other.error) * norm
    quantized = [sketch.error for sketch in (one, other) if sketch.form not in _ORDINARY]
    share = _SAME_FORMAT if one.form == other.form else 1.0
    return bool(quantized) and gaps[0] <= share * math.hypot(*quantized) * norm


def _entry(weight: BaseWeight, rows: Rows | None) -> str:
    if rows is None:
        return f"{weight.name},{weight.form},"
    form = _name(rows(0, 1).dtype) if weight.form is None else weight.form
    return _text(weight.name, _sketched(weight.name, rows, (weight.rows, weight.shape[-1]), form))


class _Samples:
    """Some rows of many weights, one after the other."""

    def __init__(self, name: str) -> None:
        self._name, self._names = name, hashlib.sha256()
        self._parts: list[Tensor] = []
        self._dtypes: set[torch.dtype] = set()

    def add(self, weight: BaseWeight, rows: Rows) -> None:
        self._names.update(f"{weight.name};".encode())
        high = math.prod(weight.shape[-2:-1])
        place = int.from_bytes(hashlib.sha256(weight.name.encode()).digest()[:4], "big") % max(high - _WIDTH + 1, 1)
        # of a stack of matrices 8 rows of each
        for start in range(place, weight.rows, high):
            part = rows(start, start + min(_WIDTH, high))
            self._dtypes.add(part.dtype)
            self._parts.append(part.cpu().float().flatten())

    def entries(self) -> Iterator[str]:
        if not self._parts:
            return
        values, width = torch.cat(self._parts), 512
        matrix = torch.nn.functional.pad(values, (0, -len(values) % width)).reshape(-1, width)
        # some models keep norms in float32, whatever they are loaded in
        coarsest = min(self._dtypes, key=lambda dtype: dtype.itemsize)
        name = f"{self._name}-{self._names.hexdigest()[:8]}"
        yield _text(name, _sketched(name, lambda i, j: matrix[i:j], (len(matrix), width), _name(coarsest)))


def _sketched(name: str, rows: Rows, shape: tuple[int, int], form: str) -> _Sketch:
    """Read a matrix, strip by strip, and once more where an element is NaN, Inf or too large for float16."""
    left, right = _numbers(f"{name} rows", shape[0]), _numbers(f"{name} columns", shape[1])
    total, squares = _sums(rows, shape, left, signs=form in _ROUNDED, finite=True)
    if not bool(torch.isfinite(total).all()):
        total, squares = _sums(rows, shape, left, signs=form in _ROUNDED, finite=False)
    small = total.cpu().double() @ right.double()
    # sums of integers below 2^24, and of such products below 2^53, are exact in any order
    signs = hashlib.sha256(small[2].numpy().astype("<i8").tobytes()).digest()[:8] if len(small) > 2 else bytes(8)
    rounded = small[0] / _VARIANCE, small[1] / _VARIANCE
    return _Sketch(form, _error(form, math.prod(shape)), math.sqrt(squares), rounded, signs)


def _error(form: str, elements: int) -> float:
    if form in _ROUNDED:
        return 0.0025 + 0.04 / math.sqrt(elements)
    return 0.0 if form in _ORDINARY else error_of(form)


def _sums(rows: Rows, shape: tuple[int, int], left: Tensor, *, signs: bool, finite: bool) -> tuple[Tensor, float]:
    """Uᵀ W for W in both roundings and, where asked, for its signs, (2 or 3, 8, columns); and ‖W‖_F²."""
    step = max(_STRIP_ELEMENTS // shape[1], 1)
    total, squares = None, 0.0
    for start in range(0, shape[0], step):
        strip = rows(start, min(start + step, shape[0]))
        forms = [strip.to(dtype).float() for dtype in (torch.bfloat16, torch.float16)]
        if not finite:
            forms = [torch.nan_to_num(form, 0.0, _LARGEST, -_LARGEST).clamp_(-_LARGEST, _LARGEST) for form in forms]
        if signs:
            forms.append(torch.copysign(torch.ones_like(strip[:1, :1]), strip).float())
        squares += float(torch.linalg.vector_norm(forms[0])) ** 2
        weights = left[start : start + step].T.to(strip.device)
        total = forms[0].new_zeros(len(forms), _WIDTH, shape[1]) if total is None else total
        for own, form in zip(total, forms, strict=True):
            own.addmm_(weights, form)
    assert total is not None
    return total, squares


def _numbers(seed: str, count: int) -> Tensor:
    """(count, 8) odd integers from -255 to 255, the same for ever."""
    drawn = hashlib.shake_256(seed.encode()).digest(count * _WIDTH)
    return 2.0 * torch.frombuffer(bytearray(drawn), dtype=torch.uint8).reshape(count, _WIDTH).float() - 255.0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _text(name: str, sketch: _Sketch) -> str:
    values = [sketch.norm]
    values += [value for rounded in sketch.rounded for value in rounded.flatten().tolist()]
    return f"{name},{sketch.form}~{sketch.error:.3g},{base64.b64encode(_NUMBERS.pack(*values, sketch.signs)).decode()}"


def _is_current(fingerprint: str) -> bool:
    return fingerprint.startswith(f"{VERSION}:")


def _parsed(fingerprint: str) -> _Parsed:
    head, *entries = fingerprint.split(";")
    try:
        found = [entry.rsplit(",", 2) for entry in entries]
        sketches = {name: _unpacked(said, text) for name, said, text in found if text}
    except (ValueError, struct.error):
        raise AdapterError(f"base_fingerprint: {fingerprint[:40]!r}... is malformed") from None
    return _Parsed(head, sketches)


def _unpacked(said: str, text: str) -> _Sketch:
    form, _, error = said.partition("~")
    norm, *values, signs = _NUMBERS.unpack(base64.b64decode(text, validate=True))
    both = torch.tensor(values, dtype=torch.float64).reshape(2, _WIDTH, _WIDTH)
    if not (math.isfinite(norm) and bool(torch.isfinite(both).all()) and 0 <= float(error) <= 1):
        raise ValueError("a number is not finite")
    return _Sketch(form, float(error), norm, (both[0], both[1]), signs)
