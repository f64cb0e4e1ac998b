"""Rewards by the vectors of a local encoder: `semantic_similarity` and `bertscore`.

    rewards: [{type: semantic_similarity, params: {path: models/all-MiniLM-L6-v2}}]
    rewards: [{type: bertscore, params: {path: models/roberta-large, layer: 17, baseline: 0.8315}}]

Both compare the text after its thought with a reference; several references (a list) are alternatives, and the best
counts. A row without one is None, counted as `no_reference`. Vectors of unrelated texts are rarely orthogonal: every
score has a floor, different for each model, that `baseline` takes away. Measure it: the mean score of your own
references against other rows' references.

Similar is not right: "the tax rose" and "the tax did not rise" have near vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Lt
from pydantic import NonNegativeInt, PositiveInt

from aligntune.grading.extract import strip_reasoning
from aligntune.rewards.base import REWARDS, Score
from aligntune.rewards.builtin.answer import golds
from aligntune.rewards.models.base import Precision
from aligntune.rewards.models.embedder import Embedder, Pooling
from aligntune.rewards.models.reward import ModelReward

Baseline = Annotated[float, Ge(-1), Lt(1)]


def rescale(score: float, baseline: float) -> float:
    """(score - baseline) / (1 - baseline), within [0, 1] (Zhang et al. 2020, arXiv:1904.09675, section 5).

    >>> rescale(0.9, 0.8)
    0.5
    """
    return round(min(1.0, max(0.0, (score - baseline) / (1 - baseline))), 12)


class _Compared(ModelReward):
    """Rewards that compare a text with references by one encoder."""

    kind = "model"
    range = (0.0, 1.0)
    columns = frozenset({"reference"})
    model: Embedder

    def _compared(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        vectors: Callable[[list[str]], Sequence[Any]],
        score: Callable[[Any, Any], float],
    ) -> list[Score]:
        """The best score of each text over its references; every text goes through the model once."""
        right = [golds(value) for value in self.column(columns, "reference")]
        bodies = [strip_reasoning(text).strip() for text in texts]
        needed = [body for body, row in zip(bodies, right, strict=True) if row and body]
        needed += [gold for row in right for gold in row]
        unique = list(dict.fromkeys(needed))
        found = dict(zip(unique, vectors(unique), strict=True)) if unique else {}
        return [
            None if not row else 0.0 if not body else max(score(found[body], found[gold]) for gold in row)
            for body, row in zip(bodies, right, strict=True)
        ]


class SemanticSimilarityReward(_Compared):
    """Cosine between the vectors of the text and of the reference, by a named embedding model; 0 where it is negative.

    (cos - baseline) / (1 - baseline), cut at 0 (Reimers and Gurevych 2019, arXiv:1908.10084, for the vectors). An empty
    text scores 0.

    Args:
        path: a folder or hub id of an encoder, in the layout of Sentence-Transformers or plain.
        revision: branch, tag or commit of the hub repository.
        pooling: `mean`, `cls` or `last`; None takes what the folder states, else the mean.
        prefix: written before each text, as some models want ("query: ").
        baseline: the cosine of unrelated texts; 0 leaves the cosine as it is.
        batch_size: texts per forward pass.
        max_length: most tokens of a text; a longer one is cut at its end and counted (`truncated`).
        precision: of the weights; auto is bf16 on a GPU that has it, fp16 on an older one, fp32 on the CPU.
        trust_remote_code: run Python code from the model's repository. Only for code that you have read.
    """

    name = "semantic_similarity"

    def setup(
        self,
        path: str,
        *,
        revision: str | None = None,
        pooling: Pooling | None = None,
        prefix: str = "",
        baseline: Baseline = 0.0,
        batch_size: PositiveInt = 16,
        max_length: PositiveInt | None = None,
        precision: Precision = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        self.baseline = baseline
        self.model = Embedder(
            path,
            pooling=pooling,
            prefix=prefix,
            revision=revision,
            batch_size=batch_size,
            max_length=max_length,
            precision=precision,
            trust_remote_code=trust_remote_code,
        )
        self.scorers = {"embedding": self.model}

    def scores(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Score]:
        """Rescaled cosines, N."""

        def cosine(a: Any, b: Any) -> float:
            return rescale(float(a.astype("float64") @ b.astype("float64")), self.baseline)

        return self._compared(texts, columns, lambda rows: list(self.model.embed(rows)), cosine)


class BertscoreReward(_Compared):
    """BERTScore's F1: greedy matching of token vectors of a named model at a stated layer.

    P = mean over the text's tokens of the greatest cosine with a token of the reference, R the same from the reference,
    F = 2PR / (P + R) (Zhang et al. 2020, arXiv:1904.09675, equation 1), without idf weights. Special tokens may be
    matched, and are not averaged, as in the package bert-score. An empty text scores 0. In logs its name is
    `bertscore[<model>:<layer>]`, because a number without model and layer says nothing.

    Args:
        path: a folder or hub id of an encoder.
        layer: 0 is the embedding layer. The authors chose 17 for roberta-large, 10 for roberta-base, 9 for
            bert-base-uncased and 5 for distilbert-base-uncased, by correlation with people's judgements.
        baseline: F of unrelated texts, of this model and layer; None leaves F as it is, in a narrow band below 1. The
            authors' for roberta-large at layer 17, English: 0.8315.
        revision: branch, tag or commit of the hub repository.
        batch_size: texts per forward pass.
        max_length: most tokens of a text; a longer one is cut at its end and counted (`truncated`).
        precision: of the weights; auto is bf16 on a GPU that has it, fp16 on an older one, fp32 on the CPU.
        trust_remote_code: run Python code from the model's repository. Only for code that you have read.
    """

    name = "bertscore"

    def setup(
        self,
        path: str,
        layer: NonNegativeInt,
        *,
        baseline: Baseline | None = None,
        revision: str | None = None,
        batch_size: PositiveInt = 16,
        max_length: PositiveInt | None = None,
        precision: Precision = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        self.layer, self.baseline = layer, 0.0 if baseline is None else baseline
        self.model = Embedder(
            path,
            revision=revision,
            batch_size=batch_size,
            max_length=max_length,
            precision=precision,
            trust_remote_code=trust_remote_code,
        )
        self.scorers = {f"bertscore layer {layer}": self.model}

    @property
    def label(self) -> str:
        """The name with model and layer."""
        return f"bertscore[{Path(self.model.path).name}:{self.layer}]" if "layer" in self.__dict__ else self.name

    def scores(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Score]:
        """Rescaled F1, N."""

        def f1(a: Any, b: Any) -> float:
            return rescale(greedy_f1(*a, *b), self.baseline)

        return self._compared(texts, columns, lambda rows: self.model.tokens(rows, self.layer), f1)


def greedy_f1(text: Any, counted: Any, reference: Any, wanted: Any) -> float:
    """F1 of greedy matching.

    Args:
        text: vectors of length 1, [T, d].
        counted: which of them are averaged, bool [T].
        reference: [R, d].
        wanted: bool [R].

    Returns:
        A number in [-1, 1]; 0 where a side has no token that is averaged, or precision and recall are not positive.
    """
    if not counted.any() or not wanted.any():
        return 0.0
    cosines = text @ reference.T
    precision = float(cosines.max(1)[counted].mean(dtype="float64"))
    recall = float(cosines.max(0)[wanted].mean(dtype="float64"))
    return 2 * precision * recall / (precision + recall) if precision > 0 and recall > 0 else 0.0


for _reward in (SemanticSimilarityReward, BertscoreReward):
    REWARDS.add(_reward.name, _reward)
