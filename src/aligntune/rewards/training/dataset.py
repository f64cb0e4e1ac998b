"""The data of a reward model: answers with scores, pairs of answers, and the way from one to the other.

    data = RewardModelDataset.label(rows, rewards)             # answers, scored by a CompositeReward
    train, held_out = data.split(0.1, seed=0)                  # by prompt: no prompt is in both
    pairs = train.make_pairs(threshold=0.1, per_prompt=4, seed=0).with_noise(0.05, seed=0)

Pairs are made within one prompt only, because a score has no meaning across prompts: the answer with the higher score
is the chosen one, where the two differ by more than `threshold`; at most `per_prompt` are drawn. Example: the scores 3,
1, 1 of one prompt give two pairs (3 over each 1), and none of the two equal ones. What is left out is counted in
`counts`. It is a map-style dataset for PyTorch (`len`, index). It neither tokenizes (`parts`) nor reads (`reading`).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError, ValidationError

if TYPE_CHECKING:
    from aligntune.rewards.composite import CompositeReward

Message = dict[str, Any]


@dataclass(frozen=True)
class ScoredText:
    """An answer with its score.

    Attributes:
        prompt: the conversation before the answer, as messages.
        text: the answer.
        score: the composite's total.
        components: each reward's value, None where it does not apply.
        source: where the answer comes from.
        human: a person's score of it, where the data have one.
    """

    prompt: list[Message]
    text: str
    score: float
    components: dict[str, float | None] = field(default_factory=dict)
    source: str = ""
    human: float | None = None


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        prompt: the conversation before the answers, as messages.
        chosen: the answer that is to score higher.
        rejected: the other.
        margin: the difference of their training scores, at least 0; None for pairs that the data give.
        flipped: the two were swapped on purpose (label noise).
        sources: where each comes from.
    """

    prompt: list[Message]
    chosen: str
    rejected: str
    margin: float | None = None
    flipped: bool = False
    sources: tuple[str, str] = ("", "")


def prompt_key(prompt: Sequence[Mapping[str, Any]] | str) -> str:
    """What makes two prompts the same: the roles and texts of their messages, white space at the ends aside."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    plain = [[m["role"], str(m.get("content") or "").strip(), m.get("tool_calls")] for m in prompt]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RewardModelDataset:
    """Scored answers, or pairs of answers.

    Args:
        texts: answers with scores.
        pairs: pairs; given by the data, or made of `texts`.
        notes: one sentence for each thing that was decided or left out.
        counts: how many of what.
        source: the source in words.
        content_hash: SHA-256 over the source's rows.
    """

    def __init__(
        self,
        texts: Sequence[ScoredText] = (),
        pairs: Sequence[Pair] = (),
        *,
        notes: Sequence[str] = (),
        counts: Mapping[str, int] | None = None,
        source: str = "",
        content_hash: str = "",
    ) -> None:
        self.texts, self.pairs = list(texts), list(pairs)
        self.notes, self.counts = list(notes), Counter(counts or {})
        self.source, self.content_hash = source, content_hash

    def __len__(self) -> int:
        return len(self.pairs or self.texts)

    def __getitem__(self, index: int) -> Pair | ScoredText:
        return (self.pairs or self.texts)[index]

    def __repr__(self) -> str:
        return f"RewardModelDataset({len(self.texts)} texts, {len(self.pairs)} pairs, {len(self.keys)} prompts)"

    @classmethod
    def label(
        cls,
        rows: Sequence[Mapping[str, Any]],
        rewards: CompositeReward | None,
        *,
        human: str | None = None,
        **about: Any,
    ) -> RewardModelDataset:
        """Score answers by reward functions, or by people.

        Args:
            rows: each with `prompt` (messages or text), `text`, and the columns that the rewards read.
            rewards: what scores; a row whose total is None is left out and counted (`unscored`). None takes `human`.
            human: the column of a person's score.
            about: `notes`, `source` and `content_hash`.

        Raises:
            ValidationError: no row is left, or a reward misses a column.
            RewardError: a reward failed.
        """
        if not rows:
            raise ValidationError("there is no answer to score", hint="check the data and `answers`")
        prompts = [_messages(row["prompt"]) for row in rows]
        names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "text", "row"))
        columns: dict[str, list[Any]] = {"prompt": prompts, **{name: [row.get(name) for row in rows] for name in names}}
        if rewards is not None:
            scores = rewards.score_batch([row["text"] for row in rows], columns)
            totals, components = list(scores.total), scores.components
        elif human is not None:
            totals, components = [None if v is None else float(v) for v in columns[human]], {}
        else:
            raise ConfigurationError("nothing scores the answers", hint="give rewards, or a column of people's scores")
        texts = [
            ScoredText(
                prompts[i],
                row["text"],
                total,
                {name: values[i] for name, values in components.items()},
                f"{about.get('source', '')}#{row.get('row', i)}",
                None if human is None or row.get(human) is None else float(row[human]),
            )
            for i, (row, total) in enumerate(zip(rows, totals, strict=True))
            if total is not None
        ]
        lost = len(rows) - len(texts)
        if not texts:
            raise ValidationError(
                f"none of the {len(rows)} answers has a score", hint="check the columns that the rewards read"
            )
        made = cls(texts, counts={"texts": len(texts), "unscored": lost}, **about)
        if lost:
            made.notes.append(f"{lost} of {len(rows)} answers have no score (None) and are left out.")
        return made

    @classmethod
    def from_pairs(cls, rows: Sequence[Mapping[str, Any]], **about: Any) -> RewardModelDataset:
        """Pairs that the data give.

        Args:
            rows: each with `prompt`, `chosen` and `rejected` (message lists, or text).
            about: `notes`, `source` and `content_hash`.

        Raises:
            ValidationError: no pair is left.
        """
        from aligntune.rewards.adapters import completion_text

        pairs, equal = [], 0
        for i, row in enumerate(rows):
            lacking = [name for name in ("prompt", "chosen", "rejected") if name not in row]
            if lacking:
                raise ValidationError(
                    f"row {i} has no {lacking[0]}; it has {', '.join(map(str, row)) or 'nothing'}",
                    hint="a pair has prompt, chosen and rejected",
                )
            chosen, rejected = completion_text(row["chosen"]), completion_text(row["rejected"])
            equal += chosen == rejected
            if chosen != rejected:
                where = f"{about.get('source', '')}#{row.get('row', i)}"
                pairs.append(Pair(_messages(row["prompt"]), chosen, rejected, sources=(where, where)))
        if not pairs:
            raise ValidationError(f"none of the {len(rows)} rows is a pair of different answers", hint="check the data")
        made = cls(pairs=pairs, counts={"pairs": len(pairs), "equal_answers": equal}, **about)
        if equal:
            made.notes.append(f"{equal} of {len(rows)} pairs have two equal answers and are left out.")
        return made

    @property
    def keys(self) -> list[str]:
        """The prompts, by `prompt_key`, in order of appearance."""
        return list(
            dict.fromkeys([prompt_key(t.prompt) for t in self.texts] + [prompt_key(p.prompt) for p in self.pairs])
        )

    def by_prompt(self) -> dict[str, list[ScoredText]]:
        """The answers of each prompt, by `prompt_key`."""
        groups: dict[str, list[ScoredText]] = {}
        for text in self.texts:
            groups.setdefault(prompt_key(text.prompt), []).append(text)
        return groups

    @property
    def standard(self) -> tuple[float, float]:
        """Mean and standard deviation (divisor n) of the scores.

        Raises:
            ValidationError: all scores are equal, so that there is nothing to learn.
        """
        scores = [t.score for t in self.texts]
        mean = math.fsum(scores) / len(scores)
        std = math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / len(scores))
        if std <= 1e-12 * max(1.0, abs(mean)):
            raise ValidationError(
                f"all {len(scores)} answers have the score {mean:g}, so there is nothing to learn",
                hint="choose rewards that tell the answers apart (`aligntune rewards score` shows them)",
            )
        return mean, std

    def make_pairs(self, *, threshold: float = 0.0, per_prompt: int | None = 8, seed: int = 0) -> RewardModelDataset:
        """This dataset with the pairs that its scores make; pairs that it had are replaced.

        Args:
            threshold: least difference of two scores, which must be above it.
            per_prompt: most pairs of a prompt, drawn with the seed; None keeps all.
            seed: of the draw.

        Raises:
            ValidationError: no pair is left.
        """
        pairs: list[Pair] = []
        counts: Counter[str] = Counter()
        for key, group in self.by_prompt().items():
            found = []
            for a, b in combinations(group, 2):
                high, low = (a, b) if a.score > b.score else (b, a)
                margin = high.score - low.score
                if margin > threshold and high.text != low.text:
                    sources = (high.source, low.source)
                    found.append(Pair(high.prompt, high.text, low.text, margin, sources=sources))
                else:
                    counts["below_threshold"] += 1
            if per_prompt is not None and len(found) > per_prompt:
                counts["over_cap"] += len(found) - per_prompt
                kept = sorted(random.Random(f"{seed}/{key}").sample(range(len(found)), per_prompt))
                found = [found[i] for i in kept]
            counts["single_answer"] += len(group) == 1
            pairs += found
        if not pairs:
            raise ValidationError(
                f"no two answers to one prompt differ by more than {threshold:g}: {counts['single_answer']} of "
                f"{len(self.by_prompt())} prompts have one answer only",
                hint="give several answers for each prompt, lower pairs.threshold, or train by `distillation`",
            )
        note = (
            f"{len(pairs)} pairs of {len(self.texts)} answers to {len(self.by_prompt())} prompts; left out: "
            f"{counts['below_threshold']} that differ by {threshold:g} or less, {counts['over_cap']} over the cap; "
            f"{counts['single_answer']} prompts have one answer."
        )
        return self._with(pairs=pairs, notes=[*self.notes, note], counts={**self.counts, **counts, "pairs": len(pairs)})

    def with_noise(self, share: float, *, seed: int = 0) -> RewardModelDataset:
        """This dataset with round(share x pairs) of its pairs swapped, drawn with the seed, marked and counted.

        Raises:
            ConfigurationError: a share outside [0, 0.5), or no pairs.
        """
        if not 0 <= share < 0.5:
            raise ConfigurationError(f"label_noise is {share}", hint="give a share from 0 to below 0.5")
        if not self.pairs:
            raise ConfigurationError("label noise swaps pairs, and there are none", hint="call make_pairs() first")
        drawn = set(random.Random(f"{seed}/noise").sample(range(len(self.pairs)), round(share * len(self.pairs))))
        pairs = [
            replace(p, chosen=p.rejected, rejected=p.chosen, flipped=True, sources=p.sources[::-1]) if i in drawn else p
            for i, p in enumerate(self.pairs)
        ]
        notes = self.notes
        if drawn:
            notes = [*notes, f"{len(drawn)} of {len(pairs)} training pairs are swapped on purpose (label noise)."]
        return self._with(pairs=pairs, notes=notes, counts={**self.counts, "flipped": len(drawn)})

    def split(self, share: float, *, seed: int = 0) -> tuple[RewardModelDataset, RewardModelDataset]:
        """(training, held-out) parts that have no prompt in common.

        Args:
            share: of the prompts that are held out; at least one prompt is in each part.
            seed: of the draw, which depends on the prompts alone, not on their order.

        Raises:
            ValidationError: there are fewer than two prompts.
        """
        keys = sorted(self.keys, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
        if len(keys) < 2:
            raise ValidationError(
                "the data have one prompt only, so none can be held out", hint="set held_out: 0, or give more prompts"
            )
        held = set(keys[: min(max(round(share * len(keys)), 1), len(keys) - 1)])
        return self._select(held, inside=False), self._select(held, inside=True)

    def without(self, keys: set[str]) -> RewardModelDataset:
        """This dataset without the prompts of these `prompt_key`s."""
        return self._select(keys, inside=False)

    def _select(self, keys: set[str], *, inside: bool) -> RewardModelDataset:
        texts = [t for t in self.texts if (prompt_key(t.prompt) in keys) is inside]
        pairs = [p for p in self.pairs if (prompt_key(p.prompt) in keys) is inside]
        counts = {"texts": len(texts), "pairs": len(pairs)}
        return self._with(texts=texts, pairs=pairs, counts={**self.counts, **counts})

    def _with(self, **changes: Any) -> RewardModelDataset:
        now: dict[str, Any] = {
            "texts": self.texts,
            "pairs": self.pairs,
            "notes": self.notes,
            "counts": self.counts,
            "source": self.source,
            "content_hash": self.content_hash,
            **changes,
        }
        return RewardModelDataset(**now)


def _messages(prompt: Any) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
