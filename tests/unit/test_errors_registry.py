"""The error hierarchy and the registry."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

from aligntune import errors
from aligntune.registry import Registry, nearest

SOURCE = Path(errors.__file__).parent


@pytest.mark.parametrize(
    ("cls", "parent", "code"),
    [
        (errors.ConfigurationError, ValueError, 2),
        (errors.ValidationError, ValueError, 2),
        (errors.RewardError, RuntimeError, 2),
        (errors.EnvironmentError, OSError, 3),
        (errors.TrainingError, RuntimeError, 1),
    ],
)
def test_each_error_has_its_parent_exit_code_and_pickles(cls, parent, code):
    error = cls("it broke", hint="mend it", context={"row": 3})
    assert isinstance(error, parent)
    assert isinstance(error, errors.AlignTuneError)
    assert cls.exit_code == code
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.hint, again.context) == (cls, "it broke", "mend it", {"row": 3})
    assert str(error) == "it broke\n  hint: mend it"


def test_registry_lookup_collision_and_laziness():
    registry: Registry[object] = Registry("thing")
    registry.add("dumps", "json:dumps")
    import json

    assert registry.get("dumps") is json.dumps
    registry.add("dumps", json.dumps)  # the same object again is no collision
    with pytest.raises(errors.ConfigurationError, match="registered already"):
        registry.add("dumps", json.loads)
    registry.add("dumps", json.loads, replace=True)
    assert registry.get("dumps") is json.loads
    with pytest.raises(errors.ConfigurationError) as caught:
        registry.get("dmups")
    assert caught.value.hint.startswith("did you mean 'dumps'?")
    assert registry.names() == ["dumps"]
    assert "dumps" in registry
    assert len(registry) == 1


def test_nearest_is_silent_when_nothing_is_near():
    assert nearest("zzz", ["grpo", "dpo"]) == "known: dpo, grpo"


def raised() -> list[tuple[str, ast.Call]]:
    """Every call in the package that makes one of our errors, with its place."""
    names = {cls.__name__ for cls in vars(errors).values() if isinstance(cls, type)}
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = getattr(node, "func", None)
            name = getattr(called, "attr", getattr(called, "id", ""))
            if isinstance(node, ast.Call) and name in names and node.args:
                found.append((f"{path.relative_to(SOURCE)}:{node.lineno}", node))
    return found


def words(node: ast.expr) -> str:
    """The constant words of a message; a formatted value is a letter."""
    if isinstance(node, ast.JoinedStr):
        return "".join(words(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "x"


@pytest.mark.parametrize("error", [KeyError(), ValueError(" \n"), RuntimeError("")])
def test_an_error_that_says_nothing_has_the_name_of_its_class(error: Exception) -> None:
    assert errors.first_line(error) == type(error).__name__
    assert errors.first_line(ValueError("\nfirst\nsecond")) == "first"


def test_every_message_says_how_to_mend_it() -> None:
    """A message without a hint, or one that ends with a full stop or is a single word, fails."""
    calls = raised()
    assert len(calls) > 600
    assert [place for place, call in calls if not any(key.arg == "hint" for key in call.keywords)] == []
    loose = []
    for place, call in calls:
        hint = next(key.value for key in call.keywords if key.arg == "hint")
        for text in (words(call.args[0]), words(hint)):
            if text.endswith((".", "!")) and not text.endswith("...") and text != "x":
                loose.append(f"{place}: {text}")
    assert loose == []
