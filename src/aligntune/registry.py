"""One registry for everything that is found by name: algorithms, rewards, loaders, metrics, tasks.

An entry is an object, or a lazy `"module:attribute"` string that is imported when it is first asked for, so
that listing names costs no import.

>>> LOADERS: Registry[type] = Registry("loader")
>>> LOADERS.add("csv", "aligntune.data.loaders.tabular:CSVLoader")
>>> LOADERS.get("cvs")
ConfigurationError: unknown loader 'cvs'
  hint: did you mean 'csv'? known: csv

It does not search entry points or folders: what is registered is what was written down.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from aligntune.errors import ConfigurationError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the closest of `known` to `name`, and lists what there is (at most 30 names)."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=3, cutoff=0.5)
    close.sort(key=lambda n: sorted(n) != sorted(name.lower()))  # first one whose letters were only mixed up
    guess = next((n for n in names if close and n.lower() == close[0]), None)
    shown = ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    return (f"did you mean '{guess}'? " if guess else "") + f"known: {shown}"


def import_attribute(path: str) -> Any:
    """Import `"package.module:attribute"` and return the attribute (dots after the colon descend)."""
    module, _, attribute = path.partition(":")
    target: Any = importlib.import_module(module)
    for part in attribute.split("."):
        target = getattr(target, part)
    return target


def lazy_names(package: str, paths: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562) that import a public name when it is first used.

    Args:
        package: the package's `__name__`.
        paths: public name to `"module:attribute"`.
    """

    def get(name: str) -> Any:
        if name not in paths:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = import_attribute(paths[name])
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(paths)


class Registry(Generic[T]):
    """Names to objects, with collision errors and suggestions.

    Args:
        kind: what an entry is called in messages ("reward", "algorithm").
        replaceable: whether those who register may pass `replace`, for the hint.
    """

    def __init__(self, kind: str, *, replaceable: bool = True) -> None:
        self.kind, self.replaceable = kind, replaceable
        self._entries: dict[str, T | str] = {}

    def add(self, name: str, value: T | str, *, replace: bool = False) -> None:
        """Register `value` (or a lazy `"module:attribute"`) under `name`.

        Raises:
            ConfigurationError: the name is taken by another object and `replace` is false.
        """
        taken = self._entries.get(name)
        if taken is not None and not replace and not _same(taken, value):
            raise ConfigurationError(
                f"{self.kind} '{name}' is registered already",
                hint="choose another name"
                + (", or pass replace=True to put yours in its place" if self.replaceable else ""),
            )
        self._entries[name] = value

    def register(self, name: str, *, replace: bool = False) -> Callable[[T], T]:
        """Decorator form of `add`."""

        def decorate(value: T) -> T:
            self.add(name, value, replace=replace)
            return value

        return decorate

    def get(self, name: str) -> T:
        """The object registered under `name`, imported if it was lazy.

        Raises:
            ConfigurationError: nobody registered the name; the hint holds the nearest one.
        """
        if name not in self._entries:
            raise ConfigurationError(f"unknown {self.kind} '{name}'", hint=nearest(name, self._entries))
        value = self._entries[name]
        if isinstance(value, str):
            value = import_attribute(value)
            self._entries[name] = value
        return value  # type: ignore[return-value]

    def remove(self, name: str) -> None:
        """Forget `name`; no error if it is unknown (for tests and notebooks that register again)."""
        self._entries.pop(name, None)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)


def _same(a: Any, b: Any) -> bool:
    """The same object, or one definition executed twice (a module reloaded in a notebook)."""
    name = (getattr(a, "__module__", None), getattr(a, "__qualname__", None))
    return a is b or (
        name[1] is not None and name == (getattr(b, "__module__", None), getattr(b, "__qualname__", None))
    )
