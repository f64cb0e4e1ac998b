"""Meta-ES (arXiv:2602.04380): evolution strategies over the parameters of the neural mirror map.

Outer loop, as in Salimans et al. 2017 (arXiv:1703.03864) with antithetic pairs and centred ranks: iteration k draws
noise e_1 ... e_P (P = population / 2) and trains one policy for each of theta + sigma_k e_i and theta - sigma_k e_i,
`steps` updates each, the two of a pair from one seed. A member's fitness is its reward on `evaluation.dataset`. With
the ranks u of the fitnesses, spread over [-1/2, 1/2],

    theta <- theta + alpha_k / (population sigma_k) sum_i (u_i+ - u_i-) e_i
    sigma_k = sigma sigma_decay^k,   alpha_k = search_rate sigma_decay^(2 k)

Ranks have no scale, so with a constant alpha the steps would grow while sigma falls; here they fall with it.

Each member is a run of `neural_mirror` in a process of its own, `workers` at a time. What it measured is written to the
run folder before the next begins, so a stopped search goes on with `--resume`, at any member. `population.jsonl` is
the table of the members. At the end the map of the best member trains the model for `train.max_steps` (or epochs),
in this run: metrics, checkpoints and model are those of that training.

    algo: {name: meta_es, iterations: 15, population: 10, steps: 100, workers: 2}
    evaluation: {dataset: {name: held_out.jsonl}}

>>> centred_ranks([0.2, 0.9, 0.2, 0.4])
[-0.333..., 0.5, -0.333..., 0.166...]

The best member was chosen by its reward on `evaluation.dataset`, so that reward flatters it: measure the final model on
other rows. The search does not train the policy: every member, and the final training, starts from the same model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, MultipleOf
from pydantic import PositiveFloat, PositiveInt

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.gbmpo import WEIGHTS, NeuralPlugin
from aligntune.algorithms.neural_mirror import NeuralMirror
from aligntune.algorithms.plugin import Plugin
from aligntune.core.config.sections import OpenFraction

FOLDER = "meta_es"
"""Folder of the search inside the run's."""
BEST = "best.safetensors"
"""File of the best member's map inside it, written when the search is over."""


@algorithm("meta_es", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class MetaES(NeuralMirror):
    """Search for a neural mirror map by evolution strategies, then train with the best one."""

    driver: ClassVar[str] = "aligntune.core.rl.meta_es:train"

    iterations: PositiveInt = 15
    """Updates of the map (arXiv:2602.04380)."""
    population: Annotated[int, Ge(2), MultipleOf(2)] = 10
    """Members per iteration, in antithetic pairs (arXiv:2602.04380)."""
    steps: PositiveInt = 100
    """Optimizer steps of each member (arXiv:2602.04380); `train.max_steps` is the length of the final training."""
    sigma: PositiveFloat = 0.01
    """Standard deviation of the noise on the map's parameters (arXiv:2602.04380)."""
    sigma_decay: OpenFraction = 0.99
    """Factor of sigma after each iteration (arXiv:2602.04380)."""
    search_rate: PositiveFloat = 1e-3
    """First step size, alpha in algorithm 1 of arXiv:1703.03864; this value, ours, moves parameters by about sigma."""
    workers: PositiveInt = 1
    """Members that train at the same time; they share this machine's processors or GPU (ours: one)."""

    def plugin(self, config: Any) -> Plugin:
        """Of the final training."""
        path = Path(config.output_dir).expanduser().absolute() / FOLDER / BEST
        return NeuralPlugin(self.divergence_weight or WEIGHTS["neural"], self.kl, str(path))

    def progress(self, config: Any) -> str | None:
        folder = Path(config.output_dir).expanduser() / FOLDER
        done = sum(1 for _ in folder.glob("i*-m*.json"))
        total = self.iterations * self.population
        return f"{done} of {total} members of the search in {folder}" if done else None

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = super().faults(config)
        if config.evaluation.dataset is None:
            found.append(
                (
                    "evaluation.dataset",
                    "is missing: the fitness of a member is its reward there; give held-out rows, for example "
                    "`evaluation: {dataset: {name: FILE, split: test}}`",
                )
            )
        return found


def draw_noise(seed: int, iteration: int, pairs: int, size: int) -> Any:
    """Standard normal noise of one iteration, (pairs, size) in float64; the same arguments give the same noise."""
    import torch

    generator = torch.Generator().manual_seed(seed * 100_003 + iteration)
    return torch.randn(pairs, size, generator=generator, dtype=torch.float64)


def centred_ranks(fitness: list[float]) -> list[float]:
    """Ranks of the fitnesses, spread evenly over [-1/2, 1/2]; equal ones share the mean of their ranks."""
    below = [sum(other < value for other in fitness) for value in fitness]
    equal = [sum(other == value for other in fitness) for value in fitness]
    return [(low + (same - 1) / 2) / (len(fitness) - 1) - 0.5 for low, same in zip(below, equal, strict=True)]


def update(theta: Any, noise: Any, fitness: list[float], *, sigma: float, rate: float) -> Any:
    """One step of the search.

    Args:
        theta: (size,) parameters.
        noise: (pairs, size).
        fitness: of the members, in the order +1, -1, +2, -2 ...; larger is better.
        sigma: standard deviation that scaled the noise.
        rate: step size.

    Returns:
        The next parameters, (size,); `theta` itself where all members are equally fit.
    """
    import torch

    ranks = torch.tensor(centred_ranks(fitness), dtype=theta.dtype)
    return theta + rate / (len(fitness) * sigma) * (ranks[0::2] - ranks[1::2]) @ noise
