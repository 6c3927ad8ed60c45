"""C = E[k kᵀ]: the second moment of a layer's inputs over ordinary text."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..errors import AdapterError, InvalidRequestError
from ..models.decoder import unwrapped
from ..models.fingerprint import base_fingerprint, same_base
from ..models.inference import by_rows, input_device, max_positions, padded, undisturbed
from ..models.tokenization import prompt_ids
from .blocks import Enough

DEFAULT_LENGTH = 512
SMALLEST_SHRINKAGE = 1e-8


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
        path = Path(path)
        metadata = {"tokens": str(self.tokens), "base": self.base or "", "format": "pt", "kind": "second_moments"}
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        try:
            save_file({name: moment.contiguous() for name, moment in self.moments.items()}, temporary, metadata)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, *, base: str | None = None) -> SecondMoments:
        """Read what `save` wrote.

        Args:
            base: Fingerprint that the statistics must have been taken with, if given.

        Raises:
            AdapterError: The file is missing, damaged, of another kind, or of another base.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("kind") != "second_moments":
                    raise AdapterError(f"statistics: {path} holds no second moments")
                moments = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise AdapterError(f"statistics: {path} cannot be read: {error}") from None
        made_with = metadata["base"] or None
        if base is not None and made_with is not None and not same_base(made_with, base):
            raise AdapterError(f"statistics: {path} were taken with other base weights; collect them anew")
        return cls(moments, int(metadata["tokens"]), made_with)


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
    converted to float32 first. A text longer than ``max_length`` is cut there.

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
    with undisturbed(model), tqdm(desc="Second moments", unit=" texts", disable=not progress, leave=False) as bar:
        for batch in _batches(texts, batch_size):
            rows = [ids[:limit] for ids in prompt_ids(tokenizer, batch)]
            ids, mask = padded(rows, left=False, device=input_device(model))
            _add_batch(inner, ids, mask, modules, sums)
            tokens += int(mask.sum())
            bar.update(len(batch))
    if tokens == 0:
        raise InvalidRequestError("texts: there is no text to take second moments over")
    return SecondMoments({name: total / tokens for name, total in sums.items()}, tokens, base_fingerprint(inner))


def regularized_cholesky(moment: Tensor, shrinkage: float = 0.0) -> Tensor:
    """Lower Cholesky factor of C in float64, (in, in).

    Where C is numerically singular, as it is over fewer tokens than dimensions, a small multiple of its mean diagonal
    is added to the diagonal until the factorization succeeds, and a warning says how much.

    Args:
        moment: C, (in, in).
        shrinkage: Multiple of C's mean diagonal that is added to its diagonal in any case.
    """
    matrix = moment.double()
    scale = matrix.diagonal().mean()
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    added = shrinkage
    while True:
        factor, failed = torch.linalg.cholesky_ex(matrix + added * scale * identity)
        if not int(failed) and float(factor.diagonal().min()) ** 2 > 1e-10 * float(scale):
            break
        added = max(10 * added, SMALLEST_SHRINKAGE)
    if added > shrinkage:
        warnings.warn(f"the second moment is singular; {added:.0e} of its mean diagonal was added to its diagonal")
    return factor


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch


def _add_batch(inner: Any, ids: Tensor, mask: Tensor, modules: Sequence[str], sums: dict[str, Tensor]) -> None:
    waiting = set(modules)

    def add(name: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            keys = by_rows(args[0], len(mask))[mask.bool().to(args[0].device)].float()
            product = keys.T @ keys
            sums[name] = sums[name] + product if name in sums else product
            waiting.discard(name)
            if not waiting:
                raise Enough

        return hook

    with ExitStack() as stack:
        for name in modules:
            stack.callback(inner.get_submodule(name).register_forward_pre_hook(add(name)).remove)
        try:
            inner(input_ids=ids, attention_mask=mask, use_cache=False)
        except Enough:
            pass
