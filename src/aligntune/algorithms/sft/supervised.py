"""Supervised fine-tuning: parameters that every text task shares.

Loss: token cross-entropy -log p(y_t) over the trained tokens, or `dft` (Wu et al. 2025, arXiv:2508.05629):
-sg(p_t) log p_t, which weights each token by the probability that it has already. Both are TRL's `SFTTrainer`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import NonNegativeFloat

from aligntune.algorithms.base import AlgorithmParams
from aligntune.core.config.base import section


@section
class Supervised(AlgorithmParams):
    """Parameters of supervised fine-tuning on text."""

    learning_rate: ClassVar[float] = 2e-5  # TRL's SFTConfig
    inert: ClassVar[dict[str, str]] = {"logging.rollouts": "supervised tuning samples nothing in training"}

    loss: Literal["nll", "dft"] = "nll"
    """nll: cross-entropy (TRL). dft: dynamic fine-tuning (arXiv:2508.05629)."""
    packing: bool = False
    """Fill each sequence with several rows, best-fit decreasing, with attention kept inside each row (TRL)."""
    neftune_noise_alpha: NonNegativeFloat | None = None
    """Noise on the embeddings in training (Jain et al. 2023, arXiv:2310.05914); None is off (TRL)."""

    def arguments(self, config: Any) -> dict[str, Any]:
        return {
            "loss_type": self.loss,
            "packing": self.packing,
            "eval_packing": False,
            "packing_strategy": "bfd",
            "padding_free": False,
            "activation_offloading": False,
            "neftune_noise_alpha": self.neftune_noise_alpha,
            "max_length": config.model.max_seq_length,
            "truncation_mode": "keep_start",
            "dataset_text_field": "text",
            "shuffle_dataset": False,
            "completion_only_loss": False,
            "assistant_only_loss": False,
        }
