"""A user's functions by name: `file.py:function` or `package.module:function`.

    load_function("my_rewards.py:no_apology", "reward")

A file is executed as a module of its own, once for each content (so that an algorithm and a reward in one file are
registered once), and may import its neighbours. Only names that the
user wrote in a configuration or on the command line come here; nothing is loaded from data or from a model's folder.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from aligntune.errors import ConfigurationError
from aligntune.registry import nearest


def load_function(name: str, what: str) -> Any:
    """The attribute that `name` points to.

    Args:
        name: `file.py:function` or `package.module:function`.
        what: it is for, in messages ("reward").

    Raises:
        ConfigurationError: no such file, module or attribute, or its code fails to import.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        hint = f"write {name}:function" if name.endswith(".py") else "write file.py:function or package.module:function"
        raise ConfigurationError(f"{what} '{name}' names no function", hint=hint)
    module = _load_file(place, what) if place.endswith(".py") else _load_module(place, what)
    target = getattr(module, attribute, None)
    if target is None:
        functions = [
            n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        raise ConfigurationError(f"{place} has no function '{attribute}'", hint=nearest(attribute, functions))
    return target


class _FromSource(SourceFileLoader):
    """Without the compiled copy beside the file, which counts as fresh for a second after the file has changed."""

    def get_code(self, fullname: str) -> CodeType | None:
        return self.source_to_code(self.get_data(self.path), self.path)  # type: ignore[no-any-return]


def _load_file(place: str, what: str) -> ModuleType:
    path = Path(place).expanduser().absolute()
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        guess = f"did you mean {path.parent / near[0]}? " if near else ""
        raise ConfigurationError(
            f"the {what} file {place} does not exist", hint=f"{guess}paths are relative to {Path.cwd()}"
        )
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    name = f"aligntune_user_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    assert spec is not None  # made from a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # the file may import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:  # user code: whatever it raises must name the file
        del sys.modules[name]
        raise ConfigurationError(
            f"the {what} file {place} failed to import: {type(e).__name__}: {e}", hint=f"run: python {place}"
        ) from e
    finally:
        sys.path.remove(str(path.parent))
    return module


def _load_module(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise ConfigurationError(
            f"the {what} module '{name}' cannot be imported: {e}",
            hint="give package.module:function of an installed package, or path/to/file.py:function",
        ) from e
