"""What algorithms of offline preference optimisation share: what they ignore, and the reference that some keep.

    class DPO(Referenced): ...        # a frozen reference: the starting model, the adapter off, or `reference`
    class SimPO(ReferenceFree): ...   # none (`algorithms/reference_free.py`)

An implicit reward is what a loss takes for the reward of an answer; with it the accuracy on held-out pairs is
measured (`core.preference`). With a reference it is beta (log pi - log pi_ref), summed over the answer (Rafailov et
al. 2023, arXiv:2305.18290, equation 5, without the part that depends on the prompt alone).

>>> Referenced(beta=0.5).implicit_reward(-3.0, 4, -5.0)
1.0
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import PositiveFloat

from aligntune.algorithms.base import AlgorithmParams
from aligntune.core.config.base import section
from aligntune.errors import ValidationError
from aligntune.registry import import_attribute

Scored = tuple[float, int, float]
"""An answer: its log-probability, its number of tokens, and its log-probability under the reference (0 without one)."""


@section
class Preference(AlgorithmParams):
    """Parameters of learning from judged answers; it samples none."""

    learning_rate: ClassVar[float] = 1e-6  # TRL's DPOConfig, KTOConfig, ORPOConfig and CPOConfig
    inert: ClassVar[dict[str, str]] = {
        "generation": "this algorithm samples nothing in training; `evaluation` sets how answers are decoded",
        "rewards": "this algorithm learns from pairs or labels, not from reward functions",
        "logging.rollouts": "this algorithm has no rollouts",
    }

    def keeps_reference(self) -> bool:
        """Whether the loss compares with a reference model."""
        return True

    def implicit_reward(self, logp: float, tokens: int, reference: float) -> float:
        """The reward that the loss sees in an answer.

        Args:
            logp: its log-probability in nats, summed over its tokens.
            tokens: how many those are, at least 1.
            reference: the same sum under the reference; 0 without one.
        """
        return logp - reference

    def held_out_loss(self, chosen: Sequence[Scored], rejected: Sequence[Scored]) -> float | None:
        """The mean loss of pairs; None where it is not a function of their sums alone."""
        return None


@section
class Referenced(Preference):
    """Preference optimisation against a frozen reference."""

    beta: PositiveFloat = 0.1
    """KL strength (Rafailov et al. 2023, section 6)."""
    reference: str | None = None
    """Folder or hub id of another reference model with the same vocabulary; None takes the starting model, which with
    LoRA is the model with its adapter off (Rafailov et al. 2023)."""
    precompute_ref_log_probs: bool = False
    """Compute the reference's log-probabilities once, before training, and free the reference (TRL)."""

    def implicit_reward(self, logp: float, tokens: int, reference: float) -> float:
        return self.beta * (logp - reference)

    def reference_config(self, config: Any) -> Any:
        """The configuration that names the reference model, to be loaded whole; the given one where none is named."""
        if self.reference is None:
            return config
        model = dataclasses.replace(
            config.model, name_or_path=self.reference, revision=None, peft=None, quantization=None
        )
        return dataclasses.replace(config, model=model)

    def check(self, trainer: Any) -> None:
        if self.reference is not None:
            check_vocabulary(self.reference_config(trainer.config), trainer)

    def trainer_kwargs(self, trainer: Any) -> dict[str, Any]:
        if self.reference is None:
            return {}
        loaded = trainer.backend.load_model(self.reference_config(trainer.config))
        loaded.model.requires_grad_(False)
        return {"ref_model": loaded.model.eval()}

    def attach(self, hf: Any, trainer: Any) -> None:
        import_attribute("aligntune.core.rl.pairs:drop_fresh_copy")(hf.model)


def check_vocabulary(config: Any, trainer: Any) -> None:
    """Refuse a reference whose tokens are others than the trained model's.

    Raises:
        ConfigurationError: there is no such model.
        ValidationError: names one token that the two number differently.
    """
    make = import_attribute("aligntune.utils.model_loader:ModelLoader")
    loader = make(config.model, training=False, seed=config.train.seed)
    with import_attribute("aligntune.utils.model_source:faults_of")("algo.reference"):
        loader.source  # noqa: B018 - found here, so that its errors name the right key
    theirs, ours = loader.load_tokenizer().get_vocab(), trainer.tokenizer.get_vocab()
    if theirs == ours:
        return
    token = min((t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)), key=str)
    raise ValidationError(
        f"the reference {config.model.name_or_path} does not share the vocabulary of the model: token {token!r} is "
        f"{theirs.get(token, 'not there')} in it and {ours.get(token, 'not there')} in the model",
        hint="set algo.reference to a model of the same family, or remove it",
        context={"ours": len(ours), "theirs": len(theirs)},
    )
