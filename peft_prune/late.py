"""Do something when a library is imported, and not before: neither the library nor what needs it is imported for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


def when_imported(name: str, act: Callable[[], object]) -> None:
    """Call ``act`` as soon as a module has been imported: now where it has been, else right after it.

    What ``act`` raises comes out of that import.

    Args:
        name: Full name of the module.
        act: What to do, once.
    """
    if name in sys.modules:
        act()
    elif not any(isinstance(one, _Announced) and one.is_for(name, act) for one in sys.meta_path):
        sys.meta_path.insert(0, _Announced(name, act))


class _Announced:
    """Finds one module as the finders after it do, and adds to its loader what follows the module's own code."""

    def __init__(self, name: str, act: Callable[[], object]) -> None:
        self._name, self._act = name, act

    def is_for(self, name: str, act: Callable[[], object]) -> bool:
        """Whether it waits for this module with this to do, which is then not asked for a second time."""
        return (self._name, self._act) == (name, act)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name or self not in sys.meta_path:
            return None
        after = sys.meta_path[sys.meta_path.index(self) + 1 :]
        found = (finder.find_spec(fullname, path, target) for finder in after if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            # of this one loader alone: a module that is only looked for, as by find_spec, is not imported by it
            loader: Any = spec.loader
            loader.exec_module = self._follow(loader.exec_module)
        return spec

    def _follow(self, execute: Callable[[ModuleType], Any]) -> Callable[[ModuleType], None]:
        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._act()

        return exec_module
