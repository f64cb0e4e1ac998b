"""Keeping one backend out of another's run: flags, an import guard, a refusal, and a fingerprint of the training code.

Importing Unsloth rewrites classes of TRL, Transformers and PEFT for the rest of the process, and nothing undoes it.
So a TRL run refuses to start where Unsloth was imported, blocks its import from then on, and records a hash of the
code that it trains with. The three environment flags of the paper are set too, for programs that look at them; no
library reads them.

It does not isolate by itself: only a process does (`isolation: process`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from aligntune.core.fingerprint import fingerprint
from aligntune.errors import EnvironmentError

FLAGS = ("PURE_TRL_MODE", "TRL_ONLY_MODE", "DISABLE_UNSLOTH_FOR_TRL")
"""Set while TRL is selected, cleared for Unsloth (the paper, section 3.4.1)."""
FOREIGN = ("unsloth", "unsloth_zoo")
PATCHED_LIBRARIES = ("trl", "transformers", "peft")
"""What Unsloth replaces parts of, and must therefore be imported before."""


LEFT_BEHIND = ("UNSLOTH_", "TORCHINDUCTOR_", "TRITON_")
"""Beginnings of the variables that Unsloth goes on setting after its import, while it loads and trains."""
_changed: dict[str, tuple[str | None, str | None]] = {}  # by an import of Unsloth: variable to (before, after)
# The environment without Unsloth; where it was imported before this module, nobody can say whose its variables are.
_own: dict[str, str] = {} if any(p in sys.modules for p in FOREIGN) else dict(os.environ)


@contextlib.contextmanager
def watched_environment() -> Iterator[None]:
    """Remember which variables the block changes, so that other processes do not get them."""
    before = dict(os.environ)
    if not imported():
        _own.clear()
        _own.update(before)
    try:
        yield
    finally:
        for name in before.keys() | os.environ.keys():
            if before.get(name) != os.environ.get(name):
                _changed[name] = (before.get(name), os.environ.get(name))


def clean_environment() -> dict[str, str]:
    """This process's environment without what a backend changed in it, for the process of another one.

    Without the flags. Where Unsloth is imported here, every variable that it may go on setting (`LEFT_BEHIND`) gets the
    value that it had before that import. Another variable that somebody has set again since then is kept as it is now.
    """
    env = dict(os.environ)
    for name, (before, after) in _changed.items():
        if env.get(name) == after:
            env.pop(name, None)
            if before is not None:
                env[name] = before
    if imported():
        env = {k: v for k, v in env.items() if not k.startswith(LEFT_BEHIND)}
        env |= {k: v for k, v in _own.items() if k.startswith(LEFT_BEHIND)}
    return {k: v for k, v in env.items() if k not in FLAGS}


class _BlockedLoader:
    """Lets `find_spec` see the package, and refuses to execute it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        raise ImportError(
            f"'{self.name}' must not be imported in a run with `backend: trl`: it would replace the code that is "
            "training. Use it in another process, or set `backend: unsloth`."
        )


class _Guard:
    """A meta path finder that answers for Unsloth before the ordinary one does."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        if name.partition(".")[0] not in FOREIGN:
            return None
        # Every finder, since an editable installation brings one of its own.
        others = [f for f in sys.meta_path if not isinstance(f, _Guard) and hasattr(f, "find_spec")]
        spec = next((s for f in others if (s := f.find_spec(name, path, target)) is not None), None)
        if spec is not None:
            spec.loader = _BlockedLoader(name)  # type: ignore[assignment]
        return spec


def imported(packages: Sequence[str] = FOREIGN) -> list[str]:
    """Which of these packages this process has imported."""
    return [p for p in packages if p in sys.modules]


def no_telemetry() -> None:
    """Switch off the usage ping that TRL sends when a trainer is made (through huggingface_hub)."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if constants := sys.modules.get("huggingface_hub.constants"):  # read the environment before we wrote to it
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]


def enter_trl() -> None:
    """Set the flags and the guard for a TRL run.

    Raises:
        EnvironmentError: Unsloth is imported already.
    """
    if found := imported():
        raise EnvironmentError(
            f"`backend: trl` cannot run here: '{found[0]}' was imported in this process and has replaced parts of TRL",
            hint="start a fresh process (`aligntune train FILE`), or set `isolation: process`",
        )
    for flag in FLAGS:
        os.environ[flag] = "1"
    if not any(isinstance(f, _Guard) for f in sys.meta_path):
        sys.meta_path.insert(0, _Guard())  # type: ignore[arg-type]


def enter_unsloth() -> None:
    """Clear the flags and the guard, before Unsloth is imported.

    Raises:
        EnvironmentError: a library that Unsloth replaces parts of was imported before it.
    """
    if not imported() and (early := imported(PATCHED_LIBRARIES)):
        raise EnvironmentError(
            f"`backend: unsloth` cannot start here: '{early[0]}' was imported first, and Unsloth must come before it",
            hint="start a fresh process (`aligntune train FILE`), or set `isolation: process`",
        )
    for flag in FLAGS:
        os.environ.pop(flag, None)
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _Guard)]


def assert_unpatched() -> dict[str, Any]:
    """The fingerprint of a TRL process.

    Raises:
        EnvironmentError: part of the training code is Unsloth's.
    """
    found = fingerprint()
    if found["foreign"]:
        raise EnvironmentError(
            f"{len(found['foreign'])} parts of the training code were replaced by Unsloth, first {found['foreign'][0]}",
            hint="start a fresh process that does not import unsloth",
            context=found,
        )
    return found
