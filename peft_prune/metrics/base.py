"""What every module has in common: its figure with n and a 95 % interval."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets
import evaluate

from ..evaluation import KINDS, Mean, Proportion
from ..models.answers import answers_with

CITATION = """\
@inproceedings{ma2025perturbation,
  title = {Perturbation-Restrained Sequential Model Editing},
  author = {Ma, Jun-Yu and Wang, Hong and Xu, Hao-Xiang and Ling, Zhen-Hua and Gu, Jia-Chen},
  booktitle = {International Conference on Learning Representations},
  year = {2025},
  url = {https://arxiv.org/abs/2405.16821}
}
"""

TEXT = datasets.Value("string")
TEXTS = datasets.Sequence(datasets.Value("string"))
NUMBER = datasets.Value("float64")
WHOLE_NUMBER = datasets.Value("int64")
NUMBERS = datasets.Sequence(datasets.Value("float64"))

Example = Mapping[str, Sequence[Any]]


class EditMetric(evaluate.Metric, ABC):
    """A figure of an edited model as a module of `evaluate`.

    A subclass says what it is in `summary`, `predictions`, `references`, `sources` and `inputs`, and computes it in
    `figures`. The result holds ``NAME``, ``NAME_n``, ``NAME_low`` and ``NAME_high``, so that combined modules never
    clash. `figure` is the NAME that stands for the module where it is listed, a key of
    :data:`~peft_prune.evaluation.KINDS`; `example` is what it can be computed on.
    """

    figure: ClassVar[str]
    example: ClassVar[Example]
    summary: ClassVar[str]
    predictions: ClassVar[str]
    references: ClassVar[str | None] = None
    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2405.16821",)
    configurations: ClassVar[tuple[str, ...]] = ("default",)

    @abstractmethod
    def inputs(self) -> list[Mapping[str, Any]]:
        """The forms of input that are accepted, each by column."""

    @abstractmethod
    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Mean | Proportion]:
        """The figures by name."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in self.configurations:
            raise ValueError(f"config_name: {self.config_name!r} is not one of {', '.join(self.configurations)}")
        lines = [f"predictions: {self.predictions}"]
        lines += [] if self.references is None else [f"references: {self.references}"]
        forms = [datasets.Features(dict(form)) for form in self.inputs()]
        return evaluate.MetricInfo(
            description=f"{self.summary} {KINDS[self.figure].advice}",
            citation=CITATION,
            inputs_description="\nArgs:\n" + "\n".join(f"    {line}" for line in lines),
            features=forms if len(forms) > 1 else forms[0],
            reference_urls=list(self.sources),
        )

    def _compute(
        self, predictions: Sequence[Any], references: Sequence[Any] | None = None
    ) -> dict[str, float | int | None]:
        found: dict[str, float | int | None] = {}
        for name, figure in self.figures(predictions, references).items():
            found |= {name: figure.value, f"{name}_n": figure.n, f"{name}_low": figure.low, f"{name}_high": figure.high}
        return found


class ShareMetric(EditMetric):
    """The share of predictions that count against their reference, under the name `figure`."""

    columns: ClassVar[Mapping[str, Any]] = {"predictions": TEXT, "references": TEXT}

    @abstractmethod
    def counts(self, prediction: Any, reference: Any) -> bool:
        """Whether a prediction counts."""

    def inputs(self) -> list[Mapping[str, Any]]:
        """One form, `columns`."""
        return [self.columns]

    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Proportion]:
        """The share."""
        pairs = zip(predictions, references or (), strict=True)
        return {self.figure: Proportion.of(self.counts(one, other) for one, other in pairs)}


class PreferenceMetric(EditMetric):
    """Whether the wanted target wins: in a free answer, or with ``config_name="probability"`` in log-probability."""

    sources: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2202.05262", "https://arxiv.org/abs/2405.16821")
    configurations: ClassVar[tuple[str, ...]] = ("default", "probability")

    def agrees(self, answer: str, reference: str) -> bool:
        """Whether a free answer counts: it begins with the reference."""
        return answers_with(answer, reference)

    def inputs(self) -> list[Mapping[str, Any]]:
        """Texts, or numbers for the configuration "probability"."""
        kind = NUMBER if self.config_name == "probability" else TEXT
        return [{"predictions": kind, "references": kind}]

    def figures(self, predictions: Sequence[Any], references: Sequence[Any] | None) -> Mapping[str, Proportion]:
        """The share under the module's own name, with the ending ``_greedy`` for free answers."""
        pairs = zip(predictions, references or (), strict=True)
        if self.config_name == "probability":
            return {self.name: Proportion.of(one > other for one, other in pairs)}
        return {f"{self.name}_greedy": Proportion.of(self.agrees(one, other) for one, other in pairs)}
