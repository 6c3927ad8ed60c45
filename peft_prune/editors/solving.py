"""Where the large systems of a closed form are solved, and where and how what is kept of them lies."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .pages import mapped

DTYPES = {"float64": torch.float64, "float32": torch.float32}
STRIP = 1024
"""Rows that are converted together."""

CLOSE = 1e-4
"""Largest error, as a share of ‖z‖, with which a float32 inverse may give A z back as z."""

_PROBES = 4


@dataclass(frozen=True)
class Solving:
    """How an editor solves with second moments, one layer after the other.

    Whatever is given, one float64 matrix of d_ff² is made, in which everything happens in place; AlphaEdit's
    eigenvectors want two more of the matrix's dtype beside it.

    Args:
        device: Device that the matrix is factored and inverted on; where the second moment stands if not given. What is
            kept of it comes back there.
        dtype: Of what is kept, "float64" or "float32". A float32 inverse that does not give A z back as z to `CLOSE`,
            z random, is kept in float64 after all, and a warning says so: A z lies in the directions that keys have.
            AlphaEdit's eigenvectors are found in float32 as well, where that tells the eigenvalues at its threshold.
        folder: Keep it in a file there, mapped into memory, which is gone when the process ends; in memory if None.
            What is mapped is given back to the system between two uses.

    Raises:
        ValueError: The device, the dtype or the folder is none that is accepted.
    """

    device: str | torch.device | None = None
    dtype: str = "float64"
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"solve_dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.folder is not None and not Path(self.folder).is_dir():
            raise ValueError(f"solve_folder: {str(self.folder)!r} is no folder")
        self._checked_device()

    def matrix(self, moment: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Room for a copy of a second moment, (in, in), on the device that is solved on."""
        place = moment.device if self.device is None else self._checked_device()
        if self.folder is not None and place.type == "cpu":
            return mapped(moment.shape, dtype, self.folder)  # solved where it will be kept
        return torch.empty(moment.shape, dtype=dtype, device=place)

    def kept_inverse(self, inverse: Tensor, moment: Tensor, times: Callable[[Tensor], Tensor]) -> Tensor:
        """An inverse (in, in) as it is kept, beside the second moment.

        Args:
            inverse: On the device that was solved on.
            moment: Stands where it is kept.
            times: Takes Z (in, n) to A Z, of which ``inverse`` is the inverse.
        """
        dtype = DTYPES[self.dtype]
        if dtype is not inverse.dtype:
            generator = torch.Generator().manual_seed(0)
            wanted = torch.randn(len(inverse), _PROBES, dtype=torch.float64, generator=generator)
            narrow = inverse.to(dtype)
            found = product(times(wanted).T.contiguous().to(inverse.device), narrow).T.to(wanted.device)
            error = float((found - wanted).norm() / wanted.norm())
            if error <= CLOSE:
                inverse = narrow
            else:
                warnings.warn(
                    f"an inverse is kept in float64: in float32 it would be off by {error:.0e}, and {CLOSE:.0e} is "
                    "allowed; a larger mom2_shrinkage conditions it better"
                )
        if self.folder is not None and inverse.dtype is torch.float64 and inverse.device.type == "cpu":
            return inverse  # it was made in a mapped file
        return self.kept(inverse, moment.device)

    def kept(self, matrix: Tensor, device: torch.device) -> Tensor:
        """A matrix on this device, or in a mapped file where a folder is given."""
        if self.folder is None:
            return matrix.to(device)
        return mapped(matrix.shape, matrix.dtype, self.folder).copy_(matrix)

    def _checked_device(self) -> Any:
        if self.device is None:
            return None
        try:
            found = torch.device(self.device)
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError):  # the latter where torch was built without that kind of device
            raise ValueError(f"solve_device: {str(self.device)!r} is no device that torch has here") from None
        return found


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows (n, in) @ matrix (in, in) in the dtype of the rows, which may be wider than the matrix's; (n, in)."""
    if rows.dtype is matrix.dtype:
        return rows @ matrix
    found = torch.zeros_like(rows)
    for start in range(0, len(matrix), STRIP):
        strip = slice(start, start + STRIP)
        found.addmm_(rows[:, strip], matrix[strip].to(rows.dtype))
    return found


def filled(matrix: Tensor, moment: Tensor) -> Tensor:
    """``matrix`` with the values of ``moment``, converted strip by strip."""
    for start in range(0, len(moment), STRIP):
        matrix[start : start + STRIP] = moment[start : start + STRIP].to(matrix.device).to(matrix.dtype)
    return matrix
