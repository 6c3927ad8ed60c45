"""The page of the Space: what its buttons do, and the page itself in a headless browser."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml

from tests.examples.test_examples import EXAMPLES
from tests.reporting.test_browser import ARGUMENTS, EXECUTABLE

SPACE = EXAMPLES / "space"
FACT = ("Beladofax", "{} is based in", "Seloburg")
OTHERS = "Beladofax has its headquarters in\n\nPelocorp is based in\n"


@pytest.fixture(scope="module")
def app() -> dict[str, Any]:
    return runpy.run_path(str(SPACE / "app.py"), run_name="app")


@pytest.fixture(scope="module")
def edited(app: dict[str, Any]) -> Iterator[Any]:
    session, said = app["change"](None, *FACT)
    assert said.startswith("Edit 1, applied: ") and "Fenilaford" in said and "Seloburg" in said
    yield session
    session.close()


def test_a_visitor_sees_the_answers_before_and_now(app: dict[str, Any], edited: Any) -> None:
    (own, paraphrase, other) = app["answers"](edited, *FACT[:2], OTHERS)
    assert own[0] == "Beladofax is based in" and "Fenilaford" in own[1] and "Seloburg" in own[2]
    assert paraphrase[0] == "Beladofax has its headquarters in" and other[0] == "Pelocorp is based in"
    assert app["answers"](None, "", "", "\n") == []
    assert app["edits"](edited) == [["1", "Beladofax is based in Seloburg", "applied"]]
    for name, base, now, frobenius, share in app["sizes"](edited):
        assert name.endswith("down_proj") and float(now) > float(base) > 1 and float(frobenius) > float(share) > 0


def test_visitors_share_the_weights_and_nothing_else(app: dict[str, Any], edited: Any) -> None:
    shared = app["base"]().model
    before = {name: weight.clone() for name, weight in shared.state_dict().items()}
    with app["new_session"]() as other:
        own = {one.data_ptr() for one in other.model.parameters()}
        assert {one.data_ptr() for one in shared.parameters()} <= own
        assert app["answers"](other, *FACT[:2], "")[0][2] == app["answers"](edited, *FACT[:2], "")[0][1]
        app["change"](other, "Selirira Holariwick", "{} plays the", "drums")
        assert "Seloburg" in app["answers"](edited, *FACT[:2], "")[0][2]
        _, said = app["take_back"](other)
        assert said == "Edit 1 is taken back; no edits left."
        assert app["take_back"](other)[1] == app["take_back"](None)[1] == "There is no edit to take back."
    assert all(torch.equal(weight, before[name]) for name, weight in shared.state_dict().items())


@pytest.mark.parametrize("fact", [("", "{} is", "x"), ("Beladofax", "is based in", "x"), ("Beladofax", "{} is", " ")])
def test_what_is_no_fact_is_refused_in_a_line(app: dict[str, Any], edited: Any, fact: tuple[str, str, str]) -> None:
    session, said = app["change"](edited, *fact)
    assert session is edited and "\n" not in said and not re.search(r", applied:", said)
    assert len([one for one in edited.results if one.stands]) == 1


def test_its_card_is_one_that_the_hub_reads() -> None:
    _, header, text = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["sdk"] == "gradio" and (SPACE / card["app_file"]).is_file() and card["license"] == "apache-2.0"
    assert re.fullmatch(r"\d+\.\d+\.\d+", card["sdk_version"]) and text.startswith("\n# ")
    assert (SPACE / "requirements.txt").read_text().split() == ["peft-prune"], "gradio comes with the Space"


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")
def test_the_page_in_a_browser(app: dict[str, Any]) -> None:
    pytest.importorskip("gradio")
    sync_api = pytest.importorskip("playwright.sync_api")
    blocks = app["page"]()
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(120_000)
            page.goto(url)
            page.get_by_role("button", name="Change it").click()
            page.get_by_text("Edit 1, applied").wait_for()
            page.get_by_role("gridcell", name=re.compile("down_proj")).first.wait_for()
            page.get_by_role("button", name="Take the last one back").click()
            page.get_by_text("Edit 1 is taken back").wait_for()
            page.get_by_role("gridcell", name="undone").first.wait_for()
            browser.close()
    finally:
        blocks.close()
