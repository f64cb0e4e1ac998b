"""Preference losses without a reference model: the parts that ORPO, CPO and SimPO share.

    class SimPO(ReferenceFree):
        def objective(self, chosen, rejected):
            margin = self.beta * (chosen.mean - rejected.mean) - self.gamma
            return -logsigmoid(margin), {}

Data, batches and optimisation are those of TRL's DPOTrainer, on both backends; the loss is computed from one forward
pass over both answers (`core.rl.pairs`), and no reference is loaded, nor an adapter copied. Each loss is a mean over
pairs of a function of the two summed log-probabilities and lengths, so that a batch of 8 equals 4 accumulated twos.
TRL's experimental trainers for these are not used: they promise nothing, and their defaults are not the papers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aligntune.algorithms.dpo import pair_arguments
from aligntune.algorithms.preference import Preference, Scored
from aligntune.core.config.base import section
from aligntune.registry import import_attribute


@dataclass(frozen=True)
class Answers:
    """The chosen or the rejected answers of B pairs.

    Args:
        logps: (B,) log-probabilities in nats, summed over each answer's tokens.
        tokens: (B,) numbers of those tokens.
    """

    logps: Any
    tokens: Any

    @property
    def mean(self) -> Any:
        """(B,) log-probabilities per token."""
        return self.logps / self.tokens.clamp(min=1)


@section
class ReferenceFree(Preference):
    """Preference optimisation in which the policy's own log-probabilities are the reward."""

    def objective(self, chosen: Answers, rejected: Answers) -> tuple[Any, dict[str, Any]]:
        """The loss of each pair, (B,), and further values of each pair to log, by name."""
        raise NotImplementedError

    def scores(self, answers: Answers) -> Any:
        """(B,) implicit rewards."""
        raise NotImplementedError

    def keeps_reference(self) -> bool:
        return False

    def arguments(self, config: Any) -> dict[str, Any]:
        # What the DPO loss would read is inert here, and sent so that no backend's default stands in the record.
        return {
            "beta": 0.1,
            "loss_type": ["sigmoid"],
            "loss_weights": None,
            "label_smoothing": 0.0,
            "f_divergence_type": "reverse_kl",
            "ld_alpha": None,
            "use_weighting": False,
            "precompute_ref_log_probs": False,
            "sync_ref_model": False,
            **pair_arguments(config),
        }

    def trainer_type(self, base: type) -> type:
        return import_attribute("aligntune.core.rl.pairs:without_reference")(base)  # type: ignore[no-any-return]

    def trainer_kwargs(self, trainer: Any) -> dict[str, Any]:
        return {"ref_model": import_attribute("aligntune.core.rl.pairs:no_reference")()}

    def attach(self, hf: Any, trainer: Any) -> None:
        hf.ref_model, hf.params = None, self

    def implicit_reward(self, logp: float, tokens: int, reference: float) -> float:
        return float(self.scores(_answers([(logp, tokens, reference)])))

    def held_out_loss(self, chosen: Sequence[Scored], rejected: Sequence[Scored]) -> float | None:
        return float(self.objective(_answers(chosen), _answers(rejected))[0].mean())


def _answers(scored: Sequence[Scored]) -> Answers:
    import torch

    logps, tokens, _ = zip(*scored, strict=True)
    return Answers(torch.tensor(logps, dtype=torch.float64), torch.tensor(tokens))
