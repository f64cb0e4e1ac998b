"""Preference pairs from a model: sample answers to prompts, rank them, and keep pairs with a clear difference.

    from aligntune.data.pairs import PairMaker, load_pairs_config
    result = PairMaker(load_pairs_config("pairs.yaml")).make()
    result.report["pairs"], result.path

The file that comes out is read by preference optimisation as it is. Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.data.pairs.config import PairsConfig as PairsConfig
    from aligntune.data.pairs.config import build_pairs_config as build_pairs_config
    from aligntune.data.pairs.config import load_pairs_config as load_pairs_config
    from aligntune.data.pairs.maker import PairMaker as PairMaker
    from aligntune.data.pairs.maker import PairsResult as PairsResult
    from aligntune.data.pairs.ranking import PairwiseRanker as PairwiseRanker
    from aligntune.data.pairs.ranking import RewardRanker as RewardRanker
    from aligntune.data.pairs.selecting import choose as choose

_NAMES = {
    "PairMaker": "maker",
    "PairsConfig": "config",
    "PairsResult": "maker",
    "PairwiseRanker": "ranking",
    "RewardRanker": "ranking",
    "build_pairs_config": "config",
    "choose": "selecting",
    "load_pairs_config": "config",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, {name: f"{__name__}.{module}:{name}" for name, module in _NAMES.items()})
