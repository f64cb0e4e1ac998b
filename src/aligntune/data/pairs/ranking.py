"""What ranks the answers to a prompt: rewards (a reward model or a judge with a rubric among them), or comparisons.

    ranker = RewardRanker(build_rewards([RewardConfig(type="math_correctness")]), "math_correctness")
    ranker.rank(rows, [["#### 72", "#### 71"]]).scores        # [[1.0, 0.0]]

Comparisons: every two answers are shown to a judge in both orders (`aligntune.rewards.judges.compare`), k (k - 1)
questions for k answers. The score of an answer is the share of its comparisons with a result that it won, a tie
counting one half (Copeland's method), in [0, 1]; an answer without any result has none. The judge does not see the
thought of an answer; an answer that is all thought loses unasked against one that is not.

It does not decide which pairs are kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from aligntune.core.config.base import to_plain
from aligntune.data.pairs.config import PairsConfig, ranked_by
from aligntune.errors import ConfigurationError

if TYPE_CHECKING:
    from aligntune.rewards.composite import BatchScores, CompositeReward
    from aligntune.rewards.judges import Comparison, Judge, Rubric

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Ranking:
    """Scores of the answers to N prompts.

    Attributes:
        scores: N lists, one number for each answer, None where there is none.
        wins: N sets of (i, j), answer i having won against j in both orders; None where answers were not compared.
        counts: what happened on the way (`<reward>/timeout`, `judge/inconsistent` ...).
    """

    scores: list[list[float | None]]
    wins: list[frozenset[tuple[int, int]]] | None = None
    counts: Counter[str] = field(default_factory=Counter)


class Ranker:
    """Scores the answers to prompts.

    Attributes:
        name: what ranked, for the column `ranker`.
    """

    name: str

    def rank(self, rows: Sequence[Row], answers: Sequence[Sequence[str]], tokenizer: Any = None) -> Ranking:
        """Scores of the answers to each row's prompt.

        Args:
            rows: N rows with `prompt` and the columns that rewards read.
            answers: N lists of texts.
            tokenizer: the model's, for rewards that read token ids.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rank")

    def identity(self) -> dict[str, Any]:
        """Everything that scores depend on, as plain values."""
        raise NotImplementedError(f"{type(self).__name__} has no identity")

    @property
    def width(self) -> float:
        """Largest difference of two scores."""
        return 1.0

    def check(self, columns: Sequence[str]) -> None:
        """Refuse rows that lack a column, before a model is loaded."""

    def prepare(self, device: str) -> None:
        """Make sure that it can score, on `device`.

        Raises:
            EnvironmentError: a judge cannot be reached.
        """

    def usage(self) -> dict[str, Any]:
        """What a judge was asked and spent; empty where none was asked."""
        return {}


class RewardRanker(Ranker):
    """The total of a composition of rewards.

    Args:
        rewards: what scores.
        name: for the column `ranker`.
        identity: the settings that made the rewards.
    """

    def __init__(self, rewards: CompositeReward, name: str, identity: Mapping[str, Any] | None = None) -> None:
        self.rewards, self.name = rewards, name
        self._identity = dict(identity or {})

    @property
    def width(self) -> float:
        low, high = self.rewards.bounds
        return high - low

    def check(self, columns: Sequence[str]) -> None:
        self.rewards.check_columns([*columns, "prompt", "completion", "completion_ids"])

    def prepare(self, device: str) -> None:
        self.rewards.place(device)
        self.rewards.prepare()

    def identity(self) -> dict[str, Any]:
        sources = [hashlib.sha256(str(c.source).encode()).hexdigest() for c in self.rewards.components]
        return {"by": self.name, **self._identity, "sources": sources}

    def rank(self, rows: Sequence[Row], answers: Sequence[Sequence[str]], tokenizer: Any = None) -> Ranking:
        scores = score_answers(self.rewards, rows, answers, tokenizer)
        totals = iter(scores.total)
        counts = Counter({k: n for k, n in scores.stats.items() if k not in ("rows", "rows_dropped")})
        return Ranking([[next(totals) for _ in texts] for texts in answers], counts=counts)

    def usage(self) -> dict[str, Any]:
        judges = [getattr(c.reward, "judge", None) for c in self.rewards.components]
        found = next((judge for judge in judges if judge is not None), None)
        return {} if found is None else found.usage.to_dict()


class PairwiseRanker(Ranker):
    """The share of comparisons that an answer won.

    Args:
        judge: who compares.
        rubric: with `form: winner`.
        limit: most characters of a text that the judge is shown.
    """

    def __init__(self, judge: Judge, rubric: Rubric, limit: int) -> None:
        self.judge, self.rubric, self.limit = judge, rubric, limit
        self.name = f"pairwise: {judge.name}, rubric {rubric.name}-{rubric.version}"

    def prepare(self, device: str) -> None:
        self.judge.place(device)
        self.judge.check()

    def identity(self) -> dict[str, Any]:
        return {"by": "pairwise", "judge": self.judge.identity(), "rubric": self.rubric.tag, "max_chars": self.limit}

    def usage(self) -> dict[str, Any]:
        return self.judge.usage.to_dict()

    def rank(self, rows: Sequence[Row], answers: Sequence[Sequence[str]], tokenizer: Any = None) -> Ranking:
        from aligntune.grading.extract import strip_reasoning

        bodies = [[strip_reasoning(text) for text in texts] for texts in answers]
        places = [(n, i, j) for n, texts in enumerate(bodies) for i, j in combinations(range(len(texts)), 2)]
        counts: Counter[str] = Counter()
        points: list[list[list[float]]] = [[[] for _ in texts] for texts in bodies]
        wins: list[set[tuple[int, int]]] = [set() for _ in bodies]
        for (n, i, j), one in zip(places, self._compared(rows, bodies, places), strict=True):
            if one.winner is None:
                counts[f"judge/{one.problem}"] += 1
                continue
            counts["judge/tie"] += one.winner == "tie"
            first = {"first": 1.0, "tie": 0.5, "second": 0.0}[one.winner]
            points[n][i].append(first)
            points[n][j].append(1.0 - first)
            if one.winner != "tie":
                wins[n].add((i, j) if one.winner == "first" else (j, i))
        scores = [[sum(won) / len(won) if won else None for won in row] for row in points]
        return Ranking(scores, [frozenset(found) for found in wins], +counts)

    def _compared(
        self, rows: Sequence[Row], bodies: list[list[str]], places: list[tuple[int, int, int]]
    ) -> list[Comparison]:
        """One comparison for each place; one blank answer loses unasked."""
        from aligntune.rewards.judges import Comparison, compare

        asked = [k for k, (n, i, j) in enumerate(places) if bool(bodies[n][i].strip()) == bool(bodies[n][j].strip())]
        told = [(rows[n]["prompt"], bodies[n][i], bodies[n][j]) for n, i, j in (places[k] for k in asked)]
        found = dict(zip(asked, compare(self.judge, told, self.rubric, self.limit), strict=True))
        return [
            found[k] if k in found else Comparison("first" if bodies[n][i].strip() else "second")
            for k, (n, i, _) in enumerate(places)
        ]


def score_answers(
    rewards: CompositeReward, rows: Sequence[Row], answers: Sequence[Sequence[str]], tokenizer: Any = None
) -> BatchScores:
    """The scores of all answers, those to one prompt together, in order.

    Args:
        rewards: what scores.
        rows: N rows; every column goes to the rewards.
        answers: N lists of texts.
        tokenizer: makes the column `completion_ids`.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row, texts in zip(rows, answers, strict=True) for _ in texts] for name in names}
    texts = [text for group in answers for text in group]
    if tokenizer is not None and texts:
        columns["completion_ids"] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return rewards.score_batch(texts, columns)


def make_ranker(config: PairsConfig, judge: Judge | None = None) -> Ranker:
    """The ranker of a configuration.

    Args:
        config: checked.
        judge: in place of the section `judge`.

    Raises:
        ConfigurationError: an unknown reward or parameter, a judge that nothing asks, or a margin that no two scores
            can have.
    """
    by, asked = ranked_by(config, judge=judge is not None), judge or config.judge
    ranker = _pairwise(config, asked) if by == "pairwise" else _rewarding(config, by, asked)
    if config.select.margin > ranker.width:
        raise ConfigurationError(
            f"select.margin is {config.select.margin:g}, and two scores differ by at most {ranker.width:g}",
            hint="lower select.margin",
        )
    return ranker


def _pairwise(config: PairsConfig, judge: Any) -> Ranker:
    from aligntune.rewards.judges import load_rubric, make_judge

    rubric = load_rubric(config.ranking.rubric or "pairwise")
    return PairwiseRanker(make_judge(judge), rubric, config.ranking.max_chars)


def _rewarding(config: PairsConfig, by: str | None, judge: Any) -> Ranker:
    from aligntune.core.config.sections import RewardConfig
    from aligntune.rewards.composite import build_rewards

    listed = list(config.rewards)
    if by == "reward_model":
        listed = [RewardConfig(type="reward_model", params={"path": config.ranking.reward_model})]
    elif by == "rubric":
        shown = {"rubric": config.ranking.rubric or "helpfulness", "max_chars": config.ranking.max_chars}
        listed = [RewardConfig(type="judge_rubric", params=shown)]
    rewards = build_rewards(listed, composition=config.composition, judge=judge)
    rewards.check_judge(judge)
    if by == "rewards":
        name = f"{config.composition.mode}: " if len(listed) > 1 else ""
        name += " + ".join(f"{c.weight:g} {c.name}" if len(listed) > 1 else c.name for c in rewards.components)
    else:
        name = f"reward_model: {config.ranking.reward_model}" if by == "reward_model" else _rubric_name(config, judge)
    settings = {"rewards": to_plain(listed), "composition": to_plain(config.composition)}
    if judge is not None:
        settings["judge"] = to_plain(judge) if judge is config.judge else judge.identity()
    return RewardRanker(rewards, name, settings)


def _rubric_name(config: PairsConfig, judge: Any) -> str:
    from aligntune.rewards.judges import load_rubric, make_judge

    rubric = load_rubric(config.ranking.rubric or "helpfulness")
    return f"rubric: {make_judge(judge).name}, rubric {rubric.name}-{rubric.version}"
