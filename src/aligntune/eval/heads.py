"""What a model ends in (its head), and what a kind of evaluation needs: words, a label for a text, or token tags.

    head_of(model)                       # "sequence_classification"
    labels_of(model, None)               # ["card_lost", "age_limit"], as its config.json names the outputs

A classifier is loaded with the head that it has; a model without one is refused, because a fresh head would measure
random weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Head
from aligntune.data.labels import Labels
from aligntune.errors import ConfigurationError

if TYPE_CHECKING:
    from aligntune.core.config.sections import ModelConfig
    from aligntune.eval.config import EvalTask

NAMES: dict[str, str] = {
    "causal_lm": "a model that writes text",
    "sequence_classification": "a classifier of texts",
    "token_classification": "a classifier of tokens",
}
_ENDINGS: dict[str, Head] = {
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
}
ASK = "ask a model that writes text by the kind exact_match with `match: text`"


def head_of(model: Any) -> Head:
    """The head of a model in memory, by its class; whatever is no classifier writes text."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    name = type(inner).__name__
    return next((head for ending, head in _ENDINGS.items() if name.endswith(ending)), "causal_lm")


def check_head(model: Any, head: Head | None, kind: str) -> None:
    """Refuse a model with another head than the kind needs.

    Raises:
        ConfigurationError: names both.
    """
    if head is None:
        return
    if model is None:
        raise ConfigurationError(f"the kind {kind} needs {NAMES[head]}", hint="pass a model and its tokenizer")
    found = head_of(model)
    if found != head:
        raise ConfigurationError(
            f"the kind {kind} needs {NAMES[head]}, and the model is {NAMES[found]}",
            hint="evaluate another model, or use another kind (`aligntune eval list`)"
            if head == "causal_lm"
            else f"train one (`task: {_task(head)}`), or {ASK}",
        )


def _task(head: Head) -> str:
    return "text_classification" if head == "sequence_classification" else "token_classification"


def head_faults(tasks: Iterable[tuple[str, Head | None]]) -> list[tuple[str, str]]:
    """A file has one model, so its tasks need one head.

    Args:
        tasks: name and head of each.
    """
    needed: dict[Head, str] = {}
    for name, head in tasks:
        if head is not None:
            needed.setdefault(head, name)
    if len(needed) < 2:
        return []
    said = " and ".join(f"'{name}' {NAMES[head]}" for head, name in needed.items())
    return [("tasks", f"one model cannot serve them all: {said} is needed; write a file for each")]


def stored(config: ModelConfig, head: Head, tasks: Sequence[EvalTask]) -> Labels:
    """The labels of a stored classifier, in the order of its outputs.

    Args:
        config: the model.
        head: that it must have.
        tasks: whose `labels` name outputs that the model does not name.

    Raises:
        ConfigurationError: the model has no such head, is a reward model, or its labels are not those listed.
    """
    from aligntune.utils.classifier_loader import stored_labels
    from aligntune.utils.model_source import find_source

    where = f"the head of {config.name_or_path}"
    given = next((task.labels for task in tasks if task.labels is not None), None)
    if any(task.labels not in (None, given) for task in tasks):
        raise ConfigurationError("two tasks list different labels", hint="the labels are the model's: list them once")
    try:
        found = stored_labels(config, head, listed=given is not None, replaced=False)
    except ConfigurationError as e:
        hint = "use the kind that measures this head, or list the labels of an adapter that does not say them (labels)"
        raise ConfigurationError(e.message, hint=hint) from e
    if found is None and (given is None or find_source(config.name_or_path, config.revision).adapter is None):
        raise ConfigurationError(
            f"{config.name_or_path} has no classification head", hint=f"train one (`task: {_task(head)}`), or {ASK}"
        )
    if found == 1:
        raise ConfigurationError(
            f"{config.name_or_path} has one output, as reward models have: it names no label",
            hint="measure a reward model by the kind reward_accuracy",
        )
    return Labels(_named(found, given, where), where, "measure rows with these labels, or another classifier")


def _named(found: list[str] | int | None, given: list[str] | None, where: str) -> list[str]:
    count = len(found) if isinstance(found, list) else found
    if given is None:
        return found if isinstance(found, list) else [f"LABEL_{i}" for i in range(count or 0)]
    if isinstance(found, list) and found != given:
        raise ConfigurationError(
            f"labels is not what {where} names: {', '.join(found[:5])}{' ...' if len(found) > 5 else ''}",
            hint="remove labels: the model's own names hold",
        )
    if count is not None and count != len(given):
        raise ConfigurationError(
            f"{where} has {count} outputs, and labels lists {len(given)}", hint="list one name for each output"
        )
    return given


def need_words(config: ModelConfig) -> None:
    """Refuse a folder that holds a classifier where a model must write text; hub ids are left to the loader.

    Raises:
        ConfigurationError: its `config.json` names a classification head.
    """
    path = Path(config.name_or_path).expanduser() / "config.json"
    if not path.is_file():
        return
    try:
        named = json.loads(path.read_bytes()).get("architectures") or []
    except (ValueError, AttributeError):
        return  # the loader says what is wrong with the file
    head = next((h for name in named for ending, h in _ENDINGS.items() if str(name).endswith(ending)), None)
    if head is not None:
        raise ConfigurationError(
            f"{config.name_or_path} is {NAMES[head]}, and these tasks need {NAMES['causal_lm']}",
            hint="measure it by the kind classification or token_classification, a reward model by reward_accuracy",
        )


def labels_of(model: Any, given: list[str] | None) -> Labels:
    """The labels of a classifier in memory.

    Raises:
        ConfigurationError: as `stored`.
    """
    count = int(model.config.num_labels)
    if count == 1:
        raise ConfigurationError(
            "the model has one output, as reward models have: it names no label",
            hint="measure a reward model by the kind reward_accuracy",
        )
    own = [str(model.config.id2label[i]) for i in range(count)]
    unnamed = own == [f"LABEL_{i}" for i in range(count)]
    return Labels(
        _named(count if unnamed else own, given, "the model's head"), "the model's head", "list the model's labels"
    )
