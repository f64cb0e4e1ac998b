"""`ModelReward`: what the rewards that hold a local model have in common.

    class Words(ModelReward):
        name, kind = "words", "model"

        def setup(self, path: str, *, batch_size: PositiveInt = 16) -> None:
            self.scorers = {"model": Embedder(path, batch_size=batch_size)}

        def scores(self, texts, columns):
            return [float(len(v)) for v in self.scorers["model"].embed(texts)]

The parameters are those of `setup`, checked against its annotations; an unknown one is refused with the list of those
there are. The model is read at the first score, before the clock of any deadline, and is moved where the run computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from aligntune.errors import ConfigurationError, RewardError
from aligntune.rewards.base import RewardFunction, Score
from aligntune.rewards.models.base import LocalModel
from aligntune.rewards.signature import GOLD, Signature, gold_column, read_signature


class ModelReward(RewardFunction):
    """Base class of rewards by a local model. A subclass writes `setup` and `scores`.

    Attributes:
        scorers: the models that it holds, by a name for the manifest; `setup` sets it.
    """

    kind = "model"
    deadline = None
    parameters: ClassVar[Signature]
    scorers: Mapping[str, LocalModel]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.parameters = read_signature(cls.setup, cls.name or cls.__name__)
        named = list(inspect.signature(cls.setup).parameters.values())[1:]
        cls.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]

    def __init__(self, *values: Any, **params: Any) -> None:
        names = [*self.parameters.required, *self.parameters.defaults]
        given = {**dict(zip(names, values, strict=False)), **params}
        missing = [name for name in self.parameters.required if given.get(name) is None]
        if missing:
            raise ConfigurationError(f"reward '{self.name}' needs {' and '.join(missing)}", hint=self._hint(missing))
        try:
            self.params = {**self.parameters.defaults, **self.parameters.check(self.name, given)}
            self.setup(**self.params)
        except ConfigurationError as e:
            said = e.message if e.message.startswith("reward '") else f"reward '{self.name}': {e.message}"
            raise ConfigurationError(said, hint=e.hint, context=e.context) from e
        except ValueError as e:
            raise ConfigurationError(f"reward '{self.name}': {e}", hint=f"its parameters: {', '.join(names)}") from e

    @staticmethod
    def _hint(missing: list[str]) -> str:
        examples = {"path": "<folder or hub id>", "paths": "[<folder>, <folder>]"}
        return "params: {" + ", ".join(f"{name}: {examples.get(name, '...')}" for name in missing) + "}"

    def setup(self, *args: Any, **params: Any) -> None:
        """Make `scorers`, and keep what `scores` needs. Its signature is the reward's list of parameters.

        Raises:
            ValueError: parameters that contradict each other.
        """
        raise NotImplementedError(f"{type(self).__name__} has no setup(path, ...)")

    def scores(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Sequence[Score]:
        """One score for each of N texts; columns hold N values each."""
        raise NotImplementedError(f"{type(self).__name__} has no scores(texts, columns)")

    @property
    def source(self) -> str:
        """Name, revision and hash of the weights of each model."""
        return "\n".join(f"{name} {scorer.source}" for name, scorer in self.scorers.items())

    def place(self, device: str) -> None:
        """Score on `device` ("auto", "cpu", "cuda" or "mps"); loaded weights move there at the next use."""
        for scorer in self.scorers.values():
            scorer.place(device)

    def compute(self, text: str, **kwargs: Any) -> float | None:
        """The score of one text; the same number as in a batch."""
        return self.scores([text], {k: [v] for k, v in kwargs.items()})[0]

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
        for scorer in self.scorers.values():
            scorer.load()  # outside what can be skipped: without its model no row has a score
        return self.together(lambda: self.scores(list(texts), given), len(texts), given, failures)

    def column(self, columns: Mapping[str, Sequence[Any]], name: str) -> Sequence[Any]:
        """A column that the reward needs; any gold column stands for `reference`.

        Raises:
            ConfigurationError: there is none.
        """
        found = name if name in columns else gold_column(columns) if name == GOLD else None
        if found is None:
            raise ConfigurationError(
                f"needs '{name}', which is no column of the data",
                hint=f"the data have: {', '.join(sorted(columns)) or 'no columns'}; map one with column_mapping",
            )
        return columns[found]
