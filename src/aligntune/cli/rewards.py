"""`aligntune rewards`: the reward functions that a run can name. Each file `rewards_<name>.py` adds one command."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from aligntune.cli.console import Family, Output, Settings, shared, table

if TYPE_CHECKING:
    from aligntune.rewards.registry import RewardInfo


@click.group("rewards", cls=Family, short_help="List, test, score and audit the reward functions.")
def command() -> None:
    """The reward functions that a run can name in `rewards:`."""


@command.command("list", short_help="List the rewards.")
@click.option("--kind", metavar="KIND", help="Only this kind: verifiable, measured, lexical, reference, model, judge.")
@shared
def list_all(settings: Settings, kind: str | None) -> Output:
    """List the rewards with their kind, their range and what they reward."""
    from aligntune.errors import ConfigurationError
    from aligntune.registry import nearest
    from aligntune.rewards import RewardRegistry
    from aligntune.rewards.base import KINDS

    if kind is not None and kind not in KINDS:
        raise ConfigurationError(f"there is no kind of reward '{kind}'", hint=nearest(kind, KINDS))
    found = [RewardRegistry.describe(name) for name in RewardRegistry.list_rewards()]
    found = [info for info in found if kind in (None, info.kind)]
    rows = [[info.name, info.kind, _range(info), info.summary] for info in found]
    return Output([asdict(info) for info in found], table(rows, ["reward", "kind", "range", "what it rewards"]))


@command.command("show", short_help="Show a reward's parameters and text.")
@click.argument("name")
@shared
def show(settings: Settings, name: str) -> Output:
    """Show the range, the columns, the parameters and the documentation of the reward NAME (or file.py:function)."""
    import inspect

    from aligntune.rewards.registry import RewardRegistry, resolve

    info = RewardRegistry.describe(name)
    text = inspect.getdoc(resolve(name)) or ""
    columns = ", ".join(info.columns) or "none beside the text"
    lines = [f"{info.name}: {info.kind}, range {_range(info)}", f"columns: {columns}", "parameters:"]
    lines += [f"  {key} = {value!r}" for key, value in info.parameters.items()] or ["  none"]
    return Output({**asdict(info), "documentation": text}, "\n".join([*lines, "", text]))


def _range(info: RewardInfo) -> str:
    return f"{info.range[0]:g} to {info.range[1]:g}"
