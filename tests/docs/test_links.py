"""Every link of the pages leads somewhere, and one that does not is found; no network is asked."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

LINKS = runpy.run_path(str(Path(__file__).resolve().parents[2] / "docs" / "links.py"))
PAGE = """\
# One heading: `κ` and v*

[here](#one-heading-and-v), [there](other.md#two), [out](https://arxiv.org/abs/2405.16821), ![drawn](a.png)

```python
dictionary["[no link](nowhere.md)"]
```
`[no link](nowhere.md)`
"""
OTHER = "# Two\n\n# Two\n\n[again](#two_1)\n"


def test_every_link_of_the_pages_leads_somewhere() -> None:
    found = [problem for page in LINKS["pages"]() for problem in LINKS["page_problems"](page)]
    assert not found + list(LINKS["nav_problems"]())
    assert len(LINKS["pages"]()) > 40


@pytest.mark.parametrize(
    "written, problem",
    [
        ("", None),
        ("[x](nowhere.md)", "page.md:9: nowhere.md: there is no such file"),
        ("![x](nowhere.png)", "page.md:9: nowhere.png: there is no such file"),
        ("[x](other.md#three)", "page.md:9: other.md#three: other.md has no heading of that name"),
        ("[x](#three)", "page.md:9: #three: page.md has no heading of that name"),
        ("[x](htp://arxiv.org)", "page.md:9: htp://arxiv.org: scheme 'htp'"),
        ("[x](https://arxiv)", "page.md:9: https://arxiv: no host in 'arxiv'"),
        ('<img src="b.png">', "page.md:9: b.png: there is no such file"),
    ],
)
def test_a_link_that_leads_nowhere_is_named_with_its_line(written: str, problem: str | None, tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(OTHER)
    (tmp_path / "a.png").touch()
    (tmp_path / "page.md").write_text(PAGE + written)
    assert list(LINKS["page_problems"](tmp_path / "other.md")) == []
    assert list(LINKS["page_problems"](tmp_path / "page.md")) == ([problem] if problem else [])


def test_the_navigation_names_every_page(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "forgotten.md").touch()
    (tmp_path / "mkdocs.yml").write_text("nav:\n  - Start: gone.md\n")
    assert [one.partition(": ")[2] for one in LINKS["nav_problems"](tmp_path)] == [
        "gone.md is not there",
        "forgotten.md is not in the navigation",
    ]


def test_a_site_is_read_as_a_browser_reads_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top"></h1><a href="sub/#deep"></a><a href="#top"></a><a href="."></a>'
    )
    (tmp_path / "sub" / "index.html").write_text(
        '<p id="deep"><a href=".."></a><link href="../a.css?v=1"><img src="b.png">'
    )
    (tmp_path / "a.css").touch()
    assert list(LINKS["site_problems"](tmp_path)) == ["sub/index.html: b.png: there is no such file"]
    other = tmp_path / "other"
    (other / "sub").mkdir(parents=True)
    (other / "index.html").write_text('<a href="sub/#shallow"></a><a href="sub/none.html"></a>')
    (other / "sub" / "index.html").write_text('<p id="deep">')
    assert [one.rpartition(": ")[2] for one in LINKS["site_problems"](other)] == [
        "the page has no such anchor",
        "there is no such file",
    ]
