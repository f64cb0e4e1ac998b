"""Streams of logged numbers for the health monitor: healthy ones of each kind of run, and one planted fault each."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def supervised(seed: int = 0, count: int = 200) -> list[Row]:
    """A loss that falls with noise, as a supervised run logs it."""
    rng = random.Random(seed)
    start, floor, pace = rng.uniform(1.5, 9.0), rng.uniform(0.2, 1.2), rng.uniform(0.01, 0.08)
    noise, clock, rows = rng.uniform(0.02, 0.15), 0.0, []
    for step in range(1, count + 1):
        clock += rng.uniform(0.8, 1.4)
        level = floor + (start - floor) * math.exp(-pace * step)
        loss = level * math.exp(rng.gauss(0, noise))
        norm = rng.lognormvariate(0.0, 0.4) * (1 + 3 * math.exp(-pace * step))
        rows.append({"step": step, "time": clock, "loss": loss, "grad_norm": norm})
        if step % 20 == 0:
            rows.append({"step": step, "time": clock + 5, "eval_nll": level * math.exp(rng.gauss(0, 0.004))})
            clock += 5
    return rows


def sampled(seed: int = 0, count: int = 200) -> list[Row]:
    """Reward, KL, entropy and lengths of a policy that learns."""
    rng = random.Random(seed)
    top, pace, entropy = rng.uniform(0.4, 1.0), rng.uniform(0.01, 0.05), rng.uniform(0.3, 2.0)
    start, room, clock, rows = rng.uniform(60, 200), 256, 0.0, []
    for step in range(1, count + 1):
        clock += rng.uniform(2, 4)
        learned = 1 - math.exp(-pace * step)
        flat = min(max(rng.gauss(0.2 + 0.4 * learned, 0.15), 0.0), 0.95)
        rows.append(
            {
                "step": step,
                "time": clock,
                "loss": rng.gauss(0, 0.02),
                "grad_norm": rng.lognormvariate(-1, 0.6) * (1 - flat),
                "reward": top * learned + rng.gauss(0, 0.05),
                "frac_reward_zero_std": flat,
                "rewards/total/std": 0.3,
                "kl": 0.3 * learned * rng.lognormvariate(0, 0.3) + 1e-5,
                "entropy": entropy * (0.25 + 0.75 * math.exp(-pace * step)) * rng.lognormvariate(0, 0.1),
                "completions/mean_length": min(start * (1 + 0.5 * learned) * rng.lognormvariate(0, 0.05), room),
                "completions/clipped_ratio": min(max(rng.gauss(0.15, 0.1), 0), 1),
                "completions/repetition": min(max(rng.gauss(0.08, 0.03), 0), 1),
            }
        )
        if step % 20 == 0:
            rows.append({"step": step, "time": clock + 9, "eval_reward": top * learned + rng.gauss(0, 0.01)})
            clock += 9
    return rows


def _after(rows: list[Row], step: int, change: Callable[[Row], Row]) -> list[Row]:
    return [{**row, **(change(row) if row["step"] >= step and "loss" in row else {})} for row in rows]


def _held_out(rows: list[Row], name: str, worse: float) -> list[Row]:
    return [{**row, name: row[name] + worse * max(row["step"] - 100, 0)} if name in row else row for row in rows]


def _slow(rows: list[Row]) -> list[Row]:
    return [{**row, "time": row["time"] + 30.0 * max(row["step"] - 100, 0)} for row in rows]


PLANTED: dict[str, tuple[bool, Callable[[int], list[Row]]]] = {
    "not_finite": (False, lambda s: _after(supervised(s), 100, lambda r: {"loss": "NaN"})),
    "loss_spike": (False, lambda s: [{**r, **({"loss": 60.0} if r["step"] == 90 else {})} for r in supervised(s)]),
    "loss_rise": (False, lambda s: _after(supervised(s), 60, lambda r: {"loss": 2.0 + 0.2 * (r["step"] - 60)})),
    "grad_norm": (False, lambda s: _after(supervised(s), 120, lambda r: {"grad_norm": 900.0})),
    "kl_dead": (True, lambda s: _after(sampled(s), 1, lambda r: {"kl": 0.0})),
    "kl_high": (True, lambda s: _after(sampled(s), 100, lambda r: {"kl": 0.1 * 1.1 ** (r["step"] - 100)})),
    "entropy_low": (True, lambda s: _after(sampled(s), 100, lambda r: {"entropy": 1e-3})),
    "reward_flat": (True, lambda s: _after(sampled(s), 100, lambda r: {"frac_reward_zero_std": 1.0, "reward": 0.3})),
    "clipped": (True, lambda s: _after(sampled(s), 100, lambda r: {"completions/clipped_ratio": 1.0})),
    "repetition": (True, lambda s: _after(sampled(s), 100, lambda r: {"completions/repetition": 0.8})),
    "length": (
        True,
        lambda s: [
            {**r, **({"completions/mean_length": min(20 + 2.0 * r["step"], 256)} if "loss" in r else {})}
            for r in sampled(s)
        ],
    ),
    "held_out": (False, lambda s: _held_out(supervised(s), "eval_nll", 0.02)),
    "throughput": (False, lambda s: _slow(supervised(s))),
    "memory": (False, lambda s: _after(supervised(s), 100, lambda r: {"system/memory": 0.99})),
    "disk_gb": (False, lambda s: _after(supervised(s), 100, lambda r: {"system/disk_free_gb": 0.2})),
    "gpu_memory": (False, lambda s: _after(supervised(s), 100, lambda r: {"system/gpu_memory": 0.995})),
}
"""Rule to a stream in which its fault is planted: whether the run samples, and the rows for a seed."""


def everything_wrong() -> list[Row]:
    """80 rows that break every rule: quiet for 30 rows, then all at once."""
    rows: list[Row] = []
    for step in range(1, 81):
        bad = step > 30
        rows.append(
            {
                "step": step,
                "time": step * (1.0 if not bad else 40.0),
                "loss": (50.0 if bad else 2.0) if step < 60 else 3.0 - step / 100,
                "grad_norm": 900.0 if bad else 1.0,
                "kl": 0.0 if not bad else 50.0,
                "entropy": 1e-6 if bad else 2.0,
                "reward": step / 100,
                "frac_reward_zero_std": float(bad),
                "rewards/total/std": 0.0 if bad else 0.5,
                "completions/clipped_ratio": float(bad),
                "completions/repetition": 0.9 if bad else 0.0,
                "completions/mean_length": 12.0 if bad else 2.0,
                "system/memory": 0.99 if bad else 0.1,
                "system/disk_free_gb": 0.1 if bad else 50.0,
                "system/gpu_memory": 0.99 if bad else 0.1,
            }
        )
        if step % 4 == 0 and step > 60:
            rows.append({"step": step, "time": step * 40.0, "eval_nll": step / 10, "eval_reward": -step / 10})
    return rows
