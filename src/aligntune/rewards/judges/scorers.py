"""How a judged quality is scored, by backend: one small class for each way, made of the reward's parameters.

    scorer = make_scorer("classifier", {"path": "models/tone", "label": "polite"})
    scorer.scores(["Thank you."], [{}])             # [0.98]

A scorer takes texts that are not blank and their rows, and gives one score in [0, 1] each, or None. Higher is better:
a classifier's unwanted label is named by `not_label`.

| scorer | score |
|---|---|
| judge | (level - lowest) / (highest - lowest) of the rubric's scale |
| classifier | P(label), or 1 - P(not_label) |
| paired | 1 - |P(label of the answer) - P(label of the answer to the paired prompt)| (counterfactual fairness as Huang et al. 2020, arXiv:1911.03064, section 3 measure it) |
| reward_model | 1 / (1 + exp(-(logit - mean) / std)), mean and std of the training scores where the folder states them |
| supported | share of sentences with an entailment of at least `threshold` by a passage of the context |
| weakest | the smallest entailment over the sentences |
| contradiction | 1 - the greatest P(contradiction) over the ordered pairs of sentences |
| relevance | cosine of prompt and answer, (cos - baseline) / (1 - baseline), at least 0 |
| context | the greatest such cosine over the passages of the context |

It does not read a blank answer: that scores 0 before a scorer is asked.
"""  # noqa: E501 - rows of a table

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError
from aligntune.grading.text import normal, sentences
from aligntune.rewards.base import Score, count
from aligntune.rewards.judges.base import make_judge
from aligntune.rewards.judges.rubric import as_text, grade, load_rubric
from aligntune.rewards.signature import gold_column

Row = Mapping[str, Any]
ECHO_WORDS = 4
"""A prompt of fewer words is not taken for repeated where its words stand in an answer."""
LOADING = ("path", "revision", "batch_size", "max_length", "precision", "trust_remote_code")


class Scorer:
    """Base of the scorers.

    Attributes:
        columns: columns that each row must have.
        may: columns that are read where a row has them.
        name: what decides, for the manifest.
    """

    columns: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset()
    name = ""

    def scores(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        """One score for each of N answers, none of them blank."""
        raise NotImplementedError(f"{type(self).__name__} has no scores(texts, rows)")

    def place(self, device: str) -> None:
        """Compute on `device`."""

    def prepare(self) -> None:
        """Make sure that scoring can begin; what is missing is an error here."""


class JudgeScorer(Scorer):
    """A judge with a rubric."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.rubric = load_rubric(params["rubric"])
        if self.rubric.form != "score":
            raise ConfigurationError(
                f"the rubric '{self.rubric.name}' compares two answers", hint="take type: judge_pairwise for it"
            )
        self.judge = make_judge(params["judge"])
        self.limit = params["max_chars"]
        self.columns, self.may = frozenset(self.rubric.needs), frozenset(self.rubric.may)
        self.name = f"{self.judge.name}, rubric {self.rubric.tag}"

    def place(self, device: str) -> None:
        self.judge.place(device)

    def prepare(self) -> None:
        self.judge.check()

    def scores(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        shown: dict[int, dict[str, str]] = {}
        for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
            missing = next((c for c in self.rubric.needs if not column_text(row, c)), None)
            if missing is not None:
                count(f"no_{missing}")
                continue
            others = {c: column_text(row, c) for c in (*self.rubric.needs, *self.rubric.may)}
            shown[i] = {"prompt": as_text(row.get("prompt")), "answer": text}
            shown[i] |= {c: value for c, value in others.items() if value}
            if not shown[i]["prompt"]:
                del shown[i]["prompt"]
            if len(text) > self.limit:
                count("truncated")
        found: list[Score] = [None] * len(texts)
        for i, verdict in zip(shown, grade(self.judge, self.rubric, list(shown.values()), self.limit), strict=True):
            if verdict.problem:
                count(verdict.problem)
            found[i] = verdict.score
        return found


class ModelScorer(Scorer):
    """Base of the scorers by a local model; a subclass makes `model`."""

    model: Any

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name, revision and hash of the weights."""
        return str(self.model.source)

    def place(self, device: str) -> None:
        self.model.place(device)

    def prepare(self) -> None:
        self.model.load()


class ClassifierScorer(ModelScorer):
    """The probability of a named label, or of its opposite."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        from aligntune.rewards.models import TextClassifier

        self.label, self.wanted = params["label"] or params["not_label"], params["label"] is not None
        if (params["label"] is None) == (params["not_label"] is None):
            raise ConfigurationError(
                "needs one of label and not_label",
                hint="label: the label whose probability is the score; not_label: the one whose absence is",
            )
        self.model = TextClassifier(**_loading(params))

    def prepare(self) -> None:
        super().prepare()
        self.label = self.model.label(self.label)

    def chances(self, texts: Sequence[str]) -> list[float]:
        """P(label) of each text."""
        label = self.model.label(self.label)
        return [row[label] for row in self.model.probabilities(texts)]

    def scores(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [p if self.wanted else 1.0 - p for p in self.chances(texts)]


class PairedScorer(ClassifierScorer):
    """How little a classifier's verdict changes when the prompt names another group."""

    columns = frozenset({"counterpart"})

    def scores(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        others = [as_text(row.get("counterpart")) for row in rows]
        for _ in range(sum(not other.strip() for other in others)):
            count("no_counterpart")
        first, second = self.chances(texts), self.chances(others)
        return [1.0 - abs(a - b) if other.strip() else None for a, b, other in zip(first, second, others, strict=True)]


class RewardModelScorer(ModelScorer):
    """A reward model's logit in [0, 1]."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        from aligntune.rewards.models import OneLogit

        self.model = OneLogit(**_loading(params))
        self.mean, self.std = _stated_scale(params["path"])

    def scores(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        if any(row.get("prompt") is None for row in rows):
            raise ConfigurationError(
                "scores an answer together with its prompt, and gets none", hint="pass prompt=... (text or messages)"
            )
        logits = self.model.scores(texts, [row["prompt"] for row in rows])
        return [0.5 * (1.0 + math.tanh((z - self.mean) / self.std / 2)) for z in logits]


class SupportScorer(ModelScorer):
    """How far the sentences follow from the context: the share that does, or the weakest one."""

    columns = frozenset({"context"})

    def __init__(self, params: Mapping[str, Any]) -> None:
        from aligntune.rewards.models import NLI

        self.model = NLI(**_loading(params))
        self.threshold: float | None = params.get("threshold")
        self.words: int = params["passage_words"]

    def scores(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        from aligntune.rewards.builtin.nli import CLAIMS, context_text, support

        contexts = [context_text(row.get("context")) for row in rows]
        claims = []
        for text, context in zip(texts, contexts, strict=True):
            own = sentences(text)
            if not context:
                count("no_context")
            elif len(own) > CLAIMS:
                count("truncated")
            claims.append(own[:CLAIMS] if context else [])
        found = support(self.model, claims, contexts, self.words)
        return [self._score(row) if context else None for row, context in zip(found, contexts, strict=True)]

    def _score(self, support: Sequence[float]) -> float:
        if not support:  # nothing but marks
            return 0.0
        if self.threshold is None:
            return min(support)
        threshold: float = self.threshold
        return sum(p >= threshold for p in support) / len(support)


class ContradictionScorer(ModelScorer):
    """Whether any sentence contradicts another."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        from aligntune.rewards.models import NLI

        self.model = NLI(**_loading(params))
        self.most = params["max_sentences"]

    def scores(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        parts = [sentences(text) for text in texts]
        for own in parts:
            if len(own) > self.most:
                count("truncated")
        pairs = [list(permutations(own[: self.most], 2)) for own in parts]
        found = iter(self.model.probabilities([pair for own in pairs for pair in own]))
        worst = [max((next(found)[2] for _ in own), default=0.0) for own in pairs]
        return [1.0 - w if own else 0.0 for w, own in zip(worst, parts, strict=True)]


class RelevanceScorer(ModelScorer):
    """Likeness of the answer and its prompt, or of the answer and the nearest passage of its context."""

    def __init__(self, params: Mapping[str, Any], column: str = "prompt") -> None:
        from aligntune.rewards.models import Embedder

        self.model = Embedder(pooling=params["pooling"], prefix=params["prefix"], **_loading(params))
        self.baseline, self.column = params["baseline"], column
        self.words = params.get("passage_words")
        self.columns = frozenset({column}) - {"prompt"}

    def scores(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        targets = [self._targets(row) for row in rows]
        bodies = [self._without_echo(text, row) for text, row in zip(texts, rows, strict=True)]
        needed = [body for body, own in zip(bodies, targets, strict=True) if body and own]
        needed += [target for own in targets for target in own]
        unique = list(dict.fromkeys(needed))
        vectors = dict(zip(unique, self.model.embed(unique), strict=True)) if unique else {}
        scores: list[Score] = []
        for body, own in zip(bodies, targets, strict=True):
            if not own:
                count(f"no_{self.column}")
                scores.append(None)
            elif not body:
                count("echo")
                scores.append(0.0)
            else:
                best = max(float(vectors[body].astype("float64") @ vectors[t].astype("float64")) for t in own)
                scores.append(min(1.0, max(0.0, (best - self.baseline) / (1 - self.baseline))))
        return scores

    def _targets(self, row: Row) -> list[str]:
        if self.column == "prompt":
            text = last_question(row.get("prompt"))
            return [text] if text.strip() else []
        from aligntune.rewards.builtin.nli import context_text, passages

        return passages(context_text(row.get("context")), self.words or 300)

    def _without_echo(self, text: str, row: Row) -> str:
        """The answer without a repetition of the prompt, which would be the likest of all."""
        asked = last_question(row.get("prompt")).strip()
        if not asked:
            return text
        if normal(text) == normal(asked):
            return ""
        return text.replace(asked, " ").strip() if len(asked.split()) >= ECHO_WORDS else text


class ContextScorer(RelevanceScorer):
    """`RelevanceScorer` on the column `context`."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params, "context")


class WordsScorer(Scorer):
    """VADER's compound score, in [-1, 1]."""

    name = "VADER"

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.most = params["max_words"]

    def scores(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        from aligntune.rewards.builtin.lexical import vader

        return [vader(text, self.most) for text in texts]


class BlocklistScorer(Scorer):
    """1 while no term of a list stands in the text."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        from aligntune.rewards.builtin.lexical import read_blocklist

        if params["words"] is None:
            raise ConfigurationError("needs a word list", hint="params: {backend: lexical, words: <file of terms>}")
        self.terms = read_blocklist(params["words"])
        self.name = f"word list {params['words']}"

    def scores(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        from aligntune.rewards.builtin.lexical import blocklist

        return [blocklist(text, self.terms) for text in texts]


SCORERS: dict[str, type[Scorer]] = {
    "judge": JudgeScorer,
    "classifier": ClassifierScorer,
    "paired": PairedScorer,
    "reward_model": RewardModelScorer,
    "supported": SupportScorer,
    "weakest": SupportScorer,
    "contradiction": ContradictionScorer,
    "relevance": RelevanceScorer,
    "context": ContextScorer,
    "vader": WordsScorer,
    "blocklist": BlocklistScorer,
}


def make_scorer(kind: str, params: Mapping[str, Any]) -> Scorer:
    """The scorer of a kind (a key of `SCORERS`).

    Args:
        params: every parameter that it reads.

    Raises:
        ConfigurationError: a parameter is missing or contradicts another.
    """
    cls: Any = SCORERS[kind]
    if issubclass(cls, ModelScorer) and not params.get("path"):
        raise ConfigurationError("needs the path of a model", hint="params: {backend: model, path: <folder or hub id>}")
    made: Scorer = cls(params)
    return made


def column_text(row: Row, name: str) -> str:
    """A column as text; the gold column for `reference`."""
    if name == "reference":
        gold = gold_column(row)
        return as_text(row[gold]) if gold is not None else ""
    if name == "context":
        from aligntune.rewards.builtin.nli import context_text

        return context_text(row.get(name))
    return as_text(row.get(name))


def last_question(prompt: Any) -> str:
    """The text of a prompt, or of the last user's message of a conversation."""
    if isinstance(prompt, str) or prompt is None:
        return prompt or ""
    return next((as_text(m.get("content")) for m in reversed(prompt) if m.get("role") == "user"), "")


def _loading(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: params[name] for name in LOADING}


def _stated_scale(path: str) -> tuple[float, float]:
    """Mean and standard deviation of the training scores that a reward model's folder states; (0, 1) without."""
    stated = Path(path).expanduser() / "reward_model.json"
    if not stated.is_file():
        return 0.0, 1.0
    from aligntune.rewards.builtin.reward_model import _stated_scale as read

    return read(path)
