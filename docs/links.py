"""Check that every link of the pages, and of the site that is built from them, leads somewhere: no network is asked.

python docs/links.py [SITE]
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^( *)```.*?^\1```$", re.M | re.S)
INLINE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s+(\S+)|(?:href|src)=\"([^\"]+)\"", re.M)
HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.M)
NAV = re.compile(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", re.M)
HOST = re.compile(r"(?:[a-z0-9-]+\.)+[a-z]{2,}|localhost|127\.0\.0\.1")


def pages(root: Path = ROOT) -> list[Path]:
    """The pages that people read as they stand in the repository."""
    return [
        *sorted(root.glob("*.md")),
        *(one for name in ("docs", "examples") for one in sorted((root / name).rglob("*.md"))),
    ]


def page_problems(page: Path) -> Iterator[str]:
    """What does not lead anywhere on a page, with its line."""
    text = INLINE.sub(blank, FENCE.sub(blank, page.read_text(encoding="utf-8")))
    for found in LINK.finditer(text):
        to = next(part for part in found.groups() if part)
        problem = form_problem(to) if is_external(to) else target_problem(page, to)
        if problem:
            yield f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}: {to}: {problem}"


def nav_problems(root: Path = ROOT) -> Iterator[str]:
    """Pages that the navigation names and that are not there, and those that it does not name."""
    named = set(NAV.findall((root / "mkdocs.yml").read_text(encoding="utf-8")))
    there = {one.relative_to(root / "docs").as_posix() for one in (root / "docs").rglob("*.md")}
    yield from (f"mkdocs.yml: {one} is not there" for one in sorted(named - there))
    yield from (f"mkdocs.yml: {one} is not in the navigation" for one in sorted(there - named) if "/" not in one)


def site_problems(site: Path) -> Iterator[str]:
    """What does not lead anywhere on a page of a built site."""
    if not (site / "index.html").is_file():
        yield f"{site}: no site is there"
    for page in sorted(site.rglob("*.html")):
        if page.name == "404.html":
            continue  # its links begin at the address of the site
        for to in parsed(page).links:
            problem = form_problem(to) if is_external(to) else place_problem(page, to)
            if problem:
                yield f"{page.relative_to(site)}: {to}: {problem}"


def is_external(to: str) -> bool:
    return bool(urlsplit(to).scheme) or to.startswith("//")


def form_problem(to: str) -> str | None:
    """What is wrong with the form of an address elsewhere."""
    parts = urlsplit(to)
    if parts.scheme in ("mailto", "data", "javascript"):
        return None
    if parts.scheme not in ("https", "http"):
        return f"scheme {parts.scheme!r}"
    return None if HOST.fullmatch((parts.hostname or "").lower()) else f"no host in {parts.netloc!r}"


def target_problem(page: Path, to: str) -> str | None:
    """What is wrong with a link from one page of the repository to another place in it."""
    path, _, anchor = unquote(to).partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return "there is no such file"
    if not anchor:
        return None
    if target.suffix != ".md":
        return "an anchor in what is no page"
    return None if anchor in anchors(target) else f"{target.name} has no heading of that name"


def place_problem(page: Path, to: str) -> str | None:
    """What is wrong with a link from one page of a site to another place in it."""
    path, _, anchor = unquote(urlsplit(to)._replace(query="").geturl()).partition("#")
    target = (page.parent / path).resolve() if path else page
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return "there is no such file"
    if not anchor or target.suffix != ".html" or anchor in parsed(target).ids or anchor.startswith("__"):
        return None
    return "the page has no such anchor"


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as MkDocs makes them."""
    found: dict[str, int] = {}
    names = []
    for heading in HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        names.append(f"{slug}_{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return frozenset(names)


class Parsed(HTMLParser):
    """The anchors of a page of a site, and where its links and pictures lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value and name in ("id", "name"):
                self.ids.add(value)
            elif value and (name == "src" or (name == "href" and tag in ("a", "link"))):
                self.links.append(value)


@cache
def parsed(page: Path) -> Parsed:
    return Parsed(page.read_text(encoding="utf-8"))


def blank(found: re.Match[str]) -> str:
    """Nothing but the line breaks, so that the lines keep their numbers."""
    return "\n" * found[0].count("\n")


def main(words: list[str]) -> int:
    problems = [problem for page in pages() for problem in page_problems(page)]
    problems += nav_problems()
    for site in words:
        problems += site_problems(Path(site))
    print(*problems or ["every link leads somewhere"], sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
