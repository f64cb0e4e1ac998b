"""References in a stages file: `${values.NAME}` and `${stages.NAME.RESULT}`.

A string that is one reference takes the value as it is (a number, a list); a reference inside a longer string is
written into it. `$${` stands for `${`.

>>> made = {"model": "out/sft", "steps": 8}
>>> resolve({"path": "${stages.sft.model}/x", "n": "${values.steps}"}, lambda r: made[r.last])
{'path': 'out/sft/x', 'n': 8}

There are no expressions, defaults or variables of the environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aligntune.errors import ConfigurationError

FORMS = "write ${stages.NAME.RESULT} or ${values.NAME}; $${ stands for a plain ${"
_PATTERN = re.compile(r"\$\$\{|\$\{([^{}]*)\}?")


@dataclass(frozen=True)
class Reference:
    """One reference.

    Attributes:
        of: `stages` or `values`.
        path: what follows, split at its dots: (stage, result), or the keys of a value.
        text: as it is written.
    """

    of: Literal["stages", "values"]
    path: tuple[str, ...]
    text: str

    @property
    def name(self) -> str:
        """The stage, or the value's first key."""
        return self.path[0]

    @property
    def last(self) -> str:
        """The result, or the value's last key."""
        return self.path[-1]


def parse(text: str) -> Reference:
    """The reference of `${...}`.

    Raises:
        ConfigurationError: it has another form.
    """
    inner = text.removeprefix("${").removesuffix("}").strip()
    of, _, rest = inner.partition(".")
    path = tuple(rest.split(".")) if rest else ()
    wrong = not text.endswith("}") or of not in ("stages", "values") or not path or not all(path)
    if wrong or (of == "stages" and len(path) != 2):
        raise ConfigurationError(f"'{text}' is no reference", hint=FORMS)
    return Reference(of, path, text)  # type: ignore[arg-type]


def find(value: Any) -> Iterator[Reference]:
    """Every reference in nested values.

    Raises:
        ConfigurationError: one has no known form.
    """
    if isinstance(value, str):
        yield from (parse(m.group()) for m in _PATTERN.finditer(value) if m.group() != "$${")
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from find(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from find(item)


def resolve(value: Any, lookup: Callable[[Reference], Any]) -> Any:
    """Nested values with every reference replaced by what `lookup` gives for it.

    Raises:
        ConfigurationError: a mapping or list is wanted inside a longer string.
    """
    if isinstance(value, Mapping):
        return {key: resolve(item, lookup) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [resolve(item, lookup) for item in value]
    if not isinstance(value, str):
        return value
    whole = _PATTERN.fullmatch(value)
    if whole and whole.group() != "$${":
        return lookup(parse(value))

    def written(match: re.Match[str]) -> str:
        if match.group() == "$${":
            return "${"
        found = lookup(parse(match.group()))
        if isinstance(found, (Mapping, list, tuple)):
            raise ConfigurationError(
                f"{match.group()} is a {type(found).__name__}, and stands inside the text '{value}'",
                hint="let the reference be the whole value",
            )
        return str(found)

    return _PATTERN.sub(written, value)
