"""Plain values from YAML files and `key=value` overrides: parsing, `base:` files, merging, setting a dotted key.

>>> apply_overrides(read_yaml("run.yaml"), ["train.max_steps=20"])

What the values mean is checked in `io`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from aligntune.errors import ConfigurationError
from aligntune.registry import nearest


class _Loader(yaml.SafeLoader):
    """`yaml.safe_load` that reads `1e-5` as a number and refuses a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`, which the base class resolves
                continue
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if isinstance(key, (list, dict, set)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if isinstance(key, (str, int, float)) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$|^[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str = "text") -> Any:
    """Parse YAML text safely.

    Raises:
        ConfigurationError: not YAML, or a key stands twice in one mapping; names the line.
    """
    try:
        return copy_plain(yaml.load(text, Loader=_Loader))  # noqa: S506 - a SafeLoader; a copy shares no anchors
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 0
        raise ConfigurationError(
            f"{where}:{line}: {e.problem}", hint="mend the YAML there; values with ': ' or '#' need quotes"
        ) from e
    except RecursionError as e:
        raise ConfigurationError(f"{where}: an anchor contains itself", hint="write the values out") from e
    except yaml.YAMLError as e:
        raise ConfigurationError(f"{where}: not YAML ({e})", hint="save the file as UTF-8 text") from e


def read_yaml(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML mapping from a file, merged over the file that its `base:` names (relative to itself).

    Raises:
        ConfigurationError: no such file, not a mapping, or `base:` files that name each other in a circle.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigurationError(
            f"{path} is a folder", hint="give the path of a YAML file", context={"path": str(path)}
        )
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = (
            nearest(path.name, siblings)
            if siblings
            else "give the path of a YAML file; `aligntune recipes list` has some"
        )
        raise ConfigurationError(f"no such config file: {path}", hint=hint, context={"path": str(path)})
    if path.resolve() in _seen:
        raise ConfigurationError(f"{path}: `base:` leads back to itself", hint="remove one of the `base:` lines")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ConfigurationError(f"{path}: not UTF-8 text", hint="save the file as UTF-8") from e
    except OSError as e:
        raise ConfigurationError(f"{path} cannot be read: {e.strerror}", hint="look at its permissions") from e
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigurationError(
            f"{path}: expected a mapping of settings", hint="start with `model: {name_or_path: ...}`"
        )
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigurationError(f"{path}: base must be the path of a file", hint="write `base: other.yaml`")
    return merge(read_yaml(path.parent / base, (*_seen, path.resolve())), raw)


_EITHER = {"train.max_steps": "num_epochs", "train.num_epochs": "max_steps"}
"""Two ways to say how long to train; one that is given later replaces the other."""


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`: mappings are merged key by key, everything else is replaced.

    A plain string for `algo`, `task` or a data set keeps the meaning `{name: string}` while merging; another name
    replaces the whole section, because parameters belong to their algorithm.
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if key in ("algo", "task"):
            old = {"name": old} if isinstance(old, str) else old
            value = {"name": value} if isinstance(value, str) else value
            if (
                isinstance(old, dict)
                and isinstance(value, dict)
                and value.get("name", old.get("name")) != old.get("name")
            ):
                old = None
        if key == "train" and isinstance(old, Mapping) and isinstance(value, Mapping):
            beaten = {other for dotted, other in _EITHER.items() if dotted.partition(".")[2] in value}
            old = {k: v for k, v in old.items() if k not in beaten}
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def set_key(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `raw["a"]["b"] = value` for `a.b`; a number descends into a list (`rewards.0.weight`).

    Raises:
        ConfigurationError: the path leads through a value that is neither a mapping nor a list.
    """
    *parents, last = dotted.split(".")
    if dotted in _EITHER and value is not None and isinstance(raw.get("train"), dict):  # the later of the two wins
        raw["train"].pop(_EITHER[dotted], None)
    node: Any = raw
    for part in parents:
        if isinstance(node, list):
            node = node[_index(node, part, dotted)]
            continue
        child = node.get(part)
        if isinstance(child, str) and part in ("algo", "task", "dataset"):
            child = node[part] = {"name": child}
        if child is None:
            child = node[part] = {}
        if not isinstance(child, (dict, list)):
            raise ConfigurationError(f"cannot set {dotted}: {part} is {child!r}", hint=f"set {part} itself")
        node = child
    if isinstance(node, list):
        i = _index(node, last, dotted)
        node[i] = value
    elif last == "name" and parents in (["algo"], ["task"]) and node.get("name") != value:
        node.clear()
        node["name"] = value
    else:
        node[last] = value


def _index(items: list[Any], part: str, dotted: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigurationError(
            f"cannot set {dotted}: '{part}' is not one of the {len(items)} entries", hint="count from 0"
        )
    if isinstance(items[int(part)], str):
        keys = {"rewards": "type", "evaluation": "use"}  # what a plain string in these lists stands for
        items[int(part)] = {keys.get(dotted.partition(".")[0], "name"): items[int(part)]}
    return int(part)


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply `key=value` strings; values are read as YAML (`train.max_steps=20`, `logging.report_to=[wandb]`).

    Raises:
        ConfigurationError: an override without `=`.
    """
    result: dict[str, Any] = copy_plain(raw)
    for item in overrides:
        key, sign, value = item.partition("=")
        if not sign or not key.strip():
            raise ConfigurationError(f"'{item}' is not an override", hint="write key=value, such as train.max_steps=20")
        set_key(result, key.strip(), parse_yaml(value, item) if value.strip() else None)
    return result


def as_mapping(source: Any) -> dict[str, Any]:
    """A configuration's plain values.

    Raises:
        ConfigurationError: they are no mapping.
    """
    if isinstance(source, Mapping):
        return dict(source)
    raise ConfigurationError(
        f"a configuration is a path, a mapping or an object of a configuration, and this is {type(source).__name__}",
        hint="give the path of a YAML file, or a dictionary such as {'model': ..., 'task': ..., 'dataset': ...}",
    )


def copy_plain(value: Any) -> Any:
    """Nested mappings and lists, copied."""
    if isinstance(value, Mapping):
        return {k: copy_plain(v) for k, v in value.items()}
    return [copy_plain(v) for v in value] if isinstance(value, list) else value
