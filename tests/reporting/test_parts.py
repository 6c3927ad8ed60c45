"""The parts of reports: limits, redaction, words, pictures, the page itself."""

from __future__ import annotations

import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from peft_prune.monitoring import Limit
from peft_prune.reporting import history_report, render, write_report
from peft_prune.reporting.drawing import drawing, for_a_page, legend_above, shortened
from peft_prune.reporting.limits import edits_left, level_of, progress
from peft_prune.reporting.redaction import OpenRedactor, Redactor
from peft_prune.reporting.words import count, listed, number, percent
from peft_prune.requests import EditRequest
from peft_prune.session import History

GROWTH = Limit("condition_growth", 5.0, 1.0, False, "warn")
RECALL = Limit("recall", 0.9, 1.0, True, "warn")


@pytest.mark.parametrize(
    ("limit", "value", "share", "level"),
    [
        (GROWTH, 1.0, 0.0, "good"),
        (GROWTH, 3.0, 0.5, "good"),
        (GROWTH, 4.0, 0.75, "near"),
        (GROWTH, 5.0, 1.0, "near"),
        (GROWTH, 5.1, 1.025, "passed"),
        (GROWTH, 0.5, 0.0, "good"),
        (GROWTH, math.inf, math.inf, "passed"),
        (RECALL, 0.95, 0.5, "good"),
        (RECALL, 0.8, 2.0, "passed"),
        (RECALL, math.nan, math.inf, "passed"),
        (Limit("loss", 2.0, 2.0, False, "warn"), 2.0, 0.0, "good"),
        (Limit("loss", 2.0, 2.0, False, "warn"), 2.1, math.inf, "passed"),
    ],
)
def test_progress_towards_a_limit(limit: Limit, value: float, share: float, level: str) -> None:
    assert progress(limit, value) == pytest.approx(share) and level_of(progress(limit, value)) == level


def test_the_pace_is_that_of_the_later_half() -> None:
    assert edits_left(GROWTH, [1, 2, 3, 4, 5, 6], [1, 1, 1, 1.0, 1.5, 2.0]) == 6
    assert edits_left(GROWTH, [1, 2, 3, 4, 5, 6], [1, 2, 3, 3.0, 3.0, 3.0]) is None
    assert edits_left(GROWTH, [1, 2, 3, 4, 5, 6], [1, 2, 3, 3.0, 2.0, 1.0]) is None
    assert edits_left(RECALL, [0, 10, 20, 30, 40, 50], [1, 1, 1, 0.98, 0.97, 0.96]) == 60
    assert edits_left(GROWTH, [1, 2], [1.0, 2.0]) is None
    assert edits_left(GROWTH, range(10), [2 + i * 1e-13 for i in range(10)]) is None
    assert edits_left(RECALL, range(10), [1e-310 * i for i in range(10)]) is None
    assert edits_left(GROWTH, [1, 2, 3, 4, 5, 6], [1, 1, 1, 1.0, math.inf, 2.0]) is not None


def test_a_code_depends_on_the_text_alone_and_on_the_key() -> None:
    one, other = Redactor("key of one"), Redactor("key of another")
    assert one.code("Eiffel  tower ") == one.code("eiffel tower") != other.code("eiffel tower")
    assert re.fullmatch(r"#[0-9a-f]{10}", one.code("Paris")) and one.code(" ") == ""
    assert Redactor().code("Paris") != Redactor().code("Paris")


def test_an_answer_that_gives_a_target_has_the_code_of_the_target() -> None:
    redactor, request = Redactor(), EditRequest("{} is in", "Lima", "Chile", "Peru")
    assert redactor.answer("Chile. And so", request) == redactor.code("Chile")
    assert redactor.answer("Peru, says", request) == redactor.code("Peru")
    assert redactor.answer("Chilean", request) == redactor.code("Chilean") != redactor.code("Chile")
    assert redactor.answer("Chile.", None) == redactor.code("Chile.")
    assert OpenRedactor().answer("Chile. And so", request) == "Chile. And …"


def test_only_what_the_program_itself_wrote_is_left_of_a_sentence() -> None:
    redactor = Redactor("key of one")
    assert redactor.reason("did not take: the edited model answers 'Rome' instead of 'Lyon'") == "did not take"
    assert redactor.reason("it contradicts edit 3, which stands") == "it contradicts edit 3, which stands"
    assert redactor.reason("replaced by edit 3 of Ann") == redactor.reason("Ann asked") == "(text withheld)"
    assert redactor.reason("") == ""
    assert redactor.relation("P36") == "P36" and redactor.relation("capital_of_Peru").startswith("#")
    said = ": 0.4 even after the restraint against 0.8 of the base, a loss of 0.05 of it is allowed"
    assert redactor.alert("AbilityGuard", f"recall{said}") == f"recall{said}"
    assert redactor.alert("AbilityGuard", f"Ann's: 1 test{said}") == redactor.code("Ann's: 1 test") + said
    grown = "h.1.mlp: the condition number is 3.2 times the base's, 2 is allowed"
    assert redactor.alert("ConditionGuard", grown) == grown
    assert redactor.alert("ConditionGuard", f"Ann {grown}") == "(text withheld)"
    assert redactor.alert("AbilityGuard", "Ann: 0.9") == "(text withheld)"
    assert redactor.alert("MyGuard", "Ann: 0.9") == "(text withheld)"


def test_numbers_and_lists_in_sentences() -> None:
    assert [number(x) for x in (None, math.nan, math.inf, 0.0, 12345.6, 0.00123)] == [
        "–",
        "–",
        "∞",
        "0",
        "12,346",
        "0.00123",
    ]
    assert [percent(x) for x in (0.5, 0.333, 0.0, 3e-6)] == ["50 %", "33.3 %", "0 %", "0.0003 %"]
    assert count(1, "matrix", "matrices") == "1 matrix" and count(1200, "edit") == "1,200 edits"
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert listed(range(9), 3) == "0, 1, 2 and 6 more"


def test_module_names_lose_what_they_share() -> None:
    names = [f"transformer.h.{layer}.mlp.c_proj" for layer in (2, 3)]
    assert shortened(names) == {names[0]: "layer 2", names[1]: "layer 3"}
    assert shortened(["a.b.x", "a.c.y"]) == {"a.b.x": "b.x", "a.c.y": "c.y"}
    assert shortened(["only.one"]) == {"only.one": "only.one"}


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        (("limit 5", "base model 1"), 2),
        (("sum of the edits", "under log:1.2", "σmax(W₀) 4.5"), 2),
        (("x" * 60, "y"), 1),
    ],
)
def test_a_legend_has_no_more_columns_than_the_picture_has_room_for(labels: tuple[str, ...], columns: int) -> None:
    with drawing() as (axes, _):
        for label in labels:
            axes.plot([1, 2], [1, 2], label=label)
        legend_above(axes, 4)
        (legend,) = axes.figure.legends
        assert legend._ncols == columns


def test_a_picture_has_ids_of_its_own_and_the_pages_colours() -> None:
    with drawing() as (axes, drawn):
        axes.plot([1, 2], [1, 2], label="line")
        one, other = drawn("one"), drawn("other")
    assert one.startswith("<svg") and "<metadata" not in one and "DOCTYPE" not in one
    ids = re.findall(r'\bid="([^"]*)"', one)
    assert (
        ids
        and all(name.startswith("one-") for name in ids)
        and not set(ids) & set(re.findall(r'\bid="([^"]*)"', other))
    )
    assert set(re.findall(r"url\(#([^)]*)\)", one)) <= set(ids)
    assert "var(--ink)" in one and "var(--faint)" in one and "#010101" not in one and "var(--font)" in one
    assert for_a_page('<?xml version="1.0"?><svg width="3pt" height="2pt" viewBox="0 0 3 2"></svg>', "k") == (
        '<svg aria-hidden="true" focusable="false" viewBox="0 0 3 2"></svg>'
    )


class Page(HTMLParser):
    """Collects what a page refers to, its ids and its headings, and checks that every tag is closed."""

    VOID = frozenset(("meta", "link", "input", "br", "img", "use", "path"))

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.references += [values[name] for name in ("src", "href", "xlink:href", "action") if values.get(name)]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html(history_file: Path) -> str:
    with History.read(history_file) as history:
        return render(history_report(history))


def test_a_page_is_whole_and_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    assert not re.search(r"url\(\s*['\"]?(?!#)", html) and "@import" not in html
    assert page.tags.count("svg") >= 4 and page.tags.count("script") == 1


def test_what_people_typed_is_text_and_never_markup(html: str) -> None:
    assert "&lt;script&gt;alert(&#39;tone&#39;)&lt;/script&gt;" in html
    assert "<script>alert" not in html and "<i>Bob" not in html and "P<b>" not in html


def test_a_report_is_written_whole_or_not_at_all(history_file: Path, tmp_path: Path, monkeypatch) -> None:
    with History.read(history_file) as history:
        report = history_report(history)
    path = tmp_path / "deep" / "report.html"
    write_report(report, path)
    first = path.read_text()
    original = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target) == path:
            raise OSError("no space left")
        original(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no space left"):
        write_report(report, path)
    assert path.read_text() == first and [one.name for one in path.parent.iterdir()] == ["report.html"]
