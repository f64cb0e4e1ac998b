"""Classifiers: what the tasks for texts and for tokens share.

Loss: (1/N) sum_i w_{y_i} (-log p(y_i)), over the N labelled items of an optimizer step (so that accumulating
micro-batches changes nothing); w is 1, or `class_weights`. It trains through Transformers' own `Trainer`, on a plain
Transformers model with a classification head, on both backends.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen
from pydantic import NonNegativeFloat, PositiveFloat

from aligntune.algorithms.base import AlgorithmParams
from aligntune.core.config.base import section
from aligntune.registry import import_attribute

PARTS = "aligntune.core.sft.classification"  # lazy names, because the trainer's parts stand higher


@section
class Classifier(AlgorithmParams):
    """Parameters of training a classifier."""

    learning_rate: ClassVar[float] = 5e-5  # Devlin et al. 2019, appendix A.3 (5e-5, 3e-5, 2e-5); Transformers
    inert: ClassVar[dict[str, str]] = {
        "logging.rollouts": "a classifier samples nothing",
        "evaluation.max_new_tokens": "a classifier samples nothing",
        "evaluation.temperature": "a classifier samples nothing",
        "logging.sample_prompts": "a classifier answers nothing",
        "model.chat_template": "labelled rows hold no conversations",
        "dataset.system_prompt": "labelled rows hold no conversations",
        "evaluation.dataset.system_prompt": "labelled rows hold no conversations",
    }

    class_weights: Literal["none", "balanced"] | dict[str, PositiveFloat] = "none"
    """Factors of the loss by label: none; `balanced`, N / (K n_c) for n_c of N items in K classes (King and Zeng 2001);
    or a mapping by label name, the others 1."""
    labels: Annotated[list[str], MinLen(2)] | None = None
    """Every label, in the order of the head's outputs; None takes those of the data, sorted (ours)."""
    new_head: bool = False
    """Put a fresh head in the place of one that the model has already; off refuses labels that it lacks (ours)."""
    neftune_noise_alpha: NonNegativeFloat | None = None
    """Noise on the embeddings in training (Jain et al. 2023, arXiv:2310.05914); None is off (Transformers)."""

    def arguments(self, config: Any) -> dict[str, Any]:
        return {
            "neftune_noise_alpha": self.neftune_noise_alpha,
            "remove_unused_columns": False,
            "average_tokens_across_devices": True,
        }

    def trainer_type(self, base: type) -> type:
        return import_attribute(f"{PARTS}:trainer_type")(base)  # type: ignore[no-any-return]

    def trainer_kwargs(self, trainer: Any) -> dict[str, Any]:
        return import_attribute(f"{PARTS}:trainer_kwargs")(trainer)  # type: ignore[no-any-return]

    def attach(self, hf: Any, trainer: Any) -> None:
        import_attribute(f"{PARTS}:attach")(hf, trainer)

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = []
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            twice = next(name for name in self.labels if self.labels.count(name) > 1)
            found.append(("task.labels", f"has '{twice}' twice; name each label once"))
        if isinstance(self.class_weights, dict) and not self.class_weights:
            found.append(("task.class_weights", "is empty; give a factor for a label, or write `none`"))
        return found
