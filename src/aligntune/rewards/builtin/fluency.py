"""A reward by the perplexity under a named reference model: `fluency`.

    rewards: [{type: fluency, weight: 0.2, params: {path: models/gpt2, low: 8, high: 60}}]

perplexity = exp(- mean log p(token | tokens before it)) of the text after its thought. It is a band and no minimum:
what people write is less probable than what a model repeats (Holtzman et al. 2020, arXiv:1904.09751, figure 2), and a
loop has a perplexity near 1. The reference model is read from disk and never trained: a policy that judged its own
fluency would find itself fluent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt
from pydantic import PositiveInt

from aligntune.grading.extract import strip_reasoning
from aligntune.rewards.base import REWARDS, Score, count
from aligntune.rewards.models.base import Precision
from aligntune.rewards.models.language import ReferenceLM
from aligntune.rewards.models.reward import ModelReward

Perplexity = Annotated[float, Ge(1)]


class FluencyReward(ModelReward):
    """1 while the perplexity of the text under the reference model is inside a band, falling to 0 outside.

    Linear in the logarithm: at `high` x `factor`, and at `low` / `factor`, it is 0. A text without words scores 0; one
    of a single token, which has no perplexity, is None (counted as `too_short`). In logs its name is
    `fluency[<model>]`.

    Args:
        path: a folder or hub id of a causal language model; not the policy's own unless its frozen start is meant.
        low: least perplexity of full score. No number fits all models and texts: take the 5% quantile of good texts of
            your own (`ReferenceLM.perplexities`).
        high: greatest; the 95% quantile.
        factor: how many times outside the band the score reaches 0; 2 is one bit a token.
        revision: branch, tag or commit of the hub repository.
        batch_size: texts per forward pass.
        max_length: most tokens of a text; of a longer one the beginning counts (`truncated`).
        precision: of the weights; auto is bf16 on a GPU that has it, fp16 on an older one, fp32 on the CPU.
        trust_remote_code: run Python code from the model's repository. Only for code that you have read.
    """

    name = "fluency"
    range = (0.0, 1.0)

    def setup(
        self,
        path: str,
        low: Perplexity,
        high: Perplexity,
        *,
        factor: Annotated[float, Gt(1)] = 2.0,
        revision: str | None = None,
        batch_size: PositiveInt = 16,
        max_length: PositiveInt | None = None,
        precision: Precision = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        if low > high:
            raise ValueError(f"low = {low:g} is above high = {high:g}")
        self.low, self.high, self.factor = low, high, factor
        self.model = ReferenceLM(
            path,
            revision=revision,
            batch_size=batch_size,
            max_length=max_length,
            precision=precision,
            trust_remote_code=trust_remote_code,
        )
        self.scorers = {"reference": self.model}

    @property
    def label(self) -> str:
        """The name with the model."""
        return f"fluency[{Path(self.model.path).name}]" if "model" in self.__dict__ else self.name

    def scores(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Score]:
        """The banded perplexities, N."""
        bodies = [strip_reasoning(text).strip() for text in texts]
        found = self.model.log_likelihood(bodies)
        return [self._score(body, nats, tokens) for body, (nats, tokens) in zip(bodies, found, strict=True)]

    def _score(self, body: str, nats: float, tokens: int) -> Score:
        if not any(c.isalnum() for c in body):
            return 0.0
        if not tokens:
            count("too_short")
            return None
        return banded(nats / tokens, math.log(self.low), math.log(self.high), math.log(self.factor))


def banded(value: float, low: float, high: float, width: float) -> float:
    """1 inside [low, high], falling linearly to 0 at `width` outside.

    >>> banded(5.0, 1.0, 4.0, 2.0)
    0.5
    """
    return max(0.0, 1 - max(low - value, value - high, 0.0) / width)


REWARDS.add(FluencyReward.name, FluencyReward)
