"""Instruction following: learn the response to a prompt (Wei et al. 2021, arXiv:2109.01652).

Data: instruction/input/output or prompt/completion. The loss counts the response, its terminator included.
"""

from __future__ import annotations

from typing import Any, Literal

from aligntune.algorithms.base import Schema, task
from aligntune.algorithms.sft.supervised import Supervised


@task("instruction_following", data=Schema.PROMPT_COMPLETION)
class InstructionFollowing(Supervised):
    """Cross-entropy on the response."""

    train_on: Literal["completion", "all"] = "completion"
    """Tokens in the loss: the response (TRL's default for prompt/completion rows), or the prompt too."""

    def arguments(self, config: Any) -> dict[str, Any]:
        return {**super().arguments(config), "completion_only_loss": self.train_on == "completion"}
