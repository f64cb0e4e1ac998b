"""Group-based mirror policy optimisation (arXiv:2602.04380): GRPO with a Bregman divergence to the reference.

    loss per token = GRPO's policy term + lambda D(p, q) [+ beta k3],   D(p, q) = phi(p) - phi(q) - phi'(q) (p - q)

where p = pi(y_t) and q = pi_ref(y_t) are the probabilities of the sampled token. With Delta = log p - log q:

| divergence         | phi                            | D(p, q)                      | lambda |
|--------------------|--------------------------------|------------------------------|--------|
| `prob_l2`          | p^2 / 2                        | (p - q)^2 / 2                | 0.1    |
| `l2`               | x^2 / 2 on log-probabilities   | Delta^2 / 2                  | 1e-4   |
| `generalized_kl`   | p log p - p                    | p Delta - p + q              | 1e-4   |
| `neural`           | 126 units (`mirror_map`)       |                              | 1e-4   |

`prob_l2_kl` and `l2_kl` add the KL term of GRPO, k3 = exp(-Delta) + Delta - 1. The divergence is added before the token
losses are averaged, so it scales like every other term. A reference is kept with or without the KL term.

>>> divergence("prob_l2", log_p, log_q)        # (B, T)

It does not change the policy term, and makes no forward pass of its own where the library shows its log-probabilities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.group import Clip, Scaling
from aligntune.algorithms.mirror_map import MirrorMap, entropy_divergence, with_slope
from aligntune.algorithms.plugin import Plugin
from aligntune.core.config.base import section
from aligntune.core.config.sections import Text
from aligntune.errors import TrainingError

WEIGHTS = {
    "prob_l2": 0.1,
    "prob_l2_kl": 1e-4,
    "l2": 1e-4,
    "l2_kl": 1e-4,
    "generalized_kl": 1e-4,
    "neural": 1e-4,
}
"""Divergence to the default of `divergence_weight`."""
KEEP_REFERENCE = 1.0
"""Any `beta` above 0 makes TRL keep a reference and its log-probabilities; the loss takes `Plugin.loss_beta`."""
MAP_FILE = Path("mirror") / "map.safetensors"
"""Where a run keeps the parameters of its neural map."""


def divergence(name: str, logps: Any, ref_logps: Any) -> Any:
    """The divergence called `name` per token, with its gradient with respect to `logps`.

    Args:
        name: a key of `WEIGHTS` other than `neural` (for that, `MirrorMap.divergence`); `_kl` changes nothing here.
        logps: (B, T) log-probabilities of the policy.
        ref_logps: (B, T) log-probabilities of the reference.

    Raises:
        ValueError: an unknown name.
    """
    kind = name.removesuffix("_kl") if name != "generalized_kl" else name
    if kind == "prob_l2":
        return (logps.exp() - ref_logps.exp()) ** 2 / 2
    if kind == "l2":
        return (logps - ref_logps) ** 2 / 2
    if kind == "generalized_kl":
        fixed = logps.detach()
        return with_slope(entropy_divergence(fixed, ref_logps), fixed.exp() * (fixed - ref_logps), logps)
    raise ValueError(f"unknown divergence {name}; there are: {', '.join(WEIGHTS)}")


class BregmanPlugin(Plugin):
    """Adds lambda times a divergence to each token's loss, and logs it beside the KL.

    Attributes:
        divergence: its name.
        weight: lambda.
        loss_beta: strength of the KL term, 0 for none.
    """

    def __init__(self, divergence: str, weight: float, loss_beta: float) -> None:
        self.divergence, self.weight, self.loss_beta = divergence, weight, loss_beta

    def distance(self, logps: Any, ref_logps: Any) -> Any:
        """(B, T) divergence of the policy from the reference."""
        return divergence(self.divergence, logps, ref_logps)

    def token_loss(self, logps: Any, inputs: dict[str, Any]) -> Any:
        """(B, T), lambda D."""
        import torch

        reference = inputs.get("ref_per_token_logps")
        if reference is None:
            raise TrainingError(
                "the training library gave no log-probabilities of the reference, which the divergence needs",
                hint="install the versions of constraints.txt",
            )
        precise = torch.promote_types(logps.dtype, torch.float32)
        logps, reference = logps.to(precise), reference.to(precise)
        distance = self.distance(logps, reference)
        self._record("divergence", distance, inputs)
        if not self.loss_beta:  # else TRL logs it
            delta = (logps - reference).detach()
            self._record("kl", torch.exp(-delta) + delta - 1, inputs)
        return self.weight * distance

    def _record(self, name: str, values_BT: Any, inputs: dict[str, Any]) -> None:
        """Log the mean over the counted tokens of all processes."""
        import torch

        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        sums = torch.stack([(values_BT.detach() * mask).sum(), mask.sum().to(values_BT.dtype)])
        total, count = self.trainer.accelerator.reduce(sums, reduction="sum")
        self.log(name, (total / count.clamp(min=1.0)).item())


class NeuralPlugin(BregmanPlugin):
    """The divergence of a neural mirror map, whose parameters go into the run folder and every checkpoint.

    Attributes:
        mirror_path: file of the map; None draws one from the run's seed.
    """

    mirror: MirrorMap

    def __init__(self, weight: float, loss_beta: float, mirror_path: str | None) -> None:
        super().__init__("neural", weight, loss_beta)
        self.mirror_path = mirror_path

    def start(self) -> None:
        """Make or load the map, and write it into the run folder."""
        seed = self.config.train.seed
        self.mirror = MirrorMap.load(self.mirror_path) if self.mirror_path else MirrorMap.random(seed)
        self._write()

    def distance(self, logps: Any, ref_logps: Any) -> Any:
        return self.mirror.divergence(logps, ref_logps)

    def state(self) -> dict[str, Any]:
        return {"mirror_map": self.mirror.flat()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.mirror = MirrorMap.from_flat(state["mirror_map"])
        self._write()

    def save(self, folder: Path) -> None:
        self.mirror.save(folder / MAP_FILE)

    def _write(self) -> None:
        if self.trainer.accelerator.is_main_process:
            self.save(Path(self.trainer.args.output_dir))


@section
class Bregman(Scaling, Clip):
    """What `gbmpo` and `neural_mirror` share: a weighted divergence, and a reference that is always kept."""

    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    """How token losses are averaged; `grpo` is per completion and then over completions (GRPO's; TRL's names)."""
    divergence_weight: PositiveFloat | None = None
    """lambda; None takes 0.1 for `prob_l2` and 1e-4 for every other divergence (arXiv:2602.04380)."""

    @property
    def kl(self) -> float:
        """Strength of the KL term in the loss; 0 where there is none."""
        return 0.0

    def arguments(self, config: Any) -> dict[str, Any]:
        return {**super().arguments(config), "beta": self.kl or KEEP_REFERENCE}


def path_faults(path: str | None) -> list[tuple[str, str]]:
    """The fault of a `mirror_path` that is no file."""
    if path is None or Path(path).expanduser().is_file():
        return []
    return [("algo.mirror_path", f"there is no file {path}; a run with a neural map writes {MAP_FILE}")]


@algorithm("gbmpo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class GBMPO(Bregman):
    """GRPO with a Bregman divergence to the reference in the place of the KL term."""

    divergence: Literal["prob_l2", "prob_l2_kl", "l2", "l2_kl", "generalized_kl", "neural"] = "prob_l2"
    """The divergence (arXiv:2602.04380, whose best on GSM8K is `prob_l2`); `_kl` adds GRPO's KL term."""
    beta: NonNegativeFloat = 0.04
    """Strength of the KL term of `prob_l2_kl` and `l2_kl` (GRPO's)."""
    mirror_path: Text | None = None
    """File of the map for `neural`, as `meta_es` or an earlier run wrote it; None draws one from the seed."""

    @property
    def kl(self) -> float:
        return self.beta if self.divergence in ("prob_l2_kl", "l2_kl") else 0.0

    def plugin(self, config: Any) -> Plugin:
        weight = self.divergence_weight or WEIGHTS[self.divergence]
        if self.divergence == "neural":
            return NeuralPlugin(weight, self.kl, self.mirror_path)
        return BregmanPlugin(self.divergence, weight, self.kl)

    def inert_keys(self, config: Any) -> dict[str, str]:
        found = dict(super().inert_keys(config))
        if self.divergence not in ("prob_l2_kl", "l2_kl"):
            found["algo.beta"] = f"{self.divergence} has no KL term; prob_l2_kl and l2_kl have one"
        if self.divergence != "neural":
            found["algo.mirror_path"] = f"{self.divergence} has no neural map"
        return found

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = super().faults(config) + path_faults(self.mirror_path)
        if self.divergence.endswith("2_kl") and not self.beta:
            plain = self.divergence.removesuffix("_kl")
            found.append(("algo.beta", f"must be above 0 with {self.divergence}; without a KL term it is {plain}"))
        return found
