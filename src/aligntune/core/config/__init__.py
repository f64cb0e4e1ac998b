"""Typed configuration: sections, the two run configurations, and their reading and writing. Nothing heavy is imported."""

from aligntune.core.config.base import UNSET, field_docs, section, to_plain
from aligntune.core.config.io import (
    apply_overrides,
    build_config,
    changed_keys,
    dump_config,
    inert_keys,
    load_config,
    parse_section,
    parse_yaml,
    read_yaml,
    resolve,
)
from aligntune.core.config.root import RLConfig, RunConfig, SFTConfig
from aligntune.core.config.sections import (
    CacheConfig,
    Dataset,
    DatasetConfig,
    EvaluationConfig,
    GenerationConfig,
    LoggingConfig,
    ModelConfig,
    PeftConfig,
    Reward,
    RewardConfig,
    TrainConfig,
)

__all__ = [
    "UNSET", "CacheConfig", "Dataset", "DatasetConfig", "EvaluationConfig", "GenerationConfig", "LoggingConfig",
    "ModelConfig", "PeftConfig", "RLConfig", "Reward", "RewardConfig", "RunConfig", "SFTConfig", "TrainConfig",
    "apply_overrides", "build_config", "changed_keys", "dump_config", "field_docs", "inert_keys", "load_config",
    "parse_section", "parse_yaml", "read_yaml", "resolve", "section", "to_plain",
]  # fmt: skip
