"""One file per algorithm; `sft/` holds one per supervised task. Adding a file registers what is in it.

The names below are what a definition in a user's own file builds on (docs/algorithms.md, "One of your own"):

    from aligntune.algorithms import GRPO, Plugin, Schema, algorithm

They are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.algorithms.base import AlgorithmParams as AlgorithmParams
    from aligntune.algorithms.base import Schema as Schema
    from aligntune.algorithms.base import algorithm as algorithm
    from aligntune.algorithms.base import task as task
    from aligntune.algorithms.dpo import DPO as DPO
    from aligntune.algorithms.grpo import GRPO as GRPO
    from aligntune.algorithms.plugin import Plugin as Plugin
    from aligntune.algorithms.sft.supervised import Supervised as Supervised

_NAMES = {
    "AlgorithmParams": "base",
    "DPO": "dpo",
    "GRPO": "grpo",
    "Plugin": "plugin",
    "Schema": "base",
    "Supervised": "sft.supervised",
    "algorithm": "base",
    "task": "base",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, {name: f"{__name__}.{module}:{name}" for name, module in _NAMES.items()})
