"""`Judging`: what the rewards that judge have in common.

    class Tone(Judging):
        name, kind, known = "tone", "judge", JUDGE

        def setup(self, params): ...
        def scores(self, texts, rows): ...

The parameters are those of the table `known`, checked against its annotations. A blank answer, or one that is all
thought, scores 0 and is counted as `empty`; the others reach `scores` without their thoughts, all of a batch at once.
It has no deadline: judges keep their own, and a local model runs as long as its texts are.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import PositiveInt

from aligntune.errors import ConfigurationError, RewardError
from aligntune.grading.extract import strip_reasoning
from aligntune.rewards.base import REWARDS, RewardFunction, Score, count
from aligntune.rewards.judges.rubric import MAX_CHARS
from aligntune.rewards.signature import Signature, gold_column

Parameters = dict[str, tuple[Any, Any]]
"""Name to (annotation, default)."""
JUDGE: Parameters = {"judge": (Any, None), "rubric": (str | None, None), "max_chars": (PositiveInt, MAX_CHARS)}
"""Parameters of every reward that asks a judge."""


class Judging(RewardFunction):
    """Base of the rewards here: parameters from a table, a scorer, and blank answers apart."""

    deadline = None
    parameters: ClassVar[Signature]
    range = (0.0, 1.0)
    may: frozenset[str] = frozenset()
    """Columns that it reads where the data have them."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        known = cls.__dict__.get("known")
        if known is not None:
            defaults = {name: default for name, (_, default) in known.items()}
            types = {name: annotation for name, (annotation, _) in known.items()}
            cls.parameters = Signature((), defaults, frozenset(defaults), False, False, "text", types)
            kind = inspect.Parameter.KEYWORD_ONLY
            cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
                [inspect.Parameter(name, kind, default=default) for name, default in defaults.items()]
            )

    def __init__(self, **params: Any) -> None:
        self.params = self.parameters.check(self.name, params)
        try:
            self.setup({**self.parameters.defaults, **self.params})
        except ConfigurationError as e:
            said = e.message if e.message.startswith("reward '") else f"reward '{self.name}': {e.message}"
            raise ConfigurationError(said, hint=e.hint, context=e.context) from e

    def setup(self, params: dict[str, Any]) -> None:
        """Make what `scores` needs out of all parameters."""
        raise NotImplementedError(f"{type(self).__name__} has no setup(params)")

    def gauges(self) -> Mapping[str, float]:
        """What the judge did so far, for all rewards that ask it: requests, answers from the cache, failures, tokens,
        cost."""
        judge = getattr(self, "judge", None)
        return {} if judge is None else judge.usage.gauges()

    def reads(self, present: Sequence[str] | Mapping[str, Any]) -> frozenset[str]:
        """Those of the data's columns that it reads: the ones that it needs, and those that it shows where they are."""
        wanted = set(self.may)
        gold = gold_column(dict.fromkeys(present)) if "reference" in wanted else None
        return super().reads(present) | frozenset((wanted | ({gold} if gold else set())) & set(present))

    def scores(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Score]:
        """One score for each of N answers, none of them blank, without their thoughts."""
        raise NotImplementedError(f"{type(self).__name__} has no scores(texts, rows)")

    def compute(self, text: str, **kwargs: Any) -> float | None:
        """The score of one answer; the same as in a batch."""
        return self._all([text], {k: [v] for k, v in kwargs.items()})[0]

    def batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        failures: list[RewardError] | None = None,
    ) -> list[Score]:
        if not texts:
            return []
        given = dict(columns or {})
        return self.together(lambda: self._all(texts, given), len(texts), given, failures)

    def _all(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Score]:
        bodies = {i: body for i, text in enumerate(texts) if (body := strip_reasoning(text).strip())}
        for _ in range(len(texts) - len(bodies)):
            count("empty")
        found: list[Score] = [0.0] * len(texts)
        if bodies:
            rows = [{name: values[i] for name, values in columns.items()} for i in bodies]
            for i, score in zip(bodies, self.scores(list(bodies.values()), rows), strict=True):
                found[i] = score
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.name, dict(self.params), self.deadline)


def _remake(name: str, params: dict[str, Any], deadline: float | None) -> RewardFunction:
    made = REWARDS.get(name)(**params)
    made.deadline = deadline
    return made
