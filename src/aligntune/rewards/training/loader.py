"""Trained reward models in use: loaded with checks, as rewards, as TRL's reward functions, and for best-of-n.

    model = TRLCompatibleRewardModel("runs/reward-model")
    model.compute("4", prompt="2+2?\\n")                  # a reward like any other: CompositeReward([model, length])
    GRPOTrainer(reward_funcs=[model], ...)                # TRL: GRPO, RLOO, online DPO (prompts, completions -> floats)
    PPOTrainer(reward_model=model.module, ...)            # TRL: the classifier itself
    best_of_n(prompts, answers, model)                    # the answer that it likes best

In a run's file the same model is `rewards: [{type: reward_model, params: {path: runs/reward-model}}]`, or
`create_rl_trainer(reward_model_name=...)`, without anything of this module. The scoring is `RewardModelReward`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.rewards.adapters import completion_text
from aligntune.rewards.base import RewardFunction
from aligntune.rewards.builtin.reward_model import PRECISIONS, RewardModelReward, load_classifier
from aligntune.rewards.composite import CompositeReward

RECORD = "reward_model.json"


@dataclass(frozen=True)
class LoadedRewardModel:
    """A checked reward model.

    Attributes:
        model: the sequence classifier with one output, in evaluation mode and without gradients.
        tokenizer: its tokenizer, padding on the right.
        path: where it was loaded from.
        record: `reward_model.json`, empty where there is none.
    """

    model: Any
    tokenizer: Any
    path: str
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Mean of its scores on the training answers; None where it is not known."""
        return self.record.get("scores", {}).get("mean")  # type: ignore[no-any-return]

    @property
    def std(self) -> float | None:
        """Their standard deviation; None where it is not known."""
        return self.record.get("scores", {}).get("std")  # type: ignore[no-any-return]


class RewardModelLoader:
    """Load reward models.

    Args:
        device: "auto", "cpu", "cuda" or "mps".
        precision: of the weights; auto is bf16 on a GPU that has it, fp16 on an older one, fp32 on the CPU.
        trust_remote_code: run Python code from the model's repository. Only for code that you have read.
    """

    def __init__(
        self, *, device: str = "auto", precision: PRECISIONS = "auto", trust_remote_code: bool = False
    ) -> None:
        self.device, self.precision, self.trust_remote_code = device, precision, trust_remote_code

    def load(self, path: str | Path, *, revision: str | None = None) -> LoadedRewardModel:
        """Load a folder or hub id; an adapter folder over a base works too.

        Raises:
            ConfigurationError: no such folder, a damaged `reward_model.json`, weights that are not in safetensors.
            ValidationError: a causal model (no head), several outputs, or weights that are no numbers.
        """
        import torch

        from aligntune.utils.device import DeviceManager

        device = DeviceManager(self.device)
        record = read_record(path)
        model, tokenizer = load_classifier(
            str(path), revision, device.precision(self.precision), self.trust_remote_code
        )
        for name, weight in model.named_parameters():
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                raise ValidationError(f"the weight {name} of {path} is not finite", hint="take an earlier checkpoint")
        return LoadedRewardModel(model.to(device.device).eval().requires_grad_(False), tokenizer, str(path), record)

    def load_reward(self, path: str | Path, *, revision: str | None = None) -> TRLCompatibleRewardModel:
        """The same as a reward; its weights are loaded and checked at once."""
        loaded = self.load(path, revision=revision)
        reward = TRLCompatibleRewardModel(
            str(path), revision=revision, precision=self.precision, trust_remote_code=self.trust_remote_code
        )
        reward.place(self.device)
        reward.take(loaded)
        return reward


def read_record(path: str | Path) -> dict[str, Any]:
    """`reward_model.json` of a folder; empty where there is none.

    Raises:
        ConfigurationError: it is damaged.
    """
    file = Path(path).expanduser() / RECORD
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{file} is damaged ({error})", hint="save the model again, or remove it") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file} is damaged: it holds no object", hint="save the model again, or remove it")
    return found


class TRLCompatibleRewardModel(RewardModelReward):
    """A reward model as a reward, and as a reward function with TRL's signature.

    Args:
        path: a folder or hub id.
        options: those of `type: reward_model` (`revision`, `batch_size`, `max_length`, `precision`,
            `trust_remote_code`).
    """

    def take(self, loaded: LoadedRewardModel) -> None:
        """Score with a model that is loaded already."""
        own = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
        limit = (
            self.max_length or loaded.record.get("max_length") or (own if isinstance(own, int) and own > 0 else None)
        )
        self._loaded = (loaded.model, loaded.tokenizer, limit)

    @property
    def module(self) -> Any:
        """The sequence classifier, for trainers that call it on token ids (TRL's PPO, `reward_funcs=[module]`)."""
        return self._load()[0]

    @property
    def processing_class(self) -> Any:
        """Its tokenizer (TRL's `reward_processing_classes`)."""
        return self._load()[1]

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One score for each completion.

        Args:
            prompts: N strings or message lists.
            completions: N strings or message lists.
            columns: what else TRL passes; not read.
        """
        return self.logits([completion_text(c) for c in completions], list(prompts))


@dataclass(frozen=True)
class Best:
    """The chosen one of a prompt's answers.

    Attributes:
        index: its place among them.
        text: the answer.
        scores: the scores of all; None for an answer without one.
    """

    index: int
    text: str
    scores: list[float | None]


def best_of_n(
    prompts: Sequence[Any],
    answers: Sequence[Sequence[str]],
    scorer: RewardFunction | CompositeReward,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> list[Best]:
    """For each prompt the answer with the highest score; the first of equal ones.

    Args:
        prompts: N prompts, as the scorer reads them.
        answers: N lists of answers (`generate_texts(..., num_samples=n)` makes them).
        scorer: a reward model, any other reward, or a composite.
        columns: N values of each column that the scorer reads.

    Raises:
        ValidationError: a prompt has no answer with a score, or the numbers differ.

    >>> from aligntune.rewards import get_reward_function
    >>> best_of_n(["Go on: "], [["a b", "a b c d"]], get_reward_function("length", min_length=4))[0].text
    'a b c d'
    """
    if len(prompts) != len(answers):
        raise ValidationError(f"{len(prompts)} prompts and {len(answers)} lists of answers", hint="give one list each")
    rows = [(i, text) for i, texts in enumerate(answers) for text in texts]
    given = {"prompt": list(prompts), **(columns or {})}
    spread = {name: [values[i] for i, _ in rows] for name, values in given.items()}
    texts = [text for _, text in rows]
    if isinstance(scorer, CompositeReward):
        scores: Sequence[float | None] = scorer.score_batch(texts, spread).total
    else:
        scores = scorer.batch(texts, spread)
    found, at = [], 0
    for i, own in enumerate(answers):
        part = list(scores[at : at + len(own)])
        at += len(own)
        present = [j for j, score in enumerate(part) if score is not None]
        if not present:
            raise ValidationError(
                f"prompt {i} has no answer with a score", hint="give answers that the scorer can judge"
            )
        best = max(present, key=lambda j: (part[j], -j))
        found.append(Best(best, own[best], part))
    return found
