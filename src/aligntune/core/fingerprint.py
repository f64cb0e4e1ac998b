"""Which code trains: a hash of the loaded training code, and which of it is not what the installed files compile to.

    >>> found = fingerprint()
    >>> found["hash"], found["replaced"]
    ('5d1c...', [])

Every function and method of the loaded training modules (of TRL, Transformers, PEFT, Accelerate, Datasets, bitsandbytes
and the parts of PyTorch that are known to be replaced) is held against the code that its module's file compiles to,
which Python keeps beside it (`__pycache__`). A function whose code is not there was put in its place by somebody, and
the file of its code says by whom. Decorators are looked through. A callable object in the place of a function or method
of the file (a partial, an instance of somebody's class) is a replaced one. A lazy package holds what has been asked of
it so far, which must be what its modules hold. Nothing is imported for it.

It sees code, not data: a changed default, constant or environment variable is only seen by
`aligntune diagnose isolation --full`, which compares a process with an untouched one.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import types
from collections.abc import Iterator
from functools import cache, partial, partialmethod
from typing import Any

TRAINED_WITH = (
    "trl.", "peft.", "accelerate.", "bitsandbytes.", "datasets.arrow_dataset", "datasets.iterable_dataset",
    "transformers.trainer", "transformers.modeling_", "transformers.generation.", "transformers.models.",
    "transformers.masking_utils", "transformers.training_args", "transformers.optimization",
    "transformers.integrations.", "transformers.cache_utils", "transformers.configuration_utils",
    "transformers.quantizers.", "transformers.data.",
    "transformers.tokenization_", "transformers.loss.", "transformers.processing_utils",
    "torch.nn.init", "torch.nn.functional", "torch.nn.modules.", "torch.optim.", "torch.serialization", "torch.cuda",
    "torch.utils.checkpoint", "torch.nn.attention.flex_attention", "torch.amp.",
)  # fmt: skip
"""Beginnings of the names of the modules that are looked at, where they are loaded."""
PACKAGES = ("unsloth", "unsloth_zoo")
LAZY = ("trl", "peft", "accelerate", "datasets", "transformers")
"""Packages whose lazy modules, which import a name when it is asked for, are looked at."""
DECORATORS = (
    "builtins", "functools", "torch", "triton", "trl", "peft", "accelerate", "datasets", "transformers", "bitsandbytes",
)  # fmt: skip
"""Whose objects may stand where the source has a function: compiled methods, `lru_cache`, `torch.jit.script`."""
SHOWN = 400
"""Most names that a fingerprint lists; `by` counts all."""
_GENERATED = ("<string>", "<attrs generated", "<frozen", "<torch_package", "<eval_with_key>")
"""File names of code that libraries make themselves, as `dataclasses` does."""


class Sources:
    """What the files of loaded modules compile to, read on demand."""

    def __init__(self) -> None:
        self._modules: dict[str, str] = {}
        for name, module in list(sys.modules.items()):
            if type(module) is types.ModuleType or type(module).__module__.startswith(("transformers", "trl")):
                file = vars(module).get("__file__")
                if file:
                    self._modules.setdefault(file, name)
        self._codes: dict[str, set[types.CodeType] | None] = {}
        self.of_unsloth = cache(of_unsloth)

    def codes(self, file: str) -> set[types.CodeType] | None:
        """All code objects of a file; None where no loaded module has it, or its source is not there."""
        if file not in self._codes:
            self._codes[file] = self._read(file)
        return self._codes[file]

    def _read(self, file: str) -> set[types.CodeType] | None:
        code = self.module_code(self._modules.get(file, ""))
        return None if code is None else set(_all_codes(code))

    def module_code(self, name: str) -> types.CodeType | None:
        """The code of a loaded module, from the cache beside its file or compiled anew."""
        loader = getattr(vars(sys.modules[name]).get("__spec__"), "loader", None) if name in sys.modules else None
        if not hasattr(loader, "get_code"):
            return None
        try:
            return loader.get_code(name)  # type: ignore[union-attr,no-any-return]
        except (ImportError, OSError):
            return None


def _all_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _all_codes(const)


def fingerprint() -> dict[str, Any]:
    """The hash of the training code that is loaded now, and what of it was replaced.

    Returns:
        `hash`: sha256 over names and code of every function that was looked at. `symbols`: how many. `replaced`: names
        of those whose code is not what the installed file compiles to. `by`: file or module to the number of symbols
        that it replaced. `foreign`: the replaced ones whose code is Unsloth's.
    """
    sources, digest = Sources(), hashlib.sha256()
    symbols, replaced, by = 0, {}, dict[str, int]()
    for name in sorted(sys.modules):
        module = sys.modules[name]
        if type(module) is types.ModuleType:
            looked_at = _symbols(module, sources) if f"{name}.".startswith(TRAINED_WITH) else ()
        elif isinstance(module, types.ModuleType) and name.partition(".")[0] in LAZY:
            looked_at = _of_lazy(name, module)
        else:
            continue
        for qualified, function, owner in looked_at:
            symbols += 1
            digest.update(qualified.encode())
            if function is not None:
                digest.update(code_hash(function.__code__))
            culprit = owner or ("" if function is None else _culprit(function, sources))
            if culprit:
                replaced[qualified] = culprit
                by[culprit] = by.get(culprit, 0) + 1
    foreign = [n for n, culprit in replaced.items() if sources.of_unsloth(culprit)]
    return {
        "hash": digest.hexdigest(),
        "symbols": symbols,
        "replaced": list(replaced)[:SHOWN],
        "by": dict(sorted(by.items(), key=lambda item: -item[1])),
        "foreign": foreign[:SHOWN],
    }


Symbol = tuple[str, types.FunctionType | None, str]
"""Name, function (None for an object that has none) and, where something else stands there, who put it there."""


def _symbols(module: types.ModuleType, sources: Sources) -> Iterator[Symbol]:
    """The functions and methods of a module."""
    name = module.__name__
    own = _codes_by_name(sources.module_code(name))
    for attribute, value in sorted(vars(module).items()):
        home = getattr(value, "__module__", None)
        if isinstance(value, type):
            exchanged = home if home != name and (attribute in own or _is_foreign(home)) else ""
            if home != name and not exchanged:
                continue  # imported from its own module, where it is looked at
            written = {n for code in own.get(attribute, ()) for n in _codes_by_name(code)}
            members = list(_methods(value, written))
            if any(f and f.__code__.co_filename == vars(module).get("__file__") for _, f, _ in members):
                exchanged = ""  # it was made here and says otherwise, as PyTorch's optimizers do
            for member, method, owner in members:
                yield f"{name}.{attribute}.{member}", method, exchanged or owner
            continue
        if attribute in own and (owner := _object_of(value)):
            yield f"{name}.{attribute}", _called(value), owner
            continue
        function = _function(value)
        if function is not None and (home == name or attribute in own or _is_foreign(home)):
            yield f"{name}.{attribute}", function, ""


def _of_lazy(name: str, module: types.ModuleType) -> Iterator[Symbol]:
    """What stands in a lazy package and in none of its modules; looking at its `vars` imports nothing."""
    root = name.partition(".")[0]
    for attribute, value in sorted(vars(module).items()):
        if callable(value) and not attribute.startswith("_") and not _at_home(root, attribute, value):
            function, home = _called(value), str(getattr(value, "__module__", None) or type(value).__module__)
            # A class may have no code of its own, and be another's by its name.
            named = isinstance(value, type) and home.partition(".")[0] != root
            owner = home if named or function is None else function.__code__.co_filename
            yield f"{name}.{attribute}", function, owner


def _at_home(root: str, attribute: str, value: Any) -> bool:
    """Whether a package's own module holds this very object: the one that it says it is from, or any."""
    home = getattr(value, "__module__", None) or ""
    own = vars(sys.modules[home]) if home.partition(".")[0] == root and home in sys.modules else {}
    if own.get(getattr(value, "__name__", attribute)) is value:
        return True
    modules = [m for n, m in list(sys.modules.items()) if n.startswith(f"{root}.") and type(m) is types.ModuleType]
    return any(vars(m).get(attribute) is value for m in modules)


def _codes_by_name(code: types.CodeType | None) -> dict[str, list[types.CodeType]]:
    """The functions and classes that a module or class defines, by name."""
    found: dict[str, list[types.CodeType]] = {}
    for const in code.co_consts if code is not None else ():
        if isinstance(const, types.CodeType):
            found.setdefault(const.co_name, []).append(const)
    return found


def _object_of(value: Any) -> str:
    """Who put a callable object where the source has a function; "" for a function, or what a decorator makes."""
    filled = isinstance(value, (partial, partialmethod, types.MethodType))
    if not filled and (isinstance(value, (type, types.FunctionType, staticmethod, classmethod)) or not callable(value)):
        return ""
    home = type(value).__module__
    if not filled and home.partition(".")[0] in DECORATORS:
        return ""
    function = _called(value)
    return home if function is None else function.__code__.co_filename


def _called(value: Any) -> types.FunctionType | None:
    """The function that runs where an object is called, a class made, or a partial filled; None for compiled code."""
    if isinstance(value, types.FunctionType):
        return value
    if isinstance(value, (partial, partialmethod)):
        return _function(value.func)
    if isinstance(value, types.MethodType):
        return _function(value.__func__)
    kinds = value.__mro__ if isinstance(value, type) else type(value).__mro__
    names = ("__init__", "__call__") if isinstance(value, type) else ("__call__",)
    return next((f for kind in kinds for n in names if (f := _function(vars(kind).get(n))) is not None), None)


def of_unsloth(origin: str) -> bool:
    """Whether a file, or a module that has none, is Unsloth's: its package, or what it writes and compiles.

    By where packages stand, not by any part of the path: an environment may well be called `unsloth`.

    >>> of_unsloth("/envs/unsloth/lib/python3.11/site-packages/trl/trainer/utils.py")
    False
    """
    parts = re.split(r"[\\/]", origin)
    if parts[-1].lower().lstrip("<").startswith("unsloth") or "unsloth_compiled_cache" in parts:
        return True
    places = [i for i, part in enumerate(parts) if part in ("site-packages", "dist-packages")]
    if places and parts[places[-1] + 1 :][:1] in ([name] for name in PACKAGES):
        return True
    files = [getattr(sys.modules.get(name), "__file__", None) for name in PACKAGES]
    homes: list[str] = [os.path.dirname(file) for file in files if file]
    if compiled := os.environ.get("UNSLOTH_COMPILE_LOCATION"):
        homes.append(compiled)
    return any(origin.startswith(home + os.sep) for home in homes)


def _is_foreign(module: str | None) -> bool:
    return (module or "").lower().startswith("unsloth")


def _methods(cls: type, written: set[str]) -> Iterator[Symbol]:
    """The methods of a class; `written` are those that its source has."""
    for attribute, member in sorted(vars(cls).items()):
        if attribute in written and (owner := _object_of(member)):
            yield attribute, _called(member), owner
            continue
        function = _function(member)
        if function is not None:
            yield attribute, function, ""


def _function(value: Any) -> types.FunctionType | None:
    """The function in a method, property, cache or partial; None where there is none."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, partial):
        value = value.func
    if not isinstance(value, types.FunctionType):
        value = getattr(value, "__wrapped__", None)
    return value if isinstance(value, types.FunctionType) else None


def _culprit(function: types.FunctionType, sources: Sources, depth: int = 0) -> str:
    """The file that a function's code comes from, where that is not its own; "" for code as it was installed."""
    code = function.__code__
    file = code.co_filename
    if not file.startswith(_GENERATED):
        known = sources.codes(file)
        if known is None or code not in known:
            return file
        if sources.of_unsloth(file):
            return file
    if depth > 3:
        return ""
    inner = [getattr(function, "__wrapped__", None)]
    for cell in function.__closure__ or ():
        try:
            inner.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    for value in inner:
        if isinstance(value, types.FunctionType) and value is not function:
            found = _culprit(value, sources, depth + 1)
            if found:
                return found
    return ""


def code_hash(code: types.CodeType) -> bytes:
    """A digest of byte code, constants and names, the same in every process."""
    h = hashlib.sha256(code.co_code)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            h.update(code_hash(const))
        else:
            h.update(repr(sorted(map(repr, const)) if isinstance(const, frozenset) else const).encode())
    h.update(repr((code.co_names, code.co_varnames)).encode())
    return h.digest()
