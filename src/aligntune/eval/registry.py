"""The kinds of evaluation, found by name: those of `aligntune.eval.tasks`, and those that a user adds.

    @EvalRegistry.register("shouting")
    class Shouting(EvalKind):
        ...

    @EvalRegistry.register("polite")
    def polite(output, row):
        return float("please" in output.lower())

A file may name a kind that nobody has registered by its place: `kind: my_kinds.py:polite`. It holds no data sets: a
task in an evaluation file joins a kind with one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from aligntune.errors import ConfigurationError
from aligntune.registry import Registry

if TYPE_CHECKING:
    from aligntune.eval.tasks.base import EvalKind

K = TypeVar("K")

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
        """Decorator that registers an `EvalKind`, or a function (output, row) that scores an answer, under `name`.

        Raises:
            ConfigurationError: the name is taken, or the function does not take two arguments.
        """

        def add(target: K) -> K:
            _KINDS.register(name, replace=replace)(_kind_of(target, name))
            return target

        return add

    @staticmethod
    def get(name: str) -> type[EvalKind]:
        """The class registered under `name`, or of `file.py:name` or `package.module:name`, a user's class or function.

        Raises:
            ConfigurationError: nobody registered it (the hint names the nearest), or it is neither a kind nor a
                function of (output, row).
        """
        if name in _KINDS or (":" not in name and not name.endswith(".py")):
            kind: type[EvalKind] = _KINDS.get(name)
            return kind
        from aligntune.utils.user_code import load_function

        return _kind_of(load_function(name, "evaluation kind"), name)

    @staticmethod
    def names() -> list[str]:
        """All names, sorted."""
        return _KINDS.names()

    @staticmethod
    def remove(name: str) -> None:
        """Forget a kind (for tests and notebooks)."""
        _KINDS.remove(name)


def _kind_of(target: Any, name: str) -> type[EvalKind]:
    """A kind itself, or the one that a function makes."""
    from aligntune.eval.tasks.base import EvalKind

    if not isinstance(target, type):
        from aligntune.eval.tasks.function import function_kind

        return function_kind(target, name)
    if not issubclass(target, EvalKind):
        raise ConfigurationError(
            f"{name} is no kind of evaluation", hint="name a class that builds on aligntune.eval.EvalKind"
        )
    return target
