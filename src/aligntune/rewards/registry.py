"""Rewards by name: the built-in catalogue, registered ones, `file.py:function`, `package.module:function`.

    RewardRegistry.list_rewards()                                      # ['answer_format', 'length', ...]
    RewardRegistry.get_reward_function("length", max_length=200)       # a RewardFunction
    RewardRegistry.register_custom_reward("no_apology", no_apology)    # then `type: no_apology` in YAML

The catalogue is every module of `rewards/builtin`: a new reward is one decorated function there, and nothing
else is touched. Those modules import nothing heavy at their top, so listing costs milliseconds.

It does not hold weights or thresholds: these belong to `CompositeReward`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError
from aligntune.registry import nearest
from aligntune.rewards.base import REWARDS, UNBOUNDED, FunctionReward, RewardFunction, reward_class
from aligntune.rewards.signature import PROVIDED
from aligntune.utils.user_code import load_function

if TYPE_CHECKING:
    from aligntune.core.config.sections import RewardConfig
    from aligntune.rewards.composite import CompositeReward


@dataclass(frozen=True)
class RewardInfo:
    """What `aligntune rewards list` shows of a reward."""

    name: str
    kind: str
    range: tuple[float, float]
    columns: tuple[str, ...]
    parameters: dict[str, Any]
    summary: str


@cache
def load_builtins() -> tuple[str, ...]:
    """Import every module of `rewards/builtin` once; the names that they registered."""
    import aligntune.rewards.builtin as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return tuple(n for n in REWARDS.names() if REWARDS.get(n).__module__.startswith(package.__name__))


class RewardRegistry:
    """All rewards by name. Its methods work on the class; there is one registry in a process."""

    @classmethod
    def register_custom_reward(
        cls,
        name: str,
        reward: Callable[..., Any] | type[RewardFunction],
        *,
        kind: str = "verifiable",
        range: tuple[float, float] = UNBOUNDED,
        deadline: float | None = None,
        replace: bool = False,
    ) -> type[RewardFunction]:
        """Register a function (`fn(text, **columns)` or TRL's batch form) or a `RewardFunction` subclass.

        Args:
            range: (lowest, highest) score of a function; unbounded unless given. A class declares its own.
            deadline: seconds per text; None takes `USER_DEADLINE`.
            replace: put it in the place of a reward of that name.

        Raises:
            ConfigurationError: the name is taken, or the signature takes no text.
        """
        load_builtins()
        made = _as_class(reward, name, kind=kind, range=range, deadline=deadline)
        REWARDS.add(name, made, replace=replace)
        return made

    @classmethod
    def get_reward_function(cls, name: str, /, **params: Any) -> RewardFunction:
        """Make the reward `name` (or `file.py:function`) with `params`.

        Raises:
            ConfigurationError: an unknown name or parameter; the hint has the nearest name, or the parameters.
        """
        return make_reward(name, params)

    @classmethod
    def list_rewards(cls) -> list[str]:
        """The names of all rewards, sorted."""
        load_builtins()
        return REWARDS.names()

    @classmethod
    def describe(cls, name: str) -> RewardInfo:
        """Kind, range, columns, parameters with defaults, and the first paragraph of the docstring."""
        made = resolve(name)
        own = () if isinstance(made.columns, property) else tuple(sorted(made.columns))  # a wrapper's are its inner's
        columns = made.signature.required if issubclass(made, FunctionReward) else own
        defaults = made.signature.defaults if issubclass(made, FunctionReward) else _constructor_defaults(made)
        parameters = {k: v for k, v in defaults.items() if k not in PROVIDED}
        summary = " ".join((inspect.getdoc(made) or "").partition("\n\n")[0].split())
        return RewardInfo(name, made.kind, made.range, columns, parameters, summary)


class RewardFunctionFactory:
    """Rewards from configurations, as scripts written for the paper's interface make them."""

    @staticmethod
    def create_reward(config: RewardConfig | Mapping[str, Any] | str | Enum, /, **params: Any) -> RewardFunction:
        """A reward from a `RewardConfig`, a mapping of its keys, a `RewardType` member or a name; `params` add to the
        configuration's."""
        if isinstance(config, (str, Enum)):
            return make_reward(config, params)
        read = as_reward_config(config)
        return make_reward(read.type, {**read.params, **params}, deadline=read.deadline)

    @staticmethod
    def create_composite(configs: list[RewardConfig]) -> CompositeReward:
        """A `CompositeReward` from configurations; see `composite.build_rewards`."""
        from aligntune.rewards.composite import build_rewards

        return build_rewards(configs)


def as_reward_config(given: Any, where: str = "reward") -> RewardConfig:
    """A reward's configuration by its object, by a mapping of its keys, or by its name.

    Raises:
        ConfigurationError: it is none of these, or wrong.
    """
    from aligntune.core.config.io import parse_section
    from aligntune.core.config.sections import RewardConfig

    if isinstance(given, RewardConfig):
        return given
    return parse_section(RewardConfig, {"type": given} if isinstance(given, str) else given, where)


def get_reward_function(name: str, /, **params: Any) -> RewardFunction:
    """`RewardRegistry.get_reward_function`."""
    return RewardRegistry.get_reward_function(name, **params)


def list_rewards() -> list[str]:
    """`RewardRegistry.list_rewards`."""
    return RewardRegistry.list_rewards()


def register_custom_reward(
    name: str, reward: Callable[..., Any] | type[RewardFunction], **options: Any
) -> type[RewardFunction]:
    """`RewardRegistry.register_custom_reward`."""
    return RewardRegistry.register_custom_reward(name, reward, **options)


def make_reward(
    kind: str | Enum, params: dict[str, Any], *, deadline: float | None = None, judge: Any = None
) -> RewardFunction:
    """A reward with its parameters, and with `deadline` (seconds per text) in place of its own where given.

    Args:
        judge: settings of the run's judge, for a reward that has a parameter `judge` and is given none.

    Raises:
        ConfigurationError: unknown name or parameter, or two deadlines.
    """
    cls = resolve(kind)
    if judge is not None and "judge" not in params and "judge" in _parameters(cls):
        params = {**params, "judge": judge}
    own = issubclass(cls, FunctionReward) and "deadline" in cls.signature.defaults
    if deadline is not None and own:
        if "deadline" in params:
            raise ConfigurationError(f"reward '{cls.name}' has two deadlines", hint="remove params.deadline")
        params = {**params, "deadline": deadline}
    _check_names(cls, params)
    made = cls(**params)
    if deadline is not None and not own:
        made.deadline = deadline
    return made


def resolve(kind: str | Enum) -> type[RewardFunction]:
    """The class of a reward: a registered name, `file.py:function`, or `package.module:function`.

    Raises:
        ConfigurationError: no such reward, file, module or function; the nearest name is in the hint.
    """
    name = str(kind.value if isinstance(kind, Enum) else kind)
    load_builtins()
    if name in REWARDS or ":" not in name:
        if name.endswith(".py"):
            raise ConfigurationError(f"reward '{name}' names no function", hint=f"write {name}:function")
        return REWARDS.get(name)
    target = load_function(name, "reward")
    return _as_class(target, name.rpartition(":")[2], origin=name)


def _check_names(cls: type[RewardFunction], params: dict[str, Any]) -> None:
    """Refuse parameters that a reward class does not take; a function's are checked with their types."""
    named = inspect.signature(cls).parameters
    if issubclass(cls, FunctionReward) or any(p.kind is p.VAR_KEYWORD for p in named.values()):
        return
    for key in params:
        if key not in named:
            shown = nearest(key, named) if named else "it has no parameters"
            raise ConfigurationError(f"reward '{cls.name or cls.__name__}' has no parameter '{key}'", hint=shown)


def _parameters(cls: type[RewardFunction]) -> set[str]:
    """Names of the parameters that a reward takes."""
    if issubclass(cls, FunctionReward):
        return {*cls.signature.required, *cls.signature.defaults}
    return set(_constructor_defaults(cls))


def _constructor_defaults(cls: type[RewardFunction]) -> dict[str, Any]:
    """Parameters of a reward class with their defaults, as its constructor names them."""
    named = inspect.signature(cls).parameters.values()
    kept = [p for p in named if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {p.name: None if p.default is p.empty else p.default for p in kept}


def _as_class(
    target: Any,
    name: str,
    *,
    kind: str = "verifiable",
    range: tuple[float, float] = UNBOUNDED,
    deadline: float | None = None,
    origin: str | None = None,
) -> type[RewardFunction]:
    if isinstance(target, type) and issubclass(target, RewardFunction):
        return target
    decorated = getattr(target, "reward_class", None)
    if decorated is not None:
        made: type[RewardFunction] = decorated
        return made
    if not callable(target) or isinstance(target, (type, RewardFunction)):
        raise ConfigurationError(
            f"reward '{name}' is {type(target).__name__}, neither a function nor a RewardFunction class",
            hint="write fn(text, **columns) -> float",
        )
    options = {} if deadline is None else {"deadline": deadline}
    return reward_class(target, name, kind=kind, range=range, origin=origin, **options)  # type: ignore[arg-type]


@cache
def reward_type() -> type[Enum]:
    """The enumeration `RewardType`: one member per built-in reward, `LENGTH = "length"`."""
    members = {name.upper(): name for name in load_builtins()}
    return Enum("RewardType", members, type=str, module="aligntune.rewards", qualname="RewardType")  # type: ignore[return-value]
