"""Sequence classifiers with one output as rewards: `reward_model`, and several together: `reward_ensemble`.

    rewards: [{type: reward_model, params: {path: out/reward-model}}, {type: length, weight: 0.1}]
    rewards: [{type: reward_ensemble, params: {paths: [out/rm-0, out/rm-1, out/rm-2], method: mean_std}}]

The score of an answer is the model's one logit for the prompt and the answer together, as the Bradley-Terry model of
preferences reads it (Ouyang et al. 2022, arXiv:2203.02155, section 3.5): r(x, y) has no bounds, and only differences
within a prompt have a meaning. A conversation is written with the reward model's own chat template and tokenized by
its own tokenizer, so that policy and reward model may be of different families.

Source of the input's form: TRL's `RewardTrainer` and `GRPOTrainer` (1.14.2). It does not train reward models, and
takes no classifier with several labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveInt

from aligntune.errors import ConfigurationError, RewardError
from aligntune.rewards.base import REWARDS, Score
from aligntune.rewards.models.base import Precision
from aligntune.rewards.models.classifier import RECORD, OneLogit, answer_ids, load_classifier
from aligntune.rewards.models.reward import ModelReward

PRECISIONS = Precision
__all__ = ["PRECISIONS", "RewardEnsembleReward", "RewardModelReward", "load_classifier"]


class _Scored(ModelReward):
    """Rewards of a prompt and an answer together."""

    columns = frozenset({"prompt"})

    def batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        failures: list[RewardError] | None = None,
    ) -> list[Score]:
        prompts = list((columns or {}).get("prompt", []))
        if texts and len(prompts) != len(texts):
            first = {"prompt": prompts[0]} if prompts else {}
            raise self._error("scores an answer together with its prompt, and gets none", 0, first)
        return super().batch(texts, {"prompt": prompts} if texts else None, extras=extras, failures=failures)

    def compute(self, text: str, **kwargs: Any) -> float | None:
        """The score of one answer; `prompt` is its prompt, text or messages."""
        if kwargs.get("prompt") is None:
            raise ConfigurationError(
                "scores an answer together with its prompt, and gets none", hint="pass prompt=... (text or messages)"
            )
        return super().compute(text, prompt=kwargs["prompt"])


class RewardModelReward(_Scored):
    """The logit of a sequence classifier with one output, for the prompt and the answer together.

    The weights are read at the first use, from safetensors files only, and stand on the run's device in evaluation
    mode; scoring takes no gradient. A text longer than `max_length` is cut at its end, and counted (`truncated`).

    Args:
        path: a folder or hub id; an adapter folder over a base works too.
        revision: branch, tag or commit of the hub repository.
        batch_size: texts per forward pass; texts of similar length go together.
        max_length: most tokens of prompt and answer; None takes what its `reward_model.json` says that it was trained
            with, else what the model was made for.
        precision: of the weights; auto is bf16 on a GPU that has it, fp16 on an older one, fp32 on the CPU.
        trust_remote_code: run Python code from the model's repository. Only for code that you have read.

    Raises:
        ConfigurationError: no path, an unknown parameter, a value out of range, or a tokenizer without a chat template
            where the prompts are conversations.
        ValidationError: a model that is no classifier with one output.
    """

    name = "reward_model"

    def setup(
        self,
        path: str,
        *,
        revision: str | None = None,
        batch_size: int = 8,
        max_length: int | None = None,
        precision: str = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        self.model = OneLogit(
            path,
            revision=revision,
            batch_size=batch_size,
            max_length=max_length,
            precision=precision,  # type: ignore[arg-type]
            trust_remote_code=trust_remote_code,
        )
        self.scorers = {"reward_model": self.model}

    def scores(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[float]:
        """One logit for each answer, in order."""
        return self.logits(texts, columns["prompt"])

    def logits(self, texts: Sequence[str], prompts: Sequence[Any]) -> list[float]:
        """One logit for each of N answers to N prompts (texts or message lists), in order."""
        return self.model.scores(texts, prompts)

    @property
    def max_length(self) -> int | None:
        """The parameter."""
        return self.model.max_length

    @property
    def _loaded(self) -> Any:
        return self.model._loaded

    @_loaded.setter
    def _loaded(self, loaded: tuple[Any, Any, int | None]) -> None:
        self.model.take(*loaded)

    def _load(self) -> tuple[Any, Any, int | None]:
        return self.model.load()

    def _ids(self, tokenizer: Any, prompt: Any, text: str, limit: int | None) -> list[int]:
        return answer_ids(tokenizer, prompt, text, limit, self.model.path)


class RewardEnsembleReward(_Scored):
    """Several reward models in one number that is low where they disagree.

    `mean_std`: mean - penalty x standard deviation over the models (n in the denominator). `minimum`: the lowest. Both
    are after Coste et al. 2023 (arXiv:2310.02743, section 3.2; there the penalty is on the variance): an answer that
    deceives one model rarely deceives all, if they were trained from different seeds. Scores of different models have
    different scales, so each is standardised first.

    Args:
        paths: two or more folders or hub ids.
        method: `mean_std` or `minimum`.
        penalty: how many standard deviations are taken off by `mean_std`; 1 is one. No number is published for the
            standard deviation.
        standardise: (score - mean) / std by the mean and the std of training scores, which each folder states in
            reward_model.json; refused where one states none. False takes the logits as they are.
        batch_size: as for `reward_model`.
        max_length: as for `reward_model`.
        precision: as for `reward_model`.
        trust_remote_code: as for `reward_model`.

    Raises:
        ConfigurationError: fewer than two models, `penalty` beside `minimum`, no stated scale.
    """

    name = "reward_ensemble"

    def setup(
        self,
        paths: list[str],
        *,
        method: Literal["mean_std", "minimum"] = "mean_std",
        penalty: NonNegativeFloat | None = None,
        standardise: bool = True,
        batch_size: PositiveInt = 8,
        max_length: PositiveInt | None = None,
        precision: Precision = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        if len(set(paths)) < 2:
            raise ValueError("paths needs at least two different reward models; one alone is type: reward_model")
        if penalty is not None and method == "minimum":
            raise ValueError("penalty has no effect with method: minimum")
        self.method, self.penalty = method, 1.0 if penalty is None else penalty
        self.scales = [_stated_scale(path) if standardise else (0.0, 1.0) for path in paths]
        self.scorers = {
            f"reward_model {i}": OneLogit(
                path,
                batch_size=batch_size,
                max_length=max_length,
                precision=precision,
                trust_remote_code=trust_remote_code,
            )
            for i, path in enumerate(paths)
        }

    def scores(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[float]:
        """mean - penalty x std, or the minimum, of the models' scores for each answer."""
        table = []
        for scorer, (mean, std) in zip(self.scorers.values(), self.scales, strict=True):
            assert isinstance(scorer, OneLogit)
            table.append([(value - mean) / std for value in scorer.scores(texts, columns["prompt"])])
        return [self._together(list(row)) for row in zip(*table, strict=True)]

    def _together(self, row: list[float]) -> float:
        if self.method == "minimum":
            return min(row)
        mean = math.fsum(row) / len(row)
        return mean - self.penalty * math.sqrt(math.fsum((v - mean) ** 2 for v in row) / len(row))


def _stated_scale(path: str) -> tuple[float, float]:
    """Mean and standard deviation of a reward model's scores in training, from its folder."""
    file = Path(path).expanduser() / RECORD
    hint = "train it with `aligntune rewards train`, or set standardise: false where all are on one scale"
    if not file.is_file():
        raise ConfigurationError(f"{path} does not state the scale of its scores (no {RECORD})", hint=hint)
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))["scores"]
        mean, std = float(stated["mean"]), float(stated["std"])
    except (KeyError, TypeError, ValueError) as e:
        raise ConfigurationError(f"{file} states no mean and std", hint=hint) from e
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ConfigurationError(f"{file} states the mean {mean} and the std {std}", hint=hint)
    return mean, std


for _reward in (RewardModelReward, RewardEnsembleReward):
    REWARDS.add(_reward.name, _reward)
