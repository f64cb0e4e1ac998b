"""What every configuration section is built from: strict pydantic dataclasses and the UNSET marker.

A section is a dataclass (so `dataclasses.replace` and `fields` work) whose constructor refuses unknown keys and
wrong types. The docstring under a field is its description in the JSON schema; it ends with the default's source.

    @section
    class TrainConfig:
        max_grad_norm: PositiveFloat = 1.0
        \"\"\"Clip the global gradient norm here (TRL).\"\"\"

Constraints stand in the type (`Annotated`, `PositiveFloat`), because a subclass that overrides a default would
drop a `Field(ge=0)`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from enum import Enum
from functools import cache, wraps
from itertools import pairwise
from typing import Any, Final, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

C = TypeVar("C")


class _Unset(Enum):
    """An argument that nobody gave; it never overrides a file's value or a default."""

    UNSET = "unset"

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset.UNSET
"""Default of factory arguments and flags: "not given". `None` is a value, UNSET is not."""


@dataclass_transform(kw_only_default=True, field_specifiers=(Field, dataclasses.field))
def section(cls: type[C]) -> type[C]:
    """Turn a class into a configuration section: keyword-only, strict about keys, documented.

    Its constructor raises `ConfigurationError` with every fault, in the words that a file's faults have.
    """
    config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    built: Any = pydantic_dataclass(cls, config=config, kw_only=True)
    construct = built.__init__

    @wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as e:
            from aligntune.core.config.io import construction_error  # it builds on this module

            raise construction_error(type(self), kwargs, e) from e

    built.__init__ = __init__
    return built  # type: ignore[no-any-return]


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Field name to docstring, collected along the MRO (a subclass's own text wins).

    pydantic keeps only the descriptions that the class itself writes; this keeps the inherited ones too.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is object or base.__module__ == "builtins":
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue
        body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
        for node, after in pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                docs[node.target.id] = inspect.cleandoc(after.value.value)
    return docs


def is_section(value: Any) -> bool:
    """True for an instance of a section (not for the class)."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def to_plain(value: Any) -> Any:
    """A section as nested dicts, lists and scalars, ready for YAML and JSON.

    A section with a class attribute `key` (an algorithm, a task) is written with `name: key` first, and one with a
    `place` (it stands in a user's file) with that as its name.
    """
    if is_section(value):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        key = getattr(type(value), "key", None)
        return {"name": getattr(type(value), "place", "") or key, **plain} if key else plain
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(v) for v in value]
    return value


def walk(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a section as (dotted path, value); list items as `rewards.0.weight`."""
    if is_section(value):
        for f in dataclasses.fields(value):
            if f.init:
                yield from walk(getattr(value, f.name), f"{prefix}{f.name}.")
    elif isinstance(value, list) and value and is_section(value[0]):
        for i, item in enumerate(value):
            yield from walk(item, f"{prefix}{i}.")
    else:
        yield prefix.rstrip("."), value
