"""AlignTune: post-train language models, and trust the run.

    from aligntune import create_rl_trainer
    trainer = create_rl_trainer(model_name="Qwen/Qwen3-0.6B", dataset_name="openai/gsm8k", subset="main",
                                preset="gsm8k", algorithm="grpo", rewards=["math_correctness"])
    trainer.train()

Names are resolved on first use, so `import aligntune` costs milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from aligntune.core.backend_factory import (
        create_rl_trainer,
        create_sft_trainer,
        list_algorithms,
        list_backends,
        list_rewards,
    )
    from aligntune.core.config import RLConfig, SFTConfig, load_config

_NAMES = {
    "create_sft_trainer": "aligntune.core.backend_factory:create_sft_trainer",
    "create_rl_trainer": "aligntune.core.backend_factory:create_rl_trainer",
    "list_backends": "aligntune.core.backend_factory:list_backends",
    "list_algorithms": "aligntune.core.backend_factory:list_algorithms",
    "list_rewards": "aligntune.core.backend_factory:list_rewards",
    "SFTConfig": "aligntune.core.config:SFTConfig",
    "RLConfig": "aligntune.core.config:RLConfig",
    "load_config": "aligntune.core.config:load_config",
}


__getattr__, __dir__ = lazy_names(__name__, _NAMES)

__all__ = [
    "RLConfig",
    "SFTConfig",
    "__version__",
    "create_rl_trainer",
    "create_sft_trainer",
    "list_algorithms",
    "list_backends",
    "list_rewards",
    "load_config",
]
