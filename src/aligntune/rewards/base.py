"""What a reward is: a pure function of a text and its row's columns, with a declared range and kind.

    @reward("shouting", range=(0, 1), kind="measured")
    def shouting(text: str, *, most: float = 0.1) -> float:
        \"\"\"1 while at most this share of the letters are capitals, else 0.\"\"\"
        letters = [c for c in text if c.isalpha()]
        return float(sum(c.isupper() for c in letters) <= most * len(letters))

    get_reward_function("shouting", most=0.3).compute("HELLO there")      # 0.0

A score is a finite number inside the range, or None where the reward does not apply to the row. Anything else
is a `RewardError` that names the reward and the row. Weights, thresholds and normalisation live in
`CompositeReward` alone.

Source: the catalogue's contract; TRL's interface for batch functions. It does not find rewards by name
(`registry`).
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from aligntune import errors
from aligntune.errors import ConfigurationError, RewardError
from aligntune.registry import Registry
from aligntune.rewards.asynchronous import CONCURRENCY, gather
from aligntune.rewards.calling import batch_arguments, begun, number_of, source_of, value_of, verl_later, verl_score
from aligntune.rewards.deadline import DeadlineExceeded, Guard
from aligntune.rewards.signature import (
    GOLD,
    PROVIDED,
    VERL_GOLD,
    Signature,
    bind,
    gold_column,
    missing_columns,
    read_signature,
    verl_arguments,
)

Score = float | None
Kind = Literal["verifiable", "measured", "lexical", "reference", "model", "judge"]
KINDS: tuple[str, ...] = get_args(Kind)
UNBOUNDED = (-math.inf, math.inf)
USER_DEADLINE = 60.0
"""Seconds per text for a user's own reward. Ours: long enough for a call to a judge, short enough to notice a
hang."""

REWARDS: Registry[type[RewardFunction]] = Registry("reward")
F = TypeVar("F", bound=Callable[..., Any])
_events: ContextVar[Counter[str] | None] = ContextVar("reward_events", default=None)


def count(event: str) -> None:
    """Count something worth knowing about the text being scored (`timeout`, `gold_unparseable`); shown in the
    statistics."""
    counter = _events.get()
    if counter is not None:
        counter[event] += 1


def _row_by_row(score: Callable[[int], Score], count: int, failures: list[RewardError] | None) -> list[Score]:
    """`score(i)` of each row; a failure is collected and scores None, or is raised where nobody collects."""
    scores: list[Score] = []
    for i in range(count):
        try:
            scores.append(score(i))
        except RewardError as e:
            if failures is None:
                raise
            failures.append(e)
            scores.append(None)
    return scores


class RewardFunction:
    """Base class of all rewards. Subclass it for a reward with state (a model); use `@reward` for a function.

    A subclass writes `compute`, and may set the class attributes:

    Attributes:
        name: the key in the registry.
        kind: how it is decided, one of `KINDS`.
        range: (lowest, highest) possible score; a score outside is an error.
        columns: names of the data columns that it needs.
        deadline: seconds per text, kept by `deadline.Guard`; None sets none.
        params: the parameters that it was made with.
        whole: a text's score depends on the other texts of the batch.
    """

    name: str = ""
    kind: str = "verifiable"
    range: tuple[float, float] = UNBOUNDED
    columns: frozenset[str] | Sequence[str] = frozenset()
    deadline: float | None = USER_DEADLINE
    params: Mapping[str, Any] = {}
    whole: bool = False

    def __init__(self, **params: Any) -> None:
        if params:
            raise ConfigurationError(
                f"reward '{self.label}' has no parameter '{next(iter(params))}'",
                hint=f"{type(self).__name__}.__init__ takes none",
            )

    @property
    def label(self) -> str:
        """The name in messages."""
        return self.name or type(self).__name__

    if not TYPE_CHECKING:  # a type checker takes it for the class's own name
        __name__ = property(lambda self: self.label, doc="What TRL logs it as.")

    @property
    def source(self) -> str:
        """Source text of the class, for the run's manifest; its qualified name where the text is not to be
        had."""
        return source_of(type(self))

    @property
    def concurrent(self) -> bool:
        """Whether scoring waits for something else than this process, so that other rewards may compute meanwhile."""
        return self.kind == "judge"

    def missing(self, present: Sequence[str] | Mapping[str, Any]) -> list[str]:
        """The columns that it needs and that are not there; any gold column stands for `reference`."""
        return missing_columns(self.columns, present)

    def reads(self, present: Sequence[str] | Mapping[str, Any]) -> frozenset[str]:
        """Those of the data's columns that it reads."""
        have = set(present)
        names = set(self.columns)
        names |= {gold_column(dict.fromkeys(present)) or GOLD} if GOLD in names - have else set()
        return frozenset(names & have) - PROVIDED

    def place(self, device: str) -> None:
        """Told where the run computes ("auto", "cpu", "cuda", "mps"), before the first score; for rewards that hold a
        model."""

    def prepare(self) -> None:
        """Called before a run begins, to fail early where something outside this process is missing (an endpoint)."""

    def gauges(self) -> Mapping[str, float]:
        """Running numbers for the logs, by name, such as what a judge has cost."""
        return {}

    def compute(self, text: str, **kwargs: Any) -> float | None:
        """Score one text.

        Args:
            text: the completion alone, without the prompt.
            kwargs: the row's columns.

        Returns:
            A number inside `range`, or None where the reward does not apply.
        """
        raise NotImplementedError(f"{type(self).__name__} has no compute(text, **columns)")

    def score(self, text: str, row: int = 0, columns: Mapping[str, Any] | None = None) -> Score:
        """`compute` under the deadline, with the result checked.

        Raises:
            RewardError: it raised, overran, or returned something other than a number in range or None.
        """
        columns = columns or {}
        named = {k: v for k, v in columns.items() if k not in ("self", "text")}  # a column `text` cannot be had
        return self.checked(
            self._guarded(lambda: self.compute(text, **named), self.deadline, row, columns), row, columns
        )

    def batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        failures: list[RewardError] | None = None,
    ) -> list[Score]:
        """Score many texts; the same numbers as one by one.

        Args:
            texts: completions, N.
            columns: data columns, N values each.
            extras: what TRL gives to batch functions beside columns (`trainer_state`, `log_metric`).
            failures: collects `RewardError`s, whose rows then score None; without it the first one is raised.
        """
        given = columns or {}
        return _row_by_row(lambda i: self.score(texts[i], i, {k: v[i] for k, v in given.items()}), len(texts), failures)

    def together(
        self,
        call: Callable[[], Any],
        count: int,
        columns: Mapping[str, Sequence[Any]],
        failures: list[RewardError] | None,
    ) -> list[Score]:
        """Scores of one call for a whole batch, each checked; for subclasses that score many texts at once.

        Args:
            call: gives one value for each row, within the deadline of all of them.
            count: rows.
            columns: data columns, for messages.
            failures: as for `batch`; where the call itself fails, every row is without a score.
        """
        limit = None if self.deadline is None else self.deadline * max(count, 1)
        first = {k: v[0] for k, v in columns.items() if len(v)}
        try:
            values = self._guarded(call, limit, 0, first)
            if not hasattr(values, "__len__") or len(values) != count:
                raise self._error(f"returned {_short(values)} for {count} completions, not one score each", 0, first)
        except RewardError as e:
            if failures is None:
                raise
            failures.extend([e] * count)
            return [None] * count
        return _row_by_row(lambda i: self.checked(values[i], i, {k: v[i] for k, v in columns.items()}), count, failures)

    def checked(self, value: Any, row: int, columns: Mapping[str, Any]) -> Score:
        """`value` as a float, or None. Raises `RewardError` where it breaks the contract."""
        if value is None:
            return None
        if hasattr(value, "item") and getattr(value, "shape", None) == ():
            value = value.item()  # a scalar of numpy or torch
        if not isinstance(value, numbers.Real):
            raise self._error(f"returned {_short(value)}, which is not a number", row, columns)
        number = number_of(value)
        if not math.isfinite(number):
            raise self._error(f"returned {number}, which is not finite", row, columns)
        low, high = self.range
        if not low <= number <= high:
            raise self._error(f"returned {number:g}, outside its range [{low:g}, {high:g}]", row, columns)
        return number

    def _guarded(self, call: Callable[[], Any], deadline: float | None, row: int, columns: Mapping[str, Any]) -> Any:
        def guarded() -> Any:
            if deadline is None:
                return call()
            guard = self.__dict__.get("_guard") or self.__dict__.setdefault("_guard", Guard())
            return guard.call(call, deadline)

        return self._told(guarded, row, columns)

    def _told(self, call: Callable[[], Any], row: int, columns: Mapping[str, Any]) -> Any:
        """What `call` gives; what it raises, as an error that names the reward and the row."""
        try:
            return call()
        except DeadlineExceeded as e:
            raise self._error(f"overran its deadline: {e}", row, columns) from e
        except (RewardError, errors.EnvironmentError):
            raise  # already says what is wrong and how to mend it
        except ConfigurationError as e:
            raise self._error(e.message, row, columns, e.hint, ConfigurationError) from e
        except (Exception, SystemExit) as e:  # user code: whatever it raises must name the reward and the row
            raise self._error(f"raised {type(e).__name__}: {_short(e)}", row, columns) from e

    def _error(self, what: str, row: int, columns: Mapping[str, Any], hint: str = "", kind: Any = RewardError) -> Any:
        where = f"row {row}" + (f", prompt {_short(columns['prompt'])}" if "prompt" in columns else "")
        return kind(
            f"reward '{self.label}' {what} ({where})",
            hint=hint or "mend the reward, or set on_error: skip to count such rows and leave them out",
            context={"reward": self.label, "row": row},
        )

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Sequence[Score]:
        """TRL's signature, for its own trainers: `GRPOTrainer(reward_funcs=[reward])`; see `adapters.score_as_trl`."""
        from aligntune.rewards.adapters import score_as_trl

        return score_as_trl(self, prompts, completions, columns)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_guard"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.params.items())})"


class FunctionReward(RewardFunction):
    """A reward made of one function; `@reward` and `reward_class` make the subclasses."""

    fn: ClassVar[Callable[..., Any]]
    signature: ClassVar[Signature]
    origin: ClassVar[str | None] = None
    check: ClassVar[Callable[[dict[str, Any]], None] | None] = None
    concurrency: ClassVar[int] = CONCURRENCY

    def __init__(self, **params: Any) -> None:
        self.params = self.signature.check(self.label, params)
        self.columns = self.signature.columns(self.params)
        check = type(self).check
        if check is not None:
            try:
                check({**self.signature.defaults, **self.params})
            except ValueError as e:
                raise ConfigurationError(f"reward '{self.label}': {e}", hint=self.signature.listing) from e

    @property
    def source(self) -> str:
        return source_of(inspect.unwrap(type(self).fn))

    @property
    def concurrent(self) -> bool:
        return self.signature.asynchronous or self.kind == "judge"

    def missing(self, present: Sequence[str] | Mapping[str, Any]) -> list[str]:
        return [] if self.signature.verl and VERL_GOLD in present else missing_columns(self.columns, present)

    def reads(self, present: Sequence[str] | Mapping[str, Any]) -> frozenset[str]:
        return self.signature.reads(self.params, present)

    def compute(self, text: str, **kwargs: Any) -> float | None:
        """Call the function with its parameters and the columns that it names."""
        fn = type(self).fn
        if self.signature.batch:
            columns = {k: [v] for k, v in kwargs.items()}
            given = batch_arguments(fn, [text], columns, {})
            call = {k: v for k, v in bind(self.signature, self.params, columns).items() if k not in given}
            result = self._one(lambda: fn(**given, **call))
            value: float | None = result[0]
            return value
        score: float | None = self._one(lambda: self._call(text, kwargs))
        return score

    def _call(self, text: str, row: Mapping[str, Any]) -> Any:
        """What the function gives for one text; of verl's mapping, its `score`."""
        fn = type(self).fn
        if not self.signature.verl:
            return fn(text, **bind(self.signature, self.params, row))
        given = fn(**verl_arguments(self.signature, text, self.params, row))
        return verl_later(given) if self.signature.asynchronous else verl_score(given)

    def _one(self, call: Callable[[], Any]) -> Any:
        """A call's value, waited for where it is a coroutine."""
        if not self.signature.asynchronous:
            return call()
        value = gather([call], None)[0]
        if isinstance(value, BaseException):
            raise value
        return value

    def score(self, text: str, row: int = 0, columns: Mapping[str, Any] | None = None) -> Score:
        if not self.signature.asynchronous or self.signature.batch:
            return super().score(text, row, columns)
        return self._together([text], {k: [v] for k, v in (columns or {}).items()}, None, first=row)[0]

    def batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        failures: list[RewardError] | None = None,
    ) -> list[Score]:
        fn, columns = type(self).fn, columns or {}
        if not self.signature.batch:
            if self.signature.asynchronous:
                return self._together(texts, columns, failures)
            return super().batch(texts, columns, extras=extras, failures=failures)
        given = batch_arguments(fn, texts, columns, extras or {})
        call = {k: v for k, v in bind(self.signature, self.params, columns).items() if k not in given}
        return self.together(lambda: self._one(lambda: fn(**given, **call)), len(texts), columns, failures)

    def _together(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        failures: list[RewardError] | None,
        first: int = 0,
    ) -> list[Score]:
        """Scores of an asynchronous function, `concurrency` texts at a time; the row that fails first is told."""
        rows = [{k: v[i] for k, v in columns.items() if k not in ("self", "text")} for i in range(len(texts))]
        calls = [partial(begun, self._call, text, row) for text, row in zip(texts, rows, strict=True)]
        values = gather(calls, self.deadline, self.concurrency)

        def score(i: int) -> Score:
            value = self._told(partial(value_of, values[i]), first + i, rows[i])
            return self.checked(value, first + i, rows[i])

        return _row_by_row(score, len(texts), failures)

    def __reduce__(self) -> tuple[Any, ...]:
        how = self.origin or (type(self).fn, self._options())
        state = {k: v for k, v in self.__getstate__().items() if k not in ("params", "columns")}
        return _rebuild, (how, dict(self.params)), state

    def _options(self) -> dict[str, Any]:
        kept = ("name", "kind", "range", "deadline", "check", "concurrency")
        return {k: getattr(type(self), k) for k in kept}


def reward_class(
    fn: Callable[..., Any],
    name: str,
    *,
    kind: str = "verifiable",
    range: tuple[float, float] = UNBOUNDED,
    deadline: float | None = USER_DEADLINE,
    check: Callable[[dict[str, Any]], None] | None = None,
    origin: str | None = None,
    concurrency: int = CONCURRENCY,
) -> type[FunctionReward]:
    """The `RewardFunction` class of a function; `MathCorrectnessReward` for the name `math_correctness`.

    Raises:
        ConfigurationError: an unknown kind, an empty range, or a signature that takes no text.
    """
    if kind not in KINDS:
        raise ConfigurationError(f"reward '{name}' has the unknown kind '{kind}'", hint=f"kinds: {', '.join(KINDS)}")
    low, high = float(range[0]), float(range[1])
    if not low < high:
        raise ConfigurationError(
            f"reward '{name}' declares the range [{low:g}, {high:g}]", hint="write range=(low, high)"
        )
    if concurrency < 1:
        raise ConfigurationError(f"reward '{name}' has the concurrency {concurrency}", hint="write a number from 1 up")
    signature = read_signature(fn, name)
    if "deadline" in signature.defaults:
        deadline = None  # the function keeps its own deadline
    title = "".join(part.capitalize() for part in name.removesuffix("_reward").replace("-", "_").split("_"))
    body = {
        "name": name, "kind": kind, "range": (low, high), "deadline": deadline, "fn": staticmethod(fn),
        "signature": signature, "origin": origin, "check": staticmethod(check) if check else None,
        "concurrency": concurrency,
        "__doc__": inspect.getdoc(fn) or "", "__module__": getattr(fn, "__module__", __name__),
    }  # fmt: skip
    cls = type(f"{title}Reward", (FunctionReward,), body)
    # The registry tells definitions apart by this name: two functions are two rewards, one executed again is one.
    cls.__qualname__ = f"{getattr(fn, '__qualname__', name)}:{cls.__name__}"
    return cls


def reward(
    name: str,
    *,
    range: tuple[float, float] = (0.0, 1.0),
    kind: Kind = "verifiable",
    deadline: float | None = None,
    check: Callable[[dict[str, Any]], None] | None = None,
    concurrency: int = CONCURRENCY,
    replace: bool = False,
) -> Callable[[F], F]:
    """Make a function a reward and register it under `name`. The function itself stays as it was.

    Parameters, their defaults and the columns that it needs are read from its signature (`signature`).

    Args:
        name: key in YAML and in logs.
        range: (lowest, highest) score; (0, 1) as everywhere in the catalogue.
        kind: how the score is decided.
        deadline: seconds per text, kept from outside. A function with a parameter `deadline` keeps its own
            instead. None sets none, for functions that run in linear time; rewards outside the package then
            get `USER_DEADLINE`.
        check: called with all parameters when the reward is made; raises ValueError where they contradict
            each other.
        concurrency: texts of an `async def` function that are under way at the same time.
        replace: put it in the place of a reward of that name.

    Raises:
        ConfigurationError: the name is taken by another reward, and `replace` is false.
    """

    def decorate(fn: F) -> F:
        builtin = fn.__module__.startswith("aligntune.")
        limit = deadline if deadline is not None or builtin else USER_DEADLINE
        cls = reward_class(
            fn, name, kind=kind, range=range, deadline=limit, check=check, concurrency=concurrency,
            origin=name if builtin else None,
        )  # fmt: skip
        fn.reward_class = cls  # type: ignore[attr-defined]
        REWARDS.add(name, cls, replace=replace)
        return fn

    return decorate


def _rebuild(how: Any, params: dict[str, Any]) -> RewardFunction:
    """Unpickle: a built-in by name, `file.py:fn` and `module:fn` by path, anything else by its function."""
    if isinstance(how, str):
        from aligntune.rewards.registry import resolve

        return resolve(how)(**params)
    fn, options = how
    return reward_class(fn, **options)(**params)


def _short(value: Any, limit: int = 80) -> str:
    """A value in one line of at most `limit` characters; of a conversation, the last message."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content", value)
    text = str(value) if isinstance(value, BaseException) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
