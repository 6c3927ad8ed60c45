"""The restraint and the condition number at 4096 x 14336, float32, against the dense factorizations they replace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import Row, alternating, in_megabytes, in_seconds, seconds

from peft_prune.spectral import ConditionNumber, LogRestraint, LowRankUpdate, restrain

OUT, IN = 4096, 14336
RESTRAINT = LogRestraint(1.2)
DENSE = "torch.linalg.svd(B@A, full_matrices=False) and rebuild"


def rows() -> Iterator[Row]:
    """Every goal of the spectral part; several minutes, nearly all of them spent in the references."""
    yield from _restraint_rows()
    yield from _condition_rows()
    yield _memory_row()


def random_update(rank: int) -> LowRankUpdate:
    generator = torch.Generator().manual_seed(rank)
    return LowRankUpdate(torch.randn(OUT, rank, generator=generator), torch.randn(rank, IN, generator=generator))


def _restraint_rows() -> Iterator[Row]:
    for rank, goal, repeats in ((100, 2000, 21), (1000, 80, 7)):
        update = random_update(rank)
        # Every singular value lies above this m or nearly so: no direction is spared its work.
        m = update.spectral_norm() / 4
        gram = lambda u=update: (u.B.T @ u.B, u.A @ u.A.T)  # noqa: E731
        ours, floor = alternating([lambda u=update, m=m: restrain(u, RESTRAINT, m), gram], repeats)
        expected: list[torch.Tensor] = []
        dense = seconds(lambda u=update, m=m, e=expected: e.append(_dense_restraint(u, m)))
        difference = torch.linalg.vector_norm(restrain(update, RESTRAINT, m).dense() - expected[0])
        error = float(difference / torch.linalg.vector_norm(expected[0]))
        note = f"relative difference {error:.0e}"
        what = f"restraint of a rank-{rank:,} update"
        ok = error <= 1e-4
        yield Row(what, DENSE, dense / ours, goal, False, in_seconds(ours), in_seconds(dense), note, ok)
        if rank == 1000:
            gram_text = "the two Gram products BᵀB and AAᵀ alone"
            yield Row(what, gram_text, ours / floor, 5, True, in_seconds(ours), in_seconds(floor))


def _dense_restraint(update: LowRankUpdate, m: float) -> torch.Tensor:
    U, s, Vh = torch.linalg.svd(update.dense(), full_matrices=False)
    return (U * RESTRAINT(s, m)) @ Vh


def _condition_rows() -> Iterator[Row]:
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))
    condition: list[ConditionNumber] = []
    setup = seconds(lambda: condition.append(ConditionNumber(weight)))
    for rank, goal in ((100, 50), (1000, None)):
        update = random_update(rank).scaled(0.01)
        edited = update.append(random_update(1).scaled(0.01))
        kept = condition[0].project(update)
        one_more = lambda e=edited, k=kept: condition[0].of(condition[0].project(e, k))  # noqa: E731
        (ours,) = alternating([one_more], 7)
        found: list[torch.Tensor] = []
        dense = seconds(lambda e=edited, f=found: f.append(torch.linalg.svdvals(weight + e.B @ e.A)))
        expected = float(found[0][0] / found[0][-1])
        error = abs(one_more().condition_number / expected - 1)
        yield Row(
            f"κ after one more edit, {rank:,} before it, set-up amortised",
            "torch.linalg.svdvals(W₀+BA)",
            dense / ours,
            goal,
            False,
            in_seconds(ours),
            in_seconds(dense),
            f"relative error {error:.0e}; set-up {in_seconds(setup)}, once",
            error <= 1e-3,
        )


def _memory_row() -> Row:
    factors = 4 * 1000 * (OUT + IN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, __file__], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    extra = float(output.stdout)
    return Row(
        "memory of a restraint of a rank-1,000 update, result included",
        "bytes of B and A",
        extra / factors,
        4,
        True,
        in_megabytes(extra),
        in_megabytes(factors),
        "growth of the process's peak resident memory",
    )


def _print_peak() -> None:
    """Bytes by which a rank-1,000 restraint raises the peak of a process that has warmed up and holds B and A."""
    small = LowRankUpdate(torch.randn(512, 300), torch.randn(300, 600))
    restrain(small, RESTRAINT, small.spectral_norm() / 4)
    update = random_update(1000)
    m = 4000.0
    before = _peak()
    restrain(update, RESTRAINT, m)
    print(_peak() - before)


def _peak() -> int:
    """Largest resident memory of this process so far, in bytes.

    On Linux from its own address space: `getrusage` hands a parent's peak on to the programs that it starts.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource

    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    _print_peak()
