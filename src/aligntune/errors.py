"""The error hierarchy: every failure that a user can cause or mend has a class, a message and a hint.

    AlignTuneError
    +-- ConfigurationError (ValueError)    a setting is wrong                      exit code 2
    +-- ValidationError    (ValueError)    data or an argument is wrong            exit code 2
    +-- EnvironmentError   (OSError)       a package, device, file is missing      exit code 3
    +-- TrainingError      (RuntimeError)  a run failed                            exit code 1
    +-- RewardError        (RuntimeError)  a reward raised or left its contract    exit code 2

The message says what is wrong; the hint says what to do about it; `context` carries the values for programs.

>>> raise ConfigurationError("unknown key 'learning_rat'", hint="did you mean 'learning_rate'?")

Nothing here prints, logs or exits: that is the command line's work.
"""

from __future__ import annotations

from typing import Any


class AlignTuneError(Exception):
    """Base of all errors that AlignTune raises on purpose.

    Args:
        message: one sentence that names the offending value and where it stands.
        hint: the fix, as an action ("set train.max_steps to ..."); may be empty.
        context: values for programs (path, key, row ...); must be picklable.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", context: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context: dict[str, Any] = dict(context or {})

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.context)


def _rebuild(cls: type[AlignTuneError], message: str, hint: str, context: dict[str, Any]) -> AlignTuneError:
    return cls(message, hint=hint, context=context)


class ConfigurationError(AlignTuneError, ValueError):
    """A setting is unknown, of the wrong type, out of range, contradictory or without effect."""

    exit_code = 2


class ValidationError(AlignTuneError, ValueError):
    """Data or an argument does not have the form that it must have."""

    exit_code = 2


class EnvironmentError(AlignTuneError, OSError):
    """A package, device, permission or file of the environment is missing. Write `errors.EnvironmentError`."""

    exit_code = 3


class TrainingError(AlignTuneError, RuntimeError):
    """A run failed, or would train something other than what was asked for."""


class RewardError(AlignTuneError, RuntimeError):
    """A reward function raised, overran its deadline, or returned a value outside its contract."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its class where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
