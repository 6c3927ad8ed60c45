"""C = E[k kᵀ]: the second moment of a layer's inputs over ordinary text."""

from __future__ import annotations

import hashlib
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
from ..models.experts import ExpertMap, place_of
from ..models.fingerprint import base_fingerprint, same_base
from ..models.inference import input_device, max_positions, padded, undisturbed
from ..models.mlp import features
from ..models.sharing import split_by
from ..models.tokenization import prompt_ids
from ..moving import moving_bar
from ..processes import process_count, process_rank, require_same, summed, together
from ..publishing import publisher
from ..spectral.inverse import cholesky_
from .blocks import read_inputs
from .pages import rest
from .solving import Solving, filled

DEFAULT_LENGTH = 512
MAX_TOKENS = 16384
"""Tokens that are run together: 32 texts of the default length."""
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

    def mixed(self, other: SecondMoments, share: float) -> SecondMoments:
        """A mean of both; what one of them does not know is left out, but for experts that none of its tokens reach.

        Args:
            other: Of the same base.
            share: Weight of the other one, between 0 and 1, however many tokens it is taken over.

        Raises:
            AdapterError: The two were taken with different base weights.
        """
        if self.base is not None and other.base is not None and not same_base(self.base, other.base):
            raise AdapterError("statistics: those to be put together were taken with different base weights")
        weighted = ((self.moments, 1 - share), (other.moments, share))
        moments = {}
        for name in dict.fromkeys([*self.moments, *other.moments]):
            parts = [own[name] * weight for own, weight in weighted if name in own]
            if len(parts) == len(weighted) or place_of(name) is not None:  # no token of an expert adds nothing to it
                moments[name] = parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
        return SecondMoments(moments, self.tokens + other.tokens, self.base or other.base)

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
    if not all_finite(moment):
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
    rest(moment)  # it is mapped from the file, and read again when it is solved with
    return moment


def collect_second_moments(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    modules: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    max_tokens: int = MAX_TOKENS,
    last: bool = False,
    progress: bool = True,
) -> SecondMoments:
    """Second moments of the inputs of ``modules`` over ``texts``, in one pass for all of them.

    The pass ends after the deepest of the modules; padding is not counted; sums are float32, of inputs that are
    converted to float32 first. A text longer than ``max_length`` is cut there. Several processes share the texts out,
    and their sums are added once. That of an expert is the sum of gate² k kᵀ over the tokens that are routed to it,
    divided by the number of all tokens: its block of the moment of all experts side by side.

    Args:
        model: The unedited model.
        tokenizer: Its tokenizer.
        texts: Any iterable of texts; it is read once and need not fit into memory.
        modules: Names in the base model.
        batch_size: Texts in a batch.
        max_length: Tokens read of each text; 512, or fewer where the model allows fewer.
        max_tokens: Most tokens that are run together, padding included; a longer text runs alone.
        last: Take the moment over the last token of each text alone.
        progress: Show a bar.

    Raises:
        InvalidRequestError: There is no text.
        ProcessError: Another process was given other texts or modules.
    """
    inner = unwrapped(model)
    limit = max_length or min(max_positions(model) or DEFAULT_LENGTH, DEFAULT_LENGTH)
    sums: dict[str, Tensor] = {}
    tokens = 0
    share = _Share(texts, is_whole=split_by(inner) is None)
    with (
        together("second moments"),
        undisturbed(model),
        moving_bar(desc="Second moments", unit=" texts", disable=not progress, leave=False) as bar,
    ):
        for batch in _batches(share, batch_size):
            rows = [ids[:limit] for ids in prompt_ids(tokenizer, batch)]
            for ids, mask in _within(rows, max_tokens, input_device(model)):
                counted = _last(mask) if last else mask
                _add_batch(inner, ids, mask, counted, modules, sums)
                tokens += int(counted.sum())
            bar.update(len(batch) * share.parts)
    require_same("texts or modules", (share.digest, list(modules), limit, last))
    if share.parts > 1:
        sums = {name: sums[name] if name in sums else _nothing(inner, name) for name in modules}
        tokens = summed("second moments", sums, tokens)
    if tokens == 0:
        raise InvalidRequestError("texts: there is no text to take second moments over")
    # of an expert that no token is routed to nothing is known
    known = [name for name, total in sums.items() if place_of(name) is None or bool(total.any())]
    # off the device of the model, which has no room to spare for them
    moments = {name: sums.pop(name).div_(tokens).cpu() for name in known}
    return SecondMoments(moments, tokens, base_fingerprint(inner))


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


def regularized_cholesky(
    moment: Tensor, shrinkage: float = 0.0, solving: Solving | None = None
) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factor of C in float64, (in, in), and what was added to C's diagonal, a number.

    The factor takes the place of the one float64 copy of C that is made.

    Where C is numerically singular, as it is over fewer tokens than dimensions, a small multiple of its
    `mean_diagonal` is added to the diagonal until the factorization succeeds, and a warning says how much.

    Args:
        moment: C, (in, in).
        shrinkage: Multiple of C's `mean_diagonal` that is added to its diagonal in any case.
        solving: Where the copy stands.

    Raises:
        ValueError: C holds NaN or Inf, is zero, or has negative eigenvalues that no rounding explains.
    """
    if not all_finite(moment):
        raise ValueError("statistics: a second moment holds NaN or Inf; collect it anew")
    scale = mean_diagonal(moment)
    matrix = (solving or Solving()).matrix(moment)
    added = shrinkage
    # rounding makes eigenvalues as negative as a small part of the mean diagonal; a matrix that needs more is another
    while added <= max(1.0, shrinkage):
        filled(matrix, moment).diagonal().add_(added * float(scale))
        if cholesky_(matrix) and float(matrix.diagonal().min()) ** 2 > 1e-10 * float(scale) > 0:
            break
        added = max(10 * added, SMALLEST_SHRINKAGE)
    else:
        raise ValueError("statistics: a second moment must be finite, positive semidefinite and not zero")
    if added > shrinkage:
        warnings.warn(f"the second moment is singular; {added:.0e} of its mean diagonal was added to its diagonal")
    return matrix, added * scale


def all_finite(moment: Tensor) -> bool:
    """Whether no entry is NaN or Inf, without a copy of the moment."""
    least, greatest = moment.aminmax()
    return bool(torch.isfinite(least) & torch.isfinite(greatest))


class _Share:
    """This process's share of the texts; all of them are read, and enter the digest.

    Args:
        texts: The same in every process.
        is_whole: Whether every process holds the whole model; where it does not, all run all texts.
    """

    def __init__(self, texts: Iterable[str], is_whole: bool) -> None:
        self._texts = texts
        self._hash = hashlib.sha256()
        self.parts = process_count() if is_whole else 1

    def __iter__(self) -> Iterator[str]:
        if process_count() == 1:
            yield from self._texts
            return
        for index, text in enumerate(self._texts):
            self._hash.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))
            if self.parts == 1 or index % self.parts == process_rank():
                yield text

    @property
    def digest(self) -> str:
        """Of what has been read so far."""
        return self._hash.hexdigest()


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch


def _within(rows: Sequence[Sequence[int]], most: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows in their order, padded, as many together as hold this many tokens."""
    waiting: list[Sequence[int]] = []
    for row in rows:
        if waiting and (len(waiting) + 1) * max(len(row), *map(len, waiting)) > most:
            yield padded(waiting, left=False, device=device)
            waiting = []
        waiting.append(row)
    if waiting:
        yield padded(waiting, left=False, device=device)


def _nothing(inner: Any, name: str) -> Tensor:
    """The sum in a process that got no text."""
    place = place_of(name)
    shape = features(inner.get_submodule(name) if place is None else ExpertMap(inner.get_submodule(place[0]), place[1]))
    assert shape is not None  # what has no width cannot be edited
    return torch.zeros(shape[0], shape[0])


def _last(mask: Tensor) -> Tensor:
    """The last token of each row that is padded on the right."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return places == mask.sum(1, keepdim=True) - 1


def _add_batch(
    inner: Any, ids: Tensor, mask: Tensor, counted: Tensor, modules: Sequence[str], sums: dict[str, Tensor]
) -> None:
    def add(name: str, states: Tensor) -> None:
        keys = states[counted.bool().to(states.device)].float()
        if place_of(name) is not None:
            keys = keys[keys.any(dim=1)]  # the tokens that are routed there
        if name not in sums:
            sums[name] = keys.new_zeros(keys.shape[1], keys.shape[1])
        # in place: a product of its own would be as large as the sum
        sums[name].addmm_(keys.T, keys)

    read_inputs(inner, ids, mask, modules, add)
