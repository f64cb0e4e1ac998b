"""Reward lists in files: a list of rewards, a mapping with `rewards` and what belongs to them, or a run's own file.

    # new.yaml
    rewards: [{type: math_correctness}, {type: length, weight: 0.1}]
    composition: {mode: gated, gates: {math_correctness: 1}}       # optional
    judge: {url: ..., model: ...}                                   # optional
    data: {name: test.jsonl, preset: gsm8k}                         # for `rewards test` only

A bare list stands for `rewards:`. A file with `algo:` is a run's: its `datasets` are the data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError
from aligntune.registry import nearest

if TYPE_CHECKING:
    from aligntune.core.config.sections import DatasetConfig, RewardConfig
    from aligntune.rewards.composite import CompositeReward

KEYS = ("rewards", "composition", "judge", "data", "seed")
SEED = 42
"""Seed of the draw of rows where the file names none, as everywhere."""


@dataclass(frozen=True)
class RewardList:
    """Rewards, how they become one total, and perhaps data to try them on."""

    rewards: list[RewardConfig]
    composition: Any = None
    judge: Any = None
    sources: list[DatasetConfig] = field(default_factory=list)
    seed: int = SEED

    def build(self) -> CompositeReward:
        """Make the rewards.

        Raises:
            ConfigurationError: an unknown name or parameter, or a setting without effect.
        """
        from aligntune.rewards.composite import build_rewards

        return build_rewards(self.rewards, composition=self.composition, judge=self.judge)


def read_reward_list(path: str | os.PathLike[str]) -> RewardList:
    """Read a file.

    Raises:
        ConfigurationError: no such file, no rewards in it, or an unknown key.
    """
    from aligntune.core.config.reading import parse_yaml, read_yaml

    path = Path(path)
    if path.is_file() and path.suffix in (".yaml", ".yml", ".json"):
        raw = parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
        if isinstance(raw, list):
            return of_values({"rewards": raw}, str(path))
    plain = read_yaml(path)  # with `base:`, and the messages for a file that is none
    if "algo" in plain:
        return _of_run(path)
    return of_values(plain, str(path))


def of_values(raw: Mapping[str, Any], where: str = "") -> RewardList:
    """From plain values.

    Raises:
        ConfigurationError: as `read_reward_list`.
    """
    from aligntune.core.config.io import parse_section
    from aligntune.core.config.sections import DatasetConfig, RewardConfig

    for key in raw:
        if key not in KEYS:
            raise ConfigurationError(f"{where}: unknown key '{key}'", hint=nearest(str(key), KEYS))
    listed = raw.get("rewards")
    listed = [listed] if isinstance(listed, (str, Mapping)) else listed
    if not isinstance(listed, list) or not listed:
        raise ConfigurationError(f"{where} names no rewards", hint="write rewards: [math_correctness]")
    data = raw.get("data")
    sources = [] if data is None else data if isinstance(data, list) else [data]
    return RewardList(
        [parse_section(RewardConfig, _plain(r, "type"), f"{where}: rewards.{i}") for i, r in enumerate(listed)],
        raw.get("composition"),
        raw.get("judge"),
        [parse_section(DatasetConfig, _plain(s, "name"), f"{where}: data") for s in sources],
        int(raw.get("seed", SEED)),
    )


def _plain(value: Any, key: str) -> Any:
    return {key: value} if isinstance(value, str) else value


def _of_run(path: Path) -> RewardList:
    from aligntune.core.config.io import load_config

    config: Any = load_config(path)
    if not getattr(config, "rewards", None):
        raise ConfigurationError(
            f"{path}: the run has no rewards", hint="give the file of a run that samples (grpo, ppo)"
        )
    judge, sources = getattr(config, "judge", None), list(config.datasets)
    return RewardList(list(config.rewards), getattr(config, "composition", None), judge, sources, config.train.seed)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; what a row lacks is None there."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
