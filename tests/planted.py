"""Rollouts of an imaginary run, clean or with one planted fault, for the audit's tests and its false-positive rate.

    columns, config = planted.run(0)                              # clean
    columns, config = planted.run(0, fault="saturated")

A clean run: accuracy (0 or 1, each prompt of its own difficulty, rising), format (0 or 1, rising), quality (0 to 1, noise
around a rising mean) with weights 1, 0.2 and 0.3, and `held` of weight 0 that follows the accuracy. Texts are random
words. Advantages are GRPO's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WEIGHTS = {"accuracy": 1.0, "format": 0.2, "quality": 0.3, "held": 0.0}
FAULTS = (
    "constant", "constant_in_groups", "dominant_scale", "saturated", "length_driven", "duplicated", "opposed",
    "templated", "same_answer", "collapsed", "drift", "reward_hack", "no_signal", "missing_scores", "cut_off",
    "length_drift",
)  # fmt: skip
VOCABULARY = np.asarray([f"w{i}" for i in range(3000)])


def run(
    seed: int, *, fault: str | None = None, steps: int = 30, groups: int = 8, size: int = 8, wander: float = 0.0
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The columns of a rollouts table and a resolved configuration.

    Args:
        seed: of everything random.
        fault: one of `FAULTS`; None for a clean run.
        steps: of the run.
        groups: in a step.
        size: completions in a group.
        wander: size of a slow movement of all scores from step to step (standard deviation of the log-odds of the
            accuracy, by an autoregression of 0.8), which makes the groups of a step resemble each other.
    """
    rng = np.random.default_rng(seed)
    n = steps * groups * size
    step = np.repeat(np.arange(1, steps + 1), groups * size)
    group = np.tile(np.repeat(np.arange(groups), size), steps)
    done = (step - 1) / max(steps - 1, 1)
    cell = (step - 1) * groups + group
    ease = rng.normal(0, 1.0, steps * groups)[cell]
    moved = np.zeros((3, steps))
    for i in range(1, steps) if wander else ():
        moved[:, i] = 0.8 * moved[:, i - 1] + 0.6 * wander * np.random.default_rng([seed, i]).normal(size=3)
    shift = moved[:, step - 1]
    skill = 1 / (1 + np.exp(-(ease - 0.4 + 1.0 * done + shift[0])))
    accuracy = (rng.random(n) < skill).astype(float)
    form = (rng.random(n) < np.clip(0.6 + 0.25 * done + 0.1 * shift[1], 0, 0.9)).astype(float)
    quality = np.clip(rng.normal(0.45 + 0.1 * done + 0.05 * shift[2], 0.15), 0, 1)
    held = np.clip(0.6 * accuracy + 0.4 * rng.random(n), 0, 1)
    tokens = np.round(np.exp(rng.normal(4.6 - 0.15 * accuracy, 0.3))).astype(int)
    prompts = [f"question {c} about {VOCABULARY[c * 7 % 3000]}" for c in cell]
    texts = [" ".join(rng.choice(VOCABULARY, rng.integers(15, 40))) for _ in range(n)]
    scores: dict[str, Any] = {"accuracy": accuracy, "format": form, "quality": quality, "held": held}
    weights, ranges = dict(WEIGHTS), dict.fromkeys(WEIGHTS, (0.0, 1.0))
    late = done > 0.75
    if fault == "constant":
        scores["quality"] = np.full(n, 0.5)
    elif fault == "constant_in_groups":
        scores["quality"] = rng.random(steps * groups)[cell]
    elif fault == "dominant_scale":
        scores["quality"], weights["quality"], ranges["quality"] = rng.random(n) * 100, 0.1, (0.0, 100.0)
    elif fault == "saturated":
        scores["format"] = np.where(late, rng.random(n) < 0.99, form).astype(float)
    elif fault == "length_driven":
        weights["quality"] = 1.5
        scores["quality"] = np.clip((tokens - 40) / 150 + rng.normal(0, 0.02, n), 0, 1)
        scores["accuracy"] = (rng.random(n) < 0.02).astype(float)
    elif fault == "duplicated":
        scores["quality"] = np.clip(accuracy * 0.9 + rng.normal(0.05, 0.02, n), 0, 1)
    elif fault == "opposed":
        scores["quality"] = np.clip(1 - accuracy * 0.9 - rng.normal(0.05, 0.02, n), 0, 1)
    elif fault == "templated":
        phrase = "let me think about this very carefully step by step and then give the final answer which is surely"
        texts = [f"{phrase} {' '.join(t.split()[:6])}" if b else t for t, b in zip(texts, late, strict=True)]
    elif fault == "same_answer":
        same = late & (rng.random(n) < 0.95)
        texts = ["I am afraid that I cannot say" if b else t for t, b in zip(texts, same, strict=True)]
    elif fault == "collapsed":
        kept = dict(zip(cell, texts, strict=True))
        texts = [kept[c] if b else t for c, t, b in zip(cell, texts, late, strict=True)]
    elif fault == "drift":
        scores["quality"] = np.clip(rng.normal(0.7 - 0.5 * done, 0.1), 0, 1)
    elif fault == "reward_hack":
        scores["held"] = np.clip(rng.normal(0.7 - 0.4 * done, 0.15), 0, 1)
        scores["quality"] = np.clip(rng.normal(0.2 + 0.6 * done, 0.1), 0, 1)
    elif fault == "no_signal":
        scores["accuracy"] = (rng.random(n) < 0.002).astype(float)
        scores["format"], scores["quality"] = np.ones(n), np.full(n, 0.5)
    elif fault == "missing_scores":
        scores["accuracy"] = np.where(rng.random(n) < 0.4, np.nan, accuracy)
    elif fault == "cut_off":
        tokens = np.where(late & (rng.random(n) < 0.8), 256, np.minimum(tokens, 255))
    elif fault == "length_drift":
        tokens = np.round(tokens * (1 + 1.5 * done)).astype(int)
    elif fault is not None:
        raise ValueError(f"no fault {fault}")
    total = sum(w * scores[name] for name, w in weights.items() if w)
    deviation = total - group_mean(total, cell)
    spread = np.sqrt(group_mean(deviation**2, cell) * size / (size - 1))
    columns: dict[str, list[Any]] = {
        "step": step.tolist(),
        "group": group.tolist(),
        "prompt": prompts,
        "completion": texts,
        "tokens": tokens.tolist(),
        "reward": plain(total),
        "advantage": plain(deviation / (spread + 1e-4)),
    }
    columns |= {f"reward/{name}": plain(values) for name, values in scores.items()}
    columns |= {f"weight/{name}": [weights[name]] * n for name in scores}
    config = {
        "algo": {"name": "grpo", "num_generations": size},
        "generation": {"max_completion_length": 256 if fault == "cut_off" else 4096},
        "rewards": [{"type": kind(ranges[name]), "name": name, "weight": weights[name]} for name in scores],
    }
    return columns, config


def kind(bounds: tuple[float, float]) -> str:
    """A built-in reward of that range, so that the audit finds it: the scores here are made up."""
    return "brevity" if bounds == (0.0, 1.0) else f"{__file__}:hundred"


def group_mean(values: Any, cell: Any) -> Any:
    """(N,) the mean over each row's group, without the missing ones."""
    there = ~np.isnan(values)
    sums = np.bincount(cell[there], weights=values[there], minlength=int(cell.max()) + 1)
    counts = np.bincount(cell[there], minlength=int(cell.max()) + 1)
    return (sums / np.maximum(counts, 1))[cell]


def plain(values: Any) -> list[float | None]:
    """Floats, None for NaN."""
    return [None if np.isnan(v) else float(v) for v in values]


def metrics(seed: int, *, hacked: bool = False) -> list[dict[str, Any]]:
    """Held-out rows of `metrics.jsonl`: six evaluations that rise, or (hacked) fall."""
    rng = np.random.default_rng(seed + 1000)
    return [
        {"step": 1 + 5 * i, "eval_reward": float(0.5 + (-0.05 if hacked else 0.04) * i + rng.normal(0, 0.02))}
        for i in range(6)
    ]


def hundred(text: str) -> float:
    """A score without a declared range."""
    return float(len(text))
