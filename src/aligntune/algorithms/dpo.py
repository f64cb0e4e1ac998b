"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290).

Loss: -log sigma(beta h), h = [log pi(y_w) - log pi_ref(y_w)] - [log pi(y_l) - log pi_ref(y_l)], with log-probabilities
summed over each completion. The reference is the starting model; with LoRA it is the model with its adapter off.
The loss is TRL's. `label_smoothing` acts only where TRL's loss reads it and is refused elsewhere.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Lt
from pydantic import PositiveFloat

from aligntune.algorithms.base import AlgorithmParams, Schema, algorithm

LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
    "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft",
]  # fmt: skip
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")


@algorithm("dpo", trainer="trl:DPOTrainer", args="trl:DPOConfig", data=Schema.PREFERENCE)
class DPO(AlgorithmParams):
    """Learn from pairs of a chosen and a rejected answer."""

    learning_rate: ClassVar[float] = 1e-6  # TRL's DPOConfig; the paper's RMSprop value is the same
    inert: ClassVar[dict[str, str]] = {
        "generation": "DPO samples nothing in training; `evaluation` sets how answers are decoded",
        "rewards": "DPO learns from pairs, not from reward functions",
        "logging.rollouts": "DPO has no rollouts",
    }

    beta: PositiveFloat = 0.1
    """KL strength (Rafailov et al. 2023, section 6)."""
    loss_type: LossType = "sigmoid"
    """The loss on h; `sigmoid` is the paper's, the others are those of TRL's DPOTrainer."""
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Assumed share of flipped labels, for the losses robust, exo_pair, aot and aot_unpaired (TRL)."""
    precompute_ref_log_probs: bool = False
    """Compute the reference's log-probabilities once, before training, and free the reference (TRL)."""

    def arguments(self, config: Any) -> dict[str, Any]:
        return {
            "beta": self.beta,
            "loss_type": [self.loss_type],
            "label_smoothing": self.label_smoothing,
            "precompute_ref_log_probs": self.precompute_ref_log_probs,
            "max_length": config.model.max_seq_length,
            "truncation_mode": "keep_start",
            "disable_dropout": True,
            "f_divergence_type": "reverse_kl",
            "use_weighting": False,
            "sync_ref_model": False,
            "ld_alpha": None,
            "loss_weights": None,
            "activation_offloading": False,
            "padding_free": False,
        }

    def faults(self, config: Any) -> list[tuple[str, str]]:
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            return [
                (
                    "algo.label_smoothing",
                    f"has no effect with loss_type {self.loss_type}; set loss_type to one of {', '.join(SMOOTHED)}",
                )
            ]
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            return [("algo.label_smoothing", "must be above 0 with loss_type exo_pair, for example 1e-3")]
        return []
