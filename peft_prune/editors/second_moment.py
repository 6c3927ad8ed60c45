"""C = E[k kᵀ]: the second moment of a layer's inputs over ordinary text."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import AdapterError, InvalidRequestError
from ..folders import whole_file
from ..models.decoder import unwrapped
from ..models.experts import place_of
from ..models.fingerprint import base_fingerprint, same_base
from ..models.inference import input_device, max_positions, padded, undisturbed
from ..models.mlp import features
from ..models.tokenization import prompt_ids
from ..moving import moving_bar
from ..publishing import publisher
from .blocks import read_inputs

DEFAULT_LENGTH = 512
SMALLEST_SHRINKAGE = 1e-8
ROUNDING = 1e-3
"""How far float32 sums over any number of tokens may be from what holds for exact ones, as a share."""
STRIP = 1024
"""Rows that are looked at together."""
OUTLIER = 100.0
"""Multiple of the median above which an entry of a moment's diagonal is one of a few channels that stand apart."""


@dataclass(frozen=True)
class SecondMoments:
    """Second moments of the inputs of several modules.

    Args:
        moments: E[k kᵀ] of each module, (in, in) float32, by its name in the base model.
        tokens: Number of tokens they are taken over.
        base: Fingerprint of the model, or None where it could not be told.
    """

    moments: dict[str, Tensor]
    tokens: int
    base: str | None = None

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        metadata = {"tokens": str(self.tokens), "base": self.base or "", "format": "pt", "kind": "second_moments"}
        with whole_file(path) as part:
            save_file({name: moment.contiguous() for name, moment in self.moments.items()}, part, metadata)

    @classmethod
    def load(cls, path: str | Path, *, base: str | None = None) -> SecondMoments:
        """Read what `save` wrote.

        Args:
            base: Fingerprint that the statistics must have been taken with, if given.

        Raises:
            AdapterError: The file is missing, damaged, of another kind, or of another base; or what it holds are no
                second moments: square, finite, symmetric and positive semidefinite float32 matrices.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                tokens, made_with = _facts(path, file.metadata() or {})
                if base is not None and made_with is not None and not same_base(made_with, base):
                    raise AdapterError(f"statistics: {path} were taken with other base weights; collect them anew")
                moments = {name: _checked(path, name, file) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise AdapterError(f"statistics: {path} cannot be read: {error}") from None
        if not moments:
            raise AdapterError(f"statistics: {path} holds no second moments")
        return cls(moments, tokens, made_with)

    @classmethod
    def from_pretrained(cls, name: str | Path, model: Any = None) -> SecondMoments:
        """Read a file of `save`, or what `push_to_hub` has published as ``user/name[@revision]``.

        Args:
            name: The file, its folder, or the repository.
            model: The base that the statistics must have been taken with, if given.

        Raises:
            AdapterError: They are damaged, or of another base.
            HubError: The repository cannot be fetched.
        """
        found: SecondMoments = publisher("load_moments")(name, model)
        return found

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the statistics with a card; the URL of the commit. Options are those of `push_moments`."""
        url: str = publisher("push_moments")(self, repo_id, **options)
        return url

    def require_fit(self, model: Any) -> None:
        """Raise AdapterError where a module of ``model`` has inputs of another width than its second moment."""
        modules = dict(unwrapped(model).named_modules())
        for name, moment in self.moments.items():
            shape = features(modules[name]) if name in modules else None
            if shape is not None and shape[0] != len(moment):
                raise AdapterError(
                    f"statistics: {name} has inputs of width {shape[0]}, its second moment is {len(moment)} wide; "
                    "collect the statistics of this model"
                )


def _facts(path: str | Path, metadata: Mapping[str, str]) -> tuple[int, str | None]:
    """Number of tokens and fingerprint of the base, as the file's metadata give them."""
    if metadata.get("kind") != "second_moments":
        raise AdapterError(f"statistics: {path} holds no second moments")
    tokens = metadata.get("tokens", "")
    if not re.fullmatch(r"[0-9]{1,18}", tokens) or int(tokens) == 0:
        raise AdapterError(f"statistics: {path}: tokens: {tokens[:40]!r} must be a number of at least 1")
    return int(tokens), metadata.get("base") or None


def _checked(path: str | Path, name: str, file: Any) -> Tensor:
    """The tensor ``name`` of an open file, once it is known to be a second moment as far as that can be seen fast."""
    given = file.get_slice(name)
    shape, kind = tuple(given.get_shape()), given.get_dtype()
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise AdapterError(f"statistics: {path}: {name} has shape {shape}; a square matrix is accepted")
    if kind != "F32":
        raise AdapterError(f"statistics: {path}: {name} is of dtype {kind}; F32 is accepted")
    moment = file.get_tensor(name)
    diagonal = moment.diagonal()
    if not bool(torch.isfinite(moment).all()):
        raise AdapterError(f"statistics: {path}: {name} holds NaN or Inf")
    if float(diagonal.min()) < 0 or float(diagonal.max()) == 0:
        raise AdapterError(f"statistics: {path}: the diagonal of {name} must hold mean squares, which are positive")
    scale = diagonal.sqrt()
    for start in range(0, len(moment), STRIP):
        rows, columns = moment[start : start + STRIP], moment[:, start : start + STRIP].T
        # |C_ij| <= sqrt(C_ii C_jj) for every second moment; float32 sums obey it up to their rounding
        bound = scale[start : start + STRIP, None] * scale
        if bool(((rows - columns).abs() > ROUNDING * bound).any()):
            raise AdapterError(f"statistics: {path}: {name} is not symmetric")
        if bool((rows.abs() > (1 + ROUNDING) * bound).any()):
            raise AdapterError(f"statistics: {path}: {name} is not positive semidefinite")
    return moment


def collect_second_moments(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    modules: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    progress: bool = True,
) -> SecondMoments:
    """Second moments of the inputs of ``modules`` over ``texts``, in one pass for all of them.

    The pass ends after the deepest of the modules; padding is not counted; sums are float32, of inputs that are
    converted to float32 first. A text longer than ``max_length`` is cut there. That of an expert is the sum of
    gate² k kᵀ over the tokens that are routed to it, divided by the number of all tokens: its block of the moment of
    all experts side by side.

    Args:
        model: The unedited model.
        tokenizer: Its tokenizer.
        texts: Any iterable of texts; it is read once and need not fit into memory.
        modules: Names in the base model.
        batch_size: Texts in a batch.
        max_length: Tokens read of each text; 512, or fewer where the model allows fewer.
        progress: Show a bar.

    Raises:
        InvalidRequestError: There is no text.
    """
    inner = unwrapped(model)
    limit = max_length or min(max_positions(model) or DEFAULT_LENGTH, DEFAULT_LENGTH)
    sums: dict[str, Tensor] = {}
    tokens = 0
    with undisturbed(model), moving_bar(desc="Second moments", unit=" texts", disable=not progress, leave=False) as bar:
        for batch in _batches(texts, batch_size):
            rows = [ids[:limit] for ids in prompt_ids(tokenizer, batch)]
            ids, mask = padded(rows, left=False, device=input_device(model))
            _add_batch(inner, ids, mask, modules, sums)
            tokens += int(mask.sum())
            bar.update(len(batch))
    if tokens == 0:
        raise InvalidRequestError("texts: there is no text to take second moments over")
    # of an expert that no token is routed to nothing is known
    seen = {name: total / tokens for name, total in sums.items() if place_of(name) is None or bool(total.any())}
    return SecondMoments(seen, tokens, base_fingerprint(inner))


def mean_diagonal(moment: Tensor) -> Tensor:
    """The scale of a second moment, float64: the mean of its diagonal, no entry counted for more than 100 medians.

    Real activations have channels that stand at thousands whatever the text; in the plain mean one of them decides,
    and what is measured by it drowns all others. Channels that are always 0 have no say in the median.

    Raises:
        ValueError: The moment is 0, or holds NaN or Inf.
    """
    diagonal = moment.diagonal().double()
    if not (torch.isfinite(diagonal).all() and bool((diagonal > 0).any())):
        raise ValueError("statistics: a second moment is 0 or not finite; collect it over ordinary text")
    return diagonal.clamp(max=OUTLIER * float(diagonal[diagonal > 0].median())).mean()


def regularized_cholesky(moment: Tensor, shrinkage: float = 0.0) -> Tensor:
    """Lower Cholesky factor of C in float64, (in, in).

    Where C is numerically singular, as it is over fewer tokens than dimensions, a small multiple of its
    `mean_diagonal` is added to the diagonal until the factorization succeeds, and a warning says how much.

    Args:
        moment: C, (in, in).
        shrinkage: Multiple of C's `mean_diagonal` that is added to its diagonal in any case.

    Raises:
        ValueError: C holds NaN or Inf, is zero, or has negative eigenvalues that no rounding explains.
    """
    matrix = moment.double()
    if not torch.isfinite(matrix).all():
        raise ValueError("statistics: a second moment holds NaN or Inf; collect it anew")
    scale = mean_diagonal(matrix)
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    added = shrinkage
    # rounding makes eigenvalues as negative as a small part of the mean diagonal; a matrix that needs more is another
    while added <= max(1.0, shrinkage):
        factor, failed = torch.linalg.cholesky_ex(matrix + added * scale * identity)
        if not int(failed) and float(factor.diagonal().min()) ** 2 > 1e-10 * float(scale) > 0:
            break
        added = max(10 * added, SMALLEST_SHRINKAGE)
    else:
        raise ValueError("statistics: a second moment must be finite, positive semidefinite and not zero")
    if added > shrinkage:
        warnings.warn(f"the second moment is singular; {added:.0e} of its mean diagonal was added to its diagonal")
    return factor


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch


def _add_batch(inner: Any, ids: Tensor, mask: Tensor, modules: Sequence[str], sums: dict[str, Tensor]) -> None:
    def add(name: str, states: Tensor) -> None:
        keys = states[mask.bool().to(states.device)].float()
        if place_of(name) is not None:
            keys = keys[keys.any(dim=1)]  # the tokens that are routed there
        product = keys.T @ keys
        sums[name] = sums[name] + product if name in sums else product

    read_inputs(inner, ids, mask, modules, add)
