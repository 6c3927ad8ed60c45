"""Reports in a real headless Chromium: no errors, tables filter and sort, pictures are there, in light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peft_prune.audit import audit
from peft_prune.reporting import audit_report, history_report, write_report
from peft_prune.session import History
from tests.audit.scene import LLAMA, base, edited, low_rank

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXECUTABLE = next((path for name in BROWSERS if (path := shutil.which(name))), None)
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]

FOCUSED = "document.activeElement.tagName + ' ' + document.activeElement.textContent.slice(0, 30).trim()"

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=EXECUTABLE, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def files(history_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    with History.read(history_file) as history:
        write_report(history_report(history), folder / "history.html")
    before = base("llama", folder / "base")
    steps = [edited(before, folder / f"step{i}", {LLAMA: low_rank((16, 32), 2, 1.0 + i)}) for i in range(2)]
    write_report(audit_report(audit(before, steps), max_growth=2.0), folder / "audit.html")
    return {name: folder / f"{name}.html" for name in ("history", "audit")}


class Visit:
    """One page with everything that it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(path.as_uri())

    def shown(self) -> list[str]:
        """First cells of the rows that are to be seen in the searchable table."""
        return self.page.eval_on_selector_all(
            ".searchable tbody tr", "rows => rows.filter(r => !r.hidden).map(r => r.cells[0].textContent.trim())"
        )


@pytest.fixture
def visit(browser: Any, files: dict[str, Path]) -> Iterator[Any]:
    open_pages: list[Visit] = []

    def go(name: str, **options: Any) -> Visit:
        open_pages.append(Visit(browser, files[name], **options))
        return open_pages[-1]

    yield go
    for one in open_pages:
        one.context.close()


@pytest.mark.parametrize("name", ["history", "audit"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_report_renders_without_errors_and_without_a_network(visit, name: str, scheme: str, width: int) -> None:
    seen = visit(name, scheme=scheme, width=width)
    assert not seen.complaints
    assert all(url.startswith(("file:", "data:")) for url in seen.requested)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = seen.page.eval_on_selector_all(
        "figure svg", "all => all.map(s => [s.getBoundingClientRect().width, s.getBoundingClientRect().height])"
    )
    assert len(sizes) >= 3 and all(w > 250 and h > 80 for w, h in sizes)
    assert seen.page.locator("h1").inner_text() and seen.page.locator(".verdict p").count() >= 3


def test_light_and_dark_differ_and_can_be_switched(visit) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    light, dark = visit("history", scheme="light"), visit("history", scheme="dark")
    assert light.page.evaluate(colour) != dark.page.evaluate(colour)
    assert light.page.evaluate(ink) != dark.page.evaluate(ink)
    expected = dark.page.evaluate(colour)
    light.page.locator("#theme").click()
    assert light.page.evaluate(colour) == expected


def test_the_table_is_searched_word_by_word(visit) -> None:
    seen = visit("history")
    assert seen.shown() == [str(number) for number in range(8, 0, -1)]
    seen.page.locator("input[type=search]").fill("SEAT tone")
    assert seen.shown() == ["2"]
    assert seen.page.locator(".tools output").inner_text() == "1 of 8"
    seen.page.locator("input[type=search]").fill("nothing of the kind")
    assert seen.shown() == []
    seen.page.locator("input[type=search]").fill("")
    assert len(seen.shown()) == 8


def test_the_table_is_filtered_by_state_together_with_the_search(visit) -> None:
    seen = visit("history")
    seen.page.get_by_role("button", name="rejected").click()
    assert seen.shown() == ["6", "5"]
    assert seen.page.get_by_role("button", name="rejected").get_attribute("aria-pressed") == "true"
    seen.page.locator("input[type=search]").fill("script")
    assert seen.shown() == ["6"]
    seen.page.get_by_role("button", name="all", exact=True).click()
    assert seen.shown() == ["6"]


def test_columns_sort_as_numbers_and_say_so(visit) -> None:
    seen = visit("history")
    head = seen.page.get_by_role("button", name="edit", exact=True)
    head.click()
    assert seen.shown() == [str(number) for number in range(1, 9)]
    assert seen.page.locator("th").filter(has=head).get_attribute("aria-sort") == "ascending"
    head.click()
    assert seen.shown()[0] == "8"
    seen.page.get_by_role("button", name="subject").click()
    assert seen.page.locator("th[aria-sort=ascending]").count() == 1
    subjects = seen.page.eval_on_selector_all(
        ".searchable tbody tr", "rows => rows.map(r => r.cells[2].textContent.trim().toLowerCase())"
    )
    assert subjects == sorted(subjects)


def test_everything_is_reached_by_keyboard(visit) -> None:
    seen = visit("history")
    seen.page.keyboard.press("Tab")
    assert seen.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    seen.page.keyboard.press("Enter")
    reached = set()
    for _ in range(80):
        seen.page.keyboard.press("Tab")
        reached.add(seen.page.evaluate(FOCUSED))
    assert "INPUT " in reached and "BUTTON failed" in reached and "SUMMARY The numbers" in reached
    seen.page.get_by_role("button", name="failed").focus()
    seen.page.keyboard.press("Enter")
    assert seen.shown() == ["8"]
    seen.page.locator("summary").first.focus()
    seen.page.keyboard.press("Enter")
    assert seen.page.locator("details[open]").count() == 1


def test_every_picture_is_described_and_has_its_numbers(visit) -> None:
    for name in ("history", "audit"):
        seen = visit(name)
        pictures = seen.page.locator("figure [role=img]")
        assert pictures.count() == seen.page.locator("figure details table").count() >= 3
        assert all(len(one.get_attribute("aria-label")) > 20 for one in pictures.all())


def test_markup_in_an_edit_is_shown_as_text(visit) -> None:
    seen = visit("history")
    assert seen.page.locator(".searchable script, .searchable i, .searchable b").count() == 0
    assert "<script>alert('tone')</script>" in seen.page.locator(".searchable").inner_text()


def test_long_tables_show_a_page_at_a_time(browser: Any, tmp_path: Path) -> None:
    from peft_prune.reporting.document import Report, Section, Table

    rows = [[str(number), f"subject {number}"] for number in range(1, 251)]
    table = Table("list", "Many", ["edit", "subject"], rows, numeric=(0,), searchable=True)
    report = Report("Many", "rows", "open", "Many rows", ["One."], [], [], [Section("all", "All", [table])])
    write_report(report, tmp_path / "many.html")
    seen = Visit(browser, tmp_path / "many.html")
    assert len(seen.shown()) == 100 and "250 of 250, the first 100 shown" in seen.page.locator("output").inner_text()
    seen.page.get_by_role("button", name="Show more").click()
    assert len(seen.shown()) == 200
    seen.page.locator("input[type=search]").fill("subject 249")
    assert seen.shown() == ["249"] and seen.page.get_by_role("button", name="Show more").is_hidden()
    assert not seen.complaints
    seen.context.close()
