"""The plain words of an audit's report."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized

from ..audit import Audit, CheckpointAudit, Extraction
from ..monitoring import Limit
from .document import Answer, Level
from .limits import level_of, progress
from .sentences import VERDICTS
from .words import count, listed, number, percent


def level(last: CheckpointAudit, limit: Limit | None) -> Level:
    """The state of a checkpoint."""
    if last.not_finite:
        return "passed"
    if limit is None:
        return "open"
    return level_of(progress(limit, 1.0 if last.worst is None else last.worst.growth))


def verdict(found: Audit, level: Level) -> str:
    """The state in a few words."""
    if found.series[-1].not_finite:
        return "Weights are not finite"
    return VERDICTS[level] if any(one.changed for one in found.series) else "Nothing has changed"


def answers(found: Audit, level: Level) -> list[Answer]:
    """What was changed, and whether the model is still good, in a few words each."""
    last = found.series[-1]
    return [
        Answer("What was changed?", f"{last.changed:,} of {count(last.changed + last.unchanged, 'tensor')}"),
        Answer("Is the model still good?", verdict(found, level), level),
    ]


def summary(found: Audit, labels: Sequence[str], limit: Limit | None) -> list[str]:
    """How things stand, one sentence each."""
    last, said = found.series[-1], []
    total = last.changed + last.unchanged
    if found.only is not None:
        said.append(f"Only tensors whose name matches {found.only} were compared.")
    if len(labels) > 1:
        said.append(f"{count(len(labels), 'checkpoint')} were compared with the base; the last is {labels[-1]}.")
    if not last.changed:
        return [*said, f"All {total:,} tensors of {labels[-1]} are those of the base."]
    if last.not_finite:
        names = listed(list(last.not_finite), 3)
        said.append(f"{count(len(last.not_finite), 'tensor')} hold{_s(last.not_finite)} NaN or Inf: {names}.")
    differ = [count(len(last.matrices), "matrix", "matrices")] if last.matrices else []
    differ += [_others(last)] if last.others else []
    if differ:
        verb = "differs" if len(last.matrices) + len(last.others) == 1 else "differ"
        said.append(f"{listed(differ)} {verb} from the base, {last.unchanged:,} of {total:,} tensors are unchanged.")
    if last.matrices:
        said.append(_of_ranks(last))
        said += _of_sizes(last, limit)
    if last.reshaped:
        said.append(f"{count(len(last.reshaped), 'tensor')} of another shape could not be compared.")
    return said


def _of_sizes(last: CheckpointAudit, limit: Limit | None) -> list[str]:
    said = []
    worst = last.worst
    if worst is not None:
        allowed = "" if limit is None else f"; at most {number(limit.value)} is allowed"
        said.append(
            f"The condition number of {worst.name} has grown most, from {number(worst.condition_number_base)} to "
            f"{number(worst.condition_number)}, {number(worst.growth)} times{allowed}."
        )
    singular = [name for name, one in last.matrices.items() if math.isnan(one.growth)]
    if singular:
        said.append(
            f"{listed(singular, 3)} {'was' if len(singular) == 1 else 'were'} singular before, so that the condition "
            "number says nothing there."
        )
    largest = max(last.matrices.values(), key=lambda one: one.relative_norm)
    times = number(largest.relative_norm)
    said.append(f"The largest change is that of {largest.name}: ‖ΔW‖₂ is {times} times σmax(W₀).")
    return said


def _others(last: CheckpointAudit) -> str:
    return count(len(last.others), "tensor that is no matrix", "tensors that are no matrices")


def _s(things: Sized) -> str:
    """The ending of a verb whose subject is so many things."""
    return "s" if len(things) == 1 else ""


def _of_ranks(last: CheckpointAudit) -> str:
    ranks = sorted(one.rank for one in last.matrices.values())
    where = "In it" if len(ranks) == 1 else "In each of them"
    if ranks[-1] == 0:
        return f"{where} nothing of the change stands out from rounding."
    full = sum(one.rank > 0.5 * min(one.shape) for one in last.matrices.values())
    whole = 2 * full > len(ranks)
    what = "a fine-tuning of whole matrices leaves" if whole else "edits or a low-rank fine-tuning leave"
    amount = count(ranks[0], "direction") if ranks[0] == ranks[-1] else f"{ranks[0]} to {ranks[-1]} directions"
    verb = "stands" if ranks[-1] == 1 else "stand"
    return f"{where} {amount} of the change {verb} out from rounding, which is what {what}."


def advice(found: Audit, level: Level, extraction: Extraction | None) -> list[str]:
    """What to do next, one sentence each."""
    last, said = found.series[-1], []
    above = [one for one in last.matrices.values() if one.relative_norm > 1]
    if last.not_finite:
        said.append("Do not serve this checkpoint: go back to one before it, or to the base.")
    if extraction is not None:
        error = "" if extraction.error is None else f", with an error of {percent(extraction.error)} of it"
        said.append(
            f"The difference is now an adapter in {extraction.folder}{error}. peft-prune restrain applies the "
            "restraint to it; evaluate it before it replaces the checkpoint."
        )
    elif above:
        said.append(
            f"In {count(len(above), 'layer')} the change is larger than anything the unedited layer did. --extract "
            "makes an adapter of the difference, which peft-prune restrain can restrain."
        )
    if level == "open" and last.matrices:
        said.append("Give --max-growth to judge the condition number by.")
    if level == "passed" and extraction is None and not last.not_finite:
        said.append("Do not edit this checkpoint further before it has been restrained or gone back to the base.")
    if last.others:
        verb = "differs" if len(last.others) == 1 else "differ"
        said.append(f"{_others(last)} {verb} as well ({listed(list(last.others), 3)}); no restraint reaches them.")
    return said or ["Nothing needs to be done."]
