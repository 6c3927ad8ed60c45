"""The plain words of a history's report: how things stand, and what to do next."""

from __future__ import annotations

from ..evaluation import Proportion
from ..evaluation.kinds import KINDS
from ..monitoring import CONDITION_GROWTH, LAYER_FIGURES
from .document import Answer, Level
from .hundreds import fewer
from .log import STATES
from .state import State, Watched
from .words import count, edits, figure_name, like_these, listed, number, percent

LEADING = 5
VERDICTS: dict[Level, str] = {
    "good": "Within the limits",
    "near": "Close to a limit",
    "passed": "A limit has been passed",
    "open": "No limit to judge by",
}


def verdict(state: State) -> str:
    """The state in a few words."""
    if not state.log.records:
        return "No edits yet"
    level, said = state.limits_level, verdict_of_limits(state)
    if state.fallen:
        said = with_fallen(said, level, len(state.fallen), f"{count(state.standing, 'edit')} that stand")
        level = "near"
    if state.missing:
        missing = f"{count(len(state.missing), 'edit')} asked for {'is' if len(state.missing) == 1 else 'are'} not in"
        said = f"{missing} the model" if level == "open" else f"{missing} the model. {said}"
    return said


def verdict_of_limits(state: State) -> str:
    """How far the model has come towards its limits, in a few words."""
    level = state.limits_level
    said = VERDICTS[level]
    if level == "good" and state.unmeasured:
        said = "Within the limits that were measured"
    if level == "open" and state.unmeasured:
        said = "Limits that were never measured"
    return f"{said}, after edit {state.log.figures_edits}" if state.is_old and level != "open" else said


def answers(state: State) -> list[Answer]:
    """What was changed, whether it holds, and whether the model is still good, in a few words each."""
    log = state.log
    if not log.records:
        return []
    undone = log.states()["undone"]
    changed = f"{count(state.standing, 'edit')} in the model, of {len(log.records):,} asked for"
    changed += f"; {undone} undone" if undone else ""
    good = state.limits_level == "good" and not state.is_old
    model = "Yes, within the limits" if good else verdict_of_limits(state)
    return [
        Answer("What was changed?", changed),
        Answer("Does it hold?", _holds_in_short(state), state.holds_level),
        Answer("Is the model still good?", model, state.shown(state.limits_level)),
    ]


def _holds_in_short(state: State) -> str:
    held, asked = state.standing - len(state.fallen), state.standing + len(state.missing)
    if not asked:
        return "There is nothing to hold"
    said = f"Yes, all {asked:,}" if held == asked else f"{held:,} of {asked:,} hold{'s' if held == 1 else ''}"
    return said + (", asked today" if state.now is not None and state.now.verification else ", as last asked")


def with_fallen(said: str, level: Level, fallen: int, asked: str) -> str:
    """What is said of the limits, behind how many edits do not hold, which is more than a limit that is kept."""
    first = f"{fallen:,} of {asked} {'does' if fallen == 1 else 'do'} not hold"
    return first if level == "open" else f"{first}. {said}"


def summary(state: State) -> list[str]:
    """How things stand, one sentence each."""
    log = state.log
    if not log.records:
        return ["The history holds no edits."]
    days, people = list(log.by_day()), sorted(set(log.authors.values()))
    span = f"on {days[0]}" if len(days) == 1 else f"between {days[0]} and {days[-1]}"
    said = [f"{count(len(log.records), 'edit')} asked for {span} by {listed(people)}."]
    if state.took.n:
        held = sum(record.took for record in log.tried)
        said.append(
            f"{held} of {state.took.n} that were tried took, {like_these(state.took)}: once its own batch was done, "
            "the model, asked freely, gave the new answer."
        )
    said.append(_standing(state))
    if state.now is not None and state.now.verification:
        said.append(_holding([one.holds for one in state.now.verification.values()]))
    elif state.standing:
        said.append(_seen(state))
    said += [_of_limit(state, one) for one in state.watched]
    if log.alerts:
        last = log.alerts[-1]["batch"]
        where = "" if last is None else f", the last after batch {last}"
        raised = count(len(log.alerts), "alert")
        said.append(f"On the way, guards raised {raised}{where}; the table of alerts says why.")
    for limit in state.unmeasured:
        said.append(f"There is a limit for the {figure_name(limit.figure)}, which was never measured.")
    if state.worst is not None and not state.limits_of(CONDITION_GROWTH):
        times = number(state.growth[state.worst])
        said.append(f"The condition number of {state.worst} is {times} times that of the unedited layer.")
    if state.is_old:
        said.append(
            f"The figures of the layers are those after edit {log.figures_edits}; the adapter has been changed since. "
            "Give --model to judge it as it is."
        )
    return said


def advice(state: State) -> list[str]:
    """What to do next, one sentence each."""
    said = [sentence for one in state.watched if (sentence := _on_limit(state, one))]
    by_state = _by_state(state)
    for name, (one, several) in _ADVICE.items():
        numbers = by_state.get(name, [])
        if numbers:
            said.append(f"{edits(numbers).capitalize()} {one if len(numbers) == 1 else several}")
    invalid = [r.id for r in state.log.records if r.status == "rejected" and r.request is None]
    refused = [r.id for r in state.log.records if r.status == "rejected" and r.request is not None]
    if invalid:
        said.append(f"{edits(invalid).capitalize()} had no valid request, which has to be corrected first.")
    if refused:
        said.append(f"{edits(refused).capitalize()} {_were(refused)} rejected; the table says why.")
    for limit in state.unmeasured:
        said.append(f"Measure the {figure_name(limit.figure)}, so that its limit means something.")
    if not state.limits and state.log.records:
        said.append(
            "Set limits, so that the next report can say how far there is to go: --max-growth and --max-drop of "
            "peft-prune edit, or guards in the session."
        )
    if state.worst is None and state.log.records:
        said.append("Let the session monitor the layers, or give --model, to see what the edits do to the model.")
    return said or [_nothing_to_do(state)]


_FAILED = (
    "did not give the new answer when the model was asked freely. The table says why; another wording, other layers or "
    "a stronger setting may help."
)
_LOST = (
    "took, and the model no longer gives the new answer: peft-prune tune looks for a restraint that keeps it, or ask "
    "for the edit again."
)
_WEAKENED = (
    "still gives the new answer, with less than half of the probability with which it took.",
    "still give the new answer, with less than half of the probability with which they took.",
)
_ADVICE = {
    "failed": (_FAILED, _FAILED),
    "lost": (_LOST, _LOST),
    "weakened": _WEAKENED,
    "rolled back": (
        "gave the new answer and was taken out again by a guard; the table says why.",
        "gave the new answer and were taken out again by a guard; the table says why.",
    ),
    "skipped": (
        "was not tried, because the session had been stopped; ask for it again.",
        "were not tried, because the session had been stopped; ask for them again.",
    ),
}
"""What to do about edits of a state, for one and for several."""


def _by_state(state: State) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for record in state.log.records:
        found.setdefault(state.log.state(record), []).append(record.id)
    return found


def _were(numbers: list[int]) -> str:
    return "was" if len(numbers) == 1 else "were"


def _standing(state: State) -> str:
    gone = [state.log.state(record) for record in state.log.records if not record.stands]
    rest = [f"{gone.count(name)} {name}" for name in STATES if name in gone]
    verb = "stands" if state.standing == 1 else "stand"
    return f"{count(state.standing, 'edit')} {verb} today." + (f" The others: {listed(rest)}." if rest else "")


def _seen(state: State) -> str:
    """How many hold, as each was seen last, and how late that was."""
    standing = [record for record in state.log.records if record.stands]
    held, last = state.standing - len(state.fallen), state.log.records[-1].batch
    oldest = min(record.batch if record.seen is None else record.seen.batch for record in standing)
    when = "" if oldest >= last else f"; some were last asked after batch {oldest} of {last}"
    return f"When the model was last asked, it gave the new answer to {held} of these {len(standing)}{when}."


def _holding(holds: list[bool]) -> str:
    share = Proportion.of(holds)
    return (
        f"Asked again now, the model gives the new answer to {sum(holds)} of the {share.n} that stand, "
        f"{like_these(share)}."
    )


def _of_limit(state: State, one: Watched) -> str:
    limit, side = one.limit, "at least" if one.limit.higher_is_better else "at most"
    last = state.log.records[-1].id
    when = "" if one.measured_at in (None, last) else f", measured after edit {one.measured_at} of {last},"
    is_share = limit.figure in KINDS and KINDS[limit.figure].bounds == (0.0, 1.0)
    gap = f", {fewer(one.value - limit.base)}" if is_share and one.value != limit.base else ""
    what = (
        f"The {figure_name(limit.figure)}{when} is {number(one.value)}; it is {number(limit.base)} in the base model"
        f"{gap}, and {side} {number(limit.value)} is allowed: "
    )
    return what + ("the limit has been passed." if one.share > 1 else f"{percent(one.share)} of the way to the limit.")


def _on_limit(state: State, one: Watched) -> str:
    name, is_of_layers = figure_name(one.limit.figure), one.limit.figure in LAYER_FIGURES
    if state.is_old and one.level != "good":
        return f"Look at the {name} again before you act on it: the adapter has been changed since it was measured."
    if one.level == "near":
        left = f", in about {count(one.left, 'edit')} at the present pace" if one.left else ""
        return f"Plan a restraint before the {name} reaches its limit{left}."
    if one.level != "passed":
        return ""
    if is_of_layers:
        lowered = "condition number" if one.limit.figure == CONDITION_GROWTH else name
        return (
            f"Restrain the edits: peft-prune tune finds a strength that keeps what holds and lowers the {lowered}."
            + _carriers(state)
        )
    return (
        f"Stop editing until the {name} is back within its limit: strengthen the restraint (peft-prune tune), or undo "
        "the edits of the last days."
    )


def _carriers(state: State) -> str:
    found = state.attribution.get(state.worst or "")
    if found is None:
        return ""
    leading = [(edit, share) for edit, share in found.leading(LEADING) if share > 0.02]
    if not leading:
        return ""
    numbers = [member for leader, _ in leading for member in state.members[leader]]
    share = percent(min(sum(own for _, own in leading), 1.0))
    verb = "carries" if len(numbers) == 1 else "carry"
    together = " together" if len(numbers) > len(leading) else ""
    who = f"{edits(numbers)}{together} {verb} {share}"
    return f" Of the largest direction of {state.worst}, {who}; undoing acts there first."


def _nothing_to_do(state: State) -> str:
    left = [one.left for one in state.watched if one.left]
    pace = f" At the present pace the nearest limit is about {count(min(left), 'edit')} away." if left else ""
    return f"Nothing needs to be done.{pace}"
