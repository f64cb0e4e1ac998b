"""The error hierarchy and the registry."""

from __future__ import annotations

import pickle

import pytest

from aligntune import errors
from aligntune.registry import Registry, nearest


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
