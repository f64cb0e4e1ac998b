"""Group sequence policy optimisation (Zheng et al. 2025, arXiv:2507.18071).

GRPO's advantage, but one ratio for each completion, s = exp(mean over its tokens of log r_t), clipped to
[1 - 3e-4, 1 + 4e-4] (section 5.1); the mean over completions of -min(s A, clip(s) A). Only where several updates follow
one generation does a ratio differ from 1, so `steps_per_generation` is four optimizer steps unless it is set, as in the
paper (which cuts each batch of rollouts into four).

    algo: {name: gspo, num_generations: 8}

TRL computes it with `importance_sampling_level: sequence` and `loss_type: grpo`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from annotated_types import Gt
from pydantic import PositiveFloat, PositiveInt

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.group import Clip, Reference, Scaling

UPDATES = 4
"""Optimizer steps per generation (arXiv:2507.18071, section 5.1)."""


@algorithm("gspo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class GSPO(Scaling, Reference, Clip):
    """Clip one ratio per completion in place of one per token."""

    fixed: ClassVar[dict[str, Any]] = {"loss_type": "grpo", "importance_sampling_level": "sequence"}

    epsilon: Annotated[float, Gt(0)] = 3e-4
    """Lower clip of the completion's ratio (arXiv:2507.18071, section 5.1)."""
    epsilon_high: PositiveFloat | None = 4e-4
    """Upper clip of the completion's ratio (arXiv:2507.18071, section 5.1); None takes `epsilon`."""
    steps_per_generation: PositiveInt | None = None
    """Micro-batches that one generation is cut into; None takes four optimizer steps of them (arXiv:2507.18071, section
    5.1)."""

    def schedule(self, config: Any) -> tuple[int, int]:
        steps = self.steps_per_generation or UPDATES * config.train.gradient_accumulation_steps
        return steps, self.num_iterations
