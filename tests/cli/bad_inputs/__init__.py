"""A generator of bad inputs: valid ones of every kind that a command reads, each spoilt in one known way.

Every case is bad by construction, so that "refused" is the only right answer; the valid inputs that they are made from
are cases of their own, and must be accepted. The generator draws from a seed: another seed gives other cases.
"""

from .generator import all_cases
from .scene import Case, Scene, make_scene

__all__ = ["Case", "Scene", "all_cases", "make_scene"]
