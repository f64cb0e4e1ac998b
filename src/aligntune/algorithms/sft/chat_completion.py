"""Chat completion: learn the assistant's turns of a conversation, the turn terminator included.

Data: messages or ShareGPT conversations. The chat template must mark the assistant's tokens with
`{% generation %}`; TRL exchanges the templates of the best-known families for ones that do.
"""

from __future__ import annotations

from typing import Any, Literal

from aligntune.algorithms.base import Schema, task
from aligntune.algorithms.sft.supervised import Supervised


@task("chat_completion", data=Schema.MESSAGES)
class ChatCompletion(Supervised):
    """Cross-entropy on the assistant's turns."""

    train_on: Literal["assistant", "all"] = "assistant"
    """Tokens in the loss: the assistant's turns (spec of this task), or every token (TRL's default)."""

    def arguments(self, config: Any) -> dict[str, Any]:
        return {**super().arguments(config), "assistant_only_loss": self.train_on == "assistant"}
