"""The public names: each is importable where it has always been, with the parameters that scripts use.

`surface.txt` pins them. A name may gain optional parameters; losing one, renaming it, or changing its default, its kind
or its place is a break, and shows here.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aligntune

FACTORY = type("FACTORY", (), {"__repr__": lambda self: "<factory>"})()
KNOWN = {"FACTORY": FACTORY, "inf": math.inf}
"""What a default in `surface.txt` may name beside literals."""
Kind = inspect.Parameter


def pins() -> Iterator[tuple[str, str, str]]:
    """(module, name, pinned text) for every line of `surface.txt`."""
    module = ""
    for line in (Path(__file__).parent / "surface.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        if not line.startswith(" "):
            module = line.strip()
            continue
        text = line.strip()
        at = next(i for i, c in enumerate(text) if c in "(:")
        yield module, text[:at], text[at:]


PINS = list(pins())


@pytest.mark.parametrize(("module", "name", "text"), PINS, ids=[f"{m}.{n}" for m, n, _ in PINS])
def test_the_name_is_there_with_its_signature(module: str, name: str, text: str) -> None:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if text == ": str":
        assert isinstance(found, str)
    elif text == ": enum":
        assert issubclass(found, enum.Enum)
        assert len(found) > 0
    elif text != ": class":
        check_signature(inspect.signature(found), inspect.signature(eval(f"lambda {text[1:-1]}: 0", KNOWN)))


def check_signature(now: inspect.Signature, pinned: inspect.Signature) -> None:
    """Every pinned parameter is there with its kind and default, in order; what is new is optional."""
    for name, parameter in pinned.parameters.items():
        assert name in now.parameters, f"lost the parameter {name}: {now}"
        today = now.parameters[name]
        assert today.kind == parameter.kind, name
        if parameter.default is FACTORY:
            assert repr(today.default) == "<factory>", name
        else:
            assert today.default == parameter.default, name
    positional = (Kind.POSITIONAL_ONLY, Kind.POSITIONAL_OR_KEYWORD)
    order = [n for n, p in pinned.parameters.items() if p.kind in positional]
    assert [n for n, p in now.parameters.items() if p.kind in positional][: len(order)] == order
    for name in now.parameters.keys() - pinned.parameters.keys():
        new = now.parameters[name]
        assert new.default is not Kind.empty or new.kind in (Kind.VAR_KEYWORD, Kind.VAR_POSITIONAL), name


def test_the_check_sees_what_breaks() -> None:
    pinned = inspect.signature(lambda a, b=1, *, c=2: 0)
    check_signature(inspect.signature(lambda a, b=1, d=3, *, c=2, **e: 0), pinned)
    for broken in (
        lambda a, *, c=2: 0,
        lambda a, b=2, *, c=2: 0,
        lambda b=1, a=1, *, c=2: 0,
        lambda a, b=1, c=2: 0,
        lambda a, b=1, *, c=2, d: 0,
    ):
        with pytest.raises(AssertionError):
            check_signature(inspect.signature(broken), pinned)


def test_every_module_imports() -> None:
    for found in pkgutil.walk_packages(aligntune.__path__, "aligntune."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)


def test_all_names_of_all_modules_exist() -> None:
    for found in pkgutil.walk_packages(aligntune.__path__, "aligntune."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", ()):
            assert getattr(module, name, None) is not None, f"{found.name}.{name}"
