"""Packages that are installed, hidden from every import and every look-up of this process."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from typing import Any


def hide(*packages: str) -> None:
    """As if `packages` were not installed. Call it before anything that may look for them."""

    class Hidden(importlib.machinery.PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
            return None if fullname.partition(".")[0] in packages else super().find_spec(fullname, path, target)

    sys.meta_path[:] = [Hidden if f is importlib.machinery.PathFinder else f for f in sys.meta_path]  # type: ignore[misc]
    assert not any(importlib.util.find_spec(name) for name in packages)
