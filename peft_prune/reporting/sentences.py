"""The plain words of a history's report: how things stand, and what to do next."""

from __future__ import annotations

from ..evaluation import Proportion
from ..monitoring import CONDITION_GROWTH
from .document import Level
from .state import State, Watched
from .words import count, figure_name, interval, listed, number, percent

LEADING = 5
VERDICTS: dict[Level, str] = {
    "good": "Within the limits",
    "near": "Close to a limit",
    "passed": "A limit has been passed",
    "open": "No limit to judge by",
}


def verdict(state: State) -> str:
    """The state in a few words."""
    return VERDICTS[state.level] if state.log.records else "No edits yet"


def summary(state: State) -> list[str]:
    """How things stand, one sentence each."""
    log = state.log
    if not log.records:
        return ["The history holds no edits."]
    days, people = list(log.by_day()), sorted(set(log.authors.values()))
    span = f"on {days[0]}" if len(days) == 1 else f"between {days[0]} and {days[-1]}"
    said = [f"{count(len(log.records), 'edit')} asked for {span} by {listed(people)}."]
    if state.took.n:
        took = sum(record.status == "applied" for record in log.tried)
        said.append(
            f"{took} of {state.took.n} that were tried took, {percent(state.took.value or 0.0)} (95 % interval "
            f"{interval(state.took)}): the model, asked freely, gave the new answer."
        )
    said.append(_standing(state))
    if state.now is not None and state.now.verification:
        said.append(_holding([one.holds for one in state.now.verification.values()]))
    said += [_of_limit(one) for one in state.watched]
    if state.worst is not None and state.limit_of(CONDITION_GROWTH) is None:
        times = number(state.growth[state.worst])
        said.append(f"The condition number of {state.worst} is {times} times that of the unedited layer.")
    if state.now is None and log.changed_since:
        said.append(
            f"The figures of the layers are those after edit {log.figures_edits}; the adapter has been changed since, "
            "by undoing or by a restraint."
        )
    return said


def advice(state: State) -> list[str]:
    """What to do next, one sentence each."""
    said = [sentence for one in state.watched if (sentence := _on_limit(state, one))]
    failed = [record.id for record in state.log.records if state.log.state(record) == "failed"]
    if failed:
        said.append(
            f"{_edits(failed)} did not take: the model still gives the old answer. The table says why; another "
            "wording, other layers or a stronger setting may help."
        )
    lost = [] if state.now is None else [edit for edit, one in state.now.verification.items() if not one.holds]
    if lost:
        said.append(f"{_edits(lost)} no longer hold{'s' if len(lost) == 1 else ''} and should be made again.")
    rejected = [record.id for record in state.log.records if state.log.state(record) == "rejected"]
    if rejected:
        said.append(f"{_edits(rejected)} had no valid request, which has to be corrected first.")
    if not state.limits:
        said.append(
            "Set limits, so that the next report can say how far there is to go: --max-growth and --max-drop of "
            "peft-prune edit, or guards in the session."
        )
    if state.worst is None and state.log.records:
        said.append("Let the session monitor the layers, or give --model, to see what the edits do to the model.")
    return said or [_nothing_to_do(state)]


def _standing(state: State) -> str:
    states = state.log.states()
    rest = [f"{states[name]} {name}" for name in ("failed", "rejected", "skipped", "undone") if states[name]]
    verb = "stands" if state.standing == 1 else "stand"
    return f"{count(state.standing, 'edit')} {verb} today." + (f" The others: {listed(rest)}." if rest else "")


def _holding(holds: list[bool]) -> str:
    share = Proportion.of(holds)
    return (
        f"Asked again now, the model gives the new answer to {sum(holds)} of the {share.n} that stand, "
        f"{percent(share.value or 0.0)} ({interval(share)})."
    )


def _of_limit(one: Watched) -> str:
    limit, side = one.limit, "at least" if one.limit.higher_is_better else "at most"
    what = (
        f"The {figure_name(limit.figure)} is {number(one.value)}; it is {number(limit.base)} in the base model, and "
        f"{side} {number(limit.value)} is allowed: "
    )
    return what + ("the limit has been passed." if one.share > 1 else f"{percent(one.share)} of the way to the limit.")


def _on_limit(state: State, one: Watched) -> str:
    name = figure_name(one.limit.figure)
    if one.level == "near":
        left = f", in about {count(one.left, 'edit')} at the present pace" if one.left else ""
        return f"Plan a restraint before the {name} reaches its limit{left}."
    if one.level != "passed":
        return ""
    if one.limit.figure == CONDITION_GROWTH:
        return (
            "Restrain the edits: peft-prune tune finds a strength that keeps what holds and lowers the condition "
            "number." + _carriers(state)
        )
    return (
        f"Stop editing until the {name} is back within its limit: strengthen the restraint (peft-prune tune), or undo "
        "the edits of the last days."
    )


def _carriers(state: State) -> str:
    if not state.attribution:
        return ""
    name, found = next(iter(state.attribution.items()))
    leading = [(edit, share) for edit, share in found.leading(LEADING) if share > 0.02]
    if not leading:
        return ""
    share = min(sum(own for _, own in leading), 1.0)
    edits = _edits([edit for edit, _ in leading]).lower()
    return f" Of the largest direction of {name}, {edits} carry {percent(share)}; undoing them acts there first."


def _nothing_to_do(state: State) -> str:
    left = [one.left for one in state.watched if one.left]
    pace = f" At the present pace the nearest limit is about {count(min(left), 'edit')} away." if left else ""
    return f"Nothing needs to be done.{pace}"


def _edits(numbers: list[int]) -> str:
    return f"{'Edit' if len(numbers) == 1 else 'Edits'} {listed(numbers)}"
