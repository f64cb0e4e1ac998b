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
from typing import Any, ClassVar, Literal, TypeVar, get_args

from aligntune import errors
from aligntune.errors import ConfigurationError, RewardError
from aligntune.registry import Registry
from aligntune.rewards.deadline import DeadlineExceeded, Guard
from aligntune.rewards.signature import Signature, bind, gold_column, read_signature

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
    """

    name: str = ""
    kind: str = "verifiable"
    range: tuple[float, float] = UNBOUNDED
    columns: frozenset[str] | Sequence[str] = frozenset()
    deadline: float | None = USER_DEADLINE
    params: Mapping[str, Any] = {}

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

    @property
    def source(self) -> str:
        """Source text of the class, for the run's manifest; its qualified name where the text is not to be
        had."""
        return _source(type(self))

    def place(self, device: str) -> None:
        """Told where the run computes ("auto", "cpu", "cuda", "mps"), before the first score; for rewards that hold a
        model."""

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
        number = float(value)
        if not math.isfinite(number):
            raise self._error(f"returned {number}, which is not finite", row, columns)
        low, high = self.range
        if not low <= number <= high:
            raise self._error(f"returned {number:g}, outside its range [{low:g}, {high:g}]", row, columns)
        return number

    def _guarded(self, call: Callable[[], Any], deadline: float | None, row: int, columns: Mapping[str, Any]) -> Any:
        try:
            if deadline is None:
                return call()
            guard = self.__dict__.get("_guard") or self.__dict__.setdefault("_guard", Guard())
            return guard.call(call, deadline)
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

    def __init__(self, **params: Any) -> None:
        self.params = self.signature.check(self.label, params)
        self.columns = self.signature.columns(self.params)
        check = type(self).check
        if check is not None:
            try:
                check({**self.signature.defaults, **self.params})
            except ValueError as e:
                raise ConfigurationError(f"reward '{self.label}': {e}", hint=_describe(self.signature)) from e

    @property
    def source(self) -> str:
        return _source(inspect.unwrap(type(self).fn))

    def compute(self, text: str, **kwargs: Any) -> float | None:
        """Call the function with its parameters and the columns that it names."""
        fn = type(self).fn
        if self.signature.batch:
            call = bind(self.signature, self.params, {k: [v] for k, v in kwargs.items()})
            result = fn(**_batch_arguments(fn, [text], {k: [v] for k, v in kwargs.items()}, {}), **call)
            value: float | None = result[0]
            return value
        score: float | None = fn(text, **bind(self.signature, self.params, kwargs))
        return score

    def batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        failures: list[RewardError] | None = None,
    ) -> list[Score]:
        if not self.signature.batch:
            return super().batch(texts, columns, extras=extras, failures=failures)
        fn, columns = type(self).fn, columns or {}
        given = _batch_arguments(fn, texts, columns, extras or {})
        call = {k: v for k, v in bind(self.signature, self.params, columns).items() if k not in given}
        return self.together(lambda: fn(**given, **call), len(texts), columns, failures)

    def __reduce__(self) -> tuple[Any, ...]:
        how = self.origin or (type(self).fn, self._options())
        state = {k: v for k, v in self.__getstate__().items() if k not in ("params", "columns")}
        return _rebuild, (how, dict(self.params)), state

    def _options(self) -> dict[str, Any]:
        kept = ("name", "kind", "range", "deadline", "check")
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
    signature = read_signature(fn, name)
    if "deadline" in signature.defaults:
        deadline = None  # the function keeps its own deadline
    title = "".join(part.capitalize() for part in name.removesuffix("_reward").replace("-", "_").split("_"))
    body = {
        "name": name, "kind": kind, "range": (low, high), "deadline": deadline, "fn": staticmethod(fn),
        "signature": signature, "origin": origin, "check": staticmethod(check) if check else None,
        "__doc__": inspect.getdoc(fn), "__module__": getattr(fn, "__module__", __name__),
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

    Raises:
        ConfigurationError: the name is taken by another reward.
    """

    def decorate(fn: F) -> F:
        builtin = fn.__module__.startswith("aligntune.")
        limit = deadline if deadline is not None or builtin else USER_DEADLINE
        cls = reward_class(
            fn, name, kind=kind, range=range, deadline=limit, check=check, origin=name if builtin else None
        )
        fn.reward_class = cls  # type: ignore[attr-defined]
        REWARDS.add(name, cls)
        return fn

    return decorate


def missing_columns(required: frozenset[str] | Sequence[str], present: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The required columns that are not there; any gold column stands for `reference`."""
    have = set(present)
    return sorted(c for c in required if c not in have and not (c == "reference" and gold_column(dict.fromkeys(have))))


def _batch_arguments(
    fn: Callable[..., Any], texts: Sequence[str], columns: Mapping[str, Sequence[Any]], extras: Mapping[str, Any]
) -> dict[str, Any]:
    """`prompts`, `completions` and what else of TRL's own arguments the function names."""
    prompts = list(columns.get("prompt", [""] * len(texts)))
    completions = columns.get("completion")
    if completions is None:
        completions = [
            [{"role": "assistant", "content": t}] if isinstance(p, list) else t
            for p, t in zip(prompts, texts, strict=True)
        ]
    given = {"prompts": prompts, "completions": list(completions), **extras}
    if "completion_ids" in columns:
        given["completion_ids"] = columns["completion_ids"]
    parameters = inspect.signature(fn).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {k: v for k, v in given.items() if takes_all or k in parameters}


def _rebuild(how: Any, params: dict[str, Any]) -> RewardFunction:
    """Unpickle: a built-in by name, `file.py:fn` and `module:fn` by path, anything else by its function."""
    if isinstance(how, str):
        from aligntune.rewards.registry import resolve

        return resolve(how)(**params)
    fn, options = how
    return reward_class(fn, **options)(**params)


def _source(item: Any) -> str:
    try:
        return inspect.getsource(item)
    except (OSError, TypeError):  # defined in an interactive session, or a callable object
        return f"{getattr(item, '__module__', '')}:{getattr(item, '__qualname__', repr(item))}"


def _describe(signature: Signature) -> str:
    pairs = [*signature.required, *(f"{k} = {v!r}" for k, v in signature.defaults.items())]
    return f"its parameters: {', '.join(pairs)}"


def _short(value: Any, limit: int = 80) -> str:
    """A value in one line of at most `limit` characters; of a conversation, the last message."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content", value)
    text = str(value) if isinstance(value, BaseException) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
