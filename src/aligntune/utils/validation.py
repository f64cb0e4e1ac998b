"""`ConfigValidator`: every fault of a configuration at once, as a list.

>>> ConfigValidator().faults({"task": "instruction_following", "train": {"learning_rat": 1e-5}})
[('train.learning_rat', "unknown key; did you mean 'learning_rate'?"), ...]

It is `load_config` with its faults caught, and checks what that checks: keys, types, contradictions, and settings
without effect. It loads no data, model or rewards; `aligntune check FILE` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aligntune.core.config.io import Fault, load_config
from aligntune.errors import ConfigurationError


class ConfigValidator:
    """Checks configurations: a YAML file, plain values, or an object.

    Args:
        overrides: `key=value` strings that are applied first.
    """

    def __init__(self, overrides: Iterable[str] = ()) -> None:
        self.overrides = tuple(overrides)

    def faults(self, source: str | Path | Mapping[str, Any] | Any) -> list[Fault]:
        """(dotted key, sentence) for each fault; the key is empty where the whole is at fault. Empty if all is well."""
        try:
            load_config(source, overrides=self.overrides)
        except ConfigurationError as error:
            found = error.context.get("faults")
            if found:
                return [(str(key), str(sentence)) for key, sentence in found]
            return [("", f"{error.message}; {error.hint}" if error.hint else error.message)]
        return []

    def is_valid(self, source: str | Path | Mapping[str, Any] | Any) -> bool:
        """Whether there is no fault."""
        return not self.faults(source)

    def validate(self, source: str | Path | Mapping[str, Any] | Any) -> Any:
        """The resolved configuration.

        Raises:
            ConfigurationError: with every fault.
        """
        return load_config(source, overrides=self.overrides)
