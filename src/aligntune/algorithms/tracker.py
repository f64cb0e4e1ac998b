"""What a prompt's reward is expected to be: one Beta distribution per prompt, which forgets as the policy moves.

    tracker = Tracker(rho_min=0.875, rho_max=0.96, d_half=0.06)
    tracker.value(key)                                    # 0.5 before anything is known: a = b = 4
    tracker.update(key, reward=1.0, drift=None, ...)      # first visit: a = 0.96 * 4 + 1 = 4.84, b = 3.84
    tracker.value(key)                                    # 4.84 / 8.68 = 0.5576

v = a / (a + b). A visit with reward R in [0, 1] does a <- rho a + R, b <- rho b + 1 - R, with
rho = clip(2^(-D / d_half), rho_min, rho_max). D is how far the policy has moved since the last visit: the mean over
tokens of |log pi_now - log pi_then| on the completion that was stored then. The starting strength a + b is
1 / (1 - rho_min), where a strength of rho_min settles.

Source: single-stream policy optimisation (arXiv:2509.13232). Pure numbers; the policy is asked elsewhere (`pace`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def canonical(prompt: Any) -> str:
    """The text that stands for a prompt: a string itself, one user message its content, other messages as JSON."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].get("role") == "user" and isinstance(prompt[0].get("content"), str):
        return str(prompt[0]["content"])
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def prompt_key(prompt: Any) -> bytes:
    """The same 32 bytes for the same prompt in every process and on every machine (SHA-256)."""
    return hashlib.sha256(canonical(prompt).encode("utf-8", "surrogatepass")).digest()


def drift(now: Sequence[float], then: Sequence[float]) -> float:
    """D: mean over a completion's T tokens of |log pi_now - log pi_then|, in nats."""
    return math.fsum(abs(a - b) for a, b in zip(now, then, strict=True)) / len(then)


@dataclass
class Belief:
    """What is known of one prompt.

    Attributes:
        a: pseudo-count of success.
        b: pseudo-count of failure.
        ids: tokens of its last completion.
        logps: their log-probabilities under the policy that sampled them.
    """

    a: float
    b: float
    ids: list[int]
    logps: list[float]


class Tracker:
    """Beliefs about prompts, by key.

    Args:
        rho_min: least share of the past that is kept.
        rho_max: largest share, which a first visit keeps.
        d_half: drift that halves the past, in nats per token.
        priors: key to the value in [0, 1] that a prompt starts with; 0.5 for the others.
    """

    def __init__(
        self, rho_min: float, rho_max: float, d_half: float, priors: Mapping[bytes, float] | None = None
    ) -> None:
        self.rho_min, self.rho_max, self.d_half = rho_min, rho_max, d_half
        self.priors = priors or {}
        self.beliefs: dict[bytes, Belief] = {}

    @property
    def strength(self) -> float:
        """a + b of a prompt that was never visited: 8 for rho_min 0.875."""
        return 1.0 / (1.0 - self.rho_min)

    def value(self, key: bytes) -> float:
        """v, the expected reward in [0, 1]."""
        known = self.beliefs.get(key)
        return self.priors.get(key, 0.5) if known is None else known.a / (known.a + known.b)

    def rho(self, moved: float | None) -> float:
        """The share of the past that is kept, for the drift D; None is a first visit."""
        if moved is None:
            return self.rho_max
        return min(max(math.exp2(-moved / self.d_half), self.rho_min), self.rho_max)

    def update(
        self, key: bytes, reward: float, moved: float | None, ids: Sequence[int], logps: Sequence[float]
    ) -> None:
        """Take in one visit.

        Args:
            key: of the prompt.
            reward: in [0, 1]; the mean over the completions of this visit.
            moved: D, or None on the first visit.
            ids: tokens of the visit's last completion.
            logps: their log-probabilities, as 32-bit numbers, which a checkpoint keeps exactly.

        Raises:
            ValueError: a reward outside [0, 1].
        """
        if not 0.0 <= reward <= 1.0:
            raise ValueError(f"a reward of {reward} is outside [0, 1]")
        known = self.beliefs.get(key)
        if known is None:
            prior = self.priors.get(key, 0.5)
            known = Belief(prior * self.strength, (1.0 - prior) * self.strength, [], [])
        kept = self.rho(moved)
        a, b = kept * known.a + reward, kept * known.b + 1.0 - reward
        self.beliefs[key] = Belief(a, b, list(ids), list(logps))


def curriculum_weight(value: float, floor: float) -> float:
    """How often a prompt is drawn: sqrt(v (1 - v)) + floor, largest where success is even odds."""
    return math.sqrt(max(value * (1.0 - value), 0.0)) + floor


def normalised(values: Sequence[float]) -> list[float]:
    """(A - mean) / (standard deviation + 1e-4) over a batch, n - 1 in the deviation; NaN counts nowhere and becomes 0.

    Fewer than two numbers give zeros.
    """
    present = [v for v in values if not math.isnan(v)]
    if len(present) < 2:
        return [0.0] * len(values)
    mean = math.fsum(present) / len(present)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in present) / (len(present) - 1))
    return [0.0 if math.isnan(v) else (v - mean) / (deviation + 1e-4) for v in values]
