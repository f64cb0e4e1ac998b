"""The kinds of evaluation, found by name: those of `aligntune.eval.tasks`, and those that a user adds.

    @EvalRegistry.register("shouting")
    class Shouting(EvalKind):
        ...

A file may name a kind that nobody has registered by its place: `kind: my_kinds.py:Shouting`. It holds no data sets: a
task in an evaluation file joins a kind with one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from aligntune.errors import ConfigurationError
from aligntune.registry import Registry

if TYPE_CHECKING:
    from aligntune.eval.tasks.base import EvalKind

K = TypeVar("K", bound="type[EvalKind]")

_KINDS: Registry[Any] = Registry("evaluation kind")
for _name, _class in (
    ("classification", "Classification"),
    ("code", "Code"),
    ("exact_match", "ExactMatch"),
    ("generation", "Generation"),
    ("instructions", "Instructions"),
    ("multiple_choice", "MultipleChoice"),
    ("perplexity", "Perplexity"),
    ("policy", "Policy"),
    ("preference", "Preference"),
    ("reward", "Reward"),
    ("reward_accuracy", "RewardAccuracy"),
    ("token_classification", "TokenClassification"),
    ("win_rate", "WinRate"),
):
    _KINDS.add(_name, f"aligntune.eval.tasks.{_name}:{_class}")


class EvalRegistry:
    """Register and find kinds of evaluation."""

    @staticmethod
    def register(name: str, *, replace: bool = False) -> Callable[[K], K]:
        """Decorator that registers an `EvalKind` under `name`.

        Raises:
            ConfigurationError: the name is taken.
        """
        return _KINDS.register(name, replace=replace)

    @staticmethod
    def get(name: str) -> type[EvalKind]:
        """The class registered under `name`, or `file.py:Class` or `package.module:Class` of a user's own.

        Raises:
            ConfigurationError: nobody registered it (the hint names the nearest), or it is no class of a kind.
        """
        if name in _KINDS or (":" not in name and not name.endswith(".py")):
            kind: type[EvalKind] = _KINDS.get(name)
            return kind
        from aligntune.eval.tasks.base import EvalKind
        from aligntune.utils.user_code import load_function

        found = load_function(name, "evaluation kind")
        if not (isinstance(found, type) and issubclass(found, EvalKind)):
            raise ConfigurationError(
                f"{name} is no kind of evaluation", hint="name a class that builds on aligntune.eval.EvalKind"
            )
        return found

    @staticmethod
    def names() -> list[str]:
        """All names, sorted."""
        return _KINDS.names()

    @staticmethod
    def remove(name: str) -> None:
        """Forget a kind (for tests and notebooks)."""
        _KINDS.remove(name)
