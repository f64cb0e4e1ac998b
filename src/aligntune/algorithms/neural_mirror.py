"""Neural mirror GRPO (arXiv:2602.04380, with the map of arXiv:2402.05187): a convex network of a token's probability.

    loss per token = GRPO's policy term + lambda D_phi(pi(y_t), pi_ref(y_t))

phi is the map of `aligntune.algorithms.mirror_map`: drawn from the run's seed, or read from a file that `meta_es` or an
earlier run wrote; the same as `algo: {name: gbmpo, divergence: neural}`. Its parameters are in the run folder
(`mirror/map.safetensors`) and in every checkpoint.

    algo: {name: neural_mirror, mirror_path: runs/search/mirror/map.safetensors}

It does not train the map by gradient: a divergence that could make itself smaller would go to 0.
"""

from __future__ import annotations

from typing import Any

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.gbmpo import WEIGHTS, Bregman, NeuralPlugin, path_faults
from aligntune.algorithms.plugin import Plugin
from aligntune.core.config.sections import Text


@algorithm("neural_mirror", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class NeuralMirror(Bregman):
    """GRPO with the divergence of a neural mirror map in the place of the KL term."""

    mirror_path: Text | None = None
    """File of the map, as `meta_es` or an earlier run wrote it; None draws one from the seed."""

    def plugin(self, config: Any) -> Plugin:
        return NeuralPlugin(self.divergence_weight or WEIGHTS["neural"], self.kl, self.mirror_path)

    def faults(self, config: Any) -> list[tuple[str, str]]:
        return super().faults(config) + path_faults(self.mirror_path)
