"""Rewards that measure overlap with a reference text: `bleu`, `chrf`, `rouge`.

    get_reward_function("bleu").compute("the cat sat", reference="the cat sat")             # 1.0
    get_reward_function("rouge").compute("the cat sat", reference="the cat slept")          # 0.667

Several references (a list) are alternatives. A row without one is None, counted as `no_reference`. Of a text after its
thought the first 20,000 characters count, and 1,000 words for ROUGE-L, which is quadratic; a longer one is counted as
`truncated`.

Source: sacrebleu (Post 2018, arXiv:1804.08771) and rouge-score, the extra `text`. They compare words, not meaning: a
right answer in other words scores low.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from pydantic import PositiveInt

from aligntune import errors
from aligntune.grading.extract import strip_reasoning
from aligntune.grading.text import words
from aligntune.rewards.base import count, reward
from aligntune.rewards.builtin.answer import golds

MAX_CHARACTERS = 20_000
MAX_WORDS = 1_000


def _body(text: str) -> str:
    body = strip_reasoning(text).strip().encode("utf-8", "replace").decode()
    if len(body) > MAX_CHARACTERS:
        count("truncated")
    return body[:MAX_CHARACTERS]


def _missing(package: str, name: str) -> errors.EnvironmentError:
    return errors.EnvironmentError(
        f"the reward '{name}' needs the package {package}, which is not installed",
        hint="run: pip install 'aligntune[text]'",
    )


@lru_cache(maxsize=16)
def _sacrebleu(name: str, **options: Any) -> Any:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as e:
        raise _missing("sacrebleu", name) from e
    return (BLEU if name == "bleu" else CHRF)(**options)


@reward("bleu", kind="reference")
def bleu(
    text: str,
    reference: Any,
    *,
    max_order: PositiveInt = 4,
    tokenize: Literal["13a", "char", "zh", "intl", "none"] = "13a",
    lowercase: bool = False,
) -> float | None:
    """Sentence BLEU by sacrebleu, divided by 100, with effective order: a text of two words is judged by pairs at most.

    Brevity penalty x geometric mean of the n-gram precisions, smoothed (Papineni et al. 2002; Post 2018,
    arXiv:1804.08771).

    Args:
        reference: the reference, or a list of them.
        max_order: the longest n-gram.
        tokenize: sacrebleu's tokenizer; `zh` or `char` for scripts without spaces.
        lowercase: without regard to case.

    >>> get_reward_function("bleu").compute("the cat sat", reference="the cat sat")
    1.0
    """
    right = golds(reference)
    if not right:
        return None
    metric = _sacrebleu("bleu", effective_order=True, max_ngram_order=max_order, tokenize=tokenize, lowercase=lowercase)
    score: float = metric.sentence_score(_body(text), right).score
    return min(1.0, max(0.0, score / 100))


@reward("chrf", kind="reference")
def chrf(text: str, reference: Any, *, word_order: Literal[0, 1, 2] = 0, beta: PositiveInt = 2) -> float | None:
    """Character n-gram F-score by sacrebleu, divided by 100: chrF2, or chrF++ with word_order 2.

    F_beta of precision and recall averaged over character n-grams of order 1 to 6 (Popovic 2015; 2017).

    Args:
        reference: the reference, or a list of them.
        word_order: the longest word n-gram that joins in.
        beta: how much more recall counts than precision.

    >>> get_reward_function("chrf").compute("the cat sat", reference="the cat sat")
    1.0
    """
    right = golds(reference)
    if not right:
        return None
    score: float = _sacrebleu("chrf", word_order=word_order, beta=beta).sentence_score(_body(text), right).score
    return min(1.0, max(0.0, score / 100))


class _Words:
    """rouge-score's tokenizer interface over our words, because its own drops every letter that is not ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)[:MAX_WORDS]


@lru_cache(maxsize=4)
def _rouge(variant: str) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as e:
        raise _missing("rouge-score", "rouge") from e
    return RougeScorer([variant], tokenizer=_Words())


@reward("rouge", kind="reference")
def rouge(
    text: str,
    reference: Any,
    *,
    variant: Literal["rouge1", "rouge2", "rougeL"] = "rougeL",
    measure: Literal["fmeasure", "precision", "recall"] = "fmeasure",
) -> float | None:
    """ROUGE by rouge-score: overlap of words (rouge1), pairs (rouge2), or the longest common subsequence (rougeL).

    The best over several references (Lin 2004). Words are those of every script, without stemming; in English text they
    are rouge-score's own.

    Args:
        reference: the reference, or a list of them.
        variant: which one.
        measure: F1, precision or recall; recall alone pays for length.

    >>> get_reward_function("rouge", variant="rouge2").compute("the cat sat", reference="the cat slept")
    0.5
    """
    right = golds(reference)
    if not right:
        return None
    scorer, body = _rouge(variant), _body(text)
    return max(float(getattr(scorer.score(gold[:MAX_CHARACTERS], body)[variant], measure)) for gold in right)
