"""Rewards: the catalogue, the registry, their composition, and the bridge to TRL. Names are resolved lazily.

    from aligntune.rewards import build_rewards, RewardConfig
    build_rewards([RewardConfig(type="math_correctness")]).compute("#### 72", reference="72")     # 1.0

Every built-in reward is also a class here, `MathCorrectnessReward` for `math_correctness`; `RewardType` lists
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligntune.core.config.sections import RewardConfig
    from aligntune.rewards.adapters import TRLReward
    from aligntune.rewards.base import FunctionReward, RewardFunction, reward
    from aligntune.rewards.composite import BatchScores, Component, CompositeReward, build_rewards
    from aligntune.rewards.registry import (
        RewardFunctionFactory,
        RewardRegistry,
        get_reward_function,
        list_rewards,
        register_custom_reward,
    )

_NAMES = {
    "BatchScores": "aligntune.rewards.composite:BatchScores",
    "Component": "aligntune.rewards.composite:Component",
    "CompositeReward": "aligntune.rewards.composite:CompositeReward",
    "FunctionReward": "aligntune.rewards.base:FunctionReward",
    "RewardConfig": "aligntune.core.config.sections:RewardConfig",
    "RewardFunction": "aligntune.rewards.base:RewardFunction",
    "RewardFunctionFactory": "aligntune.rewards.registry:RewardFunctionFactory",
    "RewardRegistry": "aligntune.rewards.registry:RewardRegistry",
    "TRLReward": "aligntune.rewards.adapters:TRLReward",
    "build_rewards": "aligntune.rewards.composite:build_rewards",
    "get_reward_function": "aligntune.rewards.registry:get_reward_function",
    "list_rewards": "aligntune.rewards.registry:list_rewards",
    "register_custom_reward": "aligntune.rewards.registry:register_custom_reward",
    "reward": "aligntune.rewards.base:reward",
}


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        from aligntune.registry import import_attribute

        value = import_attribute(_NAMES[name])
    elif name == "RewardType":
        from aligntune.rewards.registry import reward_type

        value = reward_type()
    else:
        value = _reward_class(name) if name.endswith("Reward") else None
        if value is None:
            raise AttributeError(f"module 'aligntune.rewards' has no attribute '{name}'")
    globals()[name] = value
    return value


def _reward_class(name: str) -> Any:
    """The class of a built-in reward by its title, in any case (`MBPPReward`)."""
    from aligntune.rewards.base import REWARDS
    from aligntune.rewards.registry import load_builtins

    classes = {REWARDS.get(n).__name__.lower(): REWARDS.get(n) for n in load_builtins()}
    return classes.get(name.lower())


def __dir__() -> list[str]:
    return sorted([*_NAMES, "RewardType"])


__all__ = [
    "BatchScores", "Component", "CompositeReward", "FunctionReward", "RewardConfig", "RewardFunction",
    "RewardFunctionFactory", "RewardRegistry", "TRLReward", "build_rewards", "get_reward_function", "list_rewards",
    "register_custom_reward", "reward",
]  # fmt: skip
