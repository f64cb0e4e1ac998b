"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290), and the losses that grew from it.

Loss: -log sigma(beta h), h = [log pi(y_w) - log pi_ref(y_w)] - [log pi(y_l) - log pi_ref(y_l)], with log-probabilities
summed over each completion. The reference is the starting model; with LoRA it is the model with its adapter off.

TRL computes every loss. Its `sigmoid` ignores label smoothing, so conservative DPO (Mitchell 2023,
-(1 - e) log sigma(beta h) - e log sigma(-beta h)) is sent as what it is equal to, TRL's `robust` loss
[(1 - s) A - s B] / (1 - 2 s) with A = -log sigma(beta h), B = -log sigma(-beta h) and s = -e / (1 - 2 e):

>>> e = 0.1; s = conservative(e); round((1 - s) / (1 - 2 * s), 12), round(-s / (1 - 2 * s), 12)
(0.9, 0.1)

Reference-free DPO takes a uniform reference (Xu et al. 2024, arXiv:2401.08417, section 3): it sends 0 as the
reference's log-probabilities and loads none. Options that a loss does not read are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt, MinLen
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.preference import Referenced, Scored
from aligntune.registry import import_attribute

LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
    "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft",
]  # fmt: skip
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""Losses in which TRL reads `label_smoothing`."""
DIFFERENCE = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
"""Losses of the difference of the two scores alone (and `sft`, which has none): f-divergences and a missing reference
have a meaning only there."""
SORTED = ("aot", "aot_unpaired")
"""Losses over the sorted scores of a batch."""


def conservative(smoothing: float) -> float:
    """The smoothing of TRL's robust loss that makes it conservative DPO with `smoothing` in [0, 0.5)."""
    return -smoothing / (1 - 2 * smoothing)


@algorithm("dpo", trainer="trl:DPOTrainer", args="trl:DPOConfig", data=Schema.PREFERENCE)
class DPO(Referenced):
    """Learn from pairs of a chosen and a rejected answer."""

    loss_type: LossType | list[LossType] = "sigmoid"
    """The loss on h, or several that are added; `sigmoid` is the paper's, the others are those of TRL's DPOTrainer."""
    loss_weights: Annotated[list[NonNegativeFloat], MinLen(1)] | None = None
    """A factor for each of several losses; None is 1 for each (TRL)."""
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Assumed share of flipped labels: conservative DPO with sigmoid (Mitchell 2023), and what the losses robust,
    exo_pair, aot and aot_unpaired make of it (TRL)."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """Divergence from the reference (Wang et al. 2023, arXiv:2309.16240); reverse_kl is DPO's."""
    f_alpha_divergence_coef: float = 0.5
    """alpha of alpha_divergence, f'(u) = (u^(alpha - 1) - 1) / (alpha - 1) (TRL)."""
    ld_alpha: Annotated[float, Ge(0), Le(1)] | None = None
    """Weight of the log-probabilities beyond the shorter answer's length (LD-DPO, arXiv:2409.06411); None is 1."""
    use_weighting: bool = False
    """Weight each pair by the policy's probability of it (WPO, arXiv:2406.11827, equation 2)."""
    discopop_tau: PositiveFloat = 0.05
    """Temperature of the loss discopop (Lu et al. 2024, arXiv:2406.08414)."""
    reference_free: bool = False
    """Take a uniform reference, h = log pi(y_w) - log pi(y_l); no reference model is loaded."""
    sync_ref_model: bool = False
    """Move the reference towards the policy in training (TR-DPO, arXiv:2404.09656); the whole model must train."""
    ref_model_mixup_alpha: Annotated[float, Ge(0), Le(1)] = 0.6
    """Share of the policy in the moved reference (TR-DPO, soft update)."""
    ref_model_sync_steps: PositiveInt = 512
    """Optimizer steps between two moves of the reference (TR-DPO, hard update)."""

    @property
    def losses(self) -> list[str]:
        """The losses that are added, at least one."""
        return [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)

    @property
    def is_conservative(self) -> bool:
        """Whether the smoothing is that of the sigmoid loss."""
        return self.label_smoothing > 0 and "sigmoid" in self.losses

    def keeps_reference(self) -> bool:
        return not self.reference_free

    def arguments(self, config: Any) -> dict[str, Any]:
        own = self.is_conservative
        return {
            "beta": self.beta,
            "loss_type": ["robust" if own and name == "sigmoid" else name for name in self.losses],
            "loss_weights": self.loss_weights,
            "label_smoothing": conservative(self.label_smoothing) if own else self.label_smoothing,
            "f_divergence_type": self.f_divergence_type,
            "f_alpha_divergence_coef": self.f_alpha_divergence_coef,
            "ld_alpha": self.ld_alpha,
            "use_weighting": self.use_weighting,
            "discopop_tau": self.discopop_tau,
            "precompute_ref_log_probs": self.precompute_ref_log_probs,
            "precompute_ref_batch_size": None,
            "sync_ref_model": self.sync_ref_model,
            "ref_model_mixup_alpha": self.ref_model_mixup_alpha,
            "ref_model_sync_steps": self.ref_model_sync_steps,
            **pair_arguments(config),
        }

    def trainer_type(self, base: type) -> type:
        keeping, base = "aligntune.core.rl.pairs:keeping_reference", super().trainer_type(base)
        return import_attribute(keeping)(base) if self.sync_ref_model else base

    def trainer_kwargs(self, trainer: Any) -> dict[str, Any]:
        if self.reference_free:
            return {"ref_model": import_attribute("aligntune.core.rl.pairs:no_reference")()}
        return super().trainer_kwargs(trainer)

    def attach(self, hf: Any, trainer: Any) -> None:
        super().attach(hf, trainer)
        if self.reference_free:
            hf.ref_model, hf.precompute_ref_logps = None, True
            hf.data_collator = import_attribute("aligntune.core.rl.pairs:ZeroReference")(hf.data_collator)

    def implicit_reward(self, logp: float, tokens: int, reference: float) -> float:
        ratio = logp - reference
        return self.beta * f_score(ratio, self.f_divergence_type, self.f_alpha_divergence_coef)

    def held_out_loss(self, chosen: Sequence[Scored], rejected: Sequence[Scored]) -> float | None:
        if self.losses != ["sigmoid"] or self.ld_alpha is not None or self.use_weighting:
            return None
        pairs = zip(chosen, rejected, strict=True)
        margins = [self.implicit_reward(*better) - self.implicit_reward(*worse) for better, worse in pairs]
        e = self.label_smoothing
        return sum((1 - e) * _softplus(-m) + e * _softplus(m) for m in margins) / len(margins)

    def inert_keys(self, config: Any) -> dict[str, str]:
        keys = dict(self.inert)
        if "discopop" not in self.losses:
            keys["algo.discopop_tau"] = "only the loss discopop reads it"
        if self.f_divergence_type != "alpha_divergence":
            keys["algo.f_alpha_divergence_coef"] = "only f_divergence_type alpha_divergence reads it"
        if len(self.losses) == 1:
            keys["algo.loss_weights"] = "there is one loss"
        if self.losses == ["sft"]:
            keys |= {f"algo.{k}": "the loss sft compares with no reference" for k in ("beta", "ld_alpha")}
            keys["algo.f_divergence_type"] = "the loss sft compares with no reference"
        if not self.sync_ref_model:
            keys |= {f"algo.ref_model_{k}": "sync_ref_model is false" for k in ("mixup_alpha", "sync_steps")}
        return keys

    def faults(self, config: Any) -> list[tuple[str, str]]:
        return [*self._loss_faults(), *self._reference_faults(config)]

    def _loss_faults(self) -> list[tuple[str, str]]:
        losses, weights, e = self.losses, self.loss_weights, self.label_smoothing
        smoothed = [name for name in losses if name in SMOOTHED]
        others = [name for name in losses if name not in DIFFERENCE]
        unweighted = [name for name in losses if name in (*SORTED, "sft")]
        found = []
        if not losses:
            found.append(("loss_type", "is empty; name at least one loss"))
        if len(set(losses)) < len(losses):
            found.append(("loss_type", "names a loss twice; raise its weight in loss_weights instead"))
        if weights is not None and len(weights) != len(losses):
            found.append(("loss_weights", f"has {len(weights)} numbers for {len(losses)} losses; give one for each"))
        elif weights is not None and not any(weights):
            found.append(("loss_weights", "are all 0, so nothing would be learned"))
        if e and not smoothed and "sigmoid" not in losses:
            names = ", ".join(("sigmoid", *SMOOTHED))
            sentence = f"has no effect with loss_type {', '.join(losses)}; set loss_type to one of {names}"
            found.append(("label_smoothing", sentence))
        if self.is_conservative and smoothed:
            sentence = f"means different things in sigmoid and {smoothed[0]}; keep one of the two losses"
            found.append(("label_smoothing", sentence))
        if "exo_pair" in losses and not e:
            found.append(("label_smoothing", "must be above 0 with loss_type exo_pair, for example 1e-3"))
        if self.f_divergence_type != "reverse_kl" and others:
            sentence = f"must be reverse_kl with loss_type {others[0]}; losses with a choice: {', '.join(DIFFERENCE)}"
            found.append(("f_divergence_type", sentence))
        if self.use_weighting and unweighted:
            why = "sorts the pairs" if unweighted[0] in SORTED else "has one value for the batch"
            found.append(("use_weighting", f"cannot weight pairs under loss_type {unweighted[0]}, which {why}"))
        return [(f"algo.{key}", sentence) for key, sentence in found]

    def _reference_faults(self, config: Any) -> list[tuple[str, str]]:
        found = []
        others = [name for name in self.losses if name not in DIFFERENCE]
        if self.reference_free and others:
            sentence = f"has no meaning for loss_type {others[0]}, which scores each answer against the reference; "
            found.append(("reference_free", f"{sentence}losses of the pair's difference: {', '.join(DIFFERENCE)}"))
        needing = {
            "reference": self.reference is not None,
            "precompute_ref_log_probs": self.precompute_ref_log_probs,
            "sync_ref_model": self.sync_ref_model,
            "f_divergence_type": self.f_divergence_type != "reverse_kl",
        }
        if self.reference_free:
            sentence = "needs a reference, and reference_free is true; keep one of the two"
            found += [(key, sentence) for key, given in needing.items() if given]
        if self.sync_ref_model and self.precompute_ref_log_probs:
            found.append(("precompute_ref_log_probs", "keeps numbers of a reference that sync_ref_model moves"))
        if self.sync_ref_model and config.model.peft is not None:
            sentence = "needs a reference of its own, and with model.peft it is the adapter off; remove one of the two"
            found.append(("sync_ref_model", sentence))
        return [(f"algo.{key}", sentence) for key, sentence in found]


def pair_arguments(config: Any) -> dict[str, Any]:
    """Values that every algorithm on TRL's DPOTrainer sends."""
    return {
        "max_length": config.model.max_seq_length,
        "truncation_mode": "keep_start",
        "disable_dropout": True,
        "activation_offloading": False,
        "padding_free": False,
    }


def f_score(ratio: float, divergence: str, alpha: float) -> float:
    """f'(u) at u = exp(ratio), the score that takes the place of the log-ratio (arXiv:2309.16240; signs as in TRL).

    Args:
        ratio: log pi - log pi_ref.
        divergence: name of the divergence.
        alpha: of alpha_divergence; 1 is reverse_kl.
    """
    if divergence == "forward_kl":
        return 1 - _exp(-ratio)
    if divergence == "js_divergence":
        return math.log(2) - _softplus(-ratio)
    if divergence == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        return (_exp((alpha - 1) * ratio) - 1) / (alpha - 1)
    return ratio


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))  # the largest that a float holds is about exp(709)
