"""A tag for each word of a sentence, by a model with a token classification head: entities, or parts of speech.

The tag of a word is that of its first token (Devlin et al. 2019, section 5.3). Where the tag set marks entities,
`entity_f1` counts whole entities (`aligntune.eval.entities`, as seqeval does); in any case `accuracy` counts tags, and
`f1_macro` is the mean over tags. Intervals take sentences as independent, not words. A word that was cut off, or has
no token, counts as O where there is an O, else as wrong: a shorter limit cannot raise a score.

`details` hold the scores of each entity type and the confusion counts of tags. Calibration is not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.data.encoding import encode_words
from aligntune.eval.classification import log_probabilities, word_tags
from aligntune.eval.entities import OUTSIDE, entity_scores, marks_entities
from aligntune.eval.heads import labels_of
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.entities import EntityF1Metric
from aligntune.eval.metrics.labels import MacroF1Metric, TagAccuracyMetric, labels_in
from aligntune.eval.tasks.base import EvalKind, Row, Subject
from aligntune.eval.tasks.classification import confusion, each_label, token_limit

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings


class TokenClassification(EvalKind):
    """`entity_f1`, `entity_precision`, `entity_recall` (of tags that mark entities), `accuracy`, `f1_macro`, `cut`."""

    schema = Schema.TOKENS
    head = "token_classification"
    options = frozenset({"labels", "max_length"})

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """One item per sentence: its gold and predicted tags, one for each word."""
        labels = labels_of(subject.model, settings.labels)
        limit = token_limit(subject.model, subject.tokenizer, settings.max_length)
        gold = [[labels.names[labels.id(tag)] for tag in row["tags"]] for row in rows]
        encoded = encode_words(subject.tokenizer, [row["tokens"] for row in rows], limit)
        known = [i for i, sentence in enumerate(encoded) if sentence.ids]
        pad = subject.tokenizer.pad_token_id or 0
        scored = log_probabilities(subject.model, [encoded[i].ids for i in known], pad, settings.batch_size)
        logps = dict(zip(known, scored, strict=True))
        nothing = OUTSIDE if OUTSIDE in labels.names else None
        found = []
        for i, (row, sentence) in enumerate(zip(rows, encoded, strict=True)):
            where = sentence.positions
            tags = word_tags(logps[i], where, labels.names) if i in logps else [None] * len(gold[i])
            found.append({
                "id": ids[i],
                "prompt": " ".join(row["tokens"]),
                "tags": gold[i],
                "predicted_tags": [nothing if tag is None else tag for tag in tags],
                "words": len(gold[i]),
                "entities": marks_entities(labels.names),
                "cut": float(sentence.length > len(sentence.ids)),
            })  # fmt: skip
        return found

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """Entities first, where the tag set marks any."""
        entities: list[Metric] = [EntityF1Metric(m) for m in ("f1", "precision", "recall")]  # type: ignore[arg-type]
        tags = labels_in(items, "tags", "predicted_tags")
        return [
            *(entities if items and items[0]["entities"] else []),
            TagAccuracyMetric(),
            MacroF1Metric(tags, "tags", "predicted_tags"),
            MeanMetric("cut", higher_is_better=False),
        ]

    def details(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]], subject: Subject) -> dict[str, Any]:
        """Scores of each tag and entity type, and confusion counts."""
        pairs = [pair for item in items for pair in zip(item["tags"], item["predicted_tags"], strict=True)]
        found = {"labels": each_label(pairs), "confusion": confusion(pairs)}
        if items and items[0]["entities"]:
            guess = [[OUTSIDE if tag is None else tag for tag in item["predicted_tags"]] for item in items]
            scores = entity_scores([item["tags"] for item in items], guess)
            kinds = [key.partition("/")[2] for key in scores if key.startswith("entities/")]
            found["entities"] = {
                kind: {key: scores[f"{key}/{kind}"] for key in ("precision", "recall", "f1", "entities")}
                for kind in kinds
            }
        return found
