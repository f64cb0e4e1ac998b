"""Overlap of generated text with references: ROUGE, BLEU, chrF and BERTScore.

Items carry `prediction` (None is an empty answer) and `reference`, a text or a list of alternative texts.

    RougeMetric("rouge1").compute([{"prediction": "the cat sat", "reference": "the cat slept"}]).value     # 0.667

BLEU and chrF are computed by sacrebleu and given as it prints them, in [0, 100]; their corpus forms sum n-gram counts
over the items first, so they are not means of sentence scores. ROUGE is rouge-score's, in [0, 1]. An empty answer
counts as what it is, an empty text. Extra `text`; sources: Lin 2004, Papineni et al. 2002, Post 2018
(arXiv:1804.08771), Popovic 2015, Zhang et al. 2020 (arXiv:1904.09675).

They compare words (BERTScore: token embeddings), not meaning: a right answer in other words scores low.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from aligntune import errors
from aligntune.eval.metrics.base import Item, Metric, one_of
from aligntune.eval.metrics.corpus import CorpusMetric

FIELDS = ("prediction", "reference")


def texts(item: Item) -> tuple[str, list[str]] | None:
    """The prediction and its references; None where there is no reference."""
    reference = item["reference"]
    references = [reference] if isinstance(reference, str) else [str(r) for r in reference or []]
    references = [r for r in references if r.strip()]
    prediction = item["prediction"]
    return ("" if prediction is None else str(prediction), references) if references else None


def needed(package: str, metric: str, extra: str = "text") -> errors.EnvironmentError:
    """The error for a package that is not installed."""
    return errors.EnvironmentError(
        f"the metric {metric} needs the package {package}, which is not installed",
        hint=f"run: pip install 'aligntune[{extra}]'",
    )


class RougeMetric(Metric):
    """ROUGE of each answer, averaged; the best over several references.

    Args:
        variant: rouge1, rouge2, rougeL, or rougeLsum (line breaks separate sentences).
        measure: F1, precision or recall.
        stemmer: Porter's stemmer for English (rouge-score's `use_stemmer`).
        name: None takes the variant's.
    """

    requires = FIELDS
    why_missing = "the reference is missing"

    def __init__(
        self,
        variant: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL",
        measure: Literal["fmeasure", "precision", "recall"] = "fmeasure",
        *,
        stemmer: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name or variant)
        one_of("rouge", "variant", variant, ("rouge1", "rouge2", "rougeL", "rougeLsum"))
        one_of("rouge", "measure", measure, ("fmeasure", "precision", "recall"))
        self.variant, self.measure = variant, measure
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as e:
            raise needed("rouge-score", variant) from e
        self._scorer = RougeScorer([variant], use_stemmer=stemmer)

    def score(self, item: Item) -> float | None:
        """In [0, 1]."""
        pair = texts(item)
        if pair is None:
            return None
        prediction, references = pair
        return max(float(getattr(self._scorer.score(r, prediction)[self.variant], self.measure)) for r in references)


class _SacreMetric(CorpusMetric):
    """BLEU or chrF: sacrebleu's own statistics of a segment, summed."""

    requires = FIELDS
    why_missing = "the reference is missing"
    level: str
    _metric: Any

    def statistics(self, item: Item) -> list[float] | None:
        """What sacrebleu counts in one segment."""
        pair = texts(item)
        if pair is None:
            return None
        prediction, references = pair
        rows = self._metric._extract_corpus_statistics([prediction], [[r] for r in references])
        self._metric.num_refs = len(references)
        return [float(x) for x in rows[0]]

    def combine(self, sums: Sequence[float]) -> float | None:
        """sacrebleu's score of summed counts, in [0, 100]."""
        return float(self._metric._compute_score_from_stats(list(sums)).score)

    @property
    def signature(self) -> str:
        """sacrebleu's signature of the metric, once it has scored: what one must state beside the number."""
        return str(self._metric.get_signature())


class BleuMetric(_SacreMetric):
    """BLEU by sacrebleu, in [0, 100].

    Args:
        tokenize: sacrebleu's tokenizer; `zh` or `char` for scripts without spaces.
        lowercase: without regard to case.
        name: of the metric.
    """

    name = "bleu"

    def __init__(self, *, tokenize: str = "13a", lowercase: bool = False, name: str | None = None) -> None:
        super().__init__(name)
        try:
            from sacrebleu.metrics import BLEU
        except ImportError as e:
            raise needed("sacrebleu", "bleu") from e
        one_of("bleu", "tokenize", tokenize, sorted(BLEU.TOKENIZERS))
        self._metric = BLEU(tokenize=tokenize, lowercase=lowercase)


class SentenceBleuMetric(Metric):
    """Mean of sentence BLEU with effective order, in [0, 100]; a different number than corpus BLEU.

    Args:
        tokenize: sacrebleu's tokenizer.
        lowercase: without regard to case.
        name: of the metric.
    """

    name = "sentence_bleu"
    requires = FIELDS
    why_missing = "the reference is missing"

    def __init__(self, *, tokenize: str = "13a", lowercase: bool = False, name: str | None = None) -> None:
        super().__init__(name)
        try:
            from sacrebleu.metrics import BLEU
        except ImportError as e:
            raise needed("sacrebleu", self.name) from e
        one_of("sentence_bleu", "tokenize", tokenize, sorted(BLEU.TOKENIZERS))
        self._metric = BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)

    def score(self, item: Item) -> float | None:
        """In [0, 100]."""
        pair = texts(item)
        return None if pair is None else float(self._metric.sentence_score(*pair).score)


class ChrfMetric(_SacreMetric):
    """chrF2 by sacrebleu, in [0, 100]; chrF++ with `word_order` 2.

    Args:
        word_order: the longest word n-gram that joins in.
        name: None is `chrf`, or `chrf++`.
    """

    def __init__(self, *, word_order: Literal[0, 1, 2] = 0, name: str | None = None) -> None:
        super().__init__(name or ("chrf++" if word_order == 2 else "chrf"))
        one_of("chrf", "word_order", word_order, (0, 1, 2))
        try:
            from sacrebleu.metrics import CHRF
        except ImportError as e:
            raise needed("sacrebleu", "chrf") from e
        self._metric = CHRF(word_order=word_order)


class BertScoreMetric(Metric):
    """Mean BERTScore F1 by a local encoder, rescaled where a baseline is given; the reward `bertscore` defines it.

    Args:
        path: folder or hub id of the encoder.
        layer: whose vectors are compared; 0 is the embedding layer.
        baseline: F1 of unrelated texts of this model and layer, or None.
        batch_size: texts per forward pass.
        name: None is `bertscore[<model>:<layer>]`, because the number means nothing without them.
    """

    requires = FIELDS
    why_missing = "the reference is missing"

    def __init__(
        self, path: str, layer: int, *, baseline: float | None = None, batch_size: int = 16, name: str | None = None
    ) -> None:
        from aligntune.rewards.registry import get_reward_function

        self._reward = get_reward_function(
            "bertscore", path=path, layer=layer, baseline=baseline, batch_size=batch_size
        )
        super().__init__(name or self._reward.label)

    def score(self, item: Item) -> float | None:
        """In [0, 1]."""
        return self.scores([item])[0]

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """All items through the encoder together; an item without a reference has no score."""
        pairs = [texts(item) for item in items]
        known = [pair for pair in pairs if pair is not None]
        found = iter(self._reward.batch([p for p, _ in known], {"reference": [r for _, r in known]}))
        return [None if pair is None else next(found) for pair in pairs]
