"""Load a model with a classification head: one that it has already, or a fresh one with seeded weights.

>>> loader = ClassifierLoader(config.model, head="sequence_classification", labels=["no", "yes"], training=True, seed=1)
>>> loader.load().model.config.id2label
{0: 'no', 1: 'yes'}

The label list is stored in the model's `config.json` (`id2label`, `label2id`), beside an adapter too, so that a saved
classifier can be loaded without its data. Under LoRA the head is trained in full (`modules_to_save`). Only weights of
the head (and of BERT's pooler, which a masked language model lacks) may be missing from the source; a fresh head and
its source's random state follow from the seed alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligntune import errors
from aligntune.algorithms.base import Head
from aligntune.core.config.sections import ModelConfig
from aligntune.utils.model_loader import ModelLoader, library_faults
from aligntune.utils.model_source import find_source
from aligntune.utils.tokenizer import prepare_tokenizer

ENDING = {"sequence_classification": "ForSequenceClassification", "token_classification": "ForTokenClassification"}
"""How Transformers' classes with such a head are named."""
HEADS = ("score", "classifier", "pre_classifier", "classification_head", "pooler", "head")
"""What Transformers calls the layers of such a head."""
_UNNAMED = re.compile(r"LABEL_\d+")


class ClassifierLoader(ModelLoader):
    """Load what a `ModelConfig` describes, with a classification head.

    Args:
        config: the section.
        head: "sequence_classification" or "token_classification".
        labels: the label list, in the order of the head's outputs.
        new_head: put a fresh head in the place of one that the source has.
        options: `training`, `seed`, `gradient_checkpointing`, as for `ModelLoader`.
    """

    def __init__(
        self, config: ModelConfig, *, head: Head, labels: Sequence[str], new_head: bool = False, **options: Any
    ) -> None:
        super().__init__(config, **options)
        self.head, self.labels, self.new_head = head, list(labels), new_head
        self._own: list[str] = []
        self._fresh: list[str] = []

    @property
    def fresh(self) -> bool:
        """Whether the loaded head, or a part of it, has random weights."""
        return bool(self._fresh) and self.source.adapter is None

    def model_kwargs(self) -> dict[str, Any]:
        """As for `ModelLoader`, with the head's size and the names of its outputs."""
        names = dict(enumerate(self.labels))
        return {
            **super().model_kwargs(),
            "num_labels": len(names),
            "id2label": names,
            "label2id": {name: i for i, name in names.items()},
            "problem_type": "single_label_classification",
            **({"ignore_mismatched_sizes": True} if self.new_head else {}),
        }

    def _quantization_config(self) -> Any:
        made = super()._quantization_config()
        made.llm_int8_skip_modules = list(HEADS)  # of 4 bit too; quantised weights could not be trained in full
        return made

    def lora_config(self) -> Any:
        """`peft.LoraConfig` of `model.peft`, with the head among the modules that are trained in full."""
        made = super().lora_config()
        if made is None:
            return None
        from peft import TaskType

        kinds = {"sequence_classification": TaskType.SEQ_CLS, "token_classification": TaskType.TOKEN_CLS}
        made.task_type = kinds[self.head]
        made.modules_to_save = list(dict.fromkeys([*(made.modules_to_save or []), *self._own]))
        return made

    def _auto_class(self) -> Any:
        import torch
        import transformers

        torch.manual_seed(self.seed)  # of a fresh head's weights
        return getattr(transformers, f"AutoModel{ENDING[self.head]}")

    def _missing(self, model: Any, info: dict[str, Any]) -> list[str]:
        trunk = f"{model.base_model_prefix}."
        new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        poolers = {key.rpartition(".pooler.")[0] + ".pooler" for key in new if ".pooler." in key}
        self._own = [
            n for n, child in model.named_children() if f"{n}." != trunk and any(True for _ in child.parameters())
        ]
        self._own += sorted({pooler.rpartition(".")[2] for pooler in poolers})
        if self.new_head:
            self._renew(model, trunk)
            self._fresh = self._own
        else:
            self._fresh = [name for name in self._own if any(f".{name}." in f".{key}" for key in new)]
        return sorted(key for key in new if key.startswith(trunk) and ".pooler." not in key)

    def _renew(self, model: Any, trunk: str) -> None:
        """Draw the head's linear layers anew, as Transformers initialises them."""
        import torch

        spread = getattr(model.config, "initializer_range", 0.02)
        for name, child in model.named_children():
            for layer in child.modules() if f"{name}." != trunk else ():
                if isinstance(layer, torch.nn.Linear):
                    torch.nn.init.normal_(layer.weight, 0.0, spread)
                    if layer.bias is not None:
                        torch.nn.init.zeros_(layer.bias)

    def _wrap_notes(self) -> list[str]:
        notes = super()._wrap_notes()
        if self.fresh:
            notes.append(
                f"the classification head is new ({', '.join(self._fresh)}): {len(self.labels)} labels, random weights "
                f"from seed {self.seed}"
            )
        return notes

    def _tokenizer(self) -> tuple[Any, list[str]]:
        tokenizer, _ = super()._tokenizer()
        return tokenizer, prepare_tokenizer(tokenizer, self.config, training=self.training, writes=False)


def positions(model: Any) -> int | None:
    """Most tokens of a model with learned positions; None where positions are computed."""
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.endswith(
            ("position_embeddings", "position_embedding", "embed_positions", "wpe")
        ):
            # RoBERTa's positions begin after its padding id.
            begin = module.padding_idx + 1 if module.padding_idx is not None else 0
            return int(min(module.num_embeddings, model.config.max_position_embeddings)) - begin
    return None


def stored_labels(config: ModelConfig, head: Head, *, listed: bool, replaced: bool) -> list[str] | int | None:
    """What labels a model's own head has: their names, their number where they have no names, None without such a head.

    Args:
        config: the model.
        head: the kind of head that is needed.
        listed: the configuration lists the labels, so an adapter need not say them.
        replaced: a fresh head takes the place of the model's own, which then says nothing.

    Raises:
        errors.ConfigurationError: the model has a head of another kind, or none to replace; or an adapter does not say
            its labels; or it cannot be read.
        errors.EnvironmentError: the hub does not give it.
    """
    source = find_source(config.name_or_path, config.revision)
    if source.adapter is not None and not os.path.isfile(Path(source.adapter) / "config.json"):
        if listed:
            return None
        raise errors.ConfigurationError(
            f"the adapter in {source.adapter} does not say which labels it was trained with (no config.json)",
            hint="list them in the order of its head in task.labels",
        )
    from transformers import AutoConfig

    with library_faults(source):
        found = AutoConfig.from_pretrained(
            source.adapter or source.base, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    kind = next((name for name in found.architectures or [] if name.endswith(tuple(ENDING.values()))), None)
    if replaced:
        if kind is None:
            raise errors.ConfigurationError(
                f"task.new_head has no effect: {config.name_or_path} has no classification head to replace",
                hint="remove task.new_head",
            )
        return None
    if kind is None:
        return None
    if not kind.endswith(ENDING[head]):
        raise errors.ConfigurationError(
            f"{config.name_or_path} is a {kind}, and this task needs a {ENDING[head][3:]} head",
            hint="use the other classification task, or set task.new_head: true",
        )
    names = [found.id2label[i] for i in range(found.num_labels)]
    return len(names) if all(_UNNAMED.fullmatch(name) for name in names) else names
