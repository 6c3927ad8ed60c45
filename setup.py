"""README as the description of the package: what is relative there is absolute where a package index shows it."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<to>(?!https?:|#)[^)\s]+)\)")


def long_description(readme: str, repository: "str | None") -> str:
    """README's text without relative links.

    Args:
        readme: The text.
        repository: Address of the repository, whose files are linked to; without one the words of a link are kept,
            and a picture is left out.
    """

    def absolute(found: "re.Match[str]") -> str:
        if repository is None:
            return "" if found["picture"] else found["text"]
        kind = "raw" if found["picture"] else "blob"
        return f"{found['picture']}[{found['text']}]({repository.rstrip('/')}/{kind}/main/{found['to']})"

    return re.sub(r"\n{3,}", "\n\n", LINK.sub(absolute, readme))


if __name__ == "__main__":
    stated = re.search(r'^Repository = "(.+)"', (HERE / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    setup(
        long_description=long_description((HERE / "README.md").read_text(encoding="utf-8"), stated and stated[1]),
        long_description_content_type="text/markdown",
    )
