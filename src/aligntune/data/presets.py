"""What is known about well-known data sets: format, column names, the hub's subset, where the gold answer stands.

A preset is one entry of `PRESETS`. It applies by name (`preset: gsm8k`) and to the hub ids that it lists; the
user's own `format` and `column_mapping` come first. Each entry cites the data set's paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aligntune.errors import ConfigurationError
from aligntune.registry import nearest


@dataclass(frozen=True)
class Preset:
    """One known data set.

    Args:
        format: as `DatasetConfig.format`.
        column_mapping: as `DatasetConfig.column_mapping`.
        hub_ids: hub names that it applies to unasked.
        subset: the hub's configuration where it has several.
        reference_after: the gold answer is what follows this mark in the completion.
    """

    format: str
    column_mapping: Mapping[str, str] = field(default_factory=dict)
    hub_ids: tuple[str, ...] = ()
    subset: str | None = None
    reference_after: str | None = None


PRESETS: dict[str, Preset] = {
    # Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca
    "alpaca": Preset(format="alpaca", hub_ids=("tatsu-lab/alpaca", "yahma/alpaca-cleaned")),
    # Cobbe et al. 2021, arXiv:2110.14168, section 2: the final line of a solution is "#### <answer>"
    "gsm8k": Preset(
        format="prompt_completion",
        column_mapping={"prompt": "question", "completion": "answer"},
        hub_ids=("openai/gsm8k", "gsm8k"),
        subset="main",
        reference_after="####",
    ),
    # Bai et al. 2022, arXiv:2204.05862
    "hh_rlhf": Preset(format="preference", hub_ids=("Anthropic/hh-rlhf",)),
}


def get_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        ConfigurationError: unknown; the hint names the nearest.
    """
    if name not in PRESETS:
        raise ConfigurationError(f"unknown preset '{name}'", hint=nearest(name, PRESETS))
    return PRESETS[name]


def preset_of_hub_id(hub_id: str) -> str | None:
    """The preset that lists this hub id, or None."""
    return next((name for name, preset in PRESETS.items() if hub_id in preset.hub_ids), None)
