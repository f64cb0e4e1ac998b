"""Runs that train a classifier: the label list, the rows, the loss, `predict`.

    trainer = create_sft_trainer(task_type="text_classification", model_name="out/base", dataset_name="banking.csv")
    trainer.train()
    trainer.predict(["Where is my card?"])      # [{"label": "card_arrival", "probability": 0.93, ...}]

Loss of an optimizer step with N labelled items (texts, or tags): (1/N) sum_i w_{y_i} (-log p(y_i)). Dividing by N, not
by the sum of the weights, makes 8 rows at once equal to 4 accumulated twos. It enters as Transformers'
`compute_loss_func`, and a run stops after its first step if it was not called (a rewritten trainer could ignore it).

Sampling: Transformers' shuffle, or `BalancedSampler`. Several labels for one text are not here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.rows import encode_rows, prepare_rows
from aligntune.core.sft import SFTTrainerBase
from aligntune.data.encoding import IGNORED, encode, encode_texts, encode_words
from aligntune.data.labels import Labels, class_weights, count_labels, describe_counts
from aligntune.data.manager import Prepared
from aligntune.errors import ConfigurationError, TrainingError, ValidationError
from aligntune.eval.classification import log_probabilities
from aligntune.eval.entities import find_entities, marks_entities
from aligntune.utils.classifier_loader import positions, stored_labels
from aligntune.utils.logging import quiet_libraries

NEW_HEAD = "set task.new_head: true to train a fresh head in its place"


class ClassifierRun(SFTTrainerBase):
    """The life of a run with a classification task; exported by the backends as `ClassificationTrainer`."""

    _labels: Labels | None = None
    _found_in: Prepared | None = None

    # ---- labels and rows -----------------------------------------------------------------------------------

    @property
    def labels(self) -> Labels:
        """The label list: `task.labels`, the head's, the data set's own, or the labels of the training rows.

        Raises:
            ConfigurationError: the list and the model's head do not fit.
            ValidationError: the training rows have one label only.
        """
        if self._labels is None:
            self._ready()
            self._labels = self._find_labels()
        return self._labels

    def _find_labels(self) -> Labels:
        params: Any = self.config.algorithm
        listed = None if params.labels is None else Labels(list(params.labels), "task.labels")
        stored = stored_labels(self.config.model, params.head, listed=listed is not None, replaced=params.new_head)
        where = f"the head of {self.config.model.name_or_path}"
        if isinstance(stored, list):
            if listed is not None and set(listed.names) != set(stored):
                other = sorted(set(listed.names) ^ set(stored))[0]
                raise ConfigurationError(
                    f"task.labels and {where} have different labels ('{other}' is in one of them only)",
                    hint=f"list the {len(stored)} labels of the head, or {NEW_HEAD}",
                )
            return Labels(stored, where, NEW_HEAD)
        labels = listed or self._labels_of_data()
        if isinstance(stored, int) and stored != len(labels):
            raise ConfigurationError(
                f"{where} has {stored} outputs, and {labels.origin} {len(labels)} labels",
                hint=f"list {stored} labels in task.labels, or {NEW_HEAD}",
            )
        return labels

    def _labels_of_data(self) -> Labels:
        prepared = self._found_in = self._read(self.config.sources, None)
        if prepared.class_names is not None:
            return Labels(prepared.class_names, "the data set's own list")
        columns = prepared.dataset
        words = self.config.algorithm.data is Schema.TOKENS
        found = {tag for tags in columns["tags"] for tag in tags} if words else set(columns["label"])
        if len(found) < 2:
            raise ValidationError(
                f"every row of {prepared.source} has the label '{found.pop()}'; a classifier needs two",
                hint="check the label column (`column_mapping: {label: ...}`), or list every label in task.labels",
            )
        return Labels.of(found)

    def _read(self, sources: Any, labels: Labels | None) -> Prepared:
        with quiet_libraries():
            return prepare_rows(self.config, sources, labels)

    def _load_model(self) -> Any:
        loaded = self.backend.load_classifier(self.config, self.labels.names)
        limit = positions(loaded.model)
        self._limit, self._limited_by = self.config.model.max_seq_length, ""
        most = min(n for n in (limit, loaded.tokenizer.model_max_length, 10**9) if n)
        if most < self._limit:
            self._limit, self._limited_by = most, f"the model's limit of {most}"
        return loaded

    def _prepare(self, sources: Any, label: str, *, training: bool = False) -> Any:
        """Rows of one or more sources as token ids and label numbers."""
        self._ready()
        labels = self.labels
        prepared = self._found_in if training and self._found_in is not None else self._read(sources, labels)
        self._load()
        schema = self.config.algorithm.data
        limits: dict[str, Any] = {"max_length": self._limit, "cut_by": self._limited_by}

        def build() -> Prepared:
            return encode(prepared, schema, self.tokenizer, labels, **limits)

        with quiet_libraries():
            fitted = encode_rows(self.config, sources, labels, self.tokenizer, build, **limits)
        counts = count_labels(fitted.dataset["labels"])
        unit = "tags" if self.config.algorithm.data is Schema.TOKENS else "rows"
        fitted = replace(fitted, notes=[*fitted.notes, *describe_counts(labels, counts, unit)])
        self._tell([f"{label}: {note}" for note in fitted.notes])
        return fitted

    def load_model(self, path: Any) -> None:
        """Take the weights, and the labels of their head, from another folder."""
        super().load_model(path)
        self._labels = self._found_in = self._train_data = self._eval_data = None

    def save_model(self, path: Any = None) -> Path:
        """See `Trainer.save_model`; the labels stand in `config.json`, beside an adapter too."""
        folder = super().save_model(path)
        model = self._hf.accelerator.unwrap_model(self._hf.model) if self._hf else self.model
        if hasattr(model, "peft_config"):
            base = model.get_base_model()
            base.config.architectures = [type(base).__name__]
            base.config.save_pretrained(folder)
        return folder

    # ---- using the model -----------------------------------------------------------------------------------

    def generate(self, prompts: Any, **options: Any) -> list[str]:
        """Raises: a classifier writes no text.

        Raises:
            ConfigurationError: always; it names `predict`.
        """
        raise ConfigurationError(
            f"{self.config.algorithm.key} trains a classifier, which writes no text",
            hint="use predict(texts), which gives labels and probabilities",
        )

    def predict(self, texts: Any, **options: Any) -> list[dict[str, Any]]:
        """The label of each text, or the tag of each word, with probabilities.

        Args:
            texts: one text or a list of them; for token classification also lists of words (a text is cut at spaces).
            options: `batch_size` in place of `evaluation.batch_size`.

        Returns:
            For texts `label`, `probability` and `probabilities` (by label, summing to 1). For tokens `tokens`, `labels`
            and `probabilities` (one for each token; None for tokens that were cut off), and `entities` as dictionaries
            with `type`, `start`, `end` (the token after the last) and `text`.

        Raises:
            ValidationError: a text is empty, or no text.
            ConfigurationError: an unknown option.
        """
        if set(options) - {"batch_size"}:
            raise ConfigurationError(
                f"predict() has no option '{sorted(set(options) - {'batch_size'})[0]}'", hint="it has batch_size"
            )
        batch_size = options.get("batch_size", self.config.evaluation.batch_size)
        asked = [texts] if isinstance(texts, str) else list(texts)
        words = self.config.algorithm.data is Schema.TOKENS
        for i, text in enumerate(asked, start=1):
            parts = text if words and isinstance(text, (list, tuple)) else [text]
            if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
                raise ValidationError(
                    f"text {i} of {len(asked)} is empty or no text" + (", or has such a word" if words else ""),
                    hint="leave it out",
                )
        with quiet_libraries():
            return self._tag(asked, batch_size) if words else self._classify(asked, batch_size)

    def _scores(self, ids: list[list[int]], batch_size: int) -> list[Any]:
        return log_probabilities(self.model, ids, self.tokenizer.pad_token_id, batch_size)

    def _classify(self, texts: Sequence[str], batch_size: int) -> list[dict[str, Any]]:
        self._load()
        names = self.labels.names
        encoded = encode_texts(self.tokenizer, texts, self._limit)
        answers = []
        for row in self._scores([one.ids for one in encoded], batch_size):
            chances = row.exp().tolist()
            best = int(row.argmax())
            answers.append(
                {
                    "label": names[best],
                    "probability": chances[best],
                    "probabilities": dict(zip(names, chances, strict=True)),
                }
            )
        return answers

    def _tag(self, texts: Sequence[Any], batch_size: int) -> list[dict[str, Any]]:
        self._load()
        names = self.labels.names
        sentences = [text.split() if isinstance(text, str) else list(text) for text in texts]
        encoded = encode_words(self.tokenizer, sentences, self._limit)
        answers = []
        for words, one, row in zip(sentences, encoded, self._scores([e.ids for e in encoded], batch_size), strict=True):
            best = [int(row[at].argmax()) if at >= 0 else None for at in one.positions]
            tags = [None if i is None else names[i] for i in best]
            answer: dict[str, Any] = {
                "tokens": words,
                "labels": tags,
                "probabilities": [
                    None if i is None else float(row[at, i].exp()) for i, at in zip(best, one.positions, strict=True)
                ],
            }
            if marks_entities(names):
                answer["entities"] = [
                    {"type": kind, "start": start, "end": end, "text": " ".join(words[start:end])}
                    for kind, start, end in find_entities([tag or "O" for tag in tags])
                ]
            answers.append(answer)
        return answers

    def _samples(self, prepared: Any, count: int) -> list[dict[str, Any]]:
        """Predictions for the first held-out rows, as `samples.jsonl` has them."""
        rows = list(prepared.dataset.select(range(min(count, len(prepared.dataset)))))
        if self.config.algorithm.data is Schema.TOKENS:
            made = self.predict([row["tokens"] for row in rows])
            return [
                {
                    "prompt": " ".join(row["tokens"]),
                    "answer": _spelled(row["tokens"], one["labels"]),
                    "gold": row["tags"],
                }
                for row, one in zip(rows, made, strict=True)
            ]
        made = self.predict([row["text"] for row in rows])
        return [
            {"prompt": row["text"], "answer": f"{one['label']} ({one['probability']:.2f})", "gold": row["label"]}
            for row, one in zip(rows, made, strict=True)
        ]


def _spelled(words: Sequence[str], tags: Sequence[str | None]) -> str:
    return " ".join(word if tag in ("O", None) else f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))


# ---- the library's trainer -------------------------------------------------------------------------------------


def trainer_type(base: type) -> type:
    """Transformers' `Trainer`, or what a backend has put in its place, with a sampler of ours where there is one."""

    class Classifying(base):  # type: ignore[misc]
        class_sampler: Any = None

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return self.class_sampler or super()._get_train_sampler(*args, **kwargs)

    return Classifying


def trainer_kwargs(trainer: ClassifierRun) -> dict[str, Any]:
    """The collator and the loss of a run."""
    params: Any = trainer.config.algorithm
    counts = count_labels(trainer._train_rows().dataset["labels"])
    weights = class_weights(trainer.labels, counts, params.class_weights)
    if weights is not None:
        shown = ", ".join(f"{n} {w:.3g}" for n, w in list(zip(trainer.labels.names, weights, strict=True))[:8])
        trainer._tell([f"class weights: {shown}" + (" ..." if len(weights) > 8 else "")])
    return {"data_collator": Collator(trainer.tokenizer.pad_token_id), "compute_loss_func": LabelLoss(weights)}


def attach(hf: Any, trainer: ClassifierRun) -> None:
    """Set the sampler, and the check that the loss of ours is the one that is trained."""
    from transformers import TrainerCallback

    loss = hf.compute_loss_func
    if getattr(trainer.config.algorithm, "balanced_sampling", False):
        hf.class_sampler = BalancedSampler(trainer._train_rows().dataset["labels"], trainer.config.train.seed)

    class Check(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if not loss.calls:
                raise TrainingError(
                    "the training library did not call the loss of this task, and trained another one",
                    hint="set `backend: trl`",
                )

    hf.add_callback(Check())


class Collator:
    """Rows to a batch, filled up on the right: ids with `pad_id`, labels of tokens with -100."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """input_ids and attention_mask (B, T); labels (B,) for texts, (B, T) for tokens."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)

        def fill(values: list[int], filler: int) -> list[int]:
            return [*values, *[filler] * (longest - len(values))]

        labels = [row["labels"] if isinstance(row["labels"], int) else fill(row["labels"], IGNORED) for row in rows]
        return {
            "input_ids": torch.tensor([fill(row["input_ids"], self.pad_id) for row in rows]),
            "attention_mask": torch.tensor([fill([1] * len(row["input_ids"]), 0) for row in rows]),
            "labels": torch.tensor(labels),
        }


class LabelLoss:
    """Weighted cross-entropy over labels, divided by the number of labelled items.

    Args:
        weights: a factor for each label; None is 1 for all.

    Attributes:
        calls: how often it was called.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        self.weights = weights
        self.calls = 0

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """The loss of a micro-batch.

        Args:
            outputs: with `logits`, (B, K) or (B, T, K).
            labels: (B,) or (B, T), -100 for none.
            num_items_in_batch: labelled items of the whole optimizer step; None takes those of `labels`.
        """
        import torch

        self.calls += 1
        logits = outputs.logits.float().flatten(0, -2)
        weights = None if self.weights is None else torch.tensor(self.weights, device=logits.device)
        total = torch.nn.functional.cross_entropy(
            logits, labels.flatten(), weight=weights, reduction="sum", ignore_index=IGNORED
        )
        return total / (labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


class BalancedSampler:
    """Row numbers of an epoch in which every class comes equally often (counts differ by one at most).

    An epoch has as many rows as the data. Each class deals its rows out of shuffled rounds, so that none comes twice
    before all have come. The order follows from the seed and the epoch alone, which makes a resume exact.

    Args:
        labels: the label number of each row.
        seed: of the order.
    """

    def __init__(self, labels: Sequence[int], seed: int) -> None:
        self.by_class: dict[int, list[int]] = {}
        for row, label in enumerate(labels):
            self.by_class.setdefault(label, []).append(row)
        self.total = len(labels)
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return self.total

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self.seed}/{self.epoch}")
        classes = sorted(self.by_class)
        generator.shuffle(classes)
        share, more = divmod(self.total, len(classes))
        drawn: list[int] = []
        for i, label in enumerate(classes):
            rows = self.by_class[label]
            wanted = share + (i < more)
            while wanted > 0:
                dealt = generator.sample(rows, min(wanted, len(rows)))
                drawn += dealt
                wanted -= len(dealt)
        generator.shuffle(drawn)
        yield from drawn
