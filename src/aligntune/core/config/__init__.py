"""Typed configuration: sections, the two run configurations, their reading and writing. Nothing heavy is imported.

Names are resolved on first use, because algorithms build on `base` while `io` builds on algorithms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.core.config.base import UNSET as UNSET
    from aligntune.core.config.base import field_docs as field_docs
    from aligntune.core.config.base import section as section
    from aligntune.core.config.base import to_plain as to_plain
    from aligntune.core.config.composing import CompositionConfig as CompositionConfig
    from aligntune.core.config.io import build_config as build_config
    from aligntune.core.config.io import changed_keys as changed_keys
    from aligntune.core.config.io import dump_config as dump_config
    from aligntune.core.config.io import effective as effective
    from aligntune.core.config.io import inert_keys as inert_keys
    from aligntune.core.config.io import load_config as load_config
    from aligntune.core.config.io import parse_section as parse_section
    from aligntune.core.config.io import resolve as resolve
    from aligntune.core.config.reading import apply_overrides as apply_overrides
    from aligntune.core.config.reading import parse_yaml as parse_yaml
    from aligntune.core.config.reading import read_yaml as read_yaml
    from aligntune.core.config.root import RLConfig as RLConfig
    from aligntune.core.config.root import RunConfig as RunConfig
    from aligntune.core.config.root import SFTConfig as SFTConfig
    from aligntune.core.config.sections import CacheConfig as CacheConfig
    from aligntune.core.config.sections import Dataset as Dataset
    from aligntune.core.config.sections import DatasetConfig as DatasetConfig
    from aligntune.core.config.sections import EvaluationConfig as EvaluationConfig
    from aligntune.core.config.sections import FilterConfig as FilterConfig
    from aligntune.core.config.sections import GenerationConfig as GenerationConfig
    from aligntune.core.config.sections import JudgeConfig as JudgeConfig
    from aligntune.core.config.sections import LoggingConfig as LoggingConfig
    from aligntune.core.config.sections import ModelConfig as ModelConfig
    from aligntune.core.config.sections import PeftConfig as PeftConfig
    from aligntune.core.config.sections import ReadConfig as ReadConfig
    from aligntune.core.config.sections import Reward as Reward
    from aligntune.core.config.sections import RewardConfig as RewardConfig
    from aligntune.core.config.sections import TrainConfig as TrainConfig

_MODULES = {
    "base": ("UNSET", "field_docs", "section", "to_plain"),
    "composing": ("CompositionConfig",),
    "io": (
        "build_config",
        "changed_keys",
        "dump_config",
        "effective",
        "inert_keys",
        "load_config",
        "parse_section",
        "resolve",
    ),
    "reading": ("apply_overrides", "parse_yaml", "read_yaml"),
    "root": ("RLConfig", "RunConfig", "SFTConfig"),
    "sections": (
        "CacheConfig",
        "Dataset",
        "DatasetConfig",
        "FilterConfig",
        "ReadConfig",
        "EvaluationConfig",
        "GenerationConfig",
        "JudgeConfig",
        "LoggingConfig",
        "ModelConfig",
        "PeftConfig",
        "Reward",
        "RewardConfig",
        "TrainConfig",
    ),
}
_PATHS = {name: f"{__name__}.{module}:{name}" for module, names in _MODULES.items() for name in names}

__all__ = sorted(_PATHS)
__getattr__, __dir__ = lazy_names(__name__, _PATHS)
