from __future__ import annotations

import copy
import enum
import pickle
import subprocess
import sys

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.peft_types import PeftType

from peft_prune.tuner import PRUNE_EDIT, PruneEditConfig, PruneEditModel
from peft_prune.tuner.registration import extend_peft_type, register


def test_the_new_member_behaves_like_any_other() -> None:
    assert isinstance(PRUNE_EDIT, PeftType)
    assert PeftType("PRUNE_EDIT") is PeftType["PRUNE_EDIT"] is PeftType.PRUNE_EDIT is PRUNE_EDIT
    assert PRUNE_EDIT in list(PeftType)
    assert (PRUNE_EDIT.name, PRUNE_EDIT.value, PRUNE_EDIT == "PRUNE_EDIT") == ("PRUNE_EDIT", "PRUNE_EDIT", True)
    assert pickle.loads(pickle.dumps(PRUNE_EDIT)) is PRUNE_EDIT
    assert copy.deepcopy(PRUNE_EDIT) is PRUNE_EDIT
    assert list(PeftType).count(PRUNE_EDIT) == 1


def test_registering_twice_changes_nothing() -> None:
    before = list(PeftType)
    assert extend_peft_type("PRUNE_EDIT") is PRUNE_EDIT
    register(PruneEditConfig, PruneEditModel)
    assert list(PeftType) == before
    assert PEFT_TYPE_TO_TUNER_MAPPING[PRUNE_EDIT] is PruneEditModel
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PRUNE_EDIT] is PruneEditConfig


def test_a_release_of_peft_that_knows_the_name_does_not_break_the_import() -> None:
    """A process in which the enum and the mappings hold PRUNE_EDIT before this package is imported."""
    program = """
import enum, peft, peft.mapping as mapping
from peft.utils import peft_types
from peft import LoraConfig
from peft_prune.tuner.registration import extend_peft_type
native = extend_peft_type("PRUNE_EDIT")
mapping.PEFT_TYPE_TO_CONFIG_MAPPING[native] = LoraConfig
import importlib, peft_prune.tuner
importlib.reload(peft_prune.tuner)
assert peft_prune.tuner.PRUNE_EDIT is native
assert peft_prune.PruneEditConfig().peft_type is native
assert mapping.PEFT_TYPE_TO_CONFIG_MAPPING[native] is peft_prune.PruneEditConfig
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_enum_is_still_an_enum_of_strings() -> None:
    assert issubclass(PeftType, enum.Enum) and all(isinstance(member, str) for member in PeftType)
