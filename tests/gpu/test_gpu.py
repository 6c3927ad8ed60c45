"""The same edits on an accelerator as on the CPU; skipped where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from peft import get_peft_model

from peft_prune import PruneEditConfig, SecondMoments, Solving, collect_second_moments
from peft_prune.editors import ROME
from peft_prune.session import EditSession
from tests.editors.test_rome import EASY, TEXTS
from tests.session.scene import MODULE, REQUESTS
from tests.talking import spaced_tokenizer
from tests.tiny import willing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator"),
]


def first() -> torch.device:
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, 0)


def edited(model: Any, statistics: SecondMoments, **options: Any) -> torch.Tensor:
    """ΔW of two edits by ROME, on the CPU in float64."""
    adapted = get_peft_model(model, PruneEditConfig(layers_to_transform=[1], restraint="none")).eval()
    with EditSession(adapted, spaced_tokenizer(), ROME(EASY), statistics=statistics, **options) as session:
        session.edit(REQUESTS[:2])
    return dict(adapted.edited_layers())[MODULE].effective_update("default").dense().double().cpu()


def moments_on(model: Any) -> SecondMoments:
    return collect_second_moments(model, spaced_tokenizer(), TEXTS, [MODULE], progress=False)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_on_one_device_an_edit_is_that_of_the_cpu_and_the_moment_lies_on_the_cpu() -> None:
    statistics = moments_on(willing("gpt2").to(first()))
    assert statistics.moments[MODULE].device.type == "cpu"
    expected = moments_on(willing("gpt2")).moments[MODULE]
    assert difference(statistics.moments[MODULE].double(), expected.double()) < 1e-4
    found = edited(willing("gpt2").to(first()), statistics)
    assert difference(found, edited(willing("gpt2"), statistics)) < 1e-2


def test_a_system_that_is_solved_on_the_device_gives_the_same_edit() -> None:
    statistics = moments_on(willing("gpt2"))
    found = edited(willing("gpt2"), statistics, solving=Solving(device=first()))
    assert difference(found, edited(willing("gpt2"), statistics)) < 1e-4


def test_a_model_over_the_device_and_the_cpu_is_edited_the_same() -> None:
    model, statistics = willing("gpt2"), moments_on(willing("gpt2"))
    places = {"transformer.wte": 0, "transformer.wpe": 0, "transformer.h.0": 0, "transformer.h.1": "cpu"}
    places |= {"transformer.h.2": 0, "transformer.ln_f": 0, "lm_head": 0}
    found = edited(dispatch_model(model, places, main_device=0), statistics)
    assert difference(found, edited(willing("gpt2"), statistics)) < 1e-2


def test_bfloat16_on_the_device_takes_edits() -> None:
    model = willing("gpt2").to(first(), torch.bfloat16)
    assert float(edited(model, moments_on(model)).norm()) > 0
