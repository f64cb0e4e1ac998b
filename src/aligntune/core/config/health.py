"""The section `health`: what the monitor watches in a run's numbers, from which value on, and what it does then.

    health: {action: checkpoint, grad_norm: 20, clipped: null}      # null leaves a rule out

Each threshold names its source; "ours" means that it was set on runs of this package so that healthy ones raise no
event (`benchmarks/health.py`). The rules themselves are in `aligntune.utils.health.rules`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt
from pydantic import PositiveFloat, PositiveInt

from aligntune.core.config.base import section

if TYPE_CHECKING:
    from aligntune.core.config.root import RunConfig

Factor = Annotated[float, Gt(1)]


@section
class HealthConfig:
    """When a run's numbers are unhealthy, and what is done then. Each threshold is a rule; null leaves it out."""

    enabled: bool = True
    """Watch the run's numbers."""
    action: Literal["warn", "checkpoint", "stop"] = "warn"
    """At an event: tell it once, write a checkpoint too, or write one and end the run."""
    window: Annotated[int, Ge(3)] = 20
    """Rows of the log that say what is usual; rules that compare wait until half of them are there (ours)."""
    loss_spike: PositiveFloat | None = 10.0
    """Loss above the window's median by so many robust deviations (1.4826 MAD; Hampel 1974) and by half (ours)."""
    loss_rise: Factor | None = 1.5
    """Median loss of the last 5 rows over the lowest one of 5 rows before (divergence; ours)."""
    grad_norm: Factor | None = 20.0
    """Gradient norm over the largest one of the window, before clipping (ours)."""
    kl_dead: PositiveFloat | None = 1e-7
    """The policy stays where it began: KL per token below this for a whole window (ours)."""
    kl_high: PositiveFloat | None = 5.0
    """The policy has left its reference: median KL of the last 5 rows, nats per token (ours)."""
    entropy_low: Annotated[float, Gt(0)] | None = 0.02
    """Entropy collapse: share of the run's first entropies, while the reward is not solved (Cui et al. 2025,
    arXiv:2505.22617, describe it; the share is ours)."""
    reward_flat: PositiveInt | None = 10
    """Rows in a row in which no group has two different rewards, so that nothing is learned (ours)."""
    clipped: Annotated[float, Gt(0)] | None = 0.95
    """Mean share of completions cut off at `generation.max_completion_length`, over 10 rows (ours)."""
    repetition: Annotated[float, Gt(0)] | None = 0.5
    """Mean share of repeated n-grams in completions over 5 rows (seq-rep-4, Welleck et al. 2020, arXiv:1908.04319)."""
    length: Factor | None = 3.0
    """Mean completion length of 5 rows over the first ones', with half of the room for it used up (ours)."""
    held_out: PositiveInt | None = 3
    """Evaluations in a row that get worse, by 5% in all, while the training value does not (Gao et al. 2023,
    arXiv:2210.10760, for rewards; Prechelt 1998 for losses)."""
    throughput: Factor | None = 5.0
    """Median seconds per step of the last 5 rows over the window's (ours)."""
    memory: Annotated[float, Gt(0)] | None = 0.97
    """Share of the memory that this process may use (ours)."""
    disk_gb: PositiveFloat | None = 1.0
    """Free space on the run folder's disk, in GB (ours)."""
    gpu_memory: Annotated[float, Gt(0)] | None = 0.98
    """Share of the GPU's memory in use, by all processes (ours)."""


LOSS = ("loss_spike", "loss_rise")
SAMPLED = ("kl_dead", "kl_high", "entropy_low", "reward_flat", "clipped", "repetition", "length")


def inert_health(config: RunConfig) -> dict[str, str]:
    """Keys of the section that have nothing to watch in this run, with the reason."""
    names = [name for name in HealthConfig.__dataclass_fields__ if name != "enabled"]
    if not config.health.enabled:
        return {f"health.{name}": "`health.enabled` is false" for name in names}
    keys: dict[str, str] = {}
    if config.algorithm.uses_rewards:
        keys |= {f"health.{name}": "the loss of policy optimisation has no level of its own" for name in LOSS}
    else:
        keys |= {f"health.{name}": "nothing is sampled while it trains" for name in SAMPLED}
    if config.evaluation.every is None:
        keys["health.held_out"] = "there is no `evaluation.every` that would evaluate in training"
    return keys
