from __future__ import annotations

import pytest
from peft import PeftConfig
from peft.utils.peft_types import PeftType

from peft_prune import PruneEditConfig


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("restraint", "cube", r"restraint: 'cube' is not one of"),
        ("restrain_on", "sunday", r"restrain_on: 'sunday' is not one of"),
        ("alpha", 1.0, r"alpha: 1.0 must be a finite number above 1"),
        ("alpha", float("nan"), r"alpha: nan must be a finite number above 1"),
        ("restrain_every", 0, r"restrain_every: 0 must be an integer of at least 1"),
        ("restrain_every", 2.5, r"restrain_every: 2.5 must be an integer"),
        ("max_condition_growth", 1, r"max_condition_growth: 1 must be a number above 1"),
        ("max_rank", 0, r"max_rank: 0 must be an integer of at least 1"),
        ("r", -1, r"r: -1 must be an integer of at least 0"),
        ("bias", "some", r"bias: 'some' is not one of"),
    ],
)
def test_a_field_that_is_not_accepted_is_named_with_its_value(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneEditConfig(**{field: value})


def test_an_initial_rank_above_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="r: 8 is above max_rank, 4"):
        PruneEditConfig(r=8, max_rank=4)


def test_every_field_has_a_help_text() -> None:
    own = set(PruneEditConfig.__annotations__)
    fields = {name: field for name, field in PruneEditConfig.__dataclass_fields__.items() if name in own}
    assert all(len(field.metadata["help"]) > 20 for field in fields.values())


def test_a_saved_configuration_comes_back_equal(tmp_path) -> None:
    config = PruneEditConfig(
        target_modules=["c_proj"], layers_to_transform=[1, 2], restraint="linear", restrain_on="threshold", max_rank=7
    )
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, PruneEditConfig)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.peft_type is PeftType.PRUNE_EDIT


def test_unknown_keys_of_a_later_version_are_ignored_with_a_warning(tmp_path) -> None:
    config = PruneEditConfig(target_modules=["c_proj"])
    config.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace("{", '{"from_the_future": 1,', 1))
    with pytest.warns(UserWarning, match="from_the_future"):
        loaded = PeftConfig.from_pretrained(tmp_path)
    assert loaded.restraint == "log"


def test_strictness_is_asked_for_at_loading_and_never_stored(tmp_path) -> None:
    PruneEditConfig(target_modules=["c_proj"], strict_base=True).save_pretrained(tmp_path)
    assert not PeftConfig.from_pretrained(tmp_path).strict_base
    assert PruneEditConfig.from_pretrained(tmp_path, strict_base=True).strict_base
