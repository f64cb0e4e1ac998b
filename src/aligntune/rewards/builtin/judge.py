"""Rewards by a judge and a rubric of your choice: `judge_rubric`, and `judge_pairwise` against a reference answer.

    judge: {url: "http://localhost:8000/v1", model: Qwen/Qwen3-32B}
    rewards:
      - {type: judge_rubric, params: {rubric: my_rubric.yaml}}
      - {type: judge_pairwise, weight: 0.5}

Source: single-answer grading and pairwise comparison with swapped places of Zheng et al. 2023 (arXiv:2306.05685,
sections 3.1 and 3.4). How far a judge agrees with people has to be measured on labels of your own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from aligntune.errors import ConfigurationError
from aligntune.rewards.base import REWARDS, Score, count
from aligntune.rewards.judges.base import Judge, make_judge
from aligntune.rewards.judges.pairwise import compare
from aligntune.rewards.judges.reward import JUDGE, Judging, Parameters
from aligntune.rewards.judges.rubric import as_text, load_rubric
from aligntune.rewards.judges.scorers import column_text, make_scorer
from aligntune.rewards.signature import gold_column


class JudgeRubricReward(Judging):
    """A judge's verdict by any rubric, shipped or your own, in [0, 1].

    Args:
        rubric: the name of a shipped rubric, or the path of a YAML file.
        judge: a `JudgeConfig`, its keys, or a `Judge`; None takes the run's section `judge`.
        max_chars: most characters of a text that the judge is shown; a longer answer is counted as `truncated`.

    >>> from aligntune.rewards.judges import FunctionJudge
    >>> judge = FunctionJudge(lambda messages: '{"reason": "It helps.", "score": 5}')
    >>> get_reward_function("judge_rubric", rubric="helpfulness", judge=judge).compute("Yes.", prompt="Is it?")
    1.0
    """

    name = "judge_rubric"
    kind = "judge"
    known: ClassVar[Parameters] = JUDGE

    def setup(self, params: dict[str, Any]) -> None:
        if params["rubric"] is None or params["judge"] is None:
            missing = [name for name in ("rubric", "judge") if params[name] is None]
            raise ConfigurationError(
                f"reward 'judge_rubric' needs {' and '.join(missing)}",
                hint="params: {rubric: <name or file.yaml>}, and the section judge of the run",
            )
        self._scorer = make_scorer("judge", params)
        self.columns, self.may = self._scorer.columns, self._scorer.may

    @property
    def judge(self) -> Judge:
        """The judge that it asks."""
        return self._scorer.judge  # type: ignore[attr-defined, no-any-return]

    @property
    def source(self) -> str:
        """Who judges, by which rubric."""
        return f"judge_rubric: {self._scorer.name}"

    def place(self, device: str) -> None:
        self._scorer.place(device)

    def prepare(self) -> None:
        """Ask the judge a short question."""
        self._scorer.prepare()

    def scores(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Score]:
        return self._scorer.scores(texts, rows)


class JudgePairwiseReward(Judging):
    """1 where a judge prefers the answer to the row's `reference`, 0 where it prefers the reference, 0.5 for a tie.

    Both orders are asked, and only a verdict that they share counts; else the score is None, counted as `inconsistent`
    (`nonsense` and `judge_failed` likewise). Two equal texts are a tie unasked. A row without a reference is None,
    counted as `no_reference`.

    Args:
        rubric: with `form: winner`; a name or the path of a YAML file.
        judge: a `JudgeConfig`, its keys, or a `Judge`; None takes the run's section `judge`.
        max_chars: most characters of a text that the judge is shown.

    >>> from aligntune.rewards.judges import FunctionJudge
    >>> judge = FunctionJudge(lambda messages: '{"reason": "Alike.", "winner": "tie"}')
    >>> get_reward_function("judge_pairwise", judge=judge).compute("4", prompt="2 + 2?", reference="Four.")
    0.5
    """

    name = "judge_pairwise"
    kind = "judge"
    columns = frozenset({"reference"})
    known: ClassVar[Parameters] = {**JUDGE, "rubric": (str, "pairwise")}

    def setup(self, params: dict[str, Any]) -> None:
        if params["judge"] is None:
            raise ConfigurationError(
                "reward 'judge_pairwise' needs judge", hint="add the section judge to the run, or params.judge"
            )
        self.rubric = load_rubric(params["rubric"])
        if self.rubric.form != "winner":
            raise ConfigurationError(
                f"the rubric '{self.rubric.name}' scores one answer", hint="take type: judge_rubric for it"
            )
        self.judge, self.limit = make_judge(params["judge"]), params["max_chars"]

    @property
    def source(self) -> str:
        """Who judges, by which rubric."""
        return f"judge_pairwise: {self.judge.name}, rubric {self.rubric.tag}"

    def place(self, device: str) -> None:
        self.judge.place(device)

    def prepare(self) -> None:
        """Ask the judge a short question."""
        self.judge.check()

    def scores(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Score]:
        found: list[Score] = [None] * len(texts)
        there = [i for i, row in enumerate(rows) if gold_column(row) and column_text(row, "reference").strip()]
        for _ in range(len(texts) - len(there)):
            count("no_reference")
        pairs = [(as_text(rows[i].get("prompt")), texts[i], column_text(rows[i], "reference")) for i in there]
        for i, one in zip(there, compare(self.judge, pairs, self.rubric, self.limit), strict=True):
            if one.winner is None:
                count(one.problem)
            else:
                found[i] = {"first": 1.0, "tie": 0.5, "second": 0.0}[one.winner]
        return found


for _reward in (JudgeRubricReward, JudgePairwiseReward):
    REWARDS.add(_reward.name, _reward)
