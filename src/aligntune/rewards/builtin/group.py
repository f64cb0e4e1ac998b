"""A reward that compares the answers to one prompt with each other: `diversity`.

    rewards: [{type: math_correctness}, {type: diversity, weight: 0.1, params: {method: distinct}}]

A group is the answers to equal prompts within a batch, as GRPO and its kin sample them; a group of one has no
diversity, and its score is None (counted as `alone`). Give it a small weight beside a reward for being right: noise is
diverse.

Source: Self-BLEU (Zhu et al. 2018, arXiv:1802.01886), distinct-n (Li et al. 2016, arXiv:1510.03055).
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Literal

from pydantic import PositiveInt

from aligntune import errors
from aligntune.grading.extract import strip_reasoning
from aligntune.grading.text import words
from aligntune.rewards.base import count, reward

MAX_WORDS = 1_000


def completion_text(completion: Any) -> str:
    """The text of a completion as TRL gives it: a text, or messages, whose contents count."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion or [])


def groups(prompts: list[Any]) -> list[list[int]]:
    """Places of equal prompts, in order of appearance.

    >>> groups(["a", "b", "a"])
    [[0, 2], [1]]
    """
    found: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        key = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
        found.setdefault(key, []).append(i)
    return list(found.values())


def _distinct(texts: list[list[str]], n: int) -> list[float]:
    """Share of each text's n-grams that no other text has, over the first words that all texts have.

    Texts of fewer than n words score 0 and do not shorten the others.
    """
    length = min((len(words) for words in texts if len(words) >= n), default=0)
    grams = [[tuple(words[i : i + n]) for i in range(length - n + 1)] if len(words) >= n else [] for words in texts]
    having = Counter(gram for own in grams for gram in set(own))
    return [len({g for g in own if having[g] == 1}) / len(own) if own else 0.0 for own in grams]


def _self_bleu(texts: list[list[str]], n: int) -> list[float]:
    """1 - BLEU of each text with the others as its references; 0 for a text without words."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as e:
        raise errors.EnvironmentError(
            "the reward 'diversity' with method: self_bleu needs the package sacrebleu, which is not installed",
            hint="run: pip install 'aligntune[text]', or set method: distinct",
        ) from e
    bleu = BLEU(effective_order=True, max_ngram_order=n, tokenize="none")
    joined = [" ".join(words) for words in texts]
    found = []
    for i, text in enumerate(joined):
        others = [other for k, other in enumerate(joined) if k != i and other]
        score = bleu.sentence_score(text, others).score if others and text else 0.0
        found.append(max(0.0, 1 - score / 100) if text else 0.0)
    return found


@reward("diversity", kind="measured")
def diversity(
    prompts: Any,
    completions: Any,
    *,
    method: Literal["self_bleu", "distinct"] = "self_bleu",
    n: PositiveInt = 4,
) -> list[float | None]:
    """How far an answer differs from the other answers to the same prompt, after their thoughts.

    `self_bleu`: 1 - its BLEU with the others as references (extra `text`). `distinct`: the share of its n-grams that no
    other answer has (repeated ones count once), over the first words that all answers have, because the share falls
    with the length. Both judge the first 1,000 words. An answer without words scores 0. The score is one of a group, so
    a batch is needed: scored alone, a text has none.

    Args:
        method: which.
        n: the longest n-gram of BLEU (4, as in BLEU itself), or the n of distinct-n.

    >>> get_reward_function("diversity", method="distinct", n=1).batch(
    ...     ["red cat", "red dog"], {"prompt": ["name one", "name one"]}
    ... )
    [0.5, 0.5]
    """
    found: list[float | None] = [None] * len(completions)
    for group in groups(list(prompts)):
        if len(group) < 2:
            count("alone")
            continue
        texts = [words(strip_reasoning(completion_text(completions[i])))[:MAX_WORDS] for i in group]
        scores = _self_bleu(texts, n) if method == "self_bleu" else _distinct(texts, n)
        for i, score in zip(group, scores, strict=True):
            found[i] = score
    return found


diversity.reward_class.whole = True  # type: ignore[attr-defined]
