"""The rules of the health monitor: each looks at the numbers so far, and finds one thing that is wrong, or nothing.

A rule is a pure function of `History` and of the section `health`, so the same rows give the same findings, live, after
a resume, and when a finished run is looked at again. `RULES` names what each one reads.

>>> history = History()
>>> for step in range(1, 30): history.add(step, {"loss": 2.0 if step < 29 else 90.0})
>>> loss_spike(history, HealthConfig()).value
90.0

Sources stand with the thresholds (`aligntune.core.config.health`). A rule names what it sees and the key to change; it
does not know why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean, median

from aligntune.core.config.health import HealthConfig

RECENT = 5
"""Rows whose median counts as the present value."""
CLIPPED_ROWS = 10
MAD = 1.4826
"""Makes the median absolute deviation of normal numbers their standard deviation (Hampel 1974)."""
SOLVED = 0.95
"""Share of the highest possible reward at which a run counts as solved, so that it may be sure of its answers."""
HELD_OUT = {"eval_reward": True, "eval_rewards/accuracies": True, "eval_f1": True, "eval_nll": False}
"""Held-out values that are watched, first found first, and whether larger is better."""
WORSE = 0.05
"""Relative loss against the best evaluation that is more than chance (ours)."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        message: what was seen, with its numbers.
        advice: what to change, by its key.
        value: the number that was judged.
        limit: what it was held against.
    """

    message: str
    advice: str
    value: float
    limit: float


@dataclass
class History:
    """The numbers of a run so far.

    Attributes:
        values: metric to its (step, value) pairs, finite ones only, in order.
        broken: metric to the step at which it was first no finite number.
        best_reward: the highest reward that is possible, where the rewards declare it.
        room: `generation.max_completion_length`; None where nothing is sampled.
        sampled: whether the run learns from completions that it samples.
        grouped: whether several answers to one prompt are compared.
    """

    values: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    best_reward: float | None = None
    room: int | None = None
    sampled: bool = False
    grouped: bool = True

    def add(self, step: int, row: Mapping[str, float]) -> None:
        """Take one row."""
        for name, value in row.items():
            if math.isfinite(value):
                self.values.setdefault(name, []).append((step, value))
            else:
                self.broken.setdefault(name, step)

    def last(self, name: str, count: int) -> list[float]:
        """The newest values of a metric, at most `count`."""
        return [value for _, value in self.values.get(name, [])[-count:]]

    def before(self, name: str, count: int, skip: int = 1) -> list[float]:
        """At most `count` values that come before the newest `skip`."""
        return [value for _, value in self.values.get(name, [])[: -skip or None][-count:]]

    def solved(self) -> bool:
        """Whether the reward is near the highest one."""
        found = self.last("reward", RECENT)
        best = self.best_reward
        return bool(found) and best is not None and best > 0 and mean(found) >= SOLVED * best


def not_finite(history: History, health: HealthConfig) -> Finding | None:
    """A logged number is NaN or infinite."""
    for name in ("loss", "grad_norm", "reward", "kl", "entropy"):
        if name in history.broken:
            return Finding(
                f"{name} is not a finite number",
                "lower train.learning_rate or add train.warmup_steps; with fp16 set model.precision to bf16 or fp32",
                math.nan,
                math.inf,
            )
    return None


def loss_spike(history: History, health: HealthConfig) -> Finding | None:
    """The newest loss stands far above the window's."""
    usual, now = history.before("loss", health.window), history.last("loss", 1)
    if health.loss_spike is None or len(usual) < health.window // 2 or min(usual) <= 0:
        return None
    middle = median(usual)
    spread = MAD * median(abs(value - middle) for value in usual)
    limit = max(middle + health.loss_spike * spread, 1.5 * middle)
    if now[0] <= limit:
        return None
    return Finding(
        f"the loss jumped to {now[0]:.4g}, and {middle:.4g} is usual",
        "lower train.learning_rate or train.max_grad_norm; look at the rows of that step",
        now[0],
        limit,
    )


def loss_rise(history: History, health: HealthConfig) -> Finding | None:
    """The loss goes up for good."""
    values = history.last("loss", len(history.values.get("loss", [])))
    if health.loss_rise is None or len(values) < 2 * RECENT or min(values) < 0:
        return None
    lowest = min(median(values[i : i + RECENT]) for i in range(0, len(values) - RECENT, RECENT))
    half = (median(values[:RECENT]) + lowest) / 2  # small batches are noisy, and half of what was gained is more
    now, limit = median(values[-RECENT:]), max(health.loss_rise * lowest, lowest + 0.1, half)
    if now <= limit:
        return None
    return Finding(
        f"the loss rises: {now:.4g} after it was {lowest:.4g}",
        "lower train.learning_rate (ten times is a good first try) or add train.warmup_steps",
        now,
        limit,
    )


def grad_norm(history: History, health: HealthConfig) -> Finding | None:
    """The gradient explodes."""
    usual, now = history.before("grad_norm", health.window), history.last("grad_norm", 1)
    if health.grad_norm is None or len(usual) < health.window // 2 or max(usual) <= 0:
        return None
    limit = health.grad_norm * max(usual)
    if now[0] <= limit:
        return None
    return Finding(
        f"the gradient's norm is {now[0]:.4g}, and the largest of the last {len(usual)} rows was {max(usual):.4g}",
        "lower train.learning_rate, or train.max_grad_norm, which cuts it off",
        now[0],
        limit,
    )


def kl_dead(history: History, health: HealthConfig) -> Finding | None:
    """The policy does not move."""
    found = history.last("kl", health.window)
    if health.kl_dead is None or len(found) < health.window or max(map(abs, found)) >= health.kl_dead:
        return None
    return Finding(
        f"the policy has not moved from its reference in {len(found)} rows (KL at most {max(found):.2g})",
        "raise train.learning_rate; look whether rewards differ within groups (reward_std), and whether model.peft "
        "trains any weights",
        max(found),
        health.kl_dead,
    )


def kl_high(history: History, health: HealthConfig) -> Finding | None:
    """The policy has left its reference."""
    found = history.last("kl", RECENT)
    if health.kl_high is None or len(found) < RECENT or median(found) <= health.kl_high:
        return None
    return Finding(
        f"the policy is far from its reference: KL {median(found):.3g} nats per token",
        "raise algo.beta (ppo: algo.kl_coef), or lower train.learning_rate; read samples for answers that only the "
        "reward likes",
        median(found),
        health.kl_high,
    )


def entropy_low(history: History, health: HealthConfig) -> Finding | None:
    """The policy has only one answer left, and it is not the right one."""
    values = history.values.get("entropy", [])
    if health.entropy_low is None or len(values) < 2 * RECENT or history.solved():
        return None
    first, now = mean(value for _, value in values[:RECENT]), mean(history.last("entropy", RECENT))
    limit = health.entropy_low * first
    if first <= 0 or now >= limit:
        return None
    return Finding(
        f"the policy's entropy fell from {first:.3g} to {now:.3g} nats per token",
        "set algo.entropy_coef, raise algo.epsilon_high or generation.temperature, or lower train.learning_rate",
        now,
        limit,
    )


def reward_flat(history: History, health: HealthConfig) -> Finding | None:
    """All answers to a prompt get the same reward, so there is nothing to learn."""
    if health.reward_flat is None or history.solved():
        return None
    found = history.last("frac_reward_zero_std", health.reward_flat)
    if not history.grouped:  # one answer to each prompt: the batch must differ
        found = [float(value == 0) for value in history.last("rewards/total/std", health.reward_flat)]
    if len(found) < health.reward_flat or min(found) < 1:
        return None
    return Finding(
        f"no group of answers had two different rewards in {len(found)} rows",
        "look at what is rewarded (`aligntune rewards audit RUN`); raise algo.num_generations or "
        "generation.temperature, or take easier prompts",
        min(found),
        1.0,
    )


def clipped(history: History, health: HealthConfig) -> Finding | None:
    """Nearly every completion is cut off."""
    found = history.last("completions/clipped_ratio", CLIPPED_ROWS)
    if health.clipped is None or len(found) < CLIPPED_ROWS or mean(found) < health.clipped:
        return None
    return Finding(
        f"{mean(found):.0%} of the completions are cut off at their longest length",
        "raise generation.max_completion_length; look whether the model ends its answers at all (its end-of-text token "
        "and model.chat_template)",
        mean(found),
        health.clipped,
    )


def repetition(history: History, health: HealthConfig) -> Finding | None:
    """Completions go round in circles."""
    found = history.last("completions/repetition", RECENT)
    if health.repetition is None or len(found) < RECENT or mean(found) < health.repetition:
        return None
    return Finding(
        f"{mean(found):.0%} of the completions' n-grams are repetitions",
        "add the reward `repetition`, raise generation.temperature, or set generation.repetition_penalty",
        mean(found),
        health.repetition,
    )


def length(history: History, health: HealthConfig) -> Finding | None:
    """Completions grow and fill their room."""
    values, room = history.values.get("completions/mean_length", []), history.room
    if health.length is None or room is None or len(values) < 3 * RECENT:
        return None
    first, now = mean(value for _, value in values[:RECENT]), mean(history.last("completions/mean_length", RECENT))
    if first <= 0 or now < health.length * first or now < room / 2:
        return None
    return Finding(
        f"completions grew from {first:.0f} to {now:.0f} tokens of {room}",
        "look whether a reward pays for length (`aligntune rewards audit RUN`); dr_grpo and dapo take length out of "
        "the loss",
        now,
        health.length * first,
    )


def held_out(history: History, health: HealthConfig) -> Finding | None:
    """The held-out value gets worse, and the training value does not."""
    name = next((n for n in HELD_OUT if len(history.values.get(n, [])) > (health.held_out or 0)), None)
    if health.held_out is None or name is None:
        return None
    up, points = HELD_OUT[name], history.values[name]
    newest = points[-health.held_out - 1 :]
    sign = 1 if up else -1
    falling = all(sign * b[1] < sign * a[1] for a, b in pairwise(newest))
    best_step, best = max(points, key=lambda point: sign * point[1])
    now = points[-1][1]
    if not falling or sign * (best - now) <= WORSE * max(abs(best), 1e-6):
        return None
    trained, better = ("reward", 1) if history.sampled else ("loss", -1)
    then = [v for s, v in history.values.get(trained, []) if s <= best_step][-RECENT:]
    if not then or better * (mean(history.last(trained, RECENT)) - mean(then)) < -WORSE * abs(mean(then)):
        return None
    return Finding(
        f"{name} got worse {health.held_out} times in a row ({best:.4g} at step {best_step}, {now:.4g} now) while the "
        f"training {trained} did not",
        "set train.early_stopping_patience, or train less (train.max_steps, train.num_epochs)"
        + ("; raise algo.beta and audit the rewards" if history.sampled else "; add data, or train.weight_decay"),
        now,
        best,
    )


def throughput(history: History, health: HealthConfig) -> Finding | None:
    """Steps take much longer than before."""
    if health.throughput is None:
        return None
    usual = history.before("seconds_per_step", health.window, skip=RECENT)
    now = history.last("seconds_per_step", RECENT)
    if len(usual) < health.window // 2 or median(usual) <= 0:
        return None
    limit = health.throughput * median(usual)
    if median(now) <= max(limit, 1.0):  # what takes less than a second is not worth a word
        return None
    return Finding(
        f"a step takes {median(now):.3g} s, and took {median(usual):.3g} s before",
        "look for other programs on this machine and for swapping; longer completions also take longer "
        "(completions/mean_length)",
        median(now),
        limit,
    )


def memory(history: History, health: HealthConfig) -> Finding | None:
    """The machine runs out of memory."""
    now = history.last("system/memory", 1)
    if health.memory is None or not now or now[0] < health.memory:
        return None
    return Finding(
        f"{now[0]:.0%} of the memory is in use",
        "lower train.per_device_batch_size and raise train.gradient_accumulation_steps, set "
        "train.gradient_checkpointing, or lower model.max_seq_length",
        now[0],
        health.memory,
    )


def disk_gb(history: History, health: HealthConfig) -> Finding | None:
    """The disk runs full."""
    now = history.last("system/disk_free_gb", 1)
    if health.disk_gb is None or not now or now[0] >= health.disk_gb:
        return None
    return Finding(
        f"{now[0]:.2f} GB are free on the run folder's disk",
        "free some space there; set train.save_total_limit, or logging.rollouts to false",
        now[0],
        health.disk_gb,
    )


def gpu_memory(history: History, health: HealthConfig) -> Finding | None:
    """The GPU runs out of memory."""
    now = history.last("system/gpu_memory", 1)
    if health.gpu_memory is None or not now or now[0] < health.gpu_memory:
        return None
    return Finding(
        f"{now[0]:.0%} of the GPU's memory is in use",
        "lower train.per_device_batch_size, generation.max_completion_length or "
        "generation.vllm_gpu_memory_utilization, or set train.gradient_checkpointing",
        now[0],
        health.gpu_memory,
    )


Rule = Callable[[History, HealthConfig], Finding | None]
RULES: Mapping[str, tuple[Rule, Sequence[str], str]] = {
    "not_finite": (not_finite, ("loss", "grad_norm", "reward", "kl", "entropy"), "error"),
    "loss_spike": (loss_spike, ("loss",), "warning"),
    "loss_rise": (loss_rise, ("loss",), "error"),
    "grad_norm": (grad_norm, ("grad_norm",), "warning"),
    "kl_dead": (kl_dead, ("kl",), "warning"),
    "kl_high": (kl_high, ("kl",), "error"),
    "entropy_low": (entropy_low, ("entropy",), "error"),
    "reward_flat": (reward_flat, ("frac_reward_zero_std", "rewards/total/std"), "error"),
    "clipped": (clipped, ("completions/clipped_ratio",), "warning"),
    "repetition": (repetition, ("completions/repetition",), "warning"),
    "length": (length, ("completions/mean_length",), "warning"),
    "held_out": (held_out, tuple(HELD_OUT), "warning"),
    "throughput": (throughput, ("seconds_per_step",), "warning"),
    "memory": (memory, ("system/memory",), "warning"),
    "disk_gb": (disk_gb, ("system/disk_free_gb",), "error"),
    "gpu_memory": (gpu_memory, ("system/gpu_memory",), "warning"),
}
"""Name of a rule: the function, the metrics whose arrival calls it, and how grave what it finds is."""
ONLY_SAMPLED = ("kl_dead", "kl_high", "entropy_low", "reward_flat", "clipped", "repetition", "length")
ONLY_LEVEL = ("loss_spike", "loss_rise")
"""Rules for losses that have a level: those of policy optimisation have none."""
