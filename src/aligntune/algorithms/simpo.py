"""Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734).

Loss, equation 6: -log sigma(beta/|y_w| log pi(y_w) - beta/|y_l| log pi(y_l) - gamma). There is no reference, and no
likelihood term (TRL's CPOTrainer adds one unless its `cpo_alpha` is 0).

>>> SimPO().objective(Answers(tensor([-4.0]), tensor([4])), Answers(tensor([-6.0]), tensor([3])))[0]   # margin 2 - 1
tensor([0.3133])
"""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeFloat, PositiveFloat

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.reference_free import Answers, ReferenceFree


@algorithm("simpo", trainer="trl:DPOTrainer", args="trl:DPOConfig", data=Schema.PREFERENCE)
class SimPO(ReferenceFree):
    """Prefer the answer with the higher mean log-probability, by a margin."""

    beta: PositiveFloat = 2.0
    """Scale of the mean log-probability (Meng et al. 2024, appendix B: 2.0 to 2.5 for four base models)."""
    gamma: NonNegativeFloat = 1.0
    """Target margin (Meng et al. 2024, appendix B: 0.3 to 1.6 for the same models; TRL's default is 0.5)."""

    def objective(self, chosen: Answers, rejected: Answers) -> tuple[Any, dict[str, Any]]:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self.scores(chosen) - self.scores(rejected) - self.gamma), {}

    def scores(self, answers: Answers) -> Any:
        return self.beta * answers.mean
