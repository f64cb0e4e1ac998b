"""Trainers that take rows which are tokenised already.

TRL's trainers tokenise the rows that they are given, row by row and in each run. `taking_tokens` gives their
`_prepare_dataset` a short cut: rows with the token columns of `aligntune.data.tokenised` are what it would make of them
(tests compare the two), so they stay as they are; packing goes on to TRL, which packs token rows. Any other rows go to
TRL unchanged.

KTO's baseline pairs each prompt with the answer of the row before it in the same batch, the first with the last
(Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1, as TRL does it). That depends on the batch size and is made
here.
"""

from __future__ import annotations

from typing import Any

READY = ({"input_ids", "labels"}, {"prompt_ids", "chosen_ids", "rejected_ids"}, {"prompt_ids", "completion_ids"})
"""Columns of token rows."""


def taking_tokens(base: type) -> type:
    """The trainer class with the short cut."""

    class TakingTokens(base):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, *rest: Any, **named: Any) -> Any:
            names = set(dataset.column_names or next(iter(dataset)))
            packing = named.get("packing", rest[0] if rest else False)
            if not any(ready <= names for ready in READY) or packing is True:
                return super()._prepare_dataset(dataset, processing_class, args, *rest, **named)
            if getattr(self, "calculate_KL", False) and "KL_completion_ids" not in names:
                return dataset.map(mismatched, batched=True, batch_size=args.per_device_train_batch_size)
            return dataset

    TakingTokens.__name__, TakingTokens.__qualname__ = base.__name__, base.__qualname__
    return TakingTokens


def mismatched(batch: dict[str, Any]) -> dict[str, Any]:
    """The answers of a batch moved on by one row."""
    answers = batch["completion_ids"]
    return {"KL_completion_ids": [answers[-1], *answers[:-1]]}
