"""The report of a history says what is in it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from peft_prune.evaluation import wilson_interval
from peft_prune.monitoring import CONDITION_GROWTH
from peft_prune.reporting import Now, Report, history_report, render
from peft_prune.reporting.document import Cell, Chart, Table
from peft_prune.requests import EditRequest
from peft_prune.session import History, adapter_of
from tests.session.scene import MODULE, REQUESTS
from tests.talking import spaced_tokenizer
from tests.tiny import willing

from .builder import Builder, growth_limit
from .scene import HOSTILE, states


@pytest.fixture(scope="module")
def report(history_file: Path) -> Report:
    with History.read(history_file) as history:
        return history_report(history)


def block(report: Report, key: str) -> Chart | Table:
    return next(one for section in report.sections for one in section.blocks if one.key == key)


def table(report: Report, key: str) -> Table:
    found = block(report, key)
    return found.numbers if isinstance(found, Chart) else found


def texts(row) -> list[str]:
    return [one.text if isinstance(one, Cell) else one for one in row]


def test_the_scene_holds_every_kind_of_edit(history_file: Path) -> None:
    assert states(history_file) == [
        *("applied", "undone", "applied", "applied", "rejected", "rejected", "applied", "failed")
    ]


def test_the_summary_counts_what_took_with_its_interval(report: Report) -> None:
    low, high = wilson_interval(5, 6)
    said = " ".join(report.summary)
    assert "8 edits asked for between 2026-03-03 and 2026-03-05 by <i>Bob</i> and Ann." in said
    span = f"{100 * low:.0f} to {100 * high:.0f}"
    assert span == "44 to 97"
    assert f"5 of 6 that were tried took, about 83 of 100 (of very many like these, {span}): once its own" in said
    assert "4 edits stand today. The others: 1 undone, 1 failed and 2 rejected." in said
    assert "The figures of the layers are those after edit 8; the adapter has been changed since" in said


def test_limits_decide_the_verdict_and_the_advice(report: Report, history_file: Path) -> None:
    missing = "1 edit asked for is not in the model. "
    assert (report.level, report.verdict) == ("passed", f"{missing}A limit has been passed, after edit 8")
    with History.read(history_file) as history:
        row = history.table("figures")[-1]
        growth = row["condition_number"] / row["condition_number_base"]
        wide = history_report(history, max_growth=growth * 10)
        near = history_report(history, max_growth=1 + (growth - 1) / 0.9)
    assert any(f"The growth of the condition number is {growth:.3g}; " in sentence for sentence in report.summary)
    assert wide.level == "near" and near.level == "near"  # edit 8 did not take, which is not good
    assert wide.verdict == f"{missing}Within the limits, after edit 8"
    assert "Look at the growth of the condition number again" in report.advice[0]
    assert "Edit 8 did not give the new answer" in " ".join(report.advice)
    assert "Edit 5 had no valid request" in " ".join(report.advice)
    assert "Edit 6 was rejected; the table says why." in report.advice
    assert not any("tune" in sentence for sentence in wide.advice)


def test_the_first_screen_answers_what_was_changed_whether_it_holds_and_how_the_model_is(
    report: Report, history_file: Path
) -> None:
    answers = {one.question: one for one in report.answers}
    assert answers["What was changed?"].answer == "4 edits in the model, of 8 asked for; 1 undone"
    assert answers["Does it hold?"].answer.endswith("as last asked") and answers["Does it hold?"].level != "good"
    assert answers["Is the model still good?"].answer == "A limit has been passed, after edit 8"
    html = render(report)
    assert html.index('class="answers"') < html.index("What to do next") < html.index('class="tiles"')


def test_nothing_at_the_top_is_green_while_an_edit_does_not_hold(history_file: Path) -> None:
    with History.read(history_file) as history:
        report = history_report(history, max_growth=1e6)
    assert report.level == "near"
    assert "good" not in [tile.level for tile in report.tiles] + [one.level for one in report.answers]


def test_what_was_asked_for_anew_and_took_is_missing_no_longer() -> None:
    builder = Builder([growth_limit(3.0)]).batch({"status": "failed"}, growth=1.1)
    failed = builder.report()
    assert (failed.level, failed.verdict) == ("passed", "1 edit asked for is not in the model. Within the limits")
    builder.batch({"request": EditRequest("{} is in", "Subject 1", "Target 1")}, growth=1.1)
    report = builder.report()
    assert (report.level, report.verdict) == ("good", "Within the limits")
    assert [one.level for one in report.answers] == [None, "good", "good"]
    assert report.answers[1].answer == "Yes, all 1, as last asked"


def test_a_limit_that_cannot_be_is_named(history_file: Path) -> None:
    with History.read(history_file) as history, pytest.raises(ValueError, match="max_growth: 1 must be above 1"):
        history_report(history, max_growth=1)


def test_days_and_relations_add_up(report: Report) -> None:
    days = table(report, "days")
    assert days.columns == ["day (UTC)", "applied", "undone", "failed", "rejected"]
    assert [texts(row) for row in days.rows] == [
        ["2026-03-03", "2", "1", "0", "0"],
        ["2026-03-04", "1", "0", "0", "1"],
        ["2026-03-05", "1", "0", "1", "1"],
    ]
    relations = {texts(row)[0]: texts(row)[1:] for row in table(report, "relations").rows}
    assert relations["note sea {}"] == ["4", "1", "1", "0", "5 of 6"]
    assert relations["P<b>1</b>"] == ["0", "0", "0", "1", "–"]


def test_courses_are_those_of_the_history(report: Report, history_file: Path) -> None:
    with History.read(history_file) as history:
        figures, measured = history.table("figures"), history.table("measurements")
    growth = [row["condition_number"] / row["condition_number_base"] for row in figures]
    drawn = [row[1].sort for row in table(report, "growth").rows]
    assert drawn == pytest.approx(growth) and texts(table(report, "growth").rows[-1])[0] == "8"
    assert [row[1].sort for row in table(report, "ability-0").rows] == pytest.approx([row["value"] for row in measured])
    assert "limit 1.5" in block(report, "growth").svg and "base model" in block(report, "ability-0").svg


def test_directions_name_the_edits_that_carry_them(report: Report, history_file: Path) -> None:
    with History.read(history_file) as history:
        parts = {r.id: history.factors(r.id).updates[MODULE].dense().double() for r in history.edits(standing=True)}
    left, values, right = torch.linalg.svd(sum(parts.values()))
    rows = [texts(row) for row in table(report, f"carriers-{MODULE.replace('.', '-')}").rows]
    assert [float(row[1]) for row in rows] == pytest.approx(values[: len(rows)].tolist(), rel=1e-3)
    for place, row in enumerate(rows):
        shares = {e: float(left[:, place] @ part @ right[place]) / float(values[place]) for e, part in parts.items()}
        leading = max(shares, key=lambda edit: abs(shares[edit]))
        first = row[2].split(", ")[0]
        assert first.startswith(f"{leading} {REQUESTS[0].subject if leading == 1 else ''}")
        assert float(re.search(r"\((-?[\d.]+) %\)", first)[1]) == pytest.approx(100 * shares[leading], abs=0.06)


def test_every_edit_is_in_the_table_with_its_answers_and_reason(report: Report, history_file: Path) -> None:
    rows = table(report, "edit-list")
    assert [texts(row)[0] for row in rows.rows] == [str(number) for number in range(8, 0, -1)]
    by_id = {texts(row)[0]: dict(zip(rows.columns, texts(row), strict=True)) for row in rows.rows}
    assert by_id["4"] | {"time (UTC)": "", "probability": ""} == {
        "edit": "4", "time (UTC)": "", "subject": "tea", "relation": "note sea {}", "new target": "ten",
        "before": "seat ten net …", "after": "ten nest nest …", "last seen": "ten …", "probability": "",
        "state": "applied", "why": "", "by": "Ann",
    }  # fmt: skip
    assert by_id["2"]["state"] == "undone" and "who never liked" in by_id["2"]["why"]
    assert by_id["8"]["state"] == "failed" and "instead of 'son'" in by_id["8"]["why"]
    assert rows.searchable and list(rows.filters) == ["applied", "undone", "failed", "rejected"]


def test_alerts_and_changes_are_listed(report: Report) -> None:
    assert "On the way, guards raised 8 alerts, the last after batch 8; the table of alerts says why." in report.summary
    alerts = [texts(row) for row in table(report, "alert-list").rows]
    assert len(alerts) == 8 and all(row[2] == "warn" and "1.5 is allowed" in row[3] for row in alerts)
    (change,) = [texts(row) for row in table(report, "changes").rows]
    assert change == ["2026-03-05 09:30", "edit 2 undone: asked for by 'legal', who never liked the tone seat"]


def test_with_a_model_the_edits_are_asked_again_and_nothing_is_written(history_file: Path) -> None:
    before = history_file.read_bytes()
    with History.read(history_file) as history:
        requests = {r.id: r.request for r in history.edits(standing=True) if r.request}
        model = adapter_of(history, willing("gpt2"))
        now = Now.of(model, spaced_tokenizer(), requests)
        report = history_report(history, now=now)
        rows = history.table("figures")
    holds = sum(one.holds for one in now.verification.values())
    assert any(f"the model gives the new answer to {holds} of the 4 that stand" in one for one in report.summary)
    assert "now" in table(report, "edit-list").columns
    assert now.figures[MODULE].condition_number != pytest.approx(rows[-1]["condition_number"], rel=1e-6)
    weight = dict(model.edited_layers())[MODULE]
    dense = torch.linalg.svdvals(
        weight.get_base_weight().T.double() + weight.effective_update("default").dense().double()
    )
    assert now.figures[MODULE].condition_number == pytest.approx(float(dense[0] / dense[-1]), rel=1e-3)
    assert not any("changed since" in sentence for sentence in report.summary)
    assert table(report, "evaluation").rows and history_file.read_bytes() == before


def test_a_redacted_report_names_nobody(history_file: Path) -> None:
    with History.read(history_file) as history:
        html = render(history_report(history, redact=True))
        open_html = render(history_report(history))
        answers = {(r.answer_after or "").strip() for r in history.edits()} | {"seat"}
    visible = re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", " ", visible)
    for name in ("sane ant", "tone seat", "oats", "nest"):
        assert name in open_html and not re.search(rf"\b{name}\b", body)
    table_text = re.search(r'<div class="block searchable".*?</table>', visible, re.DOTALL)[0]
    cells = re.sub(r"<[^>]*>", " ", table_text).replace("note sea {}", "")
    for word in {"ten", "son", "legal", "tea", "alert", HOSTILE.subject} | {one for one in answers if one}:
        assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", cells.replace("1.5 is allowed", "")), word
    assert "redacted: what was named by people is given as codes" in html


def test_codes_agree_within_a_report_and_between_reports_of_one_key_alone(history_file: Path) -> None:
    def codes(**options) -> list[str]:
        with History.read(history_file) as history:
            found = table(history_report(history, redact=True, **options), "edit-list")
        place = found.columns.index("new target")
        return [texts(row)[place] for row in found.rows]

    one, other = codes(), codes()
    assert one != other
    # edits 1 to 4 and 6 all have the target "ten"
    assert len({one[8 - edit] for edit in (1, 2, 3, 4, 6)}) == 1 and one[0] != one[8 - 1]
    assert codes(redact_key="a long secret") == codes(redact_key="a long secret") != one


def test_an_empty_history_has_a_report_too(tmp_path: Path) -> None:
    from tests.session.scene import session

    with session(tmp_path / "edits.db"):
        pass
    with History.read(tmp_path / "edits.db") as history:
        report = history_report(history)
    assert report.verdict == "No edits yet" and report.level == "open"
    assert "There are no edits yet." in render(report)


def test_without_guards_there_is_no_verdict_and_the_advice_says_so(tmp_path: Path) -> None:
    from tests.session.scene import session

    with session(tmp_path / "edits.db") as run:
        run.edit(REQUESTS[:1])
    with History.read(tmp_path / "edits.db") as history:
        report = history_report(history)
    assert (report.level, report.verdict) == ("open", "No limit to judge by")
    assert any("Set limits" in sentence for sentence in report.advice)
    assert CONDITION_GROWTH not in " ".join(report.summary)
