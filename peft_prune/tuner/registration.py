"""Make PEFT know the method: one more member of its PeftType enum, one entry in each of its mappings.

PEFT finds a method through the closed enum ``PeftType`` and dictionaries keyed by its members. It offers
``register_peft_method`` for the dictionaries but nothing for the enum, so a member is added here in the way that
``enum`` itself adds one. Where a member of that name exists already (a second import, or a PEFT release that ships
the method), it is reused; the dictionaries are always pointed at the classes of this package.
"""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.peft_types import PeftType

NAME = "PRUNE_EDIT"
PREFIX = "prune_edit_"


def extend_peft_type(name: str) -> PeftType:
    """Return the member ``name`` of ``PeftType``, added if it is not there."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    # EnumType refuses assignments to members but not through type, and the attribute must exist before the maps know
    # it: Python 3.12 looks members up as class attributes, earlier versions in the map.
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member


PRUNE_EDIT: PeftType = extend_peft_type(NAME)


def register(config_class: type, model_class: type) -> None:
    """Point PEFT's mappings for ``PRUNE_EDIT`` at these classes; calling it again has no further effect."""
    PEFT_TYPE_TO_PREFIX_MAPPING[PRUNE_EDIT] = PREFIX
    PEFT_TYPE_TO_CONFIG_MAPPING[PRUNE_EDIT] = config_class
    PEFT_TYPE_TO_TUNER_MAPPING[PRUNE_EDIT] = model_class
