"""Sequence classifiers: `TextClassifier` with named labels, `NLI` for pairs, `OneLogit` for reward models.

    TextClassifier("models/toxicity").probabilities(["You fool."])      # [{'neutral': 0.1, 'toxic': 0.9}]

Probabilities are the softmax of the logits; where the model says `problem_type: multi_label_classification`, the
sigmoid of each. A head without trained weights is refused, and so are labels that nobody has named. It does not
calibrate: a probability is the model's word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.rewards.base import count
from aligntune.rewards.models.base import CHARACTERS_PER_TOKEN, LocalModel

RECORD = "reward_model.json"
"""What `aligntune rewards train` writes beside a reward model: how it was trained, and the scale of its scores."""
_UNNAMED = re.compile(r"(?i)label_\d+")
NLI_LABELS = {"entailment": "entail", "neutral": "neutral", "contradiction": "contradict"}
"""The three labels and how their names begin in published models, in any case."""


class _Classifier(LocalModel):
    auto = "AutoModelForSequenceClassification"
    what = "sequence classifier"

    def _refuse(self, missing: list[str]) -> ValidationError:
        return ValidationError(
            f"{self.path} is no sequence classifier: it has no weights for {', '.join(missing[:3])}",
            hint=f"give a trained {self.what}, not a language model or an encoder without a head",
        )

    def logits(self, rows: Sequence[dict[str, list[int]]]) -> list[list[float]]:
        """N lists of logits for N encoded texts, in order."""
        import torch

        model, _, _ = self.load()
        found: list[list[float]] = [[] for _ in rows]
        with torch.no_grad():
            for part, tensors in self.batches(rows):
                for i, values in zip(part, model(**tensors).logits.float().tolist(), strict=True):
                    found[i] = values
        return found


class TextClassifier(_Classifier):
    """A sequence classifier whose labels have names; arguments as for `LocalModel`.

    Raises:
        ValidationError: it has one output, or its labels are named LABEL_0, LABEL_1, ...
    """

    def _check(self, model: Any) -> None:
        if model.config.num_labels < 2:
            raise ValidationError(
                f"{self.path} has one output, and a text classifier has one for each of several labels",
                hint="a reward model belongs to type: reward_model",
            )
        names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
        if any(_UNNAMED.fullmatch(name) for name in names):
            raise ValidationError(
                f"{self.path} does not say what its labels mean ({', '.join(names[:4])})",
                hint='name them in its config.json, as "id2label": {"0": "neutral", "1": "toxic"}',
            )

    @property
    def labels(self) -> list[str]:
        """The labels in the order of the outputs, as the model names them."""
        config = self.load()[0].config
        return [str(config.id2label[i]) for i in range(config.num_labels)]

    def label(self, name: str) -> str:
        """The model's own spelling of a label, found without regard to case.

        Raises:
            ConfigurationError: it has no such label; those it has are listed.
        """
        for own in self.labels:
            if own.casefold() == name.casefold():
                return own
        raise ConfigurationError(f"{self.path} has no label '{name}'", hint=f"its labels: {', '.join(self.labels)}")

    def probabilities(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """The probability of each label for each text, N mappings in order.

        Args:
            texts: N texts, of any length and script.
        """
        import torch

        if not texts:
            return []
        labels = self.labels
        several = getattr(self.load()[0].config, "problem_type", None) == "multi_label_classification"
        values = torch.tensor(self.logits(self.encode(texts)), dtype=torch.float64)
        shares = values.sigmoid() if several else values.softmax(-1)
        return [dict(zip(labels, row, strict=True)) for row in shares.tolist()]


class NLI(_Classifier):
    """A classifier of pairs: does the hypothesis follow from the premise? Arguments as for `LocalModel`.

    Raises:
        ValidationError: its labels are not entailment, neutral and contradiction by name.
    """

    what = "NLI model"

    def _check(self, model: Any) -> None:
        self._order(model)

    def _order(self, model: Any) -> list[int]:
        names = {i: str(name).casefold() for i, name in model.config.id2label.items()}
        order = [[i for i, name in names.items() if name.startswith(begin)] for begin in NLI_LABELS.values()]
        if model.config.num_labels != len(NLI_LABELS) or any(len(found) != 1 for found in order):
            raise ValidationError(
                f"{self.path} is no NLI model by its labels ({', '.join(map(str, model.config.id2label.values()))})",
                hint=f"its config.json has to name {', '.join(NLI_LABELS)} in id2label; their order cannot be guessed",
            )
        return [int(found[0]) for found in order]

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, float, float]]:
        """(entailment, neutral, contradiction) for each (premise, hypothesis), N tuples in order."""
        import torch

        if not pairs:
            return []
        order = self._order(self.load()[0])
        rows = self.encode([premise for premise, _ in pairs], [hypothesis for _, hypothesis in pairs])
        values = torch.tensor(self.logits(rows), dtype=torch.float64).softmax(-1)
        return [(row[order[0]], row[order[1]], row[order[2]]) for row in values.tolist()]


class OneLogit(_Classifier):
    """A sequence classifier with one output, as reward models are; arguments as for `LocalModel`.

    Raises:
        ValidationError: it has several outputs.
    """

    what = "reward model"

    def _refuse(self, missing: list[str]) -> ValidationError:
        return ValidationError(
            f"{self.path} is no sequence classifier: it has no weights for {', '.join(missing[:3])}",
            hint="give a reward model (a sequence classifier with one output), not a causal language model",
        )

    def _adapter_options(self) -> dict[str, Any]:
        return {"num_labels": 1}

    def _check(self, model: Any) -> None:
        if model.config.num_labels != 1:
            raise ValidationError(
                f"{self.path} has {model.config.num_labels} outputs, and a reward model has one",
                hint="give a sequence classifier with num_labels = 1",
            )

    def scores(self, texts: Sequence[str], prompts: Sequence[Any]) -> list[float]:
        """One logit for each answer, in order.

        Args:
            texts: N answers.
            prompts: N prompts, text or message lists.

        Raises:
            ConfigurationError: conversations, and a tokenizer without a chat template.
        """
        _, tokenizer, limit = self.load()
        pairs = zip(prompts, texts, strict=True)
        rows = [{"input_ids": answer_ids(tokenizer, prompt, text, limit, self.path)} for prompt, text in pairs]
        return [row[0] for row in self.logits(rows)]

    def take(self, model: Any, tokenizer: Any, limit: int | None) -> None:
        """Score with a model that is in memory already, in place of the one at `path`."""
        self._loaded = (model, tokenizer, limit)

    def _limit(self, model: Any, tokenizer: Any) -> int | None:
        """What the model's `reward_model.json` says that it was trained with, else what it was made for."""
        record = Path(self.path).expanduser() / RECORD
        stated = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        length = stated.get("max_length") if isinstance(stated, dict) else None
        return length if isinstance(length, int) and length > 0 else super()._limit(model, tokenizer)


def answer_ids(tokenizer: Any, prompt: Any, text: str, limit: int | None, path: str) -> list[int]:
    """Token ids of a prompt and an answer as a reward model reads them.

    Args:
        prompt: a text, which the answer follows, or messages, which the tokenizer's chat template writes.
        limit: most ids; what is beyond is cut and counted as `truncated`.
        path: the model's name, for messages.

    Raises:
        ConfigurationError: messages, and a tokenizer without a chat template.
    """
    if limit is not None:
        text = text[: limit * CHARACTERS_PER_TOKEN]
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate, which no tokenizer takes
    if isinstance(prompt, str):
        ids: list[int] = tokenizer(prompt.encode("utf-8", "replace").decode() + text)["input_ids"]
    else:
        if not tokenizer.chat_template:
            raise ConfigurationError(
                f"cannot read conversations: {path} is a reward model whose tokenizer has no chat template",
                hint="save the tokenizer with the template that the reward model was trained with "
                "(tokenizer.chat_template), or use plain-text prompts",
            )
        messages = [*prompt, {"role": "assistant", "content": text}]
        written = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    if limit is not None and len(ids) > limit:
        count("truncated")
        ids = ids[:limit]
    return ids or [tokenizer.pad_token_id]


def load_classifier(path: str, revision: str | None, precision: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """A sequence classifier with one output, and its tokenizer, padding on the right; on the CPU.

    Args:
        path: a folder or hub id; an adapter folder over a base works too.
        revision: branch, tag or commit; None is the main branch.
        precision: "fp32", "bf16" or "fp16".
        trust_remote_code: run Python code from its repository.

    Raises:
        ConfigurationError: no such folder, or weights that are not in safetensors files.
        ValidationError: weights of the head are missing (a causal model), or it has several outputs.
    """
    return OneLogit(path, revision=revision, trust_remote_code=trust_remote_code).read(precision)
